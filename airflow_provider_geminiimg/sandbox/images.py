"""Draws the images, with the requested pixel size and the number of their submission.

Invariants: the same job always gives the same bytes. `read_submission` works for PNG, JPEG and WebP. A 1K image takes
much less than 0.1 s. Pillow is imported inside the functions, because only the extra ``sandbox`` installs it.
"""

from __future__ import annotations

import colorsys
import hashlib
import io
import json
import math
import random
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_provider_geminiimg.sandbox.fonts import font_for

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

MISSING_PILLOW = "The sandbox draws with Pillow: pip install 'airflow-provider-geminiimg[sandbox]'"

# Pixels at 1K, as Google lists them for Gemini 3 image models (ai.google.dev, "Image generation", aspect ratios);
# 512, 2K and 4K are these times 1/2, 2 and 4.
PIXELS: dict[str, tuple[int, int]] = {
    "1:1": (1024, 1024),
    "1:4": (512, 2048),
    "1:8": (384, 3072),
    "2:3": (848, 1264),
    "3:2": (1264, 848),
    "3:4": (896, 1200),
    "4:1": (2048, 512),
    "4:3": (1200, 896),
    "4:5": (928, 1152),
    "5:4": (1152, 928),
    "8:1": (3072, 384),
    "9:16": (768, 1376),
    "16:9": (1376, 768),
    "21:9": (1584, 672),
}
# Google's table lists this size, but its rule (half of 1K) gives another one; the actual one is not known.
PRINTED_21_9_AT_512 = (792, 168)
SCALES: dict[str, float] = {"512": 0.5, "1K": 1, "2K": 2, "4K": 4}
FORMATS: dict[str, tuple[str, str]] = {
    "png": ("PNG", "image/png"),
    "jpg": ("JPEG", "image/jpeg"),
    "webp": ("WEBP", "image/webp"),
}
SAVING: dict[str, dict[str, Any]] = {
    "png": {"compress_level": 1},
    "jpg": {"quality": 88},
    "webp": {"quality": 80, "method": 0},
}
_DESCRIPTION = 0x010E  # EXIF ImageDescription: the one text place that PNG, JPEG and WebP share
_THUMBNAIL = 320
_PROMPT_KEPT = 2_000
_CACHE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Shape:
    """Size and format of the file that a job creates."""

    resolution: str
    ratio: str
    width: int
    height: int
    extension: str

    @property
    def media_type(self) -> str:
        return FORMATS[self.extension][1]


@dataclass(frozen=True)
class Input:
    """An input image: the hash of its bytes, and a thumbnail that is drawn into the result.

    For a web address, which the sandbox does not fetch, `sha256` is the hash of the address.
    """

    sha256: str
    media_type: str
    ratio: str | None = None
    thumbnail: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Sketch:
    """All values that determine an image."""

    number: int
    model: str
    prompt: str = field(repr=False)
    shape: Shape
    inputs: tuple[Input, ...] = ()


def require_pillow() -> None:
    """Check that Pillow is installed.

    :raises ImportError: it is missing; the message names the extra.
    """
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise ImportError(MISSING_PILLOW) from None


def shape(resolution: str, ratio: str, extension: str, *, printed: bool = False) -> Shape:
    """Return size and format of an image.

    :param printed: use the size of Google's table where it contradicts its rule.
    :raises KeyError: the resolution or the ratio is unknown.
    """
    if printed and (resolution, ratio) == ("512", "21:9"):
        return Shape(resolution, ratio, *PRINTED_21_9_AT_512, extension)
    width, height = PIXELS[ratio]
    scale = SCALES[resolution]
    return Shape(resolution, ratio, int(width * scale), int(height * scale), extension)


def read_input(data: bytes) -> Input:
    """Read an input image.

    :raises ValueError: the bytes are not an image.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            media_type = Image.MIME.get(image.format or "", "image/unknown")
            width, height = image.size
            image.draft("RGB", (_THUMBNAIL, _THUMBNAIL))
            small = image.convert("RGB")
    except Exception:
        raise ValueError("not an image") from None
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "PNG", compress_level=1)
    return Input(hashlib.sha256(data).hexdigest(), media_type, nearest_ratio(width, height), buffer.getvalue())


def nearest_ratio(width: int, height: int) -> str:
    wanted = math.log(width / height)
    return min(PIXELS, key=lambda name: abs(math.log(PIXELS[name][0] / PIXELS[name][1]) - wanted))


def read_submission(data: bytes) -> int:
    """Return the submission number of a sandbox image from its bytes (PNG, JPEG or WebP).

    :raises ValueError: it is not an image of a sandbox.
    """
    return int(read_image(data)["submission"])


def read_image(data: bytes) -> dict[str, Any]:
    """Return the data in a sandbox image: ``submission``, ``model``, ``prompt`` (its first 2,000 characters).

    :raises ValueError: it is not an image of a sandbox.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            found = json.loads(image.getexif()[_DESCRIPTION])
    except Exception:
        raise ValueError("not an image of the sandbox") from None
    return dict(found)


class Studio:
    """Draws images on request, and caches the last ones."""

    def __init__(self) -> None:
        self._made: OrderedDict[Sketch, bytes] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def image(self, sketch: Sketch) -> bytes:
        with self._lock:
            if sketch in self._made:
                self._made.move_to_end(sketch)
                return self._made[sketch]
        data = draw(sketch)
        with self._lock:
            self._size += len(data) - len(self._made.get(sketch, b""))
            self._made[sketch] = data
            while self._size > _CACHE_BYTES and len(self._made) > 1:
                self._size -= len(self._made.popitem(last=False)[1])
        return data


def draw(sketch: Sketch) -> bytes:
    """Return the image's bytes."""
    from PIL import Image

    size = (sketch.shape.width, sketch.shape.height)
    image = _landscape(sketch.prompt, size)
    if sketch.inputs:
        _paste_inputs(image, sketch.inputs)
    _write(image, sketch)
    exif = Image.Exif()
    exif[_DESCRIPTION] = json.dumps(
        {"submission": sketch.number, "model": sketch.model, "prompt": sketch.prompt[:_PROMPT_KEPT]}
    )
    buffer = io.BytesIO()
    format_name = FORMATS[sketch.shape.extension][0]
    image.save(buffer, format_name, exif=exif.tobytes(), **SAVING[sketch.shape.extension])
    return buffer.getvalue()


def _landscape(prompt: str, size: tuple[int, int]) -> Image:
    """Draw a sky, a sun and three ridges, in colours from the prompt's hash."""
    from PIL import Image, ImageDraw

    rng = random.Random(hashlib.sha256(prompt.encode("utf-8", "replace")).digest())
    hue = 0.5 + 0.62 * rng.random()  # from teal over violet to orange: skies, not lawns

    def colour(turn: float, saturation: float, value: float) -> tuple[int, int, int]:
        red, green, blue = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
        return int(red * 255), int(green * 255), int(blue * 255)

    sky = Image.new("RGB", (1, 3))
    for row, tint in enumerate((colour(0.0, 0.62, 0.55), colour(0.06, 0.5, 0.85), colour(0.13, 0.35, 1.0))):
        sky.putpixel((0, row), tint)
    image = sky.resize(size, Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(image)
    width, height = size
    radius = min(size) * rng.uniform(0.09, 0.14)
    x, y = width * rng.uniform(0.2, 0.8), height * rng.uniform(0.28, 0.42)
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour(0.13, 0.12, 1.0))
    for layer in range(3):
        base, swing = 0.55 + 0.13 * layer, 0.05 + 0.015 * layer
        phases = [rng.uniform(0, math.tau) for _ in range(3)]
        ridge = [
            (
                width * step / 48,
                height
                * (
                    base
                    - swing * sum(math.sin(math.tau * (n + 1) * step / 48 + p) / (n + 1) for n, p in enumerate(phases))
                ),
            )
            for step in range(49)
        ]
        pen.polygon([*ridge, (width, height), (0, height)], fill=colour(-0.04 * layer, 0.55, 0.6 - 0.17 * layer))
    return image


def input_boxes(width: int, height: int, count: int) -> list[tuple[int, int, int, int]]:
    """Return the boxes (left, top, right, bottom) in which an edit shows its input images, in a row at the top."""
    gap = max(4, min(width, height) // 40)
    top = _band(width, height) + gap
    side = min(height // 3, (width - gap) // max(count, 1) - gap, _THUMBNAIL)
    return [(gap + (side + gap) * i, top, gap + (side + gap) * i + side, top + side) for i in range(count)]


def _band(width: int, height: int) -> int:
    return max(16, min(width, height) // 14)


def _paste_inputs(image: Image, inputs: Sequence[Input]) -> None:
    from PIL import Image, ImageDraw, ImageOps

    pen = ImageDraw.Draw(image)
    for box, item in zip(input_boxes(*image.size, len(inputs)), inputs, strict=True):
        left, top, right, bottom = box
        pen.rectangle((left - 3, top - 3, right + 2, bottom + 2), fill="white")
        if item.thumbnail is None:
            pen.text((left + 4, top + 4), "web address", fill="black")
            continue
        with Image.open(io.BytesIO(item.thumbnail)) as small:
            image.paste(ImageOps.fit(small, (right - left, bottom - top)), (left, top))


def _write(image: Image, sketch: Sketch) -> None:
    """Write the submission's number at the top, and the prompt on a dark panel at the bottom."""
    from PIL import ImageDraw

    width, height = image.size
    pen = ImageDraw.Draw(image)
    band = _band(width, height)
    title = f"#{sketch.number}  {sketch.shape.ratio}  {sketch.shape.resolution}  {sketch.model}"
    pen.rectangle((0, 0, width, band), fill=(18, 20, 26))
    font, title = font_for(title, band * 0.55)
    pen.text((band // 3, band // 6), title, font=font, fill=(255, 255, 255))
    font, prompt = font_for(sketch.prompt[:_PROMPT_KEPT], max(12.0, min(width, height) / 26))
    margin = int(font.size)
    lines = _wrap(prompt, font, width - 2 * margin, most=max(1, int(height * 0.3 / (font.size * 1.3))))
    top = height - int(len(lines) * font.size * 1.3) - margin
    pen.rectangle((0, top - margin // 2, width, height), fill=(18, 20, 26))
    for index, line in enumerate(lines):
        pen.text((margin, top + int(index * font.size * 1.3)), line, font=font, fill=(240, 240, 235))


def _wrap(text: str, font: FreeTypeFont, width: int, *, most: int) -> list[str]:
    lines = [""]
    for word in text.split()[:200]:
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    lines = [line for line in lines if line] or [""]
    if len(lines) > most:
        lines = [*lines[: most - 1], f"{lines[most - 1]} …"]
    return lines
