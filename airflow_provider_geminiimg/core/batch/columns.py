"""Columns of a batch's rows: which of them are request fields, and which are labels.

Invariants: a column is a field, a label or an error; it is never ignored. Another spelling of a field name is that
field. A gateway's own name for a field is refused.
"""

from __future__ import annotations

import difflib
import functools
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping

from airflow_provider_geminiimg.core.request import ImageRequest
from airflow_provider_geminiimg.core.validation.texts import normalized, refuse_lone_surrogates, shown
from airflow_provider_geminiimg.exceptions import BadRequestError

FIELDS = (*(name for name in ImageRequest.model_fields if name != "operation"), "n")
MAX_FOUND = 20  # columns listed in one message
MAX_NAME = 1_000  # characters of a column's name
MAX_COLUMNS = 1_000
_SHOWN_LABELS = 2  # labels of a row in one message
_SHOWN_CHARACTERS = 40  # a message omits a longer label, because it may be a prompt
_WRAPPERS = re.compile(r"^(?:promptobject|generationconfig|imageconfig)+(?=.)")
_NUMBERED = re.compile(r"((?:reference|ref|input)?images?(?:url|uri|path)?|reference)\d+")

# Names that the gateways, Google and other clients use for our fields, by key. Such a column is refused.
_MEANT: Mapping[str, tuple[str, ...]] = {
    "size": ("aspect_ratio", "resolution"),
    **dict.fromkeys(("ratio", "aspect", "imageratio", "imageaspectratio"), ("aspect_ratio",)),
    **dict.fromkeys(("imagesize", "imageresolution", "quality", "imagequality"), ("resolution",)),
    **dict.fromkeys(("imageurl", "imageuri", "imagepath", "imagefile", "imgurl", "inputimage"), ("image",)),
    **dict.fromkeys(("sourceimage", "initimage", "baseimage", "inputimageurl"), ("image",)),
    **dict.fromkeys(("images", "imageurls", "imageuris", "inputimages", "references"), ("image", "reference_images")),
    **dict.fromkeys(("referenceimage", "referenceimageurl", "referenceimageurls"), ("reference_images",)),
    **dict.fromkeys(("referenceurl", "referenceurls", "refimage", "refimages"), ("reference_images",)),
    **dict.fromkeys(("numimages", "numberofimages", "imagecount", "candidatecount", "samplecount"), ("n",)),
    **dict.fromkeys(("modelid", "modelname"), ("model",)),
    **dict.fromkeys(("prompttext", "textprompt", "promptobject", "userprompt", "contents"), ("prompt",)),
    **dict.fromkeys(("websearch", "googlesearchretrieval", "enablegooglesearch"), ("google_search",)),
    **dict.fromkeys(("imagesearch", "enablegoogleimagesearch"), ("google_image_search",)),
}
_UNSENT = frozenset(
    [
        "negativeprompt",
        "seed",
        *("mask", "maskurl", "maskuri", "maskpath", "maskfile", "maskimage", "maskimageurl", "imagemask", "inputmask"),
        "outputformat",
        "outputmimetype",
        "safetysettings",
        "safetyfilterlevel",
        "thinkinglevel",
        "thinkingconfig",
        "responsemodalities",
        "systeminstruction",
        "persongeneration",
        "topk",
        "maxoutputtokens",
        "mediaresolution",
        "servicetier",
    ]
)


@functools.lru_cache(4096)  # each row of a file has the same names
def clean_name(name: str) -> str:
    """The name of a column without invisible characters: surrounding blanks, line breaks, byte order marks."""
    name = normalized("NFC", name[: MAX_NAME + 1])  # a longer one is refused
    text = "".join(char for char in name if unicodedata.category(char) != "Cf")
    return " ".join(text.split())


@functools.lru_cache(4096)
def name_key(name: str) -> str:
    """The key that all spellings of a name share: its letters and digits, case-folded."""
    text = normalized("NFKC", name[: MAX_NAME + 1]).casefold()
    return "".join(char for char in text if char.isalnum() or unicodedata.category(char)[0] == "M") or text.strip()


_FIELD_KEYS = {name_key(name): name for name in FIELDS if name != "n"}


def refuse_twins(names: Iterable[str]) -> None:
    """:raises BadRequestError: two columns have the same name, ignoring case; a name is too long or has an incomplete
    character; or there are more than `MAX_COLUMNS` columns."""
    seen: dict[str, str] = {}
    for name in names:
        if len(name) > MAX_NAME:
            raise BadRequestError(f"The column {shown(name)!r}: its name has more than {MAX_NAME} characters.")
        refuse_lone_surrogates(name, name)
        if len(seen) > MAX_COLUMNS:
            raise BadRequestError(f"There are more than {MAX_COLUMNS} columns.", hint="Remove those that are not used.")
        key = clean_name(name).casefold()
        if key and key in seen:
            both = repr(shown(clean_name(name))) if seen[key] == name else f"{shown(seen[key])!r} and {shown(name)!r}"
            raise BadRequestError(f"{both}: two columns have this name.", hint="Rename or remove one of them.")
        seen[key] = name


def field_of(name: str) -> str | None:
    """The request field of a column; ``None`` for a label.

    :raises BadRequestError: the name is a gateway's own name for a field, a misspelled field or a reserved name.
    """
    key = name_key(name)
    if clean_name(name).casefold() == "n":  # and not N° or N., which count rows
        return "n"
    if key in _FIELD_KEYS:
        return _FIELD_KEYS[key]
    if key == "operation":
        raise BadRequestError("operation: there is no such column.", hint="A row with an image is an edit.")
    if clean_name(name).casefold() == "row":
        raise BadRequestError(f"{shown(name)}: this name is reserved for the row number.", hint="Rename the column.")
    bare = _WRAPPERS.sub("", key)
    if bare in _UNSENT:
        raise BadRequestError(
            f"{shown(name)}: is a setting that this package does not send.", hint="If it is a label, rename the column."
        )
    meant = _MEANT.get(bare) or _numbered(bare) or (_FIELD_KEYS.get(bare, ""),)
    close = meant if meant != ("",) else difflib.get_close_matches(key, _FIELD_KEYS, n=1, cutoff=0.75)
    if close:
        names = " or ".join(repr(_FIELD_KEYS.get(each, each)) for each in close)
        hint = f"Did you mean {names}? If it is a label, rename the column."
        raise BadRequestError(f"{shown(name)}: there is no such field.", hint=hint)
    return None


def _numbered(key: str) -> tuple[str, ...] | None:
    found = _NUMBERED.fullmatch(key)
    if found is None:
        return None
    return ("image", "reference_images") if found[1].startswith(("image", "input")) else ("reference_images",)


def find_column(wanted: str, names: Iterable[str]) -> str | None:
    """The column that `wanted` names, by its exact name or else by another spelling; ``None`` if there is none.

    :raises BadRequestError: several columns match.
    """
    known = list(names)
    return wanted if wanted in known else ColumnFinder(known).find(wanted)


class ColumnFinder:
    """Finds columns by any spelling of their names, in linear time for many names."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = dict.fromkeys(names)
        self._by_key: list[dict[str, list[str]]] = [{}, {}]

    def find(self, wanted: str) -> str | None:
        """See `find_column`."""
        if wanted in self._names or not self._names or len(wanted) > MAX_NAME:
            return wanted if wanted in self._names else None
        keys: tuple[Callable[[str], str], ...] = (_bare, name_key)
        for key, by_key in zip(keys, self._by_key, strict=True):
            if not by_key:
                for name in self._names:
                    by_key.setdefault(key(name), []).append(name)
            found = by_key.get(key(wanted), [])
            if len(found) > 1:
                raise BadRequestError(f"{{{shown(wanted)}}}: could be {' or '.join(map(repr, map(shown, found)))}.")
            if found:
                return found[0]
        return None


def _bare(name: str) -> str:
    return clean_name(name).casefold()


def listed(names: Iterable[str]) -> str:
    """A list of column names for a message."""
    known = list(names)
    more = f" and {len(known) - MAX_FOUND} more" if len(known) > MAX_FOUND else ""
    return (", ".join(map(shown, known[:MAX_FOUND])) or "none") + more


def place_of(number: int, line: int | None, labels: Mapping[str, str]) -> str:
    """The place of a row for a message: its line in the file, or its index in the list from 0, and its labels."""
    short = [name for name, value in labels.items() if name != "row" and 0 < len(value) <= _SHOWN_CHARACTERS]
    said = ", ".join(f"{shown(name, 40)}={shown(repr(labels[name]), 500)}" for name in short[:_SHOWN_LABELS])
    return (f"row {number}" if line is None else f"line {line}") + (f" ({said})" if said else "")
