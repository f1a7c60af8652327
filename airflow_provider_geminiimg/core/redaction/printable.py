"""Makes text from outside fit to be printed: on a terminal, in a log line, in a message.

What must stay true: nothing that is printed moves a cursor, clears a screen, begins a line, turns the direction of
writing or is no character at all; printable text stays as it is.
"""

from __future__ import annotations

import json
import re
from typing import Any


def printable(text: str, instead: str | None = None) -> str:
    """`text` on one line: C0 and C1 controls, DEL, line breaks, marks that nobody sees or that turn the direction of
    writing, and halves of characters are replaced.

    :param instead: what stands for each of them; default: its escape, as in ``\\x1b``.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escape(c) if instead is None else instead for c in text)


def printable_json(value: Any, indent: int | None = None) -> str:
    """`value` as JSON that may be printed, with the same value: letters of all scripts stay as they are."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return re.sub(r"[^ -~\n]", lambda found: _json_escape(found.group()), text)


def _escape(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")


def _json_escape(char: str) -> str:
    if char.isprintable():
        return char
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else json.dumps(char)[1:-1]
