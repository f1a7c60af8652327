"""What leaves this package as text: scrubbed, printable, within ranges."""
