"""The gallery's ES modules, and the check that ``make check`` makes of them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from airflow_provider_geminiimg.core.reconcile import RECORD_STATUSES
from scripts import check_modules
from scripts.check_modules import STATIC


def said_of(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    monkeypatch.setattr(check_modules, "STATIC", folder)
    return check_modules.main(), capsys.readouterr().err


def test_the_modules_are_in_order(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert said_of(STATIC, monkeypatch, capsys) == (0, "")


@pytest.mark.parametrize(
    ("file", "text", "mistake", "expected"),
    [
        (
            "lightbox.js",
            "import { askedFor, ",
            "import { ",
            "uses askedFor of records.js without importing it",
        ),
        ("views.js", "...cards.filter", "...totalsOff.filter", "views.js uses totalsOff, which is declared nowhere"),
        (
            "api.js",
            "instanceOf({ ...ti, iteration",
            "instanceOf({ ...to, iteration",
            "api.js uses to, which is declared nowhere",
        ),
        ("format.js", "export function ratioOf", "function ratioOf", "imports ratioOf from format.js, which"),
        ("compare.js", '"./stage.js"', '"./stages.js"', "imports Stage from stages.js, which does not export it"),
        ("stage.js", "const MARGIN", "const OLD = 2;\nconst MARGIN", "stage.js declares OLD, and does not use it"),
        ("dom.js", "export const say", "export const old = 1;\nexport const say", "and nobody imports it"),
        (
            "state.js",
            "import { nameOf }",
            "import { labelOf, nameOf }",
            "imports labelOf from records.js, and",
        ),
        ("theme.js", "/* ", 'import { start } from "./main.js";\n/* ', "imports start from main.js, which does not"),
        ("records.js", "/* ", 'import { listings } from "./state.js";\n/* ', "imports go in a circle among: "),
        ("dom.js", "/* ", "import './main.js';\n/* ", "dom.js: each import is"),
        ("dom.js", "/* ", "\n" * 400 + "/* ", "lines, more than 400"),
        ("grid.js", "export function walk(event) {", "export function walk(event) { const a = ;", "grid.js: "),
        ("main.js", 'import { followTheme } from "./theme.js";\n', "", "theme.js is imported by nobody"),
    ],
)
def test_a_mistake_in_a_module_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    file: str,
    text: str,
    mistake: str,
    expected: str,
) -> None:
    folder = Path(shutil.copytree(STATIC, tmp_path / "static"))
    whole = (folder / file).read_text()
    assert text in whole
    (folder / file).write_text(whole.replace(text, mistake, 1))
    failed, said = said_of(folder, monkeypatch, capsys)
    assert failed
    assert expected in said


def test_the_page_has_a_label_for_every_status() -> None:
    [table] = re.findall(r"const STATUSES = \{\n(.*?)\n\};", (STATIC / "records.js").read_text(), re.DOTALL)
    assert {name.strip('"') for name in re.findall(r'^  ([\w"-]+): \{', table, re.MULTILINE)} == set(RECORD_STATUSES)
