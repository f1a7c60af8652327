"""Removes keys, URL queries, image bytes and the prompt from a text, for logs, records and messages.

What must stay true: if the end of a link or of base64 bytes is not certain, more text is removed rather than less;
nothing here raises; the time is linear in the length of the text.
"""

from __future__ import annotations

import base64
import functools
import html
import json
import re
import unicodedata
from collections.abc import Iterable
from typing import Literal
from urllib.parse import unquote

from airflow_provider_geminiimg.core.redaction.printable import printable

_SLASH = r"(?:\\{0,16}/)"  # as it stands, or escaped by a JSON encoder, once or more
_BASE64 = r"(?:[A-Za-z0-9+/_-]|\\{1,16}/)"
_RUN_BEGINS = r"(?:(?<![A-Za-z0-9+/_\\-])|(?<=\\[rn]))"
# Patterns to remove and their replacements. Compiled at first use, because every DAG file imports this module.
_HIDDEN = (
    (
        r"(?i)data:(?:[\w/+.;=-]|\\{1,16}/)*;base64,\s*"
        r"(?:[a-z0-9+/=_-]|\\{1,16}[/nr]|%[0-9a-f]{2}|\s+(?=[a-z0-9+/_-]{16}))*",
        "[image]",
    ),
    (r"(?i)data:image[^,\s]{0,80},(?:%[0-9a-f]{2}|[^\s\"'<>])*", "[image]"),
    (rf"(?i)(?P<scheme>\bhttps?:{_SLASH}{{2}})[^\s/\"'<>\\]+@", r"\g<scheme>"),
    (rf"(?i)(?P<scheme>\b[a-z][a-z0-9+.-]{{0,30}}:{_SLASH}{{2}})[^\s/\"'<>\\@:]*:[^\s/\"'<>\\]*@", r"\g<scheme>"),
    (rf"(?P<lead>(?<![\w:/\\]){_SLASH}{{2}})[^\s/\"'<>\\@:]*:[^\s/\"'<>\\]*@", r"\g<lead>"),  # without a scheme
    (rf"{_BASE64}{{256,}}={{0,2}}", "[bytes]"),  # no word, hash or token in an error is that long
    (rf"{_RUN_BEGINS}(?:{_BASE64}{{48,}}(?:\s|\\{{1,16}}[rn])+){{2,}}{_BASE64}*={{0,2}}", "[bytes]"),  # in lines
)
# Start of a URL, with or without a scheme.
_ADDRESS = rf"(?i)[a-z][a-z0-9+.-]{{0,30}}:{_SLASH}{{2}}|(?<![\w:/\\]){_SLASH}{{2}}(?=[\w\[])"
_QUERY = r"(?i)[?#](?=\S)|(?<=\S)[?#]|%3f|(?:&(?:amp;)?|\\{1,16}u0026)[\w.-]+="  # start of a query
_INNER = "=&?/%+"  # characters before a URL that is part of another URL's query
# End of a query, which may contain raw spaces and quotes: a quote or bracket that no further part of the query follows.
_QUERY_END = r"[\"'](?=\s*(?:[,}\])>;:.\\]|$))|[<>](?![A-Za-z0-9_%+/=-])"
_BARE_QUERY = r"\?[\w.~%-]{1,64}=[^\s\"'<>]*"  # query of an incomplete URL
# Names whose value is a secret. With a name of the second kind the value must also look like a secret.
_SECRET_NAME = (
    r"(?:signature|credential|security[-_]?token|api[-_]?key|access[-_]?key(?:[-_]?id)?|secret[-_]?key"
    r"|(?<![a-z0-9])sig)"
)
_SOME_NAME = r"(?<![\w-])(?:token|key|secret|password|(?:access|auth|refresh|session)[-_]token)"
_QUOTED = r"\\{0,16}\"[^\"\n]{1,2000}\"|\\{0,16}'[^'\n]{1,2000}'"
_VALUE = r"(?!\[removed\])[^\s\"'<>]+"
_NAMED = (
    (rf"(?i)(?P<name>{_SECRET_NAME}\\{{0,16}}[\"']?\s{{0,4}}=\s{{0,4}})(?:{_QUOTED}|{_VALUE})", r"\g<name>[removed]"),
    (
        rf"(?i)(?P<name>{_SECRET_NAME}\\{{0,16}}[\"']?\s{{0,4}}:\s{{0,4}})(?:{_QUOTED}|(?=[^\s\"'<>]{{0,64}}\d){_VALUE})",
        r"\g<name>[removed]",
    ),
    (
        rf"(?i)(?P<name>{_SOME_NAME}\\{{0,16}}[\"']?\s{{0,4}}[=:]\s{{0,4}}\\{{0,16}}[\"']?)(?=[^\s\"'<>/]{{0,64}}\d)[\w+.%~-]{{16,}}",
        r"\g<name>[removed]",
    ),
)
_WORD = r"[^\s\"'<>]+"
_ESCAPED = r"(?i)%[0-9a-f]{2}|\\{1,16}(?:u[0-9a-f]{4}|x[0-9a-f]{2})|&(?:#x?[0-9a-f]{1,6}|[a-z]{2,8});|[^\x00-\x7f]"
_UNICODE_ESCAPE = r"\\{1,16}(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2}))"
# Python refuses to parse a number with more than 4,300 digits, including leading zeros.
_LEADING_ZEROS = r"(?i)(&#x?)0+(?=[0-9a-f])"
_LONG_REFERENCE = r"(?i)&#x?[0-9a-f]{9,};?"
_SEMICOLON = "(?:;|%(?:25)*3b)"
_HASH = "(?:#|%(?:25)*23)"
_AMPERSAND = rf"(?:&|%(?:25)*26)(?:amp{_SEMICOLON})*"
_LAYERS = 3  # nested escapes that are decoded
_FILE = r"(?i)\.[a-z][a-z0-9]{1,4}$"
_CUT = 8  # first or last characters by which a shortened key is recognized
_KEY_SIGNS = r"[\w*.\u2026+/=~-]{0,200}"
_SPLIT = 12  # length from which a secret is also found if line breaks split it
_ECHO = 12  # consecutive letters and digits from which a part of the prompt counts as an echo
_WHOLE_FORM = 500  # characters; a prompt up to this length is searched as a whole, ignoring case
_PIECE = 256  # characters
_PROMPT = 20_000  # characters of the prompt that are searched for; no model takes more


def normalized(form: Literal["NFC", "NFKC"], text: str) -> str:
    """`text` in a Unicode normal form, in linear time.

    Python needs quadratic time for the marks of one letter, so a long text is normalized in pieces. A piece begins
    inside a letter only if the letter has more marks than any script uses.
    """
    pieces, start = [], 0
    for at, char in enumerate(text if len(text) > _PIECE and not text.isascii() else ""):
        if (char.isascii() and at - start >= _PIECE) or at - start >= 4 * _PIECE:
            pieces.append(text[start:at])
            start = at
    return "".join(unicodedata.normalize(form, piece) for piece in (*pieces, text[start:]))


def scrub(text: str, *, secrets: Iterable[str] = (), prompt: str | None = None, limit: int = 500) -> str:
    """`text` without secrets, URL queries, image bytes and echoes of the prompt, on one line.

    Each non-printable character (line break, terminal escape, bidirectional mark) becomes a space, so that a gateway's
    text cannot imitate a log line.

    :param text: the text.
    :param secrets: texts to remove, also if escaped for URLs, JSON or HTML, and in any case.
    :param prompt: the prompt that was sent. It is removed as a whole, also if escaped for JSON or HTML, and in parts of
        12 or more letters and digits, ignoring case and the characters between them.
    :param limit: maximum length of the result in characters. Default: 500.
    """
    for secret in filter(None, secrets):
        text = re.sub(_spelled(secret), "[secret]", text)
        text = _without_cut(text, secret)
    text = re.sub(_WORD, _without_escaped_link, _without_links(text))
    if prompt and prompt.strip():
        text = _without_echo(text, _forms(prompt[:_PROMPT].strip()))
    text = printable(text, " ")
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _without_links(text: str) -> str:
    """`text` without image bytes, URL credentials and URL queries."""
    for hidden, instead in _HIDDEN:
        text = re.sub(hidden, instead, text)
    text = re.sub(_BARE_QUERY, "?[removed]", _without_queries(text))
    for hidden, instead in _NAMED:
        text = re.sub(hidden, instead, text)
    return re.sub(_WORD, _without_nameless_query, text)


def _without_nameless_query(word: re.Match[str]) -> str:
    """A word without the part after the question mark of a path or file name."""
    path, mark, asked = word.group().partition("?")
    is_address = "/" in path.strip("/\\") or re.search(_FILE, path)
    return f"{path}?[removed]" if mark and is_address and re.match(r"\W{0,3}\w{3}", asked) else word.group()


def _without_escaped_link(word: re.Match[str]) -> str:
    """A word, or ``[removed]`` if it contains part of a signed link after its escapes are decoded."""
    text = word.group()
    if not re.search(_ESCAPED, text):
        return text
    plain = text.replace("?[removed]", "").replace("[removed]", "")
    for _ in range(_LAYERS):
        before, plain = plain, _unescaped(plain)
        if plain == before:
            return text
        if _without_links(plain) != plain:
            return "[removed]"
    return text


def _unescaped(text: str) -> str:
    """`text` with one layer of URL, JSON and HTML escapes decoded and full-width characters normalized."""
    text = re.sub(_UNICODE_ESCAPE, lambda found: chr(int(found[1] or found[2], 16)), text)
    text = re.sub(_LONG_REFERENCE, "&#xfffd;", re.sub(_LEADING_ZEROS, r"\1", text))
    return normalized("NFKC", unquote(html.unescape(text), errors="replace"))


def _without_queries(text: str) -> str:
    """`text` without the query of any URL, even if the URL contains raw white space or quotes."""
    starts = [found.start() for found in re.finditer(_ADDRESS, text)]
    ends = [*starts[1:], len(text)][: len(starts)]
    for at in range(len(starts) - 2, -1, -1):  # a URL inside another URL's query is part of it
        if text[ends[at] - 1] in _INNER:
            ends[at] = ends[at + 1]
    query, query_end = re.compile(_QUERY), re.compile(_QUERY_END)
    last_signs = {end: max(text.rfind(sign, 0, end) for sign in "=&%") for end in set(ends)}
    kept, done, looked = [], 0, 0
    for start, end in zip(starts, ends, strict=True):
        if start < looked:
            continue
        asked = query.search(text, start, end)
        if asked is None:
            looked = end
            continue
        ended = query_end.search(text, max(asked.start(), last_signs[end]) + 1, end)
        kept += [text[done : asked.start()], "?[removed]"]
        done = looked = ended.start() if ended else end
        if ended is None and end < len(text):
            kept.append(" ")
    return "".join([*kept, text[done:]])


def _forms(text: str) -> list[str]:
    """The forms in which a gateway may repeat a text: unchanged, or escaped for HTML or JSON."""
    encoded = json.dumps(text)[1:-1]
    forms = (text, html.escape(text), json.dumps(text, ensure_ascii=False)[1:-1], encoded)
    return list(dict.fromkeys((*forms, json.dumps(encoded)[1:-1])))


@functools.lru_cache(maxsize=32)
def _spelled(secret: str) -> re.Pattern[str]:
    """A pattern for a secret, with each character plain or escaped for URLs, JSON or HTML; and for its base64."""
    between = r"(?:(?:[\r\n]|\\{1,16}[rn])+[ \t]*)?" if len(secret) >= _SPLIT else ""
    chars = re.sub(r"\\+", r"\\", secret)  # a run of backslashes would have very many spellings
    spelled = [between.join(_spelled_char(char) for char in chars)]
    data = secret.encode("utf-8", "surrogatepass")
    for lead in range(3):  # preceding bytes shift the bits of base64
        encoded = base64.b64encode(b"\0" * lead + data).decode()[(0, 2, 3)[lead] : (lead + len(data)) * 8 // 6]
        if len(encoded) >= _SPLIT:
            core = re.escape(encoded).replace("/", r"(?:\\{0,16}/|_|%2F)").replace(r"\+", r"(?:\+|-|%2B)")
            spelled.append(core + "[A-Za-z0-9+/_-]?=*")
    return re.compile("|".join(spelled), re.IGNORECASE)


def _without_cut(text: str, secret: str) -> str:
    """`text` without shortened forms of a secret: words that begin or end like it."""
    head, tail = secret[:_CUT].casefold(), secret[-_CUT:].casefold()
    folded = text.casefold()
    if len(secret) < 2 * _CUT or (head not in folded and tail not in folded):
        return text
    cut = rf"(?i){re.escape(head)}{_KEY_SIGNS}|{_KEY_SIGNS}{re.escape(tail)}"
    return re.sub(cut, "[secret]", text)


def _spelled_char(char: str) -> str:
    data, number = char.encode("utf-8", "surrogatepass"), ord(char)
    units = char.encode("utf-16-be", "surrogatepass")
    ways = [
        r"(?<!\\)\\+" if char == "\\" else rf"\\{{0,16}}{re.escape(char)}",
        "".join(f"%(?:25)*{byte:02x}" for byte in data),
        "".join(rf"\\{{1,16}}u{units[at : at + 2].hex()}" for at in range(0, len(units), 2)),
        rf"{_AMPERSAND}{_HASH}(?:0*{number}|x0*{number:x}){_SEMICOLON}",
    ]
    if number < 256:
        ways.append(rf"\\{{1,16}}x{number:02x}")
    if char in "&<>\"'/+=":
        name = {"&": "amp", "<": "lt", ">": "gt", '"': "quot", "'": "apos", "/": "sol", "+": "plus", "=": "equals"}[
            char
        ]
        ways.insert(0, rf"{_AMPERSAND}{name}{_SEMICOLON}")
    return f"(?:{'|'.join(ways)})"


def _without_echo(text: str, forms: list[str]) -> str:
    for form in forms:
        if len(form) > _WHOLE_FORM:  # other cases are found in parts, below
            text = text.replace(form, "[prompt]")
        else:
            text = re.sub(re.escape(form), "[prompt]", text, flags=re.IGNORECASE)
    folded, places = _letters(text)
    hidden = bytearray(len(text))
    for form in forms:
        letters, _ = _letters(form)
        pieces = {letters[at : at + _ECHO] for at in range(len(letters) - _ECHO + 1)}
        for at in range(len(folded) - _ECHO + 1):
            if folded[at : at + _ECHO] in pieces:
                start, end = places[at], places[at + _ECHO - 1] + 1
                hidden[start:end] = b"\1" * (end - start)
    kept, done = [], 0
    for run in re.finditer(b"\1+", hidden):
        kept += [text[done : run.start()], "[prompt]"]
        done = run.end()
    return "".join([*kept, text[done:]])


def _letters(text: str) -> tuple[str, list[int]]:
    """The letters and digits of `text`, casefolded, and the position of each."""
    found = [(letter, at) for at, char in enumerate(text) for letter in char.casefold() if letter.isalnum()]
    return "".join(letter for letter, _ in found), [at for _, at in found]
