"""The parts that PNG, JPEG and WebP files are made of, found without decoding any of them.

What must stay true: the work has an end whatever the bytes are. At most `MAX_PARTS` parts are looked at, and no single
call of C code runs over more than `_WINDOW` bytes, because other threads wait for it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

MAX_PARTS = 65_536
"""Parts of one file that are looked at: a PNG of 64 MiB has as many if each holds 1 KB. libpng makes parts of 8 KB."""

_WINDOW = 1 << 20  # bytes
_PNG_HEAD, _WEBP_HEAD, _UINT16 = struct.Struct(">I4s"), struct.Struct("<4sI"), struct.Struct(">H")

JPEG_SCAN, JPEG_END = 0xDA, 0xD9
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of the segments that hold the size; the others of that range are tables."""
_JPEG_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})


class TooManyPartsError(Exception):
    """A file has more than `MAX_PARTS` parts.

    :param offset: where the next one begins.
    """

    def __init__(self, offset: int) -> None:
        super().__init__(f"It has more than {MAX_PARTS} parts.")
        self.offset = offset


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """The name of each chunk up to ``IEND``, and where its content starts and ends.

    :raises IndexError: the file breaks off.
    :raises TooManyPartsError: it has too many.
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
    """The name of each chunk between two places, and where its content starts and ends.

    :raises TooManyPartsError: there are too many.
    """
    for _ in range(MAX_PARTS):
        if offset + 8 > end:
            return
        name, length = _unpack(_WEBP_HEAD, data, offset)
        yield name, offset + 8, min(offset + 8 + length, end)
        offset += 8 + length + length % 2
    raise TooManyPartsError(offset)


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """The marker of each segment up to the first scan or the end, and where its content starts and ends.

    :raises IndexError: the file breaks off, or goes on with what is no segment.
    :raises TooManyPartsError: there are too many.
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
    """As `bytes.find`, but other threads get their turn meanwhile."""
    for offset in range(start, len(data), _WINDOW):
        found = data.find(wanted, offset, offset + _WINDOW + len(wanted) - 1)
        if found >= 0:
            return found
    return -1


def count(data: bytes, wanted: bytes, start: int, end: int) -> int:
    """As `bytes.count`, but other threads get their turn meanwhile."""
    windows = ((offset, min(offset + _WINDOW + len(wanted) - 1, end)) for offset in range(start, end, _WINDOW))
    return sum(data.count(wanted, *window) for window in windows)


def _after_fill(data: bytes, offset: int) -> int:
    """Where fill bytes, of which there may be any number, have ended."""
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
