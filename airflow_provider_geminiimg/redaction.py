"""Takes out of a text what no log, record or message may hold: keys, queries of links, image bytes, the prompt.

What must stay true: where a text can't tell where a link or a run of bytes ends, too much is taken out rather than too
little; nothing here raises on any text, and none takes longer than its length allows.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable
from urllib.parse import quote

_SLASH = r"(?:\\*/)"  # as it stands, or escaped by a JSON encoder, once or more
_BASE64 = r"(?:[A-Za-z0-9+/_-]|\\+/)"
# What a text must not show, and what stands there instead. Compiled at first use: every DAG file imports this module.
_HIDDEN = (
    (
        r"(?i)data:(?:[\w/+.;=-]|\\+/)*;base64,\s*"
        r"(?:[a-z0-9+/=_-]|\\+[/nr]|%[0-9a-f]{2}|\s+(?=[a-z0-9+/_-]{16}))*",
        "[picture]",
    ),
    (r"(?i)data:image[^,\s]{0,80},(?:%[0-9a-f]{2}|[^\s\"'<>])*", "[picture]"),
    (rf"(?i)(?P<scheme>\bhttps?:{_SLASH}{{2}})[^\s/\"'<>\\]+@", r"\g<scheme>"),
    (rf"(?i)(?P<scheme>\b[a-z][a-z0-9+.-]{{0,30}}:{_SLASH}{{2}})[^\s/\"'<>\\@:]*:[^\s/\"'<>\\]*@", r"\g<scheme>"),
    (rf"{_BASE64}{{256,}}={{0,2}}", "[bytes]"),  # no word, hash or token of an error is that long
    (rf"(?:{_BASE64}{{48,}}(?:\s|\\+[rn])+){{2,}}{_BASE64}*={{0,2}}", "[bytes]"),  # in lines
)
# Where an address begins: with its scheme, or without one.
_ADDRESS = rf"(?i)[a-z][a-z0-9+.-]{{0,30}}:{_SLASH}{{2}}|(?<![\w:/\\]){_SLASH}{{2}}(?=[\w\[])"
_QUERY = r"(?i)[?#](?=\S)|(?<=\S)[?#]|%3f|(?:&(?:amp;)?|\\+u0026)[\w.-]+="  # where its query begins
_INNER = "=&?/%+"  # before an address that is part of another one's query
# What ends a query, raw spaces and quotes in it included: a quote or bracket that no further part of it follows.
_QUERY_END = r"[\"'](?=\s*(?:[,}\])>;:.\\]|$))|[<>](?![A-Za-z0-9_%+/=-])"
_BARE_QUERY = r"\?[\w.~%-]{1,64}=[^\s\"'<>]*"  # of an address that does not look like one
_ECHO = 12  # letters and digits in a row; an echo of the prompt that is shorter says too little to be one
_PROMPT = 20_000  # characters of the prompt that are looked for; no model takes more


def scrub(text: str, *, secrets: Iterable[str] = (), prompt: str | None = None, limit: int = 500) -> str:
    """`text` without secrets, URL queries, picture bytes and echoes of the prompt, on one line of `limit` characters.

    What is no printable character (a line break, a terminal's escape, a change of direction) becomes a blank: whoever
    reads a log must not take a gateway's text for lines of ours.

    :param secrets: texts to take out wherever they stand, however URLs, JSON or HTML escape them, and in any case.
    :param prompt: the prompt that was sent; it is taken out whole, however JSON or HTML escape it, and in pieces of
        12 letters and digits and more, whatever stands between them and in any case.
    """
    for secret in filter(None, secrets):
        for form in _spellings(secret):
            text = re.sub(re.escape(form), "[secret]", text, flags=re.IGNORECASE)
    for hidden, instead in _HIDDEN:
        text = re.sub(hidden, instead, text)
    text = re.sub(_BARE_QUERY, "?[removed]", _without_queries(text))
    if prompt and prompt.strip():
        text = _without_echo(text, _forms(prompt[:_PROMPT].strip()))
    text = "".join(char if char.isprintable() else " " for char in text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _without_queries(text: str) -> str:
    """`text` without the query of any address in it, even where the address holds raw white space or quotes."""
    starts = [found.start() for found in re.finditer(_ADDRESS, text)]
    ends = [*starts[1:], len(text)][: len(starts)]
    for at in range(len(starts) - 2, -1, -1):  # an address within another one's query is part of it
        if text[ends[at] - 1] in _INNER:
            ends[at] = ends[at + 1]
    query, query_end = re.compile(_QUERY), re.compile(_QUERY_END)
    kept, done, looked = [], 0, 0
    for start, end in zip(starts, ends, strict=True):
        if start < looked:
            continue
        asked = query.search(text, start, end)
        if asked is None:
            looked = end
            continue
        last = max(asked.start(), *(text.rfind(sign, asked.start(), end) for sign in "=&%"))
        ended = query_end.search(text, last + 1, end)
        kept += [text[done : asked.start()], "?[removed]"]
        done = looked = ended.start() if ended else end
        if ended is None and end < len(text):
            kept.append(" ")
    return "".join([*kept, text[done:]])


def _forms(text: str) -> list[str]:
    """The ways in which a gateway may repeat a text."""
    encoded = json.dumps(text)[1:-1]
    forms = (text, html.escape(text), json.dumps(text, ensure_ascii=False)[1:-1], encoded)
    return list(dict.fromkeys((*forms, json.dumps(encoded)[1:-1])))


def _spellings(secret: str) -> list[str]:
    """The same, and the ways in which URLs and other JSON encoders write it."""
    quoted = (quote(secret, safe=safe, errors="replace") for safe in ("", "/"))
    return list(dict.fromkeys((*_forms(secret), secret.replace("/", "\\/"), *quoted)))


def _without_echo(text: str, forms: list[str]) -> str:
    for form in forms:
        text = re.sub(re.escape(form), "[prompt]", text, flags=re.IGNORECASE)
    said, places = _letters(text)
    hidden = bytearray(len(text))
    for form in forms:
        letters, _ = _letters(form)
        pieces = {letters[at : at + _ECHO] for at in range(len(letters) - _ECHO + 1)}
        for at in range(len(said) - _ECHO + 1):
            if said[at : at + _ECHO] in pieces:
                start, end = places[at], places[at + _ECHO - 1] + 1
                hidden[start:end] = b"\1" * (end - start)
    runs = [(run.start(), run.end()) for run in re.finditer(b"\1+", hidden)]
    for start, end in reversed(runs):
        text = f"{text[:start]}[prompt]{text[end:]}"
    return text


def _letters(text: str) -> tuple[str, list[int]]:
    """The letters and digits of `text` in one case, and where each of them stands."""
    found = [(letter, at) for at, char in enumerate(text) for letter in char.casefold() if letter.isalnum()]
    return "".join(letter for letter, _ in found), [at for _, at in found]
