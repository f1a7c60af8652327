"""From whatever stands where a gateway puts a result to images: links in any wrapping, bytes in any base64.

What must stay true: an image that can be had from an answer is had; an address that stands beside a text, or where a
request is repeated, is not taken for a result; nothing here trusts a link, `core.http.download` does not
either; no text takes longer than its length allows, whatever is in it.
"""

from __future__ import annotations

import base64
import binascii
import functools
import itertools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from airflow_provider_geminiimg.core.gateways.base import ResultImage

MAX_IMAGES = 16  # of one job, of which one is asked for: an answer must not fill the disk
_DEPTH = 10  # no known shape nests deeper
_LONG = 20_000  # characters; a longer text is bytes, no link, and not searched for wrappings
_MOST_TEXTS = 32  # of an answer that are searched, and of links in one text
_MOST_WRAPPED = 20  # Markdown links of one text that are looked at
_LONG_LINK = 4_000  # characters in which parentheses of a Markdown link are paired

_BYTES_KEYS = ("b64_json", "b64", "base64", "image_base64", "imageBase64", "bytesBase64Encoded")
# What no request has: it comes before what may repeat an input or say where to ask for the job.
_RESULT_KEYS = ("result_url", "resultUrl", "result_urls", "resultUrls", "result", "results", "output", "outputs")
_LINK_KEYS = ("url", "urls", "download_url", "signed_url")
_OTHER_KEYS = ("images", "image", "image_url", "imageUrl", "key", "path", "data", "inlineData")
_CHAT_KEYS = ("inline_data", "choices", "message", "candidates", "content", "parts")
_KEYS = (*_BYTES_KEYS, *_RESULT_KEYS, *_LINK_KEYS, *_OTHER_KEYS, *_CHAT_KEYS)
# What holds results and nothing else; beside a job, the keys that only count in it may repeat the request's inputs.
_RESULTS = frozenset(("images", "output", "outputs", "result", "results"))
_KEYS_OF_RESULTS = ("image_urls", "imageUrls", "uri", "fileUri", "src", "href", "link", "file")


@dataclass(frozen=True)
class Result:
    """One text of an answer's results.

    :param text: as it stands there: a link, a data URI, base64, a storage key, or just words.
    :param images: the images in it.
    """

    text: str = field(repr=False)
    images: tuple[ResultImage, ...] = field(repr=False)


def results(value: Any, depth: int = 0, *, inside: bool = False) -> list[Result]:
    """Every text that stands where a gateway puts a result.

    In an object the first of the known keys that holds an image counts, bytes before links; else the first with a text.

    :param inside: whether `value` holds results and nothing else.
    """
    if isinstance(value, str):
        return [Result(value.strip(), images_in(value))] if value.strip() else []
    if depth >= _DEPTH:
        return []
    if isinstance(value, list):
        found = (result for item in value for result in results(item, depth + 1, inside=inside))
        return list(itertools.islice(found, _MOST_TEXTS))
    return _of_object(value, depth, inside) if isinstance(value, Mapping) else []


def only_results(value: Any, depth: int = 0) -> list[Result]:
    """Every text that stands where nothing but a result stands, which an input or an address to ask at never does."""
    if depth >= _DEPTH:
        return []
    if isinstance(value, list):
        each = (found for item in value for found in only_results(item, depth + 1))
        return list(itertools.islice(each, _MOST_TEXTS))
    if not isinstance(value, Mapping):
        return []
    every = [results(value.get(key), depth + 1, inside=True) for key in _RESULT_KEYS]
    every.append(only_results(value.get("data"), depth + 1))
    return next((found for found in every if any(result.images for result in found)), [])


def _of_object(value: Mapping[str, Any], depth: int, inside: bool) -> list[Result]:
    first: list[Result] = []
    for key in (*_KEYS, *(_KEYS_OF_RESULTS if inside else ())):
        held = value.get(key)
        if key == "message" and isinstance(held, str):
            continue  # an envelope's own, about the call
        if key in _BYTES_KEYS and isinstance(held, str):
            found = [Result(held.strip(), images_in(held, inline=True))] if held.strip() else []
        else:
            found = results(held, depth + 1, inside=inside or key in _RESULTS)
        if any(result.images for result in found):
            return found
        first = first or found
    return first


def images(found: Sequence[Result]) -> tuple[ResultImage, ...]:
    """The images among results, each once, in their order, `MAX_IMAGES` at most."""
    every = dict.fromkeys(image for result in found for image in result.images)
    return tuple(itertools.islice(every, MAX_IMAGES))


_NAMES_A_FILE = re.compile(r"\S+|[^\n]*\.(png|jpe?g|webp)|([a-z][a-z0-9+.-]*://|data:).*", re.IGNORECASE | re.DOTALL)


def names_a_file(result: Result) -> bool:
    """Whether a result is a storage key or a link, and not words of a model that answered in text."""
    return bool(_NAMES_A_FILE.fullmatch(result.text))


# Inputs

_INPUT = "input"  # what stands for an input's address: the name of a file, and no image


@dataclass(frozen=True)
class Known:
    """What is known of the addresses in an answer.

    :param inputs: addresses of input images. Only web addresses count: no gateway was told another one.
    :param keys: storage keys of input images, with which an address ends.
    :param results: storage keys and links that stand where nothing but a result does, inputs among them.
    """

    inputs: Collection[str] = ()
    keys: Collection[str] = ()
    results: Collection[str] = ()

    @functools.cached_property
    def _places(self) -> tuple[str, ...]:
        return (*(place for place in self.inputs if _SCHEME.match(place.strip(_EDGES))), *self.keys)

    @functools.cached_property
    def _own(self) -> tuple[str, ...]:
        """With what the addresses of results end."""
        others = (
            text for text in self.results if len(text) <= _LONG and not any(_is_at(text, key) for key in self.keys)
        )
        return tuple(filter(None, (_ending(text)[0] for text in others)))

    def without_inputs(self, value: Any, depth: int = 0) -> Any:
        """A JSON value in which no text is the address of an input, so that none of them is taken for a result."""
        if not self._places or depth > 2 * _DEPTH:
            return value
        if isinstance(value, str):
            return _INPUT if self._is_input(value) else value
        if isinstance(value, list):
            return [self.without_inputs(each, depth + 1) for each in value]
        if isinstance(value, Mapping):
            return {key: self.without_inputs(each, depth + 1) for key, each in value.items()}
        return value

    def _is_input(self, text: str) -> bool:
        """Whether it is an input's address. Of what is known of its end the longest counts: the key of an input may be
        what a result's own key ends with."""
        if len(text) > _LONG:
            return False
        address, longest = f"/{_address(text)}", 0
        for place in self._places:
            ending, tells = _ending(place)
            if (tells or text == place) and address.endswith(ending):
                longest = max(longest, len(ending))
        return longest > 0 and not any(len(own) > longest and address.endswith(own) for own in self._own)


def _is_at(text: str, key: str) -> bool:
    """Whether a text is a storage key, or a link to it: as its whole path, or behind the name of a bucket."""
    path, known = _address(text), _address(key)
    if _SCHEME.match(text.strip(_EDGES)):
        path = path.partition("/")[2]
        return known == path or ("/" in known and known == path.partition("/")[2])
    return known == path


@functools.lru_cache(maxsize=256)
def _ending(place: str) -> tuple[str, bool]:
    """With what an input's address ends, and whether that tells it from others: of an address whose path names no image
    the query tells which one it is."""
    address = _address(place)
    return f"/{address}" if address else "", bool(_IMAGE_PATH.match(place)) or not _SCHEME.search(place)


def _address(text: str) -> str:
    """A link or a storage key without scheme, query and percent-encoding."""
    bare = re.split(r"[?#]", text.strip(_EDGES))[0]
    host = re.match(r"([a-z][a-z0-9+.-]*:)?//([^/]*)", bare, re.IGNORECASE)
    return unquote(host[2].lower() + bare[host.end() :] if host else bare).strip("/")


# One text

_EDGES = " \t\r\n\v\f\"'`\u200b\u200c\u200d\u2060\ufeff\u00a0\u201c\u201d\u2018\u2019"
_SEPARATORS = " \t\r\n\v\f\x85\u00a0\u2028\u2029\u3000,;|"
_SCHEME = re.compile(r"(https?:)?(//|\\/\\/)(?=[^\s/])", re.IGNORECASE)
_IMAGE_PATH = re.compile(r"[^?#]*\.(png|jpe?g|webp)([?#]|$)", re.IGNORECASE)
_LINK_START = re.compile(r"[hH][tT][tT][pP][sS]?://")  # not IGNORECASE, which searches a long text far slower
_MARKDOWN = re.compile(r"(?P<image>!)?\[[^\[\]]{0,500}\]\(\s*")
_PUNCTUATION = ".,;:!'\"`>)]}"
_MOST_PUNCTUATION = 50  # characters
_START = 200  # characters of a base64 text that show whether it is an image's
# How base64 may be written beside its own alphabet, by what shows that it may be: escaped, or with rare blanks in it.
_WRITTEN = {
    b"\\": ((b"\\n", b""), (b"\\r", b""), (b"\\/", b"/")),
    b"%": (
        *((escape, b"") for escape in (b"%0A", b"%0a", b"%0D", b"%0d", b"%20")),
        *((escape, b"/") for escape in (b"%2F", b"%2f", b"%5F", b"%5f")),
        *((escape, b"+") for escape in (b"%2B", b"%2b", b"%2D", b"%2d")),
        *((escape, b"=") for escape in (b"%3D", b"%3d")),
    ),
    **{blank.encode()[:1]: ((blank.encode(), b""),) for blank in "\u00a0\u2028\u3000"},
}
_ALPHABET, _BLANKS = bytes.maketrans(b"-_", b"+/"), b" \t\n\r\v\f"
_PAREN = re.compile(r"[()]")
_TITLE = re.compile(r"\s(\"[^\"]*\"|'[^']*'|\([^()]*\))$")
_HTML = re.compile(r"<(img|a)\b[^<>]{0,500}?\s(?:src|href)\s*=\s*(\"[^\"]*\"|'[^']*'|[^\s>]+)", re.IGNORECASE)
_IN_TEXT = re.compile(r"https?://[^\s\"'<>`]+", re.IGNORECASE)


def images_in(text: str, *, inline: bool = False) -> tuple[ResultImage, ...]:
    """The images that a text stands for: links, data URIs or base64, bare or wrapped in Markdown, HTML or quotes.

    :param inline: whether the text is base64 if it is nothing else.
    """
    text = text.strip(_EDGES)
    while text[:1] == "<" and text[-1:] == ">" and _is_source(text[1:].lstrip(_EDGES)):
        text = text[1:-1].strip(_EDGES)
    if _is_source(text):
        found = [_image(each) for each in _apart(text)]
    elif data := _base64(text, sure=inline):
        found = [ResultImage(data=data)]
    else:
        found = [_image(each) for each in _wrapped(text)] if len(text) <= _LONG or "](data:" in text else []
    return tuple(image for image in found if image)


def _is_source(text: str) -> bool:
    return text[:5].lower() == "data:" or bool(_SCHEME.match(text))


def _apart(text: str) -> list[str]:
    """The links and data URIs of a list that is written as one text."""
    found = (
        each.start() for each in _LINK_START.finditer(text) if text[each.start() - 1] in _SEPARATORS and each.start()
    )
    starts = [0, *itertools.islice(found, _MOST_TEXTS)]
    return [
        text[start:end].rstrip(_SEPARATORS) for start, end in zip(starts, [*starts[1:], len(text)], strict=True)
    ]  # fmt: skip


def _image(text: str) -> ResultImage | None:
    if text[:5].lower() == "data:":
        data = _data_uri(text)
        return ResultImage(data=data) if data else None
    link = _link(text)
    return ResultImage(url=link) if link else None


def _wrapped(text: str) -> Iterator[str]:
    """Links and data URIs within a text. A mere address beside words is none, unless it is an image's."""
    embedded = list(_markdown(text))
    tags = _HTML.findall(text[:_LONG])
    embedded += [(source.strip("\"'"), tag.lower() == "img") for tag, source in tags]
    for source, sure in embedded:
        if sure or _IMAGE_PATH.match(source):
            yield source
    if not embedded and len(text) <= _LONG:
        for bare in itertools.islice(_IN_TEXT.finditer(text), _MOST_TEXTS):
            named = text[: bare.start()].rstrip().endswith(":") and not text[bare.end() :].strip()
            if named or _IMAGE_PATH.match(bare[0].rstrip(".,;:!)")):
                yield bare[0]


def _markdown(text: str) -> Iterator[tuple[str, bool]]:
    """The target of each Markdown link or image, and whether it is an image or all of the text."""
    for begun in itertools.islice(_MARKDOWN.finditer(text, 0, _LONG), _MOST_WRAPPED):
        closed, depth = len(text), 0
        for paren in _PAREN.finditer(text, begun.end(), begun.end() + _LONG_LINK):
            depth += 1 if paren[0] == "(" else -1
            if depth < 0:
                closed = paren.start()
                break
        if closed == len(text):
            closed = max(text.rfind(")", begun.end()), begun.end())
        target = text[begun.end() : closed].strip()
        if len(target) <= _LONG:
            target = _TITLE.sub("", target).rstrip()
        target = target.removeprefix("<").removesuffix(">")
        if _is_source(target):
            yield target, bool(begun["image"]) or text[begun.start() : closed + 1] == text


def _link(text: str) -> str | None:
    """A link as it can be asked for, whatever raw white space, escaping or wrapping it came in; ``None`` for none."""
    text = text.strip(_EDGES)
    if len(text) > _LONG:
        return None
    text = re.sub(r"&amp;|&#38;|&#x26;|\\{1,16}u0026", "&", text.replace("\\/", "/"), flags=re.IGNORECASE)
    # As browsers do: line breaks and tabs are none of a link's, and a space in it is one that was not encoded.
    text = _without_words("".join(line.strip() for line in re.split(r"[\r\n]+", text)).replace("\t", ""))
    text = _trimmed(f"https:{text}" if text.startswith("//") else text)
    if not re.match(r"https?://[^\s/?#]+([/?#]|$)", text, re.IGNORECASE):
        return None
    text = "".join(c if c.isprintable() and c not in ' "<>`{}|^' else quote(c, errors="replace") for c in text)
    try:
        parts = urlsplit(text)
        return text if parts.hostname and parts.port != 0 else None
    except ValueError:
        return None


def _without_words(text: str) -> str:
    """A link without the words that follow it, where it surely ends before them."""
    head, _, tail = text.partition(" ")
    return head if _IMAGE_PATH.match(head) and not re.search(r"[?&=/%]", tail) and "." not in tail[:-1] else text


def _trimmed(text: str) -> str:
    """A link without the punctuation of the sentence that it stood in."""
    pairs = {")": "(", "]": "[", "}": "{"}
    for _ in range(_MOST_PUNCTUATION):
        opened = pairs.get(text[-1:])
        if text[-1:] not in _PUNCTUATION or (opened and text.count(opened) >= text.count(text[-1])):
            break
        text = text[:-1]
    return text


def _data_uri(text: str) -> bytes:
    head, _, payload = text.partition(",")
    if "base64" in head[:_LONG].lower():
        return _base64(payload, sure=True)
    # Quoted-printable but for its sign: in one go, where a list of the pieces takes thirty times the memory.
    data = binascii.a2b_qp(payload.encode("utf-8", "replace").replace(b"=", b"=3D").replace(b"%", b"="))
    return data if _is_image(data) else b""


def _base64(text: str, *, sure: bool = False) -> bytes:
    """The bytes of a base64 text in any of its alphabets, broken into lines or not; ``b""`` where it is none.

    :param sure: whether it is base64; else only an image's is taken.
    """
    if not sure and not _is_image(_decoded(_plain(text[:_START])[:24])):
        return b""
    return _decoded(_plain(text))


def _plain(text: str) -> bytes:
    """A base64 text in the usual alphabet and on one line."""
    data = text.encode("utf-8", "replace")
    for sign, escapes in _WRITTEN.items():
        for written, meant in escapes if sign in data else ():
            data = data.replace(written, meant)
    return data.translate(_ALPHABET, _BLANKS).rstrip(b"=")


def _decoded(data: bytes) -> bytes:
    try:
        return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except (binascii.Error, ValueError):
        return b""


def _is_image(data: bytes) -> bool:
    return data.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")
