"""Escapes control characters in untrusted text for terminals, log lines and messages.

What must stay true: the result contains no control character, line break, invisible or bidirectional mark, or lone
surrogate; printable text is not changed.
"""

from __future__ import annotations

import json
import re
from typing import Any


def printable(text: str, instead: str | None = None) -> str:
    """`text` on one line, with each non-printable character replaced.

    :param instead: the replacement; default: the character's escape, such as ``\\x1b``.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escape(c) if instead is None else instead for c in text)


def printable_json(value: Any, indent: int | None = None) -> str:
    """`value` as JSON in which non-printable characters are escaped; letters of all scripts are not."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return re.sub(r"[^ -~\n]", lambda found: _json_escape(found.group()), text)


def _escape(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")


def _json_escape(char: str) -> str:
    if char.isprintable():
        return char
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else json.dumps(char)[1:-1]
