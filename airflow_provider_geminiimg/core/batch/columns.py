"""Columns of a batch's rows: which is a field of a request, and which is a label.

What must stay true: a column is a field, a label, or an error, and never dropped; a name that means a field in another
spelling is that field, a gateway's own name for one is refused.
"""

from __future__ import annotations

import difflib
import functools
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping

from airflow_provider_geminiimg.core.request import ImageRequest
from airflow_provider_geminiimg.core.validation.texts import normalized, refuse_half_characters, shown
from airflow_provider_geminiimg.exceptions import BadRequestError

FIELDS = (*(name for name in ImageRequest.model_fields if name != "operation"), "n")
MAX_FOUND = 20  # columns that one message lists
MAX_NAME = 1_000  # characters of a column's name
MAX_COLUMNS = 1_000
_SHOWN_LABELS = 2  # of a row, in a message
_SHOWN_CHARACTERS = 40  # of a label there: a longer one is left out, as it may be a prompt under another name
_WRAPPERS = re.compile(r"^(?:promptobject|generationconfig|imageconfig)+(?=.)")
_NUMBERED = re.compile(r"((?:reference|ref|input)?images?(?:url|uri|path)?|reference)\d+")

# What the gateways, Google and other clients call our fields, by key. A column of such a name is refused.
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
def tidy(name: str) -> str:
    """A column's name without what nobody sees: blanks around it, line breaks in it, byte order marks."""
    name = normalized("NFC", name[: MAX_NAME + 1])  # a longer one is refused
    text = "".join(char for char in name if unicodedata.category(char) != "Cf")
    return " ".join(text.split())


@functools.lru_cache(4096)
def name_key(name: str) -> str:
    """What the spellings of one name share: its letters and digits, in one case."""
    text = normalized("NFKC", name[: MAX_NAME + 1]).casefold()
    return "".join(char for char in text if char.isalnum() or unicodedata.category(char)[0] == "M") or text.strip()


_FIELD_KEYS = {name_key(name): name for name in FIELDS if name != "n"}


def refuse_twins(names: Iterable[str]) -> None:
    """Two columns of one name, in whatever case, are an error: one would be dropped, or taken for the other. So are
    more columns than any table of requests has, and names that can't be written or that no one reads.

    :raises BadRequestError: there are such.
    """
    seen: dict[str, str] = {}
    for name in names:
        if len(name) > MAX_NAME:
            raise BadRequestError(f"The column {shown(name)!r}: its name has more than {MAX_NAME} characters.")
        refuse_half_characters(name, name)
        if len(seen) > MAX_COLUMNS:
            raise BadRequestError(f"There are more than {MAX_COLUMNS} columns.", hint="Remove those that are not used.")
        key = tidy(name).casefold()
        if key and key in seen:
            both = repr(shown(tidy(name))) if seen[key] == name else f"{shown(seen[key])!r} and {shown(name)!r}"
            raise BadRequestError(f"{both}: two columns have this name.", hint="Rename or remove one of them.")
        seen[key] = name


def field_of(name: str) -> str | None:
    """The field that a column is; ``None``: it is a label.

    :raises BadRequestError: it is neither: a gateway's own name, a misspelt field, or a name that is taken.
    """
    key = name_key(name)
    if tidy(name).casefold() == "n":  # and not N° or N., which count rows
        return "n"
    if key in _FIELD_KEYS:
        return _FIELD_KEYS[key]
    if key == "operation":
        raise BadRequestError("operation: there is no such column.", hint="A row with an image is an edit.")
    if tidy(name).casefold() == "row":
        raise BadRequestError(f"{shown(name)}: is the row's number.", hint="Call the column otherwise.")
    bare = _WRAPPERS.sub("", key)
    if bare in _UNSENT:
        raise BadRequestError(
            f"{shown(name)}: is a setting that this package does not send.", hint="If it is a label, call it otherwise."
        )
    meant = _MEANT.get(bare) or _numbered(bare) or (_FIELD_KEYS.get(bare, ""),)
    close = meant if meant != ("",) else difflib.get_close_matches(key, _FIELD_KEYS, n=1, cutoff=0.75)
    if close:
        names = " or ".join(repr(_FIELD_KEYS.get(each, each)) for each in close)
        hint = f"Did you mean {names}? If it is a label, call it otherwise."
        raise BadRequestError(f"{shown(name)}: there is no such field.", hint=hint)
    return None


def _numbered(key: str) -> tuple[str, ...] | None:
    found = _NUMBERED.fullmatch(key)
    if found is None:
        return None
    return ("image", "reference_images") if found[1].startswith(("image", "input")) else ("reference_images",)


def find_column(wanted: str, names: Iterable[str]) -> str | None:
    """The column that `wanted` names: as it is written, else in another spelling.

    :raises BadRequestError: it could be several.
    """
    known = list(names)
    return wanted if wanted in known else ColumnFinder(known).find(wanted)


class ColumnFinder:
    """Columns by what the spellings of each share, so that many names are looked for in a time that adds up."""

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
    return tidy(name).casefold()


def listed(names: Iterable[str]) -> str:
    """Names of columns for a message."""
    known = list(names)
    more = f" and {len(known) - MAX_FOUND} more" if len(known) > MAX_FOUND else ""
    return (", ".join(map(shown, known[:MAX_FOUND])) or "none") + more


def place_of(number: int, line: int | None, labels: Mapping[str, str]) -> str:
    """Where a row stands, for a message: its line in the file, or its number in the list from 0, and its labels."""
    short = [name for name, value in labels.items() if name != "row" and 0 < len(value) <= _SHOWN_CHARACTERS]
    said = ", ".join(f"{shown(name, 40)}={shown(repr(labels[name]), 500)}" for name in short[:_SHOWN_LABELS])
    return (f"row {number}" if line is None else f"line {line}") + (f" ({said})" if said else "")
