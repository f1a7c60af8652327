"""Images that make whoever reads their headers, or decodes them, work or take memory without an end.

Each is a whole image of `SIZE` that any viewer shows, but for what its name says.
"""

from __future__ import annotations

import functools
import io
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image

SIZE = (64, 48)
TIFF = b"II*\0\x08\0\0\0"


@functools.cache
def plain(kind: str) -> bytes:
    """An image without metadata; the header of its WebP says that there is a profile and EXIF data."""
    return _saved(Image.new("RGBA" if kind == "WEBP" else "RGB", SIZE, (200, 80, 20)), kind)


def _saved(image: Image.Image, kind: str, **more: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **more)
    data = buffer.getvalue()
    if kind == "WEBP" and data[12:16] != b"VP8X":
        sides = b"".join((side - 1).to_bytes(3, "little") for side in image.size)
        data = riff(chunk(b"VP8X", b"\x38\0\0\0" + sides) + data[12:])
    return data


def png_chunk(name: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def chunk(name: bytes, body: bytes = b"") -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def riff(chunks: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


def segment(marker: int, body: bytes = b"") -> bytes:
    return struct.pack(">BBH", 0xFF, marker, 2 + len(body)) + body


def png(more: bytes, *, at: int = 33) -> bytes:
    """With more after its header."""
    return plain("PNG")[:at] + more + plain("PNG")[at:]


def jpeg(more: bytes, whole: bytes | None = None) -> bytes:
    """With more before everything else."""
    whole = whole or plain("JPEG")
    return whole[:2] + more + whole[2:]


def webp(more: bytes, *, at: int = 30) -> bytes:
    """With more after its header; `at` is 12 for before it."""
    return riff(plain("WEBP")[12:at] + more + plain("WEBP")[at:])


def _filled(make: Callable[[bytes], bytes], part: bytes) -> Callable[[int], bytes]:
    return lambda size: make(part * (size // len(part)))


LONG: Mapping[str, Callable[[int], bytes]] = {
    # what the header is made of: the image, with as many bytes of it
    "PNG, empty chunks": _filled(png, png_chunk(b"teSt")),
    "PNG, empty pixels": _filled(png, png_chunk(b"IDAT")),
    "PNG, chunks of a byte": _filled(png, png_chunk(b"tEXt", b"x")),
    "PNG, frames of no pixels": _filled(png, png_chunk(b"fdAT")),
    "PNG, EXIF without an orientation": _filled(png, png_chunk(b"eXIf")),
    "JPEG, fill bytes": _filled(jpeg, b"\xff"),
    "JPEG, empty segments": _filled(jpeg, segment(0xFE)),
    "JPEG, segments of a byte": _filled(jpeg, segment(0xEB, b"x")),
    "JPEG, markers alone": _filled(jpeg, b"\xff\x01"),
    "JPEG, restarts": _filled(jpeg, b"\xff\xd0"),
    "JPEG, fill bytes and segments": _filled(jpeg, b"\xff" * 30 + segment(0xFE)),
    "JPEG, EXIF without an orientation": _filled(jpeg, segment(0xE1, b"Exif\0\0")),
    "WebP, empty chunks": _filled(webp, chunk(b"junk")),
    "WebP, chunks of a byte": _filled(webp, chunk(b"junk", b"x")),
    "WebP, empty frames": _filled(lambda more: riff(plain("WEBP")[12:] + more), chunk(b"ANMF")),
}
UNKNOWN_SIZE = {name for name in LONG if name.startswith("JPEG") and name != "JPEG, fill bytes"}
"""Those whose size lies behind more parts than are looked at."""


def tags(entries: int, size: int, length: int) -> bytes:
    """TIFF data whose every entry is the same bytes: `entries` times `length` once they are taken apart."""
    at = size - length
    table = b"".join(struct.pack("<HHII", 0x8000 + number, 7, length, at) for number in range(entries))
    return (TIFF + struct.pack("<H", entries) + table + bytes(4)).ljust(size, b"\0")


EXIF = tags(1500, 3_000_000, 2_900_000)  # gigabytes
SMALL_EXIF = tags(5000, 65_500, 5_000)
LOOP = TIFF + struct.pack("<H", 2) + b"".join(
    struct.pack("<HHII", tag, 4, 1, 8) for tag in (0x8769, 0x8825)
) + struct.pack("<I", 8)  # fmt: skip
UNPACKED = zlib.compress(bytes(200_000_000), 9)


def scans(times: int, size: tuple[int, int]) -> bytes:
    """A progressive JPEG whose last scan comes over and over."""
    whole = _saved(Image.new("L", size, 90), "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + whole[last:-2] * times + whole[-2:]


def frames(kind: str, times: int) -> bytes:
    """An animation of many frames."""
    images = [Image.new("RGB", SIZE, (number % 256, number // 256, 9)) for number in range(times)]
    return _saved(images[0], kind, save_all=True, append_images=images[1:])


def _exif_jpeg() -> bytes:
    pieces = [EXIF[at : at + 60_000] for at in range(0, len(EXIF), 60_000)]
    return jpeg(b"".join(segment(0xE1, b"Exif\0\0" + piece) for piece in pieces))


BOMBS: Mapping[str, Callable[[], bytes]] = {
    # what decoders stumble over that read more than pixels: the image
    "PNG, EXIF": lambda: png(png_chunk(b"eXIf", EXIF)),
    "PNG, EXIF after the pixels": lambda: png(png_chunk(b"eXIf", EXIF), at=-12),
    "PNG, EXIF as text": lambda: png(
        png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n 3000000\n" + EXIF.hex().encode()))
    ),
    "PNG, EXIF that leads to itself": lambda: png(png_chunk(b"eXIf", LOOP)),
    "PNG, a packed text": lambda: png(png_chunk(b"zTXt", b"Comment\0\0" + UNPACKED)),
    "PNG, a packed text in Unicode": lambda: png(png_chunk(b"iTXt", b"Comment\0\1\0\0\0" + UNPACKED)),
    "PNG, a packed colour profile": lambda: png(png_chunk(b"iCCP", b"profile\0\0" + UNPACKED)),
    "PNG, many frames": lambda: frames("PNG", 2_000),
    "JPEG, EXIF": _exif_jpeg,
    "JPEG, EXIF that leads to itself": lambda: jpeg(segment(0xE1, b"Exif\0\0" + LOOP)),
    "JPEG, further images": lambda: jpeg(segment(0xE2, b"MPF\0" + SMALL_EXIF)),
    "JPEG, Photoshop's": lambda: jpeg(segment(0xED, b"Photoshop 3.0\0" + b"8BIM\3\xed\0\0\0\0\0\0" * 5_000) * 100),
    "JPEG, a colour profile": lambda: jpeg(segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(65_000)) * 300),
    "JPEG, comments": lambda: jpeg(segment(0xFE, bytes(60_000)) * 300),
    "WebP, EXIF": lambda: riff(plain("WEBP")[12:] + chunk(b"EXIF", EXIF)),
    "WebP, EXIF that leads to itself": lambda: riff(plain("WEBP")[12:] + chunk(b"EXIF", LOOP)),
    "WebP, a colour profile": lambda: webp(chunk(b"ICCP", bytes(20_000_000))),
    "WebP, many frames": lambda: frames("WEBP", 2_000),
}
TOO_MUCH: Mapping[str, Callable[[], bytes]] = {
    # what is too much work to be decoded at all
    "JPEG, many scans": lambda: scans(400, (6000, 6000)),
    "JPEG, segments": lambda: LONG["JPEG, empty segments"](1_000_000),
    "PNG, chunks": lambda: LONG["PNG, empty chunks"](1_000_000),
    "PNG, a palette without an end": lambda: png(png_chunk(b"PLTE", bytes(30_000_000))),
}
LARGEST: Mapping[str, Callable[[], bytes]] = {
    # as many pixels as are decoded, in what has to be changed before it can be shrunk
    "PNG, grey with transparency": lambda: _saved(Image.new("LA", (6320, 6320)), "PNG"),
    "PNG, one colour is transparent": lambda: _saved(Image.new("RGB", (6320, 6320)), "PNG", transparency=(0, 0, 0)),
    "PNG, one grey is transparent": lambda: _saved(Image.new("L", (6320, 6320)), "PNG", transparency=0),
    "PNG, a palette with transparency": lambda: _saved(Image.new("P", (6320, 6320)), "PNG", transparency=0),
}
