"""Bytes are told apart by their headers; a cut, empty or foreign body never passes for an image."""

from __future__ import annotations

import contextlib
import io
import struct
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from airflow_provider_geminiimg.core.images.inspection import ImageInfo, inspect_image, mismatch
from airflow_provider_geminiimg.exceptions import Billed, InvalidImageError


def image_bytes(kind: str, size: tuple[int, int] = (97, 61), **options: object) -> bytes:
    buffer = io.BytesIO()
    mode = "RGBA" if options.pop("alpha", False) else "RGB"
    Image.effect_noise(size, 80).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


KINDS = {
    "png": ("PNG", {}, "image/png", "png"),
    "jpeg baseline": ("JPEG", {}, "image/jpeg", "jpg"),
    "jpeg progressive": ("JPEG", {"progressive": True}, "image/jpeg", "jpg"),
    "jpeg with metadata": ("JPEG", {"exif": b"Exif\0\0" + b"\xff\xd8\xff\xd9" * 40}, "image/jpeg", "jpg"),
    "webp lossy": ("WEBP", {}, "image/webp", "webp"),
    "webp lossless": ("WEBP", {"lossless": True}, "image/webp", "webp"),
    "webp extended": ("WEBP", {"alpha": True, "exif": b"Exif\0\0something"}, "image/webp", "webp"),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_image_is_measured_from_its_header(name: str) -> None:
    kind, options, media_type, extension = KINDS[name]
    info = inspect_image(image_bytes(kind, (97, 61), **options))
    assert info == ImageInfo(media_type, extension, 97, 61)


@pytest.mark.parametrize("name", KINDS)
def test_an_image_cut_anywhere_is_refused(name: str) -> None:
    kind, options, _, _ = KINDS[name]
    whole = image_bytes(kind, (40, 30), **options)
    for length in (*range(40), *range(40, len(whole), 41), len(whole) - 2):
        with pytest.raises(InvalidImageError):
            inspect_image(whole[:length])


def test_bytes_after_the_end_of_an_image_do_not_matter() -> None:
    for kind in ("PNG", "JPEG", "WEBP"):
        assert inspect_image(image_bytes(kind) + b"\0signed provenance").width == 97


@pytest.mark.parametrize(
    ("body", "called"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><title>502</title>", "HTML"),
        (b"\xef\xbb\xbf \n<HTML>", "HTML"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b'<?xml version="1.0"?><Error><Code>ExpiredToken</Code></Error>', "XML"),
        (b'{"error": "secret words"}', "JSON"),
        (b"GIF89a\x01\x00\x01\x00", "GIF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "unknown"),
        (b"just words", "unknown"),
    ],
)
def test_what_is_no_image_is_refused_by_name_and_never_quoted(body: bytes, called: str) -> None:
    with pytest.raises(InvalidImageError) as caught:
        inspect_image(body)
    assert called in str(caught.value)
    assert "secret words" not in str(caught.value)
    assert caught.value.billed is Billed.YES


def png(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(0, 10), (10, 0), (32_769, 10), (10, 2**31)])
def test_impossible_dimensions_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(InvalidImageError, match="declares an invalid size"):
        inspect_image(png(*size))


def test_the_largest_image_that_the_models_make_is_taken() -> None:
    assert inspect_image(png(12_288, 1_536)).width == 12_288


def test_an_image_of_nothing_but_small_parts_takes_no_memory() -> None:
    parts = b"".join(bytes(4) + number.to_bytes(4, "big") + bytes(4) for number in range(200_000))
    whole = png(10, 10)
    body = whole[:33] + parts + whole[33:]
    tracemalloc.start()
    try:
        assert inspect_image(body).width == 10
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_a_jpeg_that_ends_before_its_scan_is_refused_although_its_thumbnail_has_an_end() -> None:
    whole = image_bytes("JPEG", exif=b"Exif\0\0" + b"\xff\xd8\xff\xd9" * 10)
    scan = whole.index(b"\xff\xda")
    with pytest.raises(InvalidImageError, match="incomplete or damaged"):
        inspect_image(whole[: scan + 20])


@given(st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\x10\0\0\0WEBPVP8", b""]), st.binary(max_size=80))
def test_any_bytes_are_an_image_or_an_invalid_one(magic: bytes, rest: bytes) -> None:
    with contextlib.suppress(InvalidImageError):
        assert inspect_image(magic + rest).width > 0


# Sizes that the models were seen to make, or that Google's table names.
MADE = [
    ("512", "1:1", 512, 512),
    ("512", "16:9", 688, 384),
    ("512", "1:8", 192, 1536),
    ("512", "4:1", 1024, 256),
    ("1K", "1:1", 1024, 1024),
    ("1K", "16:9", 1376, 768),
    ("1K", "16:9", 1344, 768),
    ("1K", "21:9", 1584, 672),
    ("1K", "21:9", 1536, 672),
    ("1K", "1:8", 352, 2928),
    ("1K", "8:1", 3072, 384),
    ("1K", "1:4", 512, 2064),
    ("1K", "3:4", 864, 1184),
    ("1K", "4:5", 928, 1152),
    ("2K", "9:16", 1536, 2752),
    ("4K", "21:9", 6336, 2688),
    ("4K", "1:8", 1536, 12288),
]


@pytest.mark.parametrize(("resolution", "ratio", "width", "height"), MADE)
def test_what_the_models_make_matches_what_was_asked(resolution: str, ratio: str, width: int, height: int) -> None:
    info = ImageInfo("image/png", "png", width, height)
    assert mismatch(info, resolution=resolution, aspect_ratio=ratio) is None
    for other in {"512", "1K", "2K", "4K"} - {resolution}:
        assert "resolution" in str(mismatch(info, resolution=other, aspect_ratio=None))


@pytest.mark.parametrize(("width", "fits"), [(1030, True), (970, True), (1031, False), (969, False)])
def test_a_ratio_may_be_off_by_three_percent(width: int, fits: bool) -> None:
    said = mismatch(ImageInfo("image/png", "png", width, 1000), resolution=None, aspect_ratio="1:1")
    assert (said is None) is fits


def test_a_mismatch_is_one_sentence_with_both_differences() -> None:
    said = mismatch(ImageInfo("image/png", "png", 1024, 1024), resolution="2K", aspect_ratio="16:9")
    assert said == (
        "The image has 1024 x 1024 pixels: the requested aspect_ratio 16:9 is 1.778, the actual one 1.000; "
        "the requested resolution is 2K, the actual area that of a 1024 pixel square."
    )


def test_what_was_not_asked_is_not_compared() -> None:
    assert mismatch(ImageInfo("image/png", "png", 10, 900), resolution=None, aspect_ratio=None) is None


def turned(kind: str, orientation: int, size: tuple[int, int] = (1376, 768), *, motorola: bool = False) -> bytes:
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    exif[0x0112] = orientation
    data = exif.tobytes()
    if motorola:
        data = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01" + struct.pack(">HH", orientation, 0) + bytes(4)
    return image_bytes(kind, size, exif=data)


@pytest.mark.parametrize("motorola", [False, True], ids=["little-endian", "big-endian"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_measured_as_it_is_displayed(kind: str, orientation: int, motorola: bool) -> None:
    data = turned(kind, orientation, motorola=motorola)
    info = inspect_image(data)
    with Image.open(io.BytesIO(data)) as opened:
        assert (info.width, info.height) == ImageOps.exif_transpose(opened).size
        assert info.stored_size == opened.size
    assert info.orientation == orientation
    wanted, other = ("9:16", "16:9") if orientation >= 5 else ("16:9", "9:16")
    assert mismatch(info, resolution="1K", aspect_ratio=wanted) is None
    assert mismatch(info, resolution="1K", aspect_ratio=other) is not None


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
        b"MM\0*\0\0\0\x08\xff\xff\x01\x12",
        b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x09\0\0",
        b"no TIFF at all",
    ],
    ids=["nothing", "cut", "far away", "too many entries", "an orientation of 9", "words"],
)
def test_damaged_exif_turns_nothing(kind: str, exif: bytes) -> None:
    info = inspect_image(image_bytes(kind, (97, 61), exif=b"Exif\0\0" + exif))
    assert (info.width, info.height, info.orientation) == (97, 61, 1)


@given(st.binary(max_size=200))
def test_any_exif_at_all_leaves_an_image_an_image(exif: bytes) -> None:
    for kind in ("PNG", "JPEG", "WEBP"):
        info = inspect_image(image_bytes(kind, (40, 30), exif=b"Exif\0\0" + exif))
        assert {info.width, info.height} == {40, 30}
