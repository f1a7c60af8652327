"""What image bytes are, found without a decoder.

In reading order:

- `inspection`: kind, size, wholeness, and whether it is what was asked for
- `parts`: the parts that a file is made of
- `pixels`: the pixels without anything else, for a decoder
"""
