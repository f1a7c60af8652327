"""Google's published data of its image models: sizes, ratios, pixels, list prices. It does not depend on the gateway.

What must stay true: figures are data, and a comment names their source; a model has the same name here as in the rows
of the catalogue; nothing here depends on a gateway.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction

FLASH = "gemini-3.1-flash-image-preview"
FLASH_GA = "gemini-3.1-flash-image"
PRO = "gemini-3-pro-image-preview"
FLASH_25 = "gemini-2.5-flash-image"
FLASH_LITE = "gemini-3.1-flash-lite-image"
NANO_BANANA_21 = "gemini-nano-banana-2.1"

SIZES = ("512", "1K", "2K", "4K")
RATIOS_10 = ("1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9")
RATIOS_14 = ("1:1", "1:4", "1:8", "2:3", "3:2", "3:4", "4:1", "4:3", "4:5", "5:4", "8:1", "9:16", "16:9", "21:9")

Pixels = tuple[int, int]

# Source: Google's table of output sizes (ai.google.dev, "Image generation"), as copies of it show it.
_PIXELS_3: Mapping[str, Pixels] = {
    "1:1": (1024, 1024),
    "1:4": (512, 2048),
    "1:8": (384, 3072),
    "2:3": (848, 1264),
    "3:4": (896, 1200),
    "4:5": (928, 1152),
    "9:16": (768, 1376),
    "21:9": (1584, 672),
}
_PIXELS_25: Mapping[str, Pixels] = {
    "1:1": (1024, 1024),
    "2:3": (832, 1248),
    "3:4": (864, 1184),
    "4:5": (896, 1152),
    "9:16": (768, 1344),
    "21:9": (1536, 672),
}
_SCALES: Mapping[str, Fraction] = {
    "512": Fraction(1, 2),
    "": Fraction(1),
    "1K": Fraction(1),
    "2K": Fraction(2),
    "4K": Fraction(4),
}
# Google's table lists this size, which differs from half of 1K; it is not known which of the two the model returns.
_ALSO_LISTED: Mapping[tuple[str, str], Pixels] = {("512", "21:9"): (792, 168)}


@dataclass(frozen=True)
class GoogleModel:
    """Google's data of one model.

    :param sizes: the allowed sizes; empty if the model takes no size.
    :param ratios: the allowed aspect ratios.
    :param prices: list price of one image in USD, by size (``""`` if the model takes no size).
    :param input_price: list price of one input image in USD; 0 if none is published.
    :param pixels: width and height at 1K, by ratio; a missing landscape ratio is the portrait one with swapped sides.
    """

    sizes: tuple[str, ...]
    ratios: tuple[str, ...]
    prices: Mapping[str, Decimal]
    input_price: Decimal = Decimal(0)
    pixels: Mapping[str, Pixels] = field(default_factory=lambda: _PIXELS_3)


def _usd(**by_size: str) -> Mapping[str, Decimal]:
    return {size.lstrip("_"): Decimal(price) for size, price in by_size.items()}


# Sources of prices: Google's price pages, as cited by LiteLLM's price map. Sizes and ratios: Google's model pages.
GOOGLE_MODELS: Mapping[str, GoogleModel] = {
    FLASH: GoogleModel(
        SIZES, RATIOS_14, _usd(_512="0.0448", _1K="0.0672", _2K="0.1008", _4K="0.1512"), Decimal("0.0006")
    ),
    PRO: GoogleModel(SIZES[1:], RATIOS_10, _usd(_1K="0.134", _2K="0.134", _4K="0.24"), Decimal("0.0011")),
    FLASH_25: GoogleModel((), RATIOS_10, _usd(_="0.039"), pixels=_PIXELS_25),
    # Ratios: 10 are documented; it is not certain that the model takes all 14.
    FLASH_LITE: GoogleModel(("1K",), RATIOS_10, _usd(_1K="0.0336"), Decimal("0.0003")),
    # 4K: Google's pages differ (0.0756 or 0.1134); the higher price is safer for budgets.
    NANO_BANANA_21: GoogleModel(
        SIZES[1:], RATIOS_14, _usd(_1K="0.0336", _2K="0.0504", _4K="0.1134"), Decimal("0.0017")
    ),
}


def expected_pixels(model: str, resolution: str | None, aspect_ratio: str | None) -> tuple[Pixels, ...]:
    """The widths and heights that Google lists for a model, size and ratio; empty if it lists none.

    :param model: the model's name in the catalogue; an unknown model gets the table of the 3.x models.
    :param resolution: ``512``, ``1K``, ``2K`` or ``4K``; ``None`` if the model takes no size.
    :param aspect_ratio: such as ``16:9``.
    """
    known = GOOGLE_MODELS.get(model, GOOGLE_MODELS[FLASH])
    size, ratio = resolution or "", aspect_ratio or ""
    turned = ":".join(reversed(ratio.split(":")))
    at_1k = known.pixels.get(ratio) or tuple(reversed(known.pixels.get(turned, ())))
    if size not in _SCALES or len(at_1k) != 2:
        return ()
    listed = (int(at_1k[0] * _SCALES[size]), int(at_1k[1] * _SCALES[size]))
    also = _ALSO_LISTED.get((size, ratio)) if size in known.sizes else None
    return (listed,) if also is None else (listed, also)
