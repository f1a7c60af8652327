"""What image bytes are, found without a decoder."""
