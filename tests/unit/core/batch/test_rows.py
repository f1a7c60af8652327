"""Rows as people, spreadsheets and data frames write them, and what becomes of them before anything is paid for."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_geminiimg.core.batch.columns import clean_name
from airflow_provider_geminiimg.core.batch.image_specs import ImageSpec, RowDefaults, image_specs
from airflow_provider_geminiimg.core.batch.prompt_columns import columns_in
from airflow_provider_geminiimg.core.batch.row_file_names import name_part, numbers_after
from airflow_provider_geminiimg.core.batch.rows import read_rows, records_of
from airflow_provider_geminiimg.core.storage import Files
from airflow_provider_geminiimg.core.validation.arguments import delimiter, encoding, stem, whole
from airflow_provider_geminiimg.exceptions import BadRequestError
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS

FILES = Files(AIRFLOW_OPENERS)
HEADER = ["sku", "prompt", "aspect_ratio"]
ROWS = [["A-1", "Ein Fuchs, rot", "16:9"], ["Ü;2", 'Ein "alter" Wolf\nim Schnee', ""]]


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., list[Mapping[str, Any]]]:
    """Rows of a file with this content."""

    def read(content: str | bytes, name: str = "rows.csv", **arguments: Any) -> list[Mapping[str, Any]]:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return list(read_rows(str(path), FILES, **arguments))

    return read


def wanted(
    rows: Sequence[Mapping[str, Any]], n: int = 1, file_name: str | None = None, **shared: Any
) -> list[ImageSpec]:
    return list(image_specs(rows, RowDefaults(shared, "apimaster", variants=n, file_name=file_name)))


def refusal(rows: Sequence[Mapping[str, Any]], n: int = 1, file_name: str | None = None, **shared: Any) -> str:
    with pytest.raises(BadRequestError) as caught:
        wanted(rows, n, file_name, **shared)
    return str(caught.value)


def sheet(separator: str, end: str = "\r\n", extra: int = 0) -> str:
    """The rows as a spreadsheet program writes them."""

    def quoted(text: str) -> str:
        wrapped = any(char in text for char in f'{separator}"\n')
        return '"{}"'.format(text.replace('"', '""')) if wrapped else text

    return "".join(separator.join([*map(quoted, row), *[""] * extra]) + end for row in [HEADER, *ROWS])


# CSV

BLANKS = ";;;\r\n"
SHEETS: dict[str, tuple[bytes, dict[str, str]]] = {
    "Excel, English": (sheet(",").encode(), {}),
    "Excel, German, as CSV UTF-8": (sheet(";").encode("utf-8-sig"), {}),
    "Excel, German, as CSV": (sheet(";").encode("cp1252"), {"encoding": "cp1252"}),
    "Excel for Mac": (sheet(";", "\r").encode("mac_roman"), {"encoding": "mac_roman"}),
    "Excel's Unicode text": (sheet("\t").encode("utf-16"), {}),
    "UTF-16, big endian": (("\ufeff" + sheet("\t")).encode("utf-16-be"), {}),
    "UTF-16 without a mark": (sheet("\t").encode("utf-16-le"), {"encoding": "utf-16-le"}),
    "a mark that says more than the author": (sheet(";").encode("utf-8-sig"), {"encoding": "cp1252"}),
    "a line that names the separator": (("sep=;\r\n" + sheet(";")).encode("utf-8-sig"), {}),
    "the same in capitals and quotes": (('"SEP=|"\r\n' + sheet("|")).encode(), {}),
    "the same, saved again": (("sep=;;;\r\n" + sheet(";")).encode(), {}),
    "a tab that is named": (("sep=\t\n" + sheet("\t", "\n")).encode(), {}),
    "LibreOffice": (sheet(",", "\n").encode(), {}),
    "Numbers, semicolons": (sheet(";", "\n").encode(), {}),
    "bars": (sheet("|").encode(), {}),
    "any other delimiter": (sheet("^").encode(), {"delimiter": "^"}),
    "trailing empty columns": (sheet(";", extra=3).encode(), {}),
    "a mark written twice": (("\ufeff" + sheet(";")).encode("utf-8-sig"), {}),
    "rows of only separators": ((BLANKS + "\r\n" + sheet(";") + BLANKS * 2 + '" ";;\u00a0\r\n').encode(), {}),
    "no line end at the end": (sheet(",").rstrip().encode(), {}),
}


@pytest.mark.parametrize(("data", "arguments"), SHEETS.values(), ids=SHEETS)
def test_what_spreadsheet_programs_write_in_any_country_is_read_cell_by_cell(
    read: Callable[..., Any], data: bytes, arguments: dict[str, str]
) -> None:
    found = [[row[name] for name in HEADER] for row in read(data, **arguments)]
    assert [[cell.replace("\r", "\n") for cell in row] for row in found] == ROWS


def test_rows_are_counted_as_an_editor_shows_the_files_lines(read: Callable[..., Any]) -> None:
    text = 'sep=;\r\n;;\r\nsku;prompt;aspect_ratio\r\n\r\nA;"two\r\nlines";\r\n;;\r\nB;x;7:3\r\n'
    said = refusal(read(text))
    assert "1 of 2 requests can't be made: line 8 (sku='B'): aspect_ratio='7:3'" in said
    assert "line 4 (sku='B')" in refusal(read('{"prompt": "x"}\n\n\n{"sku": "B", "aspect_ratio": "7:3"}\n', "r.jsonl"))
    assert "row 1 (sku='B')" in refusal([{"prompt": "x"}, {"sku": "B", "prompt": "x", "aspect_ratio": "7:3"}])


WRONG_FILES: dict[str, tuple[str | bytes, str, list[str]]] = {
    "two columns of one name": ("prompt,prompt\na,b\n", "r.csv", ["line 1", "'prompt'", "two columns"]),
    "in another case": ("sku,SKU,prompt\n1,2,a\n", "r.csv", ["line 1", "'sku' and 'SKU'"]),
    "with a blank": ("prompt,prompt \na,b\n", "r.csv", ["'prompt'", "two columns"]),
    "one of them empty": ("prompt,prompt\na,\n", "r.csv", ["two columns"]),
    "an empty header cell over something": (
        "sku,,prompt\n1,,a\n2,x,b\n",
        "r.csv",
        ["line 3", "column 2", "sku, prompt"],
    ),
    "more cells than names": ("prompt\nEin Fuchs, rot\n", "r.csv", ["line 2", "more cells", "commas", "delimiter="]),
    "a title above the header": ("Katalog;;\nsku;prompt;n\n1;a;\n", "r.csv", ["line 2", "no name"]),
    "a quote that never ends": ('prompt\na\n"b\nc\n', "r.csv", ["line 3", "is not CSV", "Correct this line"]),
    "a cell of any length": (
        "prompt\n" + "x" * 200_000,
        "r.csv",
        ["line 2", "a cell may have at most 131072 characters"],
    ),
    "two possible delimiters": ("a,b;c\n1,2;3\n", "r.csv", ["commas or semicolons", "delimiter="]),
    "cp1252": ("sku;prompt\n1;Käse\n".encode("cp1252"), "r.csv", ["is not UTF-8 (line 2)", 'encoding="cp1252"']),
    "UTF-16 without a mark": ("prompt\nKäse\n".encode("utf-16-le"), "r.csv", ['encoding="utf-16-le"']),
    "UTF-16 without a mark, the other way": ("prompt\na\n".encode("utf-16-be"), "r.csv", ['encoding="utf-16-be"']),
    "nothing": ("", "r.csv", ["r.csv is empty"]),
    "a header alone": ("sku,prompt\r\n,\r\n", "r.csv", ["r.csv is empty"]),
    "a key twice": ('{"prompt": "a"}\n{"prompt": "a", "prompt": "b"}\n', "r.jsonl", ["line 2", "'prompt'", "twice"]),
    "a key twice, deep inside": ('[{"image": {"uri": "a", "uri": "b"}}]', "r.json", ["'uri'", "twice"]),
    "an infinite number": ('{"prompt": "a", "temperature": Infinity}\n', "r.jsonl", ["line 1", "Infinity"]),
    "no JSON": ('{"prompt": "a"}\n{"prompt": }\n', "r.jsonl", ["line 2", "is not JSON"]),
    "a number": ("1\n", "r.jsonl", ["line 1", "int"]),
    "no list": ('{"prompt": "a"}', "r.json", ["is not a list"]),
    "an empty file of lines": ("\n\n", "r.jsonl", ["is empty"]),
}


@pytest.mark.parametrize(("content", "name", "says"), WRONG_FILES.values(), ids=WRONG_FILES)
def test_a_file_that_can_not_be_read_for_sure_is_refused_with_its_line_and_the_remedy(
    read: Callable[..., Any], content: str | bytes, name: str, says: list[str]
) -> None:
    with pytest.raises(BadRequestError) as caught:
        wanted(read(content, name))
    assert all(part in str(caught.value) for part in says), str(caught.value)


def test_the_wrong_encoding_shows_by_the_control_characters_it_gives(read: Callable[..., Any]) -> None:
    with pytest.raises(BadRequestError, match="line 2: is not in latin-1"):
        read("prompt\n„Käse“ …\n".encode("cp1252"), encoding="latin-1")


@pytest.mark.parametrize(
    "code", ["cp1252", "latin-1", "cp1250", "cp1251", "mac_roman", "cp437", "iso8859-15", "koi8-r"]
)
@pytest.mark.parametrize("text", ["Bär süß", "日本の猫", "кот", "café é", "Łódź", "🦊"])
@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_utf_8_is_not_read_as_an_encoding_of_one_byte(
    read: Callable[..., Any], text: str, code: str, name: str
) -> None:
    content = json.dumps(text, ensure_ascii=False) if name == "rows.jsonl" else f"prompt\n{text}\n"
    with pytest.raises(BadRequestError, match=r"is UTF-8, and not .*Leave the argument encoding out"):
        read(content, name, encoding=code)
    with contextlib.suppress(UnicodeEncodeError):
        assert read(f"prompt\n{text}\n".encode(code), encoding=code)[0]["prompt"] == text


def test_what_is_in_its_encoding_is_read(read: Callable[..., Any]) -> None:
    for code, text in (
        ("shift_jis", "日本の猫"),
        ("gbk", "一只猫"),
        ("cp1252", "a fox"),
        ("utf-8", "Bär"),
        ("U8", "кот"),
    ):
        assert read(f"prompt\n{text}\n".encode(code), encoding=code)[0]["prompt"] == text


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_only_a_line_feed_ends_a_line_of_json(read: Callable[..., Any], mark: str) -> None:
    text = json.dumps({"prompt": f"a{mark}b", "sku": "A"}, ensure_ascii=False)
    rows = read(f"{text}\r\n{json.dumps('a wolf')}\n", "rows.ndjson")
    assert [spec.request.prompt for spec in wanted(rows)] == [f"a{mark}b", "a wolf"]


@pytest.mark.parametrize("value", ["base64", "rot13", "utf-88", "cp1252\0", 5])
def test_an_encoding_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(BadRequestError, match="encoding"):
        encoding("encoding", value)


@pytest.mark.parametrize("value", ["ab", '"', "\n", "x", 5])
def test_a_delimiter_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(BadRequestError, match="delimiter"):
        delimiter("delimiter", value)
    assert [delimiter("delimiter", each) for each in (None, "", ";", "\\t", "tab", "\t")] == [
        None,
        None,
        ";",
        *"\t\t\t",
    ]


@settings(max_examples=200, deadline=None)
@given(
    data=st.binary(max_size=200) | st.text(alphabet='ab;,\t|"\r\n sep=prompt\ufeff\0é', max_size=60).map(str.encode),
    name=st.sampled_from(["rows.csv", "rows.tsv", "rows.jsonl", "rows.json"]),
    codec=st.sampled_from([None, "cp1252", "utf-16", "utf-7", "shift_jis"]),
)
def test_whatever_a_file_holds_is_rows_or_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, name: str, codec: str | None
) -> None:
    path = tmp_path_factory.mktemp("any") / name
    path.write_bytes(data)
    found: list[ImageSpec] = []
    with contextlib.suppress(BadRequestError):  # any other error fails the test
        found = wanted(read_rows(str(path), FILES, encoding=codec))
    assert all(spec.request.prompt.strip() for spec in found)


# Names of columns

SPELLINGS = {
    "prompt": ["Prompt", "PROMPT", " prompt ", "\ufeffprompt", "Prompt:", "prompt*"],
    "aspect_ratio": ["Aspect Ratio", "aspect-ratio", "aspectRatio", "ASPECT_RATIO", "Aspect\nRatio"],
    "reference_images": ["Reference Images", "referenceImages"],
    "top_p": ["topP", "Top P", "TOP-P"],
    "n": ["N", "n "],
}


@pytest.mark.parametrize(
    ("name", "spelling"), [(name, spelling) for name, all_ in SPELLINGS.items() for spelling in all_]
)
def test_a_column_is_the_field_whose_name_it_has_in_another_spelling(name: str, spelling: str) -> None:
    value = {"aspect_ratio": "9:16", "n": 2, "top_p": "x", "reference_images": {}}.get(name, "a fox")
    row = {**({} if name == "prompt" else {"prompt": "a fox"}), spelling: value}
    if name in ("top_p", "reference_images"):
        assert f"{name}=" in refusal([row]) or f"{name} (given" in refusal([row])
        return
    found = wanted([row])
    assert all(spec.request.prompt == "a fox" and set(spec.labels) == {"row"} for spec in found)
    assert len(found) == (2 if name == "n" else 1)
    assert name != "aspect_ratio" or found[0].request.aspect_ratio == "9:16"


MEANT = {
    "image": ["image_url", "imageUrl", "Image URL", "input-image", "image1", "images", "promptObject.imageUrl"],
    "reference_images": ["image_urls", "imageUrls", "referenceImage1", "reference_image_2", "ReferenceImage"],
    "resolution": ["size", "Size", "imageSize", "image_size", "imageConfig.imageSize", "quality"],
    "aspect_ratio": ["size", "SIZE", "ratio", "Aspect", "aspect_ration", "imageConfig.aspectRatio"],
    "n": ["numberOfImages", "num_images", "candidateCount", "sampleCount"],
    "model": ["modelId", "model_name", "modle"],
    "google_search": ["googleSearchRetrieval", "web_search"],
}


@pytest.mark.parametrize(("meant", "name"), [(meant, name) for meant, names in MEANT.items() for name in names])
def test_a_gateways_own_name_for_a_field_is_refused_with_the_field_that_is_meant(meant: str, name: str) -> None:
    said = refusal([{"prompt": "a fox", name: "1"}])
    assert "Did you mean" in said
    assert repr(meant) in said


@pytest.mark.parametrize(
    "name", ["negative_prompt", "negativePrompt", "seed", "mask", "Mask", "mask_url", "output_format", "topK"]
)
def test_a_setting_that_nothing_sends_is_no_label(name: str) -> None:
    assert "does not send" in refusal([{"prompt": "a fox", name: "1"}])


@pytest.mark.parametrize("name", ["sku", "Name", "title", "Größe", "N°", "Nr.", "No", "Farbe", "product size", "价格"])
def test_any_other_column_stays_a_label(name: str) -> None:
    assert wanted([{"prompt": "a fox", name: "1"}])[0].labels == {name: "1", "row": "0"}


@pytest.mark.parametrize("names", [("Prompt", "prompt"), ("aspect ratio", "aspect_ratio"), ("sku", "Sku")])
def test_two_columns_of_one_meaning_are_refused_in_a_mapping_too(names: tuple[str, str]) -> None:
    said = refusal([{"prompt": "a fox", **dict.fromkeys(names, "1:1")}])
    assert names[0] in said
    assert names[1] in said


# Cells


class NAType:
    """What ``pandas.NA`` is like: it has no truth."""

    def __bool__(self) -> bool:
        raise TypeError("boolean value of NA is ambiguous")

    def __eq__(self, other: object) -> Any:
        return self

    __hash__ = object.__hash__


class NaTType(dt.datetime):
    """What ``pandas.NaT`` is like: a date that is none."""


NaT = NaTType(1, 1, 1)
NOTHING = [None, "", "  ", "\u00a0", float("nan"), Decimal("nan"), NAType(), NaT]


@pytest.mark.parametrize("nothing", NOTHING, ids=lambda nothing: f"{type(nothing).__name__} {str(nothing)[:9]!r}")
def test_an_empty_cell_is_empty_whatever_a_library_writes_for_it(nothing: Any) -> None:
    row = {"prompt": "a fox", "aspect_ratio": nothing, "n": nothing, "image": nothing, "sku": nothing, "model": nothing}
    [spec] = wanted([row], aspect_ratio="9:16")
    assert spec.request.aspect_ratio == "9:16"
    assert spec.request.operation == "generate"
    assert spec.labels == {"sku": "", "row": "0"}
    assert "prompt" in refusal([{"prompt": nothing, "sku": "A"}])


@pytest.mark.parametrize(
    "text", ["nan", "NaN", "<NA>", "NaT", "None", "null", "#REF!", "#NV", "#BEZUG!", "#N/A", "Err:502"]
)
def test_the_text_of_an_empty_or_broken_cell_is_not_paid_for(text: str) -> None:
    assert repr(text) in refusal([{"prompt": text, "sku": "A"}], prompt="a fox")
    assert repr(text) in refusal([{"name": text}], prompt="a photo of {name}")
    assert wanted([{"prompt": "a fox", "sku": text}])[0].labels["sku"] == text


@pytest.mark.parametrize("two", [2, 2.0, "2", " 2 ", "2.0", "2,0", Decimal(2), Decimal("2.0")], ids=repr)
def test_a_whole_number_is_a_count_however_it_is_written(two: Any) -> None:
    assert len(wanted([{"prompt": "a fox", "n": two}])) == 2


@pytest.mark.parametrize("wrong", [0, 1.5, "1.5", "1.000", "1,000", "two", True, float("inf"), Decimal("inf"), 101])
def test_what_is_no_count_is_refused(wrong: Any) -> None:
    with pytest.raises(BadRequestError, match="must be a whole number from 1 to 100"):
        whole("n", wrong, 100)
    assert "must be a whole number" in refusal([{"prompt": "a fox", "n": wrong}])


@pytest.mark.parametrize("value", ["16:09", "16:09:00", "04:09 PM", "4:09:00 pm", dt.time(16, 9), " 16:9 "], ids=repr)
def test_a_ratio_that_a_spreadsheet_took_for_a_time_is_a_ratio(value: Any) -> None:
    assert wanted([{"prompt": "a fox", "aspect_ratio": value}])[0].request.aspect_ratio == "16:9"


def test_decimal_commas_and_the_words_of_other_countries_for_true_are_taken() -> None:
    row = {"prompt": "a fox", "temperature": "0,7", "top_p": "0,95"}
    [spec] = list(image_specs([row], RowDefaults({}, "1min", "gemini-3.1-flash-image-preview")))
    assert (spec.request.temperature, spec.request.top_p) == (0.7, 0.95)
    for word, flag in (("WAHR", True), ("FALSCH", False), ("vrai", True), ("TRUE", True), ("0", False)):
        assert wanted([{"prompt": "a fox", "google_search": word}])[0].request.google_search is flag
    assert wanted([{"prompt": "a fox", "resolution": "512.0"}])[0].request.resolution == "512"


def test_labels_are_text_and_a_whole_variant_is_one_variant_however_it_is_written() -> None:
    row = {"prompt": "x", "sku": 1007.0, "price": Decimal("12.50"), "day": dt.date(2026, 1, 2), "variant": 2.0}
    [spec] = wanted([row])
    assert spec.labels == {"sku": "1007", "price": "12.50", "day": "2026-01-02", "row": "0"}
    assert spec.request.variant == "2"
    for two in (2, 2.0, "2", " 2.0 ", Decimal("2.0"), Decimal("2")):
        [spec] = wanted([{"prompt": "x", "variant": two}])
        assert spec.request.variant == "2"
        assert "2.0" in spec.earlier_spellings, "as versions before knew a float"
        assert wanted([{"prompt": "x", "variant": two}], 2)[1].request.variant == "2-2"
        assert "2.0-2" in wanted([{"prompt": "x", "variant": two}], 2)[1].earlier_spellings
    for other in ("v2.0", "02", "2.1", "bold", "2.0-1"):
        [spec] = wanted([{"prompt": "x", "variant": other}])
        assert (spec.request.variant, spec.earlier_spellings) == (other, ())
    assert wanted([{"prompt": "x", "variant": 2.5}])[0].request.variant == "2.5"


def test_columns_without_a_name_are_not_merged() -> None:
    assert "without a name" in refusal([{"prompt": "x", "": "a", " ": "b"}])
    [spec] = wanted([{"prompt": "x", "": "a", " ": None}])
    assert spec.labels[""] == "a"


def test_a_further_image_is_not_merged_with_another_rows_own_variant() -> None:
    for own in ("2", 2.0):
        rows = [{"prompt": "x", "n": 2}, {"prompt": "x", "variant": own}]
        for each in (rows, rows[::-1]):
            assert "variant='2'" in refusal(each)
    assert len(wanted([{"prompt": "x", "n": 2}, {"prompt": "y", "variant": "2"}, {"prompt": "x", "variant": "3"}])) == 4


class Frame:
    """What a pandas data frame is like: iterating it gives its columns' names."""

    def __init__(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], index: str | None = None) -> None:
        self.columns = list(columns)
        self.rows = rows
        self.index = SimpleNamespace(names=[index])

    def __iter__(self) -> Any:
        return iter(self.columns)

    def reset_index(self) -> Frame:
        rows = [[number, *row] for number, row in enumerate(self.rows)]
        return Frame([self.index.names[0], *self.columns], rows)

    def to_dict(self, orient: str) -> list[dict[str, Any]]:
        assert orient == "records"
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


def test_a_data_frame_is_its_rows_and_not_its_columns_names() -> None:
    frame = Frame(["prompt", "n"], [["a fox", 2.0], ["a wolf", float("nan")]], index="sku")
    found = wanted(read_rows(frame, FILES))
    assert [spec.request.prompt for spec in found] == ["a fox", "a fox", "a wolf"]
    assert [spec.labels["sku"] for spec in found] == ["0", "0", "1"]
    with pytest.raises(BadRequestError, match="two columns"):
        records_of(Frame(["prompt", "prompt"], [["a fox", "a wolf"]]))


# Several images of a row


def test_the_first_of_several_is_the_image_that_the_row_alone_asks_for() -> None:
    for row in ({"prompt": "a fox"}, {"prompt": "a fox", "variant": "bold"}):
        one, three = wanted([row]), wanted([row], 3)
        assert three[0].request == one[0].request
        prefix = f"{row['variant']}-" if "variant" in row else ""
        assert [spec.request.variant for spec in three[1:]] == [f"{prefix}2", f"{prefix}3"]
        assert [spec.earlier_variant for spec in three] == [f"{prefix}1", None, None]
        assert one[0].earlier_variant is None
    assert wanted([{"prompt": "a fox", "variant": " 2.0 "}], 2)[0].earlier_variant == "2.0 -1", (
        "as it was, blank included"
    )
    names = [wanted([{"prompt": "x"}], n, file_name="{row}-{variant}")[0].stem for n in (1, 2)]
    assert names == ["0-1", "0-1"], "more of them rename nothing"


# Columns in a prompt


def test_a_prompt_names_columns_in_braces_and_what_a_cell_holds_is_never_evaluated() -> None:
    rows = [
        {"Produkt Name": "Rennrad {sku} {0.__class__} {{ 1 }}", "sku": "A-1", "Bild": "x"},
        {"Produkt Name": "Käse", "sku": "A-2"},
    ]
    found = wanted(rows, file_name="{SKU}", prompt='Foto: {Produkt_Name} ({ sku }), {"style": "oil"}, {a, b}')
    assert [spec.request.prompt for spec in found] == [
        'Foto: Rennrad {sku} {0.__class__} {{ 1 }} (A-1), {"style": "oil"}, {a, b}',
        'Foto: Käse (A-2), {"style": "oil"}, {a, b}',
    ]
    assert [spec.stem for spec in found] == ["A-1", "A-2"]
    assert found[0].labels == {"sku": "A-1", "Bild": "x", "row": "0"}, "what the prompt is made of is no label"


ODD_NAMES = [
    "Nom de l'article",
    'Size 3"',
    "Farbe, Ton",
    "Höhe;Breite",
    "red|blue",
    "Preis (€)",
    "Zwei\nZeilen",
    "Größe {cm}",
    "Was auf dem Bild zu sehen sein soll, so genau wie es geht, und was auf keinen Fall darauf zu sehen sein darf (DE)",
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_column_is_found_by_its_exact_name_whatever_that_holds(name: str) -> None:
    for written in (name, name.upper(), f" {name} ", clean_name(name)):
        [spec] = wanted([{name: "{a}", "sku": "A"}], prompt=f'A {{{written}}}, {{"style": "oil"}}, {{sku}}')
        assert spec.request.prompt == 'A {a}, {"style": "oil"}, A'


@pytest.mark.parametrize("name", [name for name in ODD_NAMES if "{" not in name])
def test_a_misspelt_column_is_an_error_with_the_columns_that_there_are(name: str) -> None:
    said = refusal([{name: "a", "sku": "A"}], prompt=f"A {{{name[:-3]}x{name[-2:]}}}")
    assert "no such column" in said
    assert "sku" in said


@pytest.mark.parametrize(
    "written",
    ["{Größe {cn}}", "{Höhe {cm}}", "{Größ {cm}}", "{Größe {}}", "{Größe {cm}", "{Größe}", "{{Größe} {cm}}"],
)
def test_a_misspelt_column_whose_name_has_braces_is_an_error(written: str) -> None:
    assert "no such column" in refusal([{"Größe {cm}": "12", "sku": "A"}], prompt=f"A {written} fox, {{sku}}")


@pytest.mark.parametrize("written", ["{Größe {cm}}", "{ größe  {CM} }", "{GRÖSSE {cm}}"])
def test_a_column_whose_name_has_braces_is_found_in_other_case(written: str) -> None:
    [spec] = wanted([{"Größe {cm}": "12", "sku": "A"}], prompt=f"A {written} fox, {{sku}}")
    assert spec.request.prompt == "A 12 fox, A"


@pytest.mark.parametrize("written", ["{Foto {Produkt}}", "{Foto {von} {Produkt}}", "{ {Produkte} }"])
def test_braces_within_braces_that_look_like_a_name_are_an_error(written: str) -> None:
    assert "no such column" in refusal([{"Produkt": "Rad", "sku": "A"}], prompt=f"A {written}")


@pytest.mark.parametrize(
    ("written", "filled"),
    [
        ('{"subject": {Produkt}}', '{"subject": Rad}'),
        ('{"a": {"b": "{Produkt}"}}', '{"a": {"b": "Rad"}}'),
        ('{"a": {"b": 1}}', '{"a": {"b": 1}}'),
        ("{{Produkt}}", "{{Produkt}}"),
        ("{{ Foto {x, y} }}", "{{ Foto {x, y} }}"),
    ],
)
def test_a_column_is_filled_within_other_braces_and_doubled_ones_are_text(written: str, filled: str) -> None:
    [spec] = wanted([{"Produkt": "Rad", "sku": "A"}], prompt=f"A {written}")
    assert spec.request.prompt == f"A {filled}"


@pytest.mark.parametrize("inner", ["product (de)", "Preis €", "_name", "#x", "Größe&Farbe", "l’article", "a+b", "50%"])
def test_braces_around_whatever_looks_like_a_name_are_an_error(inner: str) -> None:
    assert "no such column" in refusal([{"sku": "A"}], prompt=f"A {{{inner}}}")


@pytest.mark.parametrize("text", ['{"sku": 1}', "{a, b}", "{'a': 1}", "{ color: red; }", "{}", "{ }", "{\n  a\n}"])
def test_braces_around_what_is_no_name_stay_as_they_are(text: str) -> None:
    assert wanted([{"sku": "A"}], prompt=f"A {text}")[0].request.prompt == f"A {text}"


def test_a_rows_own_prompt_is_taken_as_it_stands_and_can_be_put_into_the_operators() -> None:
    rows = [{"prompt": "a {red} fox", "sku": "A"}, {"prompt": "a wolf", "sku": "B"}]
    assert [spec.request.prompt for spec in wanted(rows, prompt="{sku}")] == ["a {red} fox", "a wolf"]
    assert [spec.request.prompt for spec in wanted(rows, prompt="{prompt}, in snow")] == [
        "a {red} fox, in snow",
        "a wolf, in snow",
    ]
    assert wanted([{"aspect_ratio": "1:1"}], prompt="a {red} fox")[0].request.prompt == "a {red} fox"


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("Foto: {Produktnam}", ["{Produktnam}", "no such column", "Found: Produktname, Bild"]),
        ("Foto: {Produktname.__class__}", ["only a column name"]),
        ("Foto: {Produktname!r}", ["only a column name"]),
        ("Foto: {Produktname:>10}", ["only a column name"]),
        ("Foto: {Produktname[0]}", ["only a column name"]),
        ("Foto: {Produktname|upper}", ["only a column name"]),
        ("Foto: {0}", ["no such column"]),
        ("Foto: {Bild}", ["row 1", "names column 'Bild'"]),
    ],
)
def test_braces_that_name_no_filled_column_are_refused_before_money(prompt: str, says: list[str]) -> None:
    said = refusal([{"Produktname": "Rad", "Bild": "b"}, {"Produktname": "Käse", "Bild": None}], prompt=prompt)
    assert all(part in said for part in says), said


def test_a_column_that_the_prompt_names_is_no_misspelt_field() -> None:
    [spec] = wanted([{"Modell": "X-1", "size": "XL"}], prompt="A shirt {Modell} in {size}")
    assert spec.request.prompt == "A shirt X-1 in XL"


def test_rows_without_a_prompt_list_the_columns_that_were_found_once(read: Callable[..., Any]) -> None:
    said = refusal(read("Artikel;Produktname\n1;Rad\n2;Käse\n"))
    assert said.count("Found: Artikel, Produktname.") == 1
    assert 'prompt="Photo of {Artikel}"' in said
    assert "all 2 rows: prompt" in said
    assert columns_in("{a}", ["a"], True) == {"a": "a"}


# Names of files

LETTERS = {
    "Łódź": "Łódź",
    "红色 狐狸": "红色-狐狸",
    "Красная лиса": "Красная-лиса",
    "Käse/7 ä": "Käse-7-ä",
    unicodedata.normalize("NFD", "Größe é"): "Größe-é",
    "हिन्दी": "हिन्दी",
    "ไทยน้ำ": "ไทยน้ำ",
    "مرحبا بك": "مرحبا-بك",
    "ශ්‍රී": "ශ්රී",
    "한국어": "한국어",
    "ὰ́": unicodedata.normalize("NFC", "ὰ́"),
    "❤️ A": "A",
    "a..b_c~d+e-f": "a..b_c~d+e-f",
    "--A//B--": "A-B",
    "v٣": "v٣",
}


@pytest.mark.parametrize(("text", "name"), LETTERS.items(), ids=list(LETTERS.values()))
def test_letters_of_every_script_stay_in_a_files_name(text: str, name: str) -> None:
    assert name_part(text) == name
    assert unicodedata.is_normalized("NFC", name_part(text))
    assert wanted([{"prompt": "x", "Name": text}], file_name="{Name}")[0].stem == name
    assert stem("file_name", unicodedata.normalize("NFD", name)) == name


@pytest.mark.parametrize("text", ["", "???", "❤️", "\u0301"])
def test_a_label_without_a_letter_names_no_file(text: str) -> None:
    said = refusal([{"prompt": "x", "Name": text, "sku": "A-1"}], file_name="{Name}")
    assert ("has no Name" if not text else "has no letter or digit") in said
    assert "row 0 (" in said


def test_a_name_of_too_many_bytes_is_refused_with_its_row() -> None:
    assert wanted([{"prompt": "x", "Name": "狐" * 40}], file_name="{Name}")[0].stem == "狐" * 40
    assert "row 0" in refusal([{"prompt": "x", "Name": "狐" * 41}], file_name="{Name}")
    assert clean_name(" a\n b\ufeff ") == "a b"


def test_a_number_is_not_added_to_a_name_if_the_result_is_another_name() -> None:
    names = ["hero", "hero-2", "hero-10", "hero-2-3", "hero-02", "hero-x", "rt-1", "rt-2", "-4"]
    assert numbers_after(names) == {"hero": (2, 10), "hero-2": (3,)}
