"""Finds the images in a response: links in Markdown, HTML or quotes, data URIs, and base64 in any alphabet.

What must stay true: every image in a response is found; a URL beside a text, or in a repeated request, is not a
result; nothing here trusts a link, and neither does `core.http.download`; the time is linear in the length of a text.
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

MAX_IMAGES = 16  # per job; one is requested, and a response must not fill the disk
_DEPTH = 10  # no known shape nests deeper
_LONG = 20_000  # characters; a longer text is base64, not a link, and is not searched for Markdown or HTML
_MAX_TEXTS = 32  # texts of a response that are searched; also links in one text
_MAX_WRAPPED = 20  # Markdown links of one text that are examined
_LONG_LINK = 4_000  # characters in which the parentheses of a Markdown link are matched

_BYTES_KEYS = ("b64_json", "b64", "base64", "image_base64", "imageBase64", "bytesBase64Encoded")
# Fields that no request has. They go before fields that may repeat an input or contain a status URL.
_RESULT_KEYS = ("result_url", "resultUrl", "result_urls", "resultUrls", "result", "results", "output", "outputs")
_LINK_KEYS = ("url", "urls", "download_url", "signed_url")
_OTHER_KEYS = ("images", "image", "image_url", "imageUrl", "key", "path", "data", "inlineData")
_CHAT_KEYS = ("inline_data", "choices", "message", "candidates", "content", "parts")
_KEYS = (*_BYTES_KEYS, *_RESULT_KEYS, *_LINK_KEYS, *_OTHER_KEYS, *_CHAT_KEYS)
# Fields that contain results only. The keys below count only inside them; elsewhere they may repeat the inputs.
_RESULTS = frozenset(("images", "output", "outputs", "result", "results"))
_KEYS_OF_RESULTS = ("image_urls", "imageUrls", "uri", "fileUri", "src", "href", "link", "file")


@dataclass(frozen=True)
class Result:
    """One text in a place for results.

    :param text: the unchanged text: a link, a data URI, base64, a storage key, or words.
    :param images: the images in the text.
    """

    text: str = field(repr=False)
    images: tuple[ResultImage, ...] = field(repr=False)


def results(value: Any, depth: int = 0, *, inside: bool = False) -> list[Result]:
    """All texts in the places where gateways put results.

    Of an object, the first known key with an image counts (keys for bytes before keys for links); if none has an image,
    the first key with a text.

    :param value: parsed JSON.
    :param depth: the current nesting depth.
    :param inside: whether `value` contains results only.
    """
    if isinstance(value, str):
        return [Result(value.strip(), images_in(value))] if value.strip() else []
    if depth >= _DEPTH:
        return []
    if isinstance(value, list):
        found = (result for item in value for result in results(item, depth + 1, inside=inside))
        return list(itertools.islice(found, _MAX_TEXTS))
    return _of_object(value, depth, inside) if isinstance(value, Mapping) else []


def only_results(value: Any, depth: int = 0) -> list[Result]:
    """The texts in fields that contain results only, never an input or a status URL."""
    if depth >= _DEPTH:
        return []
    if isinstance(value, list):
        each = (found for item in value for found in only_results(item, depth + 1))
        return list(itertools.islice(each, _MAX_TEXTS))
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
            continue  # the envelope's message about the call
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

_INPUT = "input"  # replaces the URL of an input; it looks like a file name and not like an image


@dataclass(frozen=True)
class Known:
    """Tells input images from results in a response.

    :param inputs: URIs of the input images. Only http(s) URLs count, because no other URI is sent to a gateway.
    :param keys: storage keys of the input images; a link to an input ends with its key.
    :param results: storage keys and links in fields that contain results only; inputs may be among them.
    """

    inputs: Collection[str] = ()
    keys: Collection[str] = ()
    results: Collection[str] = ()

    @functools.cached_property
    def _places(self) -> tuple[str, ...]:
        return (*(place for place in self.inputs if _SCHEME.match(place.strip(_EDGES))), *self.keys)

    @functools.cached_property
    def _own(self) -> tuple[str, ...]:
        """The endings of the URLs of results."""
        others = (
            text for text in self.results if len(text) <= _LONG and not any(_is_at(text, key) for key in self.keys)
        )
        return tuple(filter(None, (_ending(text)[0] for text in others)))

    def without_inputs(self, value: Any, depth: int = 0) -> Any:
        """A copy of a JSON value in which each URL or key of an input is replaced by `_INPUT`."""
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
        """Whether a text is the URL or key of an input.

        The longest known ending decides, because the key of a result may end with the key of an input.
        """
        if len(text) > _LONG:
            return False
        address, longest = f"/{_address(text)}", 0
        for place in self._places:
            ending, tells = _ending(place)
            if (tells or text == place) and address.endswith(ending):
                longest = max(longest, len(ending))
        return longest > 0 and not any(len(own) > longest and address.endswith(own) for own in self._own)


def _is_at(text: str, key: str) -> bool:
    """Whether a text is the storage key `key`, or a link whose path is the key, with or without a bucket name."""
    path, known = _address(text), _address(key)
    if _SCHEME.match(text.strip(_EDGES)):
        path = path.partition("/")[2]
        return known == path or ("/" in known and known == path.partition("/")[2])
    return known == path


@functools.lru_cache(maxsize=256)
def _ending(place: str) -> tuple[str, bool]:
    """The ending of an input's URL or key, and whether the ending identifies the input.

    It does not if only the query of the URL identifies the image, as in ``/view?id=7``.
    """
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
_MAX_PUNCTUATION = 50  # characters
_START = 200  # characters of a base64 text that show whether it is an image
# Escapes and rare blanks that may occur in base64, by a byte that shows that they may occur.
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
    """The images in a text: links, data URIs or base64, bare or in Markdown, HTML or quotes.

    :param inline: whether a text that is nothing else is base64.
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
    starts = [0, *itertools.islice(found, _MAX_TEXTS)]
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
    """Links and data URIs inside a text. A bare URL among words counts only if its path names an image file."""
    embedded = list(_markdown(text))
    tags = _HTML.findall(text[:_LONG])
    embedded += [(source.strip("\"'"), tag.lower() == "img") for tag, source in tags]
    for source, sure in embedded:
        if sure or _IMAGE_PATH.match(source):
            yield source
    if not embedded and len(text) <= _LONG:
        for bare in itertools.islice(_IN_TEXT.finditer(text), _MAX_TEXTS):
            named = text[: bare.start()].rstrip().endswith(":") and not text[bare.end() :].strip()
            if named or _IMAGE_PATH.match(bare[0].rstrip(".,;:!)")):
                yield bare[0]


def _markdown(text: str) -> Iterator[tuple[str, bool]]:
    """The target of each Markdown link or image, and whether it is an image or all of the text."""
    for begun in itertools.islice(_MARKDOWN.finditer(text, 0, _LONG), _MAX_WRAPPED):
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
    """A link as a valid URL, without raw white space, escapes and quotes; ``None`` if the text is not a link."""
    text = text.strip(_EDGES)
    if len(text) > _LONG:
        return None
    text = re.sub(r"&amp;|&#38;|&#x26;|\\{1,16}u0026", "&", text.replace("\\/", "/"), flags=re.IGNORECASE)
    # As browsers do: line breaks and tabs are removed, and a space is encoded.
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
    """A link without the words after it, if its end is certain."""
    head, _, tail = text.partition(" ")
    return head if _IMAGE_PATH.match(head) and not re.search(r"[?&=/%]", tail) and "." not in tail[:-1] else text


def _trimmed(text: str) -> str:
    """A link without the punctuation of the surrounding sentence."""
    pairs = {")": "(", "]": "[", "}": "{"}
    for _ in range(_MAX_PUNCTUATION):
        opened = pairs.get(text[-1:])
        if text[-1:] not in _PUNCTUATION or (opened and text.count(opened) >= text.count(text[-1])):
            break
        text = text[:-1]
    return text


def _data_uri(text: str) -> bytes:
    head, _, payload = text.partition(",")
    if "base64" in head[:_LONG].lower():
        return _base64(payload, sure=True)
    # Percent-encoding is quoted-printable with another sign. One call; a list of pieces takes 30 times the memory.
    data = binascii.a2b_qp(payload.encode("utf-8", "replace").replace(b"=", b"=3D").replace(b"%", b"="))
    return data if _is_image(data) else b""


def _base64(text: str, *, sure: bool = False) -> bytes:
    """The bytes of a base64 text in any alphabet, with or without line breaks; ``b""`` if it is not base64.

    :param sure: whether the text must be base64; otherwise only the base64 of an image counts.
    """
    if not sure and not _is_image(_decoded(_plain(text[:_START])[:24])):
        return b""
    return _decoded(_plain(text))


def _plain(text: str) -> bytes:
    """A base64 text in the standard alphabet on one line."""
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
