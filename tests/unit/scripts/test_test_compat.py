"""``make test-compat``: which Airflows it tests, and which release of the newest one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from airflow_provider_geminiimg._compat import TESTED_AIRFLOWS
from scripts import test_compat as compat
from tests.harness import REPOSITORY

TODAY = ["3.4.0b2", "3.4.0b1", "3.3.2", "3.3.2rc1", "3.2.2", "3.14.0", "3.40.0", "1.10.9-bin"]


@pytest.mark.parametrize(
    ("added", "chosen"),
    [
        pytest.param([], "3.4.0b2", id="the newest beta"),
        pytest.param(["3.4.0rc1", "3.4.0b10"], "3.4.0rc1", id="a release candidate is newer than any beta"),
        pytest.param(["3.4.0", "3.4.0rc2"], "3.4.0", id="the final release"),
        pytest.param(["3.4.0", "3.4.1rc1"], "3.4.0", id="no candidate of the next one while there is a final release"),
        pytest.param(["3.4.9", "3.4.10", "3.4.0"], "3.4.10", id="by number, not by letter"),
        pytest.param(["3.5.0"], "3.4.0b2", id="another minor version does not count"),
    ],
)
def test_the_newest_airflow_is_its_newest_final_release_or_else_its_newest_pre_release(
    added: list[str], chosen: str
) -> None:
    assert compat.choose("3.4", [*TODAY, *added]) == chosen
    assert compat.choose("3.4", [*added, *reversed(TODAY)]) == chosen


def test_an_index_without_that_airflow_is_an_error() -> None:
    with pytest.raises(LookupError, match=r"no Airflow 3\.6"):
        compat.choose("3.6", TODAY)


def test_every_airflow_that_counts_as_tested_is_tested() -> None:
    assert compat.AIRFLOWS == TESTED_AIRFLOWS
    assert {target.airflow for target in compat.TARGETS} == {*TESTED_AIRFLOWS}
    pinned = compat.Target(compat.PINNED_AIRFLOW, compat.HERE, []).pins()["apache-airflow"]
    assert pinned.startswith(f"{compat.PINNED_AIRFLOW}."), "make test runs it"
    text = (REPOSITORY / "docs" / "compatibility.md").read_text()
    assert f"| Airflow | {', '.join(TESTED_AIRFLOWS)} |" in text


def test_pins_of_airflow_itself_do_not_hold_for_the_newest_one() -> None:
    newest = compat.Target(compat.NEWEST_AIRFLOW, compat.HERE, []).pins()
    assert "pydantic" in newest
    assert not {*compat.OF_AIRFLOW} & {*newest}


@pytest.mark.parametrize(("ci", "passes"), [("true", False), ("", True)], ids=["in CI", "elsewhere"])
def test_an_index_that_does_not_answer_is_an_error_in_ci_and_is_said_elsewhere(
    ci: str, passes: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CI", ci)
    for name, value in {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0"}.items():
        monkeypatch.setenv(name, value)
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    assert compat.check(compat.Target(compat.NEWEST_AIRFLOW, compat.HERE, []), Path("x.whl"), Path()) is passes
    assert "NOT TESTED, the package index names no version of apache-airflow" in capsys.readouterr().out


def test_a_newest_airflow_that_needs_other_packages_is_installed_without_pins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uv = tmp_path / "uv"
    uv.write_text('#!/bin/sh\necho "$@" >> "$0.log"\ncase "$*" in *" -c "*) exit 1;; esac\n')
    uv.chmod(0o755)
    monkeypatch.setattr(compat, "UV", uv)
    monkeypatch.setattr(compat, "ROOT", tmp_path)

    def install(airflow: str) -> list[bool]:
        (tmp_path / ".venvs" / f"{airflow}.0-{compat.HERE}").mkdir(parents=True)
        compat.install(compat.Target(airflow, compat.HERE, []), f"{airflow}.0", Path("python"), Path("x.whl"))
        lines = Path(f"{uv}.log").read_text().splitlines()
        return [" -c " in line for line in lines if line.startswith("pip install")]

    assert install(compat.NEWEST_AIRFLOW) == [True, False]
    with pytest.raises(subprocess.CalledProcessError):
        install(compat.OLDER_AIRFLOWS[0])
