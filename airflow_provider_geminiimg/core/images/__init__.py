"""Facts about image files, found without a decoder.

In reading order:

- `inspection`: format, size and completeness, and comparison with the request
- `parts`: the chunks and segments of a file
- `pixels`: the pixel data alone, for a decoder
"""
