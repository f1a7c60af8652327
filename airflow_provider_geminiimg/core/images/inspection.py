"""Inspection of image bytes: format, size and completeness, and comparison with the request.

An image is paid for before its bytes are known, so this is the last check that detects an error page, an incomplete
download or an empty body before it is stored.

Invariants: bytes are only read, never decoded or rewritten, because images contain signed provenance data. Any input
results in an `ImageInfo` or an `InvalidImageError`, and no message repeats any of its bytes. A header of any length
takes less than about a tenth of a second. A header that is too long to be read completely does not make an image
invalid.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from airflow_provider_geminiimg.core.images.parts import (
    JPEG_FRAMES,
    JPEG_SCAN,
    TooManyPartsError,
    find,
    jpeg_segments,
    png_chunks,
    webp_chunks,
)
from airflow_provider_geminiimg.exceptions import InvalidImageError

MAX_IMAGE_BYTES = 64 * 1024 * 1024  # a 4K PNG of noise is about 50 MB

MAX_SIDE = 32_768
"""Pixels; a longer side means an invalid header. The longest side that a model makes is 12288 (8:1 at 4K)."""

RATIO_TOLERANCE = 0.03
"""Permitted relative difference of width / height from the request. Google's own tables differ by up to 2 %."""

_BLOCK = (
    16  # models round sides down to whole blocks of pixels: 1:8 at 1K was 352 x 2928, which differs by 14 pixels or 4 %
)

_NOMINAL_SIDE = {"512": 512, "1K": 1024, "2K": 2048, "4K": 4096}


@dataclass(frozen=True)
class ImageInfo:
    """The facts from an image's header.

    :param media_type: ``image/png``, ``image/jpeg`` or ``image/webp``.
    :param extension: ``png``, ``jpg`` or ``webp``.
    :param width: pixels as displayed: an orientation tag with a quarter turn swaps width and height. ``None`` if the
        header is too long to be read up to the size.
    :param height: pixels as displayed; ``None`` as for `width`.
    :param orientation: the EXIF orientation, from 1 (as stored) to 8.
    """

    media_type: str
    extension: str
    width: int | None
    height: int | None
    orientation: int = 1

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height, if they are known."""
        return None if self.width is None or self.height is None else (self.width, self.height)

    @property
    def stored_size(self) -> tuple[int, int] | None:
        """Width and height in pixels as a decoder returns them, before the orientation tag is applied."""
        return self.size and (self.size[::-1] if self.orientation in _QUARTER_TURNS else self.size)


def media_type_of(data: bytes) -> str | None:
    """Return the media type from the first bytes of an image; ``None`` if they are not an image."""
    return next((media_type for fits, media_type, *_ in _FORMATS if fits(data)), None)


def inspect_image(data: bytes) -> ImageInfo:
    """Return the format and size of an image from its magic bytes and header, and check that its end exists.

    :param data: the complete body, as it was received.
    :raises InvalidImageError: it is empty, HTML, SVG, another format, truncated, or has an invalid size.
    """
    if not data:
        raise InvalidImageError("The image is empty (0 bytes).")
    for fits, media_type, extension, measure in _FORMATS:
        if not fits(data):
            continue
        try:
            size, exif = measure(data)
        except IndexError:
            raise _cut(extension, len(data)) from None
        if size is None:
            return ImageInfo(media_type, extension, None, None)
        width, height = size
        if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
            raise InvalidImageError(f"The {extension} header declares an invalid size of {width} x {height} pixels.")
        orientation = _orientation(exif)
        shown = (height, width) if orientation in _QUARTER_TURNS else (width, height)
        return ImageInfo(media_type, extension, *shown, orientation)
    raise InvalidImageError(f"The body is {_looks_like(data)}, not a PNG, JPEG or WebP image ({len(data)} bytes).")


def mismatch(
    info: ImageInfo,
    *,
    resolution: str | None,
    aspect_ratio: str | None,
    listed: Sequence[tuple[int, int]] = (),
) -> str | None:
    """Describe in one sentence how an image differs from the request; ``None`` without a difference.

    The models keep the *area* of a resolution, not a side: in Google's table of output sizes 1K is 1024 x 1024, 1376 x
    768 (16:9), 1584 x 672 (21:9) and 384 x 3072 (1:8). Therefore an image's class is the power of two nearest to the
    square root of its area, which in that table is within 7 % of the nominal side.

    :param info: the image.
    :param resolution: ``512``, ``1K``, ``2K`` or ``4K``; other values and ``None`` are not compared.
    :param aspect_ratio: for example ``16:9``; ``None`` is not compared. The tolerance is `RATIO_TOLERANCE`, or one
        16-pixel block of the shorter side.
    :param listed: sizes from the model's own table for this request. An image near one of them always matches: for 21:9
        at 512, Google lists 792 x 168, which has another ratio and area.
    """
    if any(_near_listed(info, pixels) for pixels in listed):
        return None
    parts = []
    wanted, nominal = _ratio(aspect_ratio), _NOMINAL_SIDE.get(resolution or "")
    if info.size is None:
        asked = [str(each) for each, known in ((aspect_ratio, wanted), (resolution, nominal)) if known is not None]
        return f"The size of the image is not known; {' and '.join(asked)} was requested." if asked else None
    width, height = info.size
    if wanted is not None and not _near(width, height, wanted):
        parts.append(f"the requested aspect_ratio {aspect_ratio} is {wanted:.3f}, the actual one {width / height:.3f}")
    side = math.sqrt(width * height)
    if nominal is not None and round(math.log2(side)) != round(math.log2(nominal)):
        parts.append(f"the requested resolution is {resolution}, the actual area that of a {side:.0f} pixel square")
    if not parts:
        return None
    return f"The image has {width} x {height} pixels: {'; '.join(parts)}."


def _near_listed(info: ImageInfo, listed: tuple[int, int]) -> bool:
    pairs = zip(info.size or (), listed, strict=False)
    return info.size is not None and all(abs(came - stated) <= RATIO_TOLERANCE * stated for came, stated in pairs)


def _near(width: int, height: int, wanted: float) -> bool:
    if abs(width / height / wanted - 1) <= RATIO_TOLERANCE + 1e-9:
        return True
    short, ideal = (width, height * wanted) if wanted < 1 else (height, width / wanted)
    return abs(short - ideal) < min(_BLOCK, 0.05 * ideal)


def _ratio(text: str | None) -> float | None:
    width, _, height = (text or "").partition(":")
    try:
        return int(width) / int(height)
    except (ValueError, ZeroDivisionError):
        return None


def _cut(extension: str, size: int) -> InvalidImageError:
    return InvalidImageError(f"The {extension} image is incomplete or damaged: it ends after {size} bytes.")


def _uint(data: bytes, start: int, size: int, *, big: bool) -> int:
    """Read an unsigned integer; raise IndexError if the data is too short."""
    if start + size > len(data):
        raise IndexError
    return int.from_bytes(data[start : start + size], "big" if big else "little")


_QUARTER_TURNS = (5, 6, 7, 8)
_ORIENTATION_TAG, _SHORT = 0x0112, 3
_MAX_EXIF = 1 << 20  # bytes that are read
_MAX_ENTRIES = 1_000  # entries of its first directory that are read; usually there are a few dozen


def _orientation(exif: bytes) -> int:
    """Return the orientation from EXIF data; 1 if there is none or the data is damaged."""
    tiff = exif.removeprefix(b"Exif\0\0")
    big = tiff.startswith(b"MM")
    try:
        if tiff[:2] not in (b"II", b"MM") or _uint(tiff, 2, 2, big=big) != 42:
            return 1
        directory = _uint(tiff, 4, 4, big=big)
        entries = min(_uint(tiff, directory, 2, big=big), _MAX_ENTRIES)
        for entry in range(directory + 2, directory + 2 + 12 * entries, 12):
            if _uint(tiff, entry, 2, big=big) == _ORIENTATION_TAG:
                value = _uint(tiff, entry + 8, 2 if _uint(tiff, entry + 2, 2, big=big) == _SHORT else 4, big=big)
                return value if 1 <= value <= 8 else 1
    except IndexError:
        pass
    return 1


_Measured = tuple[tuple[int, int] | None, bytes]  # width and height if they are known, EXIF data
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"


def _measure_png(data: bytes) -> _Measured:
    if data[12:16] != b"IHDR" or _uint(data, 8, 4, big=True) != 13:
        raise _cut("png", len(data))
    has_pixels, exif = False, b""
    try:
        for name, start, end in png_chunks(data):
            has_pixels = has_pixels or name == b"IDAT"
            if name == b"eXIf" and not exif:
                exif = _exif(data, start, end)
    except TooManyPartsError as error:  # search for the remaining chunks instead of reading each
        has_pixels = has_pixels or find(data, b"IDAT", error.offset) >= 0
        if find(data, _PNG_END, error.offset) < 0:
            raise IndexError from None
    if not has_pixels:
        raise _cut("png", len(data))
    return (_uint(data, 16, 4, big=True), _uint(data, 20, 4, big=True)), exif


def _measure_jpeg(data: bytes) -> _Measured:
    size: tuple[int, int] | None = None
    marker, offset, exif = 0, 0, b""
    try:
        for marker, offset, end in jpeg_segments(data):
            if marker in JPEG_FRAMES:
                size = _uint(data, offset + 3, 2, big=True), _uint(data, offset + 1, 2, big=True)
            if marker == 0xE1 and not exif and data.startswith(b"Exif\0\0", offset):
                exif = _exif(data, offset, end)
    except TooManyPartsError as error:
        offset = find(data, b"\xff\xda", error.offset)
    else:
        if size is None or marker != JPEG_SCAN:
            raise _cut("jpg", len(data))
    # Search after the start of the scan, because an embedded thumbnail has its own end marker.
    if offset < 0 or find(data, b"\xff\xd9", offset) < 0:
        raise _cut("jpg", len(data))
    return size, exif


def _measure_webp(data: bytes) -> _Measured:
    end = _uint(data, 4, 4, big=False) + 8
    if end > len(data):
        raise IndexError
    kind, body = data[12:16], 20
    if kind == b"VP8X":
        size = _uint(data, body + 4, 3, big=False) + 1, _uint(data, body + 7, 3, big=False) + 1
        return size, _webp_exif(data, end)
    if kind == b"VP8L" and data[body] == 0x2F:
        bits = _uint(data, body + 1, 4, big=False)
        return ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1), b""
    if kind == b"VP8 " and data[body + 3 : body + 6] == b"\x9d\x01\x2a":
        return (_uint(data, body + 6, 2, big=False) & 0x3FFF, _uint(data, body + 8, 2, big=False) & 0x3FFF), b""
    raise _cut("webp", len(data))


def _webp_exif(data: bytes, end: int) -> bytes:
    """Return the EXIF chunk of an extended WebP; empty if it is not among the first `MAX_PARTS` chunks."""
    with contextlib.suppress(TooManyPartsError):
        for name, start, stop in webp_chunks(data, 12, end):
            if name == b"EXIF":
                return _exif(data, start, stop)
    return b""


def _exif(data: bytes, start: int, end: int) -> bytes:
    return data[start : min(end, start + _MAX_EXIF)]


_FORMATS: tuple[tuple[Callable[[bytes], bool], str, str, Callable[[bytes], _Measured]], ...] = (
    (lambda data: data.startswith(b"\x89PNG\r\n\x1a\n"), "image/png", "png", _measure_png),
    (lambda data: data.startswith(b"\xff\xd8\xff"), "image/jpeg", "jpg", _measure_jpeg),
    (lambda data: data.startswith(b"RIFF") and data[8:12] == b"WEBP", "image/webp", "webp", _measure_webp),
)

_OTHERS = (
    (b"<!doctype html", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"<svg", "an SVG drawing"),
    (b"<?xml", "an XML document"),
    (b"<", "a markup document"),
    (b"{", "JSON"),
    (b"gif8", "a GIF"),
    (b"%pdf", "a PDF"),
)


def _looks_like(data: bytes) -> str:
    start = data[:256].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if data[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypavif"):
        return "HEIC or AVIF"
    return next((name for magic, name in _OTHERS if start.startswith(magic)), "of an unknown kind")
