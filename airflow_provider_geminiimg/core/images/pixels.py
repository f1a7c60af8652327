"""The pixel data of an image without any other data, as input for a decoder.

Invariants: no metadata (EXIF, colour profiles, texts, comments, previews) and no second frame reaches a decoder. The
number of remaining parts is small. Nothing is decoded here.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping

from airflow_provider_geminiimg.core.images.parts import (
    JPEG_FRAMES,
    JPEG_SCAN,
    count,
    find,
    jpeg_segments,
    png_chunks,
    webp_chunks,
)

MAX_DECODED = 500_000_000
"""Maximum of a JPEG's pixels times its scans, each of which may change every pixel: 12 scans at 40 megapixels. A
progressive JPEG has ten."""

_JPEG_TABLES = frozenset({0xC4, 0xCC, 0xDB, 0xDD}) | JPEG_FRAMES
_JPEG_COLOURS = {0xE0: (b"JFIF\0", b"\0\0", 14), 0xEE: (b"Adobe", b"", 12)}  # marker: start, end, length of its content
_WEBP_ANIMATED, _WEBP_ALPHA = 0x02, 0x10


def pixels_of(data: bytes, extension: str, pixels: int) -> bytes:
    """Return the image with its first frame, the data that is needed to decode it, and nothing else.

    :param data: a PNG, JPEG or WebP file that `inspect_image` accepts.
    :param extension: ``png``, ``jpg`` or ``webp``.
    :param pixels: number of its pixels.
    :raises ValueError: its parts are not a valid image, or need too much work.
    :raises IndexError: it is truncated.
    :raises TooManyPartsError: it has too many parts.
    """
    return _FORMATS[extension](data, pixels)


def _png(data: bytes, _: int) -> bytes:
    """Keep the header, palette and transparency, and one chunk with all pixels."""
    small: dict[bytes, bytes] = {}
    pixels = []
    for name, start, end in png_chunks(data):
        if name == b"IDAT":
            pixels.append(data[start:end])
        elif name in _PNG_SMALL and not pixels:
            if end - start > _PNG_SMALL[name]:
                raise ValueError("A chunk is too long.")
            small.setdefault(name, data[start:end])
    chunks = {**{name: small[name] for name in _PNG_SMALL if name in small}, b"IDAT": b"".join(pixels), b"IEND": b""}
    return b"".join([data[:8], *(part for name, body in chunks.items() for part in _png_chunk(name, body))])


_PNG_SMALL: Mapping[bytes, int] = {b"IHDR": 13, b"PLTE": 768, b"tRNS": 256}  # in file order, with maximum lengths


def _png_chunk(name: bytes, body: bytes) -> tuple[bytes, ...]:
    return struct.pack(">I", len(body)), name, body, struct.pack(">I", zlib.crc32(body, zlib.crc32(name)))


def _jpeg(data: bytes, pixels: int) -> bytes:
    """Keep the tables, the frame header, the colour information and the scans."""
    kept, colours, scan = [data[:2]], dict(_JPEG_COLOURS), len(data)
    for marker, start, end in jpeg_segments(data):
        if marker in _JPEG_TABLES:
            kept.append(data[start - 4 : end])
        elif marker == JPEG_SCAN:
            scan = start - 2
        elif marker in colours and data.startswith(colours[marker][0], start):
            _, last, length = colours.pop(marker)
            body = data[start : min(start + length - len(last), end)] + last
            kept.append(struct.pack(">BBH", 0xFF, marker, 2 + len(body)) + body)
    end = find(data, b"\xff\xd9", scan) + 2
    if end < scan:
        raise ValueError("It has no scan, or no end.")
    if count(data, b"\xff\xda", scan, end) * pixels > MAX_DECODED:
        raise ValueError("It has too many scans.")
    return b"".join([*kept, data[scan:end]])


def _webp(data: bytes, _: int) -> bytes:
    """Keep the first frame with its transparency."""
    parts: dict[bytes, bytes] = {}
    for name, start, end in webp_chunks(data, 12, len(data)):
        if name in _WEBP_PARTS:
            parts.setdefault(name, data[start:end])
        if name in _WEBP_FRAMES:
            break
    else:
        raise ValueError("It has no frame.")
    if header := parts.get(b"VP8X"):
        flags = header[0] & ((_WEBP_ANIMATED if b"ANMF" in parts else 0) | _WEBP_ALPHA)
        parts[b"VP8X"] = bytes([flags]) + header[1:10]
    body = b"".join(piece for name, content in parts.items() for piece in _webp_chunk(name, content))
    return b"".join([b"RIFF", struct.pack("<I", 4 + len(body)), b"WEBP", body])


_WEBP_FRAMES = (b"VP8 ", b"VP8L", b"ANMF")
_WEBP_PARTS = (b"VP8X", b"ANIM", b"ALPH", *_WEBP_FRAMES)


def _webp_chunk(name: bytes, content: bytes) -> tuple[bytes, ...]:
    return name, struct.pack("<I", len(content)), content, b"\0" * (len(content) % 2)


_FORMATS: Mapping[str, Callable[[bytes, int], bytes]] = {"png": _png, "jpg": _jpeg, "webp": _webp}
