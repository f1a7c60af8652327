"""Selects a font that has the characters of a text. Pillow's own font has ASCII only.

Invariants: the same text gets the same font on the same machine. Without a suitable font, a letter with an accent is
drawn without the accent, never as a box.
"""

from __future__ import annotations

import functools
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

# Common fonts of Linux, macOS and Windows, in order of coverage; Pillow searches the system's font folders.
_NAMES = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "FreeSans.ttf"),
    *("Arial Unicode.ttf", "Arial.ttf", "arial.ttf", "segoeui.ttf"),
    *("NotoSansCJK-Regular.ttc", "DroidSansFallbackFull.ttf", "wqy-microhei.ttc", "unifont.otf", "msyh.ttc"),
)
_NO_ACCENT = {
    "ß": "ss", "ẞ": "SS", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L",
    "đ": "d", "Đ": "D", "ð": "d", "Ð": "D", "þ": "th", "Þ": "Th", "ı": "i", "ħ": "h", "Ħ": "H",
    "‚": ",", "„": '"', "«": '"', "»": '"', "‹": "'", "›": "'",
}  # fmt: skip


def font_for(text: str, size: float) -> tuple[FreeTypeFont, str]:
    """Return a font, and the text in the form that the font can draw.

    :param text: the text to draw.
    :param size: in pixels.
    """
    from PIL import ImageFont

    default: FreeTypeFont = ImageFont.load_default(int(size))  # type: ignore[assignment]
    if text.isascii():
        return default, text
    letters = {char for char in text if not char.isspace()}
    best = max([default, *_installed(int(size))], key=lambda font: len(_drawn(font, letters)))
    drawn = _drawn(best, letters)
    return best, "".join(char if char in drawn or char.isspace() else _plain(char) for char in text)


@functools.lru_cache(maxsize=32)
def _installed(size: int) -> list[FreeTypeFont]:
    from PIL import ImageFont

    found = []
    for name in _NAMES:
        try:
            found.append(ImageFont.truetype(name, size))
        except OSError:
            continue
    return found


def _drawn(font: FreeTypeFont, letters: set[str]) -> set[str]:
    """Return the letters that the font has. For others it draws the same glyph as for an undefined code point."""
    missing = bytes(font.getmask("\uffff"))
    return {letter for letter in letters if bytes(font.getmask(letter)) != missing}


def _plain(char: str) -> str:
    """Return a letter without its accents."""
    bare = "".join(part for part in unicodedata.normalize("NFKD", char) if not unicodedata.combining(part))
    return _NO_ACCENT.get(char, bare or char)
