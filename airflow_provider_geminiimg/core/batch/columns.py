"""Columns of a batch's rows: which is a field of a request, which is a label, and what their cells hold.

What must stay true: a column is a field, a label, or an error, and never dropped; a name that means a field in another
spelling is that field, a gateway's own name for one is refused; text in braces is replaced and never evaluated.
"""

from __future__ import annotations

import datetime as dt
import difflib
import functools
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from airflow_provider_geminiimg.core.request import ImageRequest
from airflow_provider_geminiimg.core.validation.request_values import MAX_PROMPT, WHOLE_VARIANT
from airflow_provider_geminiimg.core.validation.texts import as_text, given, normalized, refuse_half_characters, shown
from airflow_provider_geminiimg.exceptions import BadRequestError

BLANK = (None, "")
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

_EMPTY_TEXTS = frozenset(("nan", "NaN", "<NA>", "NaT", "None", "null", "NULL"))
_SHEET_ERROR = re.compile(r"#(?:N/A|NV|[^\W\d_]{2,12}(?:/0)?[!?])|Err:\d{3}|###+")
_RATIO = re.compile(r"\s*0?(\d{1,2}):0?(\d{1,2})(?::00)?(?:\s*([AP])\.?M\.?)?\s*", re.IGNORECASE)
_WHOLE = re.compile(r"\s*(\d+)[.,]0{1,2}\s*")
_DECIMAL_COMMA = re.compile(r"\s*(?:\d+,\d{1,2}|0,\d+)\s*")
_TRUE = frozenset(("wahr", "vrai", "verdadero", "verdadeiro", "vero", "waar", "prawda", "истина", "yes", "ja", "1"))
_FALSE = frozenset(("falsch", "faux", "falso", "onwaar", "fałsz", "ложь", "no", "nein", "0"))
_NUMBERS = frozenset(("temperature", "top_p"))
_FLAGS = frozenset(("google_search", "google_image_search"))

_HEAD_ENDS = re.compile(r"[.!:\[|]")
_ODD = re.compile(r"[\n\"',;|]")  # in few columns' names, and in most of what JSON and lists are made of
_NAMELIKE = re.compile(r"[^\"{},;:|=\\<>]*[^\W_][^\"{},;:|=\\<>]*")
_NAMELIKE_CHARACTERS = 100
_MAX_BRACED = 20  # columns with braces in their names
_NEAR_CHARACTERS = 200  # of a name that is compared letter by letter
_LOOKS = 20_000  # at the length and letters of two names, for one prompt
_COMPARISONS = 100  # letter by letter
_CLOSE = 0.8  # how alike a misspelt name and a column are


# Names


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
    return wanted if wanted in known else _Spellings(known).find(wanted)


class _Spellings:
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


# Cells


def cell(value: Any) -> Any:
    """A cell's value in Python's own types; ``None`` where it is empty, whatever a library writes for that."""
    if type(value).__module__.partition(".")[0] == "numpy" and getattr(value, "ndim", None) == 0:
        value = value.item()
    if value is None or type(value).__name__ in ("NAType", "NaTType"):  # pandas, which this package does not import
        return None
    if value.is_nan() if isinstance(value, Decimal) else isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, str) and not value.strip():
        return None
    return value


def label(name: str, value: Any) -> str:
    """A label's text; a whole number is written as one, as pandas makes floats of columns with empty cells.

    :raises BadRequestError: it is neither text nor a number nor a date, or has half a character in it.
    """
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, dt.date | dt.time):
        return value.isoformat().removesuffix("T00:00:00")  # pandas makes moments of days
    text = str(value) if isinstance(value, bool) else as_text(value)
    if text is None:
        raise BadRequestError(f"{shown(name)}{given(value)}: takes text or a number.")
    refuse_half_characters(name, text)
    return text


def field_value(name: str, value: Any) -> Any:
    """A field's value as spreadsheets may have left it: ``16:9`` as a time, ``0,7``, ``2.0``, ``WAHR``.

    :raises BadRequestError: the cell holds an error of the spreadsheet, or the text of an empty one.
    """
    if isinstance(value, dt.time) and name == "aspect_ratio":
        value = value.isoformat()
    if name == "variant":
        return variant_spellings(value)[0]
    if isinstance(value, Decimal):
        value = str(value)
    if not isinstance(value, str):
        return value
    plain = value.strip()
    refuse_nothing(name, plain)
    if name == "aspect_ratio" and (found := _RATIO.fullmatch(plain)):
        width = int(found[1]) + (12 if (found[3] or "").upper() == "P" and int(found[1]) < 12 else 0)
        return f"{width}:{int(found[2])}"
    if name in ("resolution", "n") and (found := _WHOLE.fullmatch(plain)):
        return found[1]
    if name in _NUMBERS and _DECIMAL_COMMA.fullmatch(plain):
        return plain.replace(",", ".")
    if name in _FLAGS:
        word = plain.casefold()
        return True if word in _TRUE else False if word in _FALSE else value
    return value


def variant_spellings(value: Any) -> tuple[Any, ...]:
    """A variant, then the other spellings under which versions before knew it.

    A whole number is written as one, as pandas makes floats of columns with empty cells, also in the files it writes.

    :raises BadRequestError: the cell holds an error of the spreadsheet, or the text of an empty one.
    """
    written = as_text(value)
    if written is None:
        return (value,)
    text = written.strip()
    refuse_nothing("variant", text)
    found = WHOLE_VARIANT.fullmatch(text)
    if found is None:
        return (text if isinstance(value, Decimal) else value,)
    whole = found[1]
    return tuple(dict.fromkeys([whole, text, f"{whole}.0"]))


def refuse_nothing(name: str, value: str) -> None:
    """What a spreadsheet or a data frame writes for "nothing" or "wrong" is no text to pay for.

    :raises BadRequestError: it is such.
    """
    if value.strip() in _EMPTY_TEXTS:
        raise BadRequestError(
            f"{shown(name)}{given(value)}: is the text that an empty cell became.", hint="Leave it empty."
        )
    if _SHEET_ERROR.fullmatch(value.strip()):
        raise BadRequestError(f"{shown(name)}{given(value)}: is an error of the spreadsheet.", hint="Correct the cell.")


# Columns in a prompt


def columns_in(text: Any, names: Sequence[str], has_labels: bool) -> dict[str, str]:
    """The columns that a prompt names in braces, by what stands between the braces.

    A column is found by its exact name whatever that holds. Braces around what can't be a name (JSON, a list) stay as
    they are; where no row has a label, all others too.

    :param names: the columns that the rows have.
    :param has_labels: whether one of them is no field.
    :raises BadRequestError: braces around what looks like a name, and is none of them.
    """
    found: dict[str, str] = {}
    if not isinstance(text, str):
        return found
    text = text[: MAX_PROMPT + 1]  # a longer one is refused
    exact = {tidy(name).casefold(): name for name in names}
    near = _Neighbours(exact)
    every, odd = _Spellings(names), _Spellings([name for name in names if _ODD.search(name)])
    for inner in _with_braces_in(text):
        wanted = tidy(inner).casefold()
        if wanted in exact:
            found[inner] = exact[wanted]
        elif has_labels and (_looks_like_a_name(inner, braces=True) or near.has(wanted)):
            raise _no_such_column(inner, names)
    for inner in dict.fromkeys(_braces([*names, *found]).findall(text)):
        wanted = tidy(inner).casefold()
        column = exact.get(wanted) if wanted else None
        head = _HEAD_ENDS.split(inner, maxsplit=1)[0].strip()
        if column is None and wanted:
            column = (odd if _ODD.search(inner) else every).find(inner.strip())
        if column is not None:
            found[inner] = column
        elif head and (odd if _ODD.search(head) else every).find(head) is not None:
            raise BadRequestError(f"prompt: {{{_shown(inner)}}}: braces take a column's name alone.")
        elif has_labels and (_looks_like_a_name(inner) or near.has(wanted)):
            raise _no_such_column(inner, names)
    return found


def _no_such_column(inner: str, names: Sequence[str]) -> BadRequestError:
    return BadRequestError(
        f"prompt: {{{_shown(inner)}}}: there is no such column. Found: {listed(names)}.",
        hint="Braces that belong to the text go into the rows' own prompt column, where nothing is replaced.",
    )


def _with_braces_in(text: str) -> Iterator[str]:
    """What stands between braces and has braces itself, outermost first; doubled braces hold no column, and no column's
    name is longer than `MAX_NAME`."""
    opened: list[int] = []
    pairs: dict[int, int] = {}
    for at, char in enumerate(text):
        if char == "{":
            opened.append(at)
        elif char == "}" and opened:
            pairs[opened.pop()] = at
    for start, end in sorted(pairs.items()):
        doubled = pairs.get(start + 1) == end - 1 or pairs.get(start - 1) == end + 1
        if not doubled and end - start <= MAX_NAME and "{" in text[start + 1 : end]:
            yield text[start + 1 : end]


def filled(text: str, values: Mapping[str, str]) -> str:
    """The prompt with its columns' cells, by what stands between the braces. What a cell holds stays as it is.

    :raises BadRequestError: it would be longer than any prompt.
    """
    parts, done, length = [], 0, 0
    for found in _braces(values).finditer(text):
        parts += [text[done : found.start()], values.get(found[1], found[0])]
        done = found.end()
        length += len(parts[-1])
        if length > MAX_PROMPT:
            raise BadRequestError(f"prompt: with the row's cells it has more than {MAX_PROMPT} characters.")
    return "".join([*parts, text[done:]])


def _braces(names: Iterable[str]) -> re.Pattern[str]:
    """Braces and what they hold, which has none itself but in a column's name; doubled ones are text.

    :raises BadRequestError: more such names than can be looked for at each brace.
    """
    braced = sorted({name for name in names if "{" in name or "}" in name}, key=len, reverse=True)
    if len(braced) > _MAX_BRACED or any(len(name) > _NEAR_CHARACTERS for name in braced):
        raise BadRequestError(
            f"prompt: too many or too long columns have braces in their names: {listed(braced)}.",
            hint="Rename them, or put whole prompts into a prompt column.",
        )
    held = "|".join([*map(re.escape, braced), "[^{}]*"])
    return re.compile(rf"(?:(?<!\{{)|(?=\{{(?:{held})\}}(?!\}})))\{{({held})\}}")


def _shown(inner: str) -> str:
    return shown(inner)


def _looks_like_a_name(inner: str, *, braces: bool = False) -> bool:
    text = re.sub(r"[{}]", "", inner).strip() if braces else inner.strip()
    quoted = text[:1] == "'" or "\n" in inner
    return 0 < len(text) <= _NAMELIKE_CHARACTERS and not quoted and _NAMELIKE.fullmatch(text) is not None


class _Neighbours:
    """Tells what is a column's name but for a few characters. A prompt of thousands of braces gets no more looks than
    one of a few: to compare two names takes the square of their length, and more.

    :param names: of the columns.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = [name for name in names if len(name) <= _NEAR_CHARACTERS]
        self._looks, self._comparisons = _LOOKS, _COMPARISONS

    def has(self, wanted: str) -> bool:
        """Whether this, which may be JSON, is nearly one of them."""
        matcher = difflib.SequenceMatcher()
        matcher.set_seq2(wanted[: 2 * _NEAR_CHARACTERS])
        for name in self._names:
            if self._looks and self._comparisons and 0.6 * len(name) <= len(wanted) <= 1.7 * len(name):
                self._looks -= 1
                matcher.set_seq1(name)
                if matcher.real_quick_ratio() >= _CLOSE and matcher.quick_ratio() >= _CLOSE:
                    self._comparisons -= 1
                    if matcher.ratio() >= _CLOSE:
                        return True
        return False
