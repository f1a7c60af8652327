"""Texts that break what reads them, and texts, rows and tables that are made to take for ever.

Users' values come from tables, files, forms and other tasks. What must stay true of each attack: one clear error before
anything is sent or paid for, and never an exception of a parser; a time that grows with the text and not with its
square; no more rows and images than the settings say, however few bytes they are written in.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG, task

from airflow_provider_geminiimg.core.batch.columns import MAX_COLUMNS, MAX_NAME, clean_name, name_key
from airflow_provider_geminiimg.core.batch.image_specs import RowDefaults, image_specs
from airflow_provider_geminiimg.core.batch.prompt_columns import columns_in, filled
from airflow_provider_geminiimg.core.batch.rows import read_rows
from airflow_provider_geminiimg.core.gateways.base import Reply
from airflow_provider_geminiimg.core.gateways.intermediaries import turned_away
from airflow_provider_geminiimg.core.gateways.responses import GatewayResponse
from airflow_provider_geminiimg.core.gateways.results import images_in
from airflow_provider_geminiimg.core.redaction.scrubbing import scrub
from airflow_provider_geminiimg.core.validation.texts import given
from airflow_provider_geminiimg.exceptions import BadRequestError, Billed
from airflow_provider_geminiimg.operators.collect import GeminiImageCollectOperator
from airflow_provider_geminiimg.operators.edit import GeminiImageEditOperator
from airflow_provider_geminiimg.operators.generate import GeminiImageGenerateOperator
from airflow_provider_geminiimg.sensors.job import GeminiImageJobSensor
from tests.harness import attacks
from tests.harness import forbidden as web
from tests.harness.attacks import PROMPT, FromTask, Target
from tests.harness.patterns import attacks as texts_against
from tests.harness.patterns import every_pattern
from tests.integration.operators.test_batch import FILES, batch, why

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox
    from tests.harness.inprocess import AirflowHarness

target, internet, forbidden, host = attacks.target, web.internet, web.forbidden, web.host

ONE_GATEWAY = pytest.mark.parametrize("geminiimg_conn_id", ["onemin"], indirect=True)
HALF = "a\ud800b"
DEEP = "[" * 100_000
DIGITS = "9" * 5_000
LARGE = 10**400
NESTED: Any = "s3://bucket/a.png"
for _ in range(400):
    NESTED = [NESTED]


# One image


IN_A_FUNCTION: list[tuple[str, Any]] = [
    *((name, HALF) for name in ("prompt", "model", "variant", "resolution", "aspect_ratio", "image")),
    *((name, LARGE) for name in ("prompt", "variant", "resolution", "temperature", "google_search")),
    *((name, 10**5_000) for name in ("prompt", "variant", "resolution", "top_p")),
    ("reference_images", NESTED),
    ("image", NESTED),
    ("image", DEEP),
    ("temperature", Decimal("sNaN")),
]


@ONE_GATEWAY
@pytest.mark.parametrize(
    ("argument", "value"), IN_A_FUNCTION, ids=[f"{name}-{type(value).__name__}" for name, value in IN_A_FUNCTION]
)
def test_what_a_function_returns_and_breaks_a_parser_is_one_clear_error(
    target: Target, argument: str, value: Any
) -> None:
    with DAG("attacked", schedule=None) as dag:

        @task.gemini_image(task_id="made", geminiimg_conn_id=target.conn_id)
        def made() -> dict[str, Any]:
            return {"prompt": PROMPT, argument: value}

        made()
    error = target.refused_unsent(target.airflow.run_dag(dag), argument)
    assert isinstance(error, BadRequestError)
    assert len(str(error)) < 900
    str(error).encode()  # a log can hold it


@ONE_GATEWAY
@pytest.mark.parametrize(
    "value",
    [{"variant": "x" * 5_000_000}, {"prompt": "a" + "\x01" * 999_998 + "b"}],
    ids=lambda value: next(iter(value)),
)
def test_what_is_too_long_to_be_kept_on_record_is_refused_and_leaves_no_record(
    target: Target, monkeypatch: pytest.MonkeyPatch, value: dict[str, str]
) -> None:
    monkeypatch.setenv("AIRFLOW__GEMINIIMG__RECORD_PROMPTS", "True")
    with DAG("attacked", schedule=None) as dag:

        @task.gemini_image(task_id="made", geminiimg_conn_id=target.conn_id)
        def made() -> dict[str, Any]:
            return {"prompt": PROMPT, **value}

        made()
    run = target.airflow.run_dag(dag)
    error = target.refused_unsent(run, "too long for a record")
    assert isinstance(error, BadRequestError)
    value.clear()
    assert run.clear().task("made").state == "success"  # nothing is in the way of what fits


@ONE_GATEWAY
@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *((name, DIGITS) for name in ("temperature", "top_p", "timeout", "poll_interval", "max_cost", "resolution")),
        *((name, value) for name in ("image", "reference_images") for value in (DEEP, f"[{DIGITS}]")),
        ("max_cost", "1e999999999"),
    ],
    ids=lambda value: value if len(value) < 20 else value[:3],
)
def test_what_a_task_returned_and_breaks_a_parser_is_one_clear_error(target: Target, argument: str, value: str) -> None:
    usual = {"image": "/tmp/a.png", argument: FromTask(value)}
    error = target.refused_unsent(target.run_as(GeminiImageEditOperator, **usual), argument)
    assert isinstance(error, BadRequestError)
    assert len(str(error)) < 900


@pytest.mark.parametrize(
    "arguments",
    [
        {"variant": 10**5_000},
        {"prompt": 10**5_000},
        {"resolution": 10**5_000},
        {"temperature": 10**5_000},
        {"google_search": 10**5_000},
        {"max_cost": 10**5_000},
        {"timeout": 10**5_000},
        {"file_name": 10**5_000},
        {"output_path": f"/tmp/{HALF}"},
        {"geminiimg_conn_id": HALF},
        {"on_clear": HALF},
        {"file_name": HALF},
        {"model": HALF},
        {"reference_images": NESTED},
    ],
    ids=lambda arguments: "-".join(arguments),
)
def test_literals_that_can_not_be_written_are_refused_when_the_dag_is_parsed(arguments: dict[str, Any]) -> None:
    with DAG("bad", schedule=None), pytest.raises(BadRequestError, match=next(iter(arguments))) as caught:
        GeminiImageGenerateOperator(**{"task_id": "made", "prompt": PROMPT, **arguments})
    assert len(str(caught.value)) < 900
    assert "9999" not in str(caught.value)


@ONE_GATEWAY
def test_arguments_of_the_tasks_that_buy_nothing_are_refused_as_clearly(target: Target) -> None:
    for operator, arguments in (
        (GeminiImageCollectOperator, {"resolve": FromTask(DEEP)}),
        (GeminiImageCollectOperator, {"resolve": FromTask(f'{{"a": {DIGITS}}}')}),
        (GeminiImageCollectOperator, {"dry_run": FromTask(DIGITS)}),
    ):
        assert isinstance(target.refused_unsent(target.run_as_is(operator, **arguments), ""), BadRequestError)
    for wrong in ({"job_id": HALF}, {"job_id": "1", "model": HALF}, {"job_id": "1", "output_path": HALF}):
        with DAG("bad", schedule=None), pytest.raises(BadRequestError):
            GeminiImageJobSensor(task_id="made", **wrong)


@ONE_GATEWAY
@pytest.mark.parametrize(
    "fields",
    [
        {"extra": {"gateway": "1min", "prices": DEEP}},
        {"extra": {"gateway": "1min", "prices": json.loads("[" * 900 + "]" * 900)}},
        {"extra": {"gateway": "1min", "prices": f'{{"m": {DIGITS}}}'}},
        {"extra": {"gateway": "1min", "price_base": LARGE}},
        {"extra": {"gateway": "1min", "price_base": 1e25}},
        {"extra": {"gateway": "1min", "daily_budget": "1" * 100_000}},
        {"extra": {"gateway": "1min", "max_concurrency": LARGE}},
        {"extra": {"gateway": "1" * 100_000}},
        {"extra": {"gateway": "1min", "model": HALF}},
        {"extra": {"gateway": "1min", "allow_http": LARGE}},
        {"host": "https://xn--0", "extra": {"gateway": "1min"}},
        {"host": f"https://{HALF}.test", "extra": {"gateway": "1min"}},
        {"host": "https://" + "a" * 100_000, "extra": {"gateway": "1min"}},
        {"host": "https://a.test", "port": LARGE, "extra": {"gateway": "1min"}},
        {"host": "https://a.test", "port": -5, "extra": {"gateway": "1min"}},
        {"host": f"https://a.test:{DIGITS}", "extra": {"gateway": "1min"}},
    ],
    ids=lambda fields: "-".join(fields) + "-" + "-".join(fields["extra"]),
)
def test_a_connection_that_breaks_a_parser_is_one_clear_error(
    target: Target, connect: Callable[..., str], fields: dict[str, Any]
) -> None:
    conn_id = connect("odd", password="key", **fields)
    error = target.refused_unsent(target.generate(geminiimg_conn_id=conn_id), "odd")
    assert isinstance(error, BadRequestError)
    assert len(str(error)) < 900


# Rows


ROWS: dict[str, tuple[str, str]] = {
    "half a character in a prompt": ("a.jsonl", json.dumps({"prompt": HALF})),
    "in a variant": ("a.jsonl", json.dumps({"prompt": "a fox", "variant": HALF})),
    "in a model": ("a.jsonl", json.dumps({"prompt": "a fox", "model": HALF})),
    "in a label": ("a.jsonl", json.dumps({"prompt": "a fox", "sku": HALF})),
    "in a name": ("a.jsonl", json.dumps({"prompt": "a fox", HALF: "1"})),
    "in an image": ("a.json", json.dumps([{"prompt": "a fox", "image": f"/tmp/{HALF}"}])),
    "by an encoding": ("a.csv", "prompt,sku\na fox,\\ud800\n"),
    "nested list": ("a.json", DEEP),
    "nested line": ("a.jsonl", DEEP),
    "nested images": ("a.json", json.dumps([{"prompt": "a fox", "reference_images": NESTED}])),
    "nested text": ("a.jsonl", json.dumps({"prompt": "a fox", "image": DEEP})),
    "nested label": ("a.jsonl", json.dumps({"prompt": "a fox", "sku": NESTED})),
    "digits": ("a.jsonl", f'{{"prompt": "a fox", "n": {DIGITS}}}'),
    "digits in a label": ("a.json", f'[{{"prompt": "a fox", "sku": {"9" * 400}}}]'),
    "an infinite number": ("a.json", '[{"prompt": "a fox", "sku": 1e400}]'),
    "a long number as text": ("a.csv", f"prompt,n\na fox,{DIGITS}\n"),
    "a long temperature": ("a.csv", f"prompt,temperature\na fox,{DIGITS}\n"),
    "a long name": ("a.csv", f"prompt,{'a' * 100_000}\na fox,1\n"),
    "many names": ("a.csv", f"prompt,{','.join(f'c{n}' for n in range(MAX_COLUMNS + 1))}\na fox\n"),
    "many names by row": ("a.jsonl", "\n".join(json.dumps({"prompt": "x", f"c{n}": 1}) for n in range(MAX_COLUMNS))),
    "a key of many": ("a.json", "[{" + ",".join(f'"k{n}": 1' for n in range(20_000)) + ', "k19999": 2}]'),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_file_of_rows_that_breaks_a_parser_is_one_clear_error(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str, local_root: str, tmp_path: Path, name: str
) -> None:
    file, content = ROWS[name]
    (tmp_path / file).write_text(content, encoding="utf-8")
    how = {"encoding": "raw_unicode_escape"} if name == "by an encoding" else {}
    began = time.process_time()
    error = why(airflow.run_dag(batch(str(tmp_path / file), geminiimg_conn_id=onemin, **how)))
    assert time.process_time() - began < 10
    assert isinstance(error, BadRequestError)
    assert error.billed is Billed.NO
    assert len(str(error)) < 1500
    str(error).encode()  # a log can hold it
    assert sandbox.calls() == []


@pytest.mark.parametrize(
    "rows",
    [DEEP, f"[{DIGITS}]", '["a fox"', '["a fox"] x', '["a fox" "a wolf"]', "[,]", "["],
    ids=["deep", "digits", "open", "more behind", "no comma", "comma", "bracket"],
)
def test_rows_of_an_argument_that_break_a_parser_are_one_clear_error(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str, local_root: str, rows: Any
) -> None:
    error = why(airflow.run_dag(batch(rows, geminiimg_conn_id=onemin)))
    assert isinstance(error, BadRequestError)
    assert sandbox.calls() == []


def test_rows_of_a_function_with_numbers_that_can_not_be_written_are_the_rows_own_errors() -> None:
    rows = [{"prompt": "a fox", "sku": 10**5_000}, {"prompt": 10**5_000}, {"prompt": "a fox", "n": 10**5_000}]
    rows += [{"prompt": "a fox", "variant": Decimal("1e999999999")}, {"prompt": "a fox", "sku": Decimal("sNaN")}]
    with pytest.raises(BadRequestError) as caught:
        list(image_specs(rows, RowDefaults({}, "1min")))
    said = str(caught.value)
    assert all(f"row {number}" in said for number in range(3)), said
    assert len(said) < 1500


# How many


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "json", "list"])
def test_rows_that_ask_for_a_million_images_are_refused_with_the_setting_that_says_so(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str, local_root: str, tmp_path: Path, suffix: str
) -> None:
    rows = [{"prompt": "f", "n": 100} for _ in range(9_999)]
    table = tmp_path / f"rows.{suffix}"
    text = {
        "csv": "prompt,n\n" + "f,100\n" * 9_999,
        "jsonl": "\n".join(map(json.dumps, rows)),
        "json": json.dumps(rows),
    }.get(suffix)
    table.write_text(text or "")
    began = time.process_time()
    error = why(airflow.run_dag(batch(rows if text is None else str(table), geminiimg_conn_id=onemin)))
    assert time.process_time() - began < 10
    assert isinstance(error, BadRequestError)
    assert "9999 rows ask for 999900 images; [geminiimg] max_batch_images is 10000" in str(error)
    assert sandbox.calls() == []


def test_an_operators_own_n_counts_for_each_row(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str, local_root: str
) -> None:
    error = why(airflow.run_dag(batch(["a fox"] * 101, n=100, geminiimg_conn_id=onemin)))
    assert "101 rows ask for 10100 images" in str(error)


def test_the_setting_raises_and_lowers_what_a_batch_may_ask_for(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str, local_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__GEMINIIMG__MAX_BATCH_IMAGES", "3")
    rows = [{"prompt": "a fox", "n": 2}, {"prompt": "a wolf"}]
    run = airflow.run_dag(batch(rows, geminiimg_conn_id=onemin))
    assert run.state == "success", run.log
    assert len(sandbox.ledger()) == 3
    more = airflow.run_dag(batch([*rows, "a hare"], geminiimg_conn_id=onemin), run_id="more")
    assert "3 rows ask for 4 images; [geminiimg] max_batch_images is 3" in str(why(more))
    many = airflow.run_dag(batch(["a fox"] * 4, geminiimg_conn_id=onemin), run_id="many")
    assert "there are more than 3 rows; [geminiimg] max_batch_images is 3" in str(why(many))
    for wrong in ("0", "-1", "many", "1e9", DIGITS):
        monkeypatch.setenv("AIRFLOW__GEMINIIMG__MAX_BATCH_IMAGES", wrong)
        error = why(airflow.run_dag(batch(rows, geminiimg_conn_id=onemin), run_id=f"run-{wrong[:4]}"))
        assert "[geminiimg] max_batch_images" in str(error)
    assert len(sandbox.ledger()) == 3


def test_a_plan_that_was_made_under_a_higher_limit_is_carried_out(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str, local_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox.faults(route="onemin.submit", status=503, body={"errorCode": "BUSY", "message": "x"}, times=1)
    dag = batch(["a fox", "a wolf", "a hare"], geminiimg_conn_id=onemin, max_concurrency=1, on_unknown="resubmit")
    run = airflow.run_dag(dag)
    assert run.state == "failed"
    monkeypatch.setenv("AIRFLOW__GEMINIIMG__MAX_BATCH_IMAGES", "1")
    run.retry("pictures")
    assert "max_batch_images" not in run.log
    assert "Using the plan of the first attempt: 3 images" in run.log


def test_a_generator_without_an_end_is_read_to_the_limit_and_refused(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, local_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__GEMINIIMG__MAX_BATCH_IMAGES", "50")
    given_out = itertools.count()
    with DAG("many", schedule=None) as dag:

        @task.gemini_image_batch(task_id="pictures", geminiimg_conn_id=apimaster)
        def images() -> Iterator[str]:
            for number in given_out:
                yield f"fox {number}"

        images()
    error = why(airflow.run_dag(dag))
    assert "max_batch_images is 50" in str(error)
    assert next(given_out) <= 52
    assert sandbox.calls() == []


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "json"])
def test_a_file_of_more_rows_than_are_taken_is_not_read_on(tmp_path: Path, suffix: str) -> None:
    head = {"csv": "prompt\n", "jsonl": "", "json": "["}[suffix]
    row = {"csv": "f\n", "jsonl": '"f"\n', "json": '"f",'}[suffix]
    error = "f,one cell too many\n" if suffix == "csv" else DEEP
    table = tmp_path / f"rows.{suffix}"
    table.write_text(head + row * 50 + error)
    with pytest.raises(BadRequestError, match="more than 20 rows"):
        read_rows(str(table), FILES, most=20)
    with pytest.raises(BadRequestError) as caught:
        read_rows(str(table), FILES, most=200)
    assert "more than" not in str(caught.value)


# How long


LENGTH = 100_000


def test_no_regular_expression_of_the_package_takes_more_than_a_time_that_grows_with_the_text() -> None:
    """Four times the text may take eight times as long; the square would take sixteen times."""
    slow = []
    for found in every_pattern():
        for small, large in zip(texts_against(found.pattern, 1_500), texts_against(found.pattern, 6_000), strict=True):
            if (long := found.seconds(large)) < 0.005:
                continue
            long = min([long, *(found.seconds(large) for _ in range(3))])
            if long >= 0.005 and long > 8 * max(1e-5, min(found.seconds(small) for _ in range(3))):
                slow.append((found.where, found.pattern.pattern[:60], repr(large[:40]), long))
                break
    assert not slow


def test_every_regular_expression_of_the_package_is_looked_at() -> None:
    found = every_pattern()
    assert len(found) > 80
    for name in (
        *("redaction", "batch.cells", "batch.row_files", "gateways.results", "http.exchange", "ledger.layout"),
        "gallery.markdown",
    ):
        assert any(f".{name}" in each.where for each in found), name


def reply(body: str, status: int = 400, kind: str = "application/json", **headers: str) -> Reply:
    return Reply(status, {"content-type": kind, **headers}, body.encode())


def answered(text: str) -> None:
    for kind in ("application/json", "text/html"):
        answer = GatewayResponse(
            reply(json.dumps({"error": {"message": text, "details": text}}), kind=kind), prompt=PROMPT
        )
        answer.request_id(text)
        answer.reason.refused(PROMPT)
        _ = answer.retry_after
        turned_away(403, {}, text.encode(errors="replace"), None, markup=True)


def rows_of(text: str) -> None:
    for row in ({"prompt": text}, {"prompt": "a", "sku": text}, {"prompt": "a", text: "1"}, {"aspect_ratio": text}):
        with contextlib.suppress(BadRequestError):
            list(image_specs([row], RowDefaults({"prompt": text}, "1min", file_name="{sku}")))


def braces(text: str) -> None:
    for names in ([f"c{number}" for number in range(MAX_COLUMNS)], ["a" * 150, "b" * 150, text[:99]]):
        with contextlib.suppress(BadRequestError):
            filled(text, columns_in(text, names, True))


def row_text(text: str) -> None:
    for head in ("", "sep=", "prompt,n\n", "["):
        with contextlib.suppress(BadRequestError):
            read_rows(f"[{text}" if head == "[" else [text], FILES)


READERS: dict[str, Callable[[str], Any]] = {
    "scrub": scrub,
    "scrub with a prompt": lambda text: scrub(text, prompt=text[::2], secrets=["a" * 40, "\\" * 12 + "x", "%25" * 9]),
    "given": given,
    "clean_name": lambda text: (clean_name.__wrapped__(text), name_key.__wrapped__(text)),
    "pictures": lambda text: (images_in(text), images_in(f"https://a/{text}"), images_in(f"](data:{text}")),
    "answer": answered,
    "rows": rows_of,
    "braces": braces,
    "list": row_text,
}
PIECES = {
    **{repr(each): each for each in (" ", "\t", "\n", "\\", "<", "&", "%", "=", "?", "/", "(", "[", "{", "'", '"')},
    **{repr(each): each for each in ("\\/", "<a ", "<a src", "{a", "[a](", "//", "%25", "&amp;", "sig=", "\\u0026")},
    **{repr(each): each for each in ("&#9", "data:", "https://", 'https://a?x"> ?', "a" * 255 + " ", "request id: ")},
    "marks": "\u0300\u0316",
    "katakana": "\uff9e\u0300",
    "ligature": "\ufdfa",
    "half": "\ud800",
    "closing": ")",
    "error": "error ",
    "braces": "{abab}{baba}",
    "json": '{"a":',
    "digits": "9",
}


@pytest.mark.parametrize("reader", READERS)
def test_a_hundred_kilobytes_of_anything_are_read_in_a_time_that_adds_up(reader: str) -> None:
    took = {}
    for name, piece in PIECES.items():
        began = time.process_time()
        READERS[reader](("x" + piece * LENGTH)[:LENGTH])
        took[name] = time.process_time() - began
    assert max(took.values()) < 4.0, took


@pytest.mark.parametrize("piece", ["\t", " \t", ";", "\\", '"', "a,"])
def test_the_first_line_of_a_table_is_read_in_a_time_that_adds_up(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str, local_root: str, tmp_path: Path, piece: str
) -> None:
    table = tmp_path / "rows.csv"
    table.write_text("sep=" + (piece * LENGTH)[:LENGTH] + "x\n")
    began = time.process_time()
    run = airflow.run_dag(batch(str(table), geminiimg_conn_id=onemin))
    assert time.process_time() - began < 10.0
    assert isinstance(why(run), BadRequestError)
    assert sandbox.calls() == []


def test_a_name_longer_than_any_is_refused() -> None:
    with pytest.raises(BadRequestError, match=f"more than {MAX_NAME} characters"):
        list(image_specs([{"prompt": "a", "b" * (MAX_NAME + 1): 1}], RowDefaults({}, "1min")))


@pytest.mark.parametrize("text", ["&#" + "9" * 5_000 + ";", "&#x" + "f" * 5_000, "&#" + "0" * 5_000 + "97;"])
def test_a_reference_of_thousands_of_digits_hides_nothing_and_breaks_nothing(text: str) -> None:
    assert "Signature=abc" not in scrub(f"https://a.test/p?{text}X-Amz-Signature=abc {text}")
    assert scrub("&#" + "0" * 5_000 + "63;X-Amz-Signature=abcdef0123456789").endswith("[removed]")


def test_a_batch_that_fails_over_its_rows_has_bought_nothing(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, local_root: str
) -> None:
    with DAG("many", schedule=None) as dag:

        @task.gemini_image_batch(task_id="pictures", geminiimg_conn_id=apimaster)
        def images() -> list[Any]:
            return ["a fox", {"prompt": HALF}, {"prompt": "a fox", "sku": 10**5_000}]

        images()
    error = why(airflow.run_dag(dag))
    assert "row 1" in str(error)
    assert "row 2" in str(error)
    assert sandbox.calls() == []


def test_a_table_of_half_a_million_labels_is_read_in_seconds() -> None:
    row = {"prompt": "a fox", **{f"column {number}": "é" for number in range(500)}}
    began = time.process_time()
    assert len(list(image_specs([dict(row) for _ in range(1_000)], RowDefaults({}, "1min")))) == 1_000
    assert time.process_time() - began < 10
