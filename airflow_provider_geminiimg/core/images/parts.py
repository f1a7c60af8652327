"""Chunks and segments of PNG, JPEG and WebP files, found without decoding.

Invariants: the work is limited for all input. At most `MAX_PARTS` parts are read, and no single call of C code covers
more than `_WINDOW` bytes, because other threads wait for it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

MAX_PARTS = 65_536
"""Maximum number of parts read from one file: enough for a PNG of 64 MiB with parts of 1 KB. libpng uses 8 KB."""

_WINDOW = 1 << 20  # bytes
_PNG_HEAD, _WEBP_HEAD, _UINT16 = struct.Struct(">I4s"), struct.Struct("<4sI"), struct.Struct(">H")

JPEG_SCAN, JPEG_END = 0xDA, 0xD9
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of the segments with the image size; the other markers of that range are tables."""
_JPEG_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})


class TooManyPartsError(Exception):
    """A file has more than `MAX_PARTS` parts.

    :param offset: position of the next part.
    """

    def __init__(self, offset: int) -> None:
        super().__init__(f"It has more than {MAX_PARTS} parts.")
        self.offset = offset


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Iterate over the chunks up to ``IEND``: name, start and end of the content.

    :raises IndexError: the file is truncated.
    :raises TooManyPartsError: it has too many chunks.
    """
    offset = 8
    for _ in range(MAX_PARTS):
        length, name = _unpack(_PNG_HEAD, data, offset)
        start, offset = offset + 8, offset + 12 + length
        if offset > len(data):
            raise IndexError
        yield name, start, offset - 4
        if name == b"IEND":
            return
    raise TooManyPartsError(offset)


def webp_chunks(data: bytes, offset: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Iterate over the chunks between two positions: name, start and end of the content.

    :raises TooManyPartsError: there are too many chunks.
    """
    for _ in range(MAX_PARTS):
        if offset + 8 > end:
            return
        name, length = _unpack(_WEBP_HEAD, data, offset)
        yield name, offset + 8, min(offset + 8 + length, end)
        offset += 8 + length + length % 2
    raise TooManyPartsError(offset)


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Iterate over the segments up to the first scan or the end: marker, start and end of the content.

    :raises IndexError: the file is truncated, or contains something that is not a segment.
    :raises TooManyPartsError: there are too many segments.
    """
    offset = 2
    for _ in range(MAX_PARTS):
        if data[offset] != 0xFF:
            raise IndexError
        offset = _after_fill(data, offset)
        marker = data[offset]
        offset += 1
        if marker in _JPEG_ALONE:
            continue
        if marker in (JPEG_SCAN, JPEG_END):
            yield marker, offset, offset
            return
        end = offset + max(2, _unpack(_UINT16, data, offset)[0])
        yield marker, offset + 2, end
        offset = end
    raise TooManyPartsError(offset)


def find(data: bytes, wanted: bytes, start: int) -> int:
    """Like `bytes.find`, but lets other threads run in between."""
    for offset in range(start, len(data), _WINDOW):
        found = data.find(wanted, offset, offset + _WINDOW + len(wanted) - 1)
        if found >= 0:
            return found
    return -1


def count(data: bytes, wanted: bytes, start: int, end: int) -> int:
    """Like `bytes.count`, but lets other threads run in between."""
    windows = ((offset, min(offset + _WINDOW + len(wanted) - 1, end)) for offset in range(start, end, _WINDOW))
    return sum(data.count(wanted, *window) for window in windows)


def _after_fill(data: bytes, offset: int) -> int:
    """Return the position after any number of fill bytes."""
    size = 16
    while data[offset] == 0xFF:
        window = data[offset : offset + size]
        offset += len(window) - len(window.lstrip(b"\xff"))
        size = min(size * 16, _WINDOW)
    return offset


def _unpack(head: struct.Struct, data: bytes, offset: int) -> tuple[Any, ...]:
    try:
        return head.unpack_from(data, offset)
    except struct.error:
        raise IndexError from None
