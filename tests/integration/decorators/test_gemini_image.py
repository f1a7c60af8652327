"""Functions that say what to make, in a real Airflow, against the sandbox over HTTP."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG, task
from airflow.sdk.exceptions import AirflowFailException

from airflow_provider_geminiimg import ImageRequest
from airflow_provider_geminiimg.core.storage import open_store
from airflow_provider_geminiimg.exceptions import BadRequestError, GeminiImageError, LedgerError
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS
from tests.harness.shop import png

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox
    from tests.harness.inprocess import AirflowHarness, Run

pytestmark = pytest.mark.usefixtures("local_root")
ONE, MANY = "gemini_image", "gemini_image_batch"
ASKING = "{{ conn.apimaster.password }} {{ 1 + 1 }} {% raw %}{% include '/etc/passwd' %} {{"
BUSY = {"route": "apimaster.submit", "status": 503}

waiting_and_deferred = pytest.mark.parametrize("deferrable", [False, True], ids=["waiting", "deferred"])


def fast(conn_id: str, **more: Any) -> dict[str, Any]:
    return {"geminiimg_conn_id": conn_id, "poll_interval": 0.02, "resolution": "512", **more}


class Says:
    """A function's body that returns one thing after the other, and counts its calls."""

    def __init__(self, *values: Any) -> None:
        self.values = values
        self.calls = 0

    def __call__(self) -> Any:
        self.calls += 1
        value = self.values[min(self.calls, len(self.values)) - 1]
        if isinstance(value, Exception):
            raise value
        return value


def asks(kind: str, body: Callable[[], Any], conn_id: str, **arguments: Any) -> DAG:
    """A DAG with one decorated function."""
    with DAG("asks", schedule=None) as dag:

        @getattr(task, kind)(**fast(conn_id, **arguments))
        def made() -> dict[str, Any]:
            return body()  # type: ignore[no-any-return]

        made()
    return dag


def prompts(sandbox: Sandbox) -> list[str]:
    """What was paid for at the gateway, in order."""
    return [entry["prompt"] for entry in sandbox.ledger()]


def why(run: Run) -> GeminiImageError:
    """The outcome with which the task failed."""
    error = run.task("made").error
    assert error is not None, run.log
    outcome = error.__cause__ if isinstance(error, AirflowFailException) else error
    assert isinstance(outcome, GeminiImageError)
    return outcome


def said_under(root: str) -> str:
    """All text that lies in the store."""
    store = open_store(root, AIRFLOW_OPENERS)
    blobs = [store.read(key) for key in store.keys("") if key.endswith(".json")]
    return "\n".join(blob.data.decode() for blob in blobs if blob is not None)


RETURNS: dict[str, tuple[Any, str | None]] = {
    "a prompt": ("a red fox", "16:9"),
    "a dict": ({"prompt": "a red fox", "aspect_ratio": ""}, "16:9"),
    "a dict that wins": ({"prompt": "a red fox", "aspect_ratio": "1:1"}, "1:1"),
    "a request": (ImageRequest(operation="generate", prompt="a red fox"), "16:9"),
    "a request without an operation": (ImageRequest(prompt="a red fox"), "16:9"),
    "a dict whose image is None": ({"prompt": "a red fox", "image": None}, "16:9"),
    "a request that wins": (ImageRequest(operation="generate", prompt="a red fox", aspect_ratio="1:1"), "1:1"),
}


@pytest.mark.parametrize(("returned", "ratio"), RETURNS.values(), ids=RETURNS)
def test_what_the_function_returns_is_made_with_the_arguments_that_it_leaves_open(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, returned: Any, ratio: str
) -> None:
    dag = asks(ONE, Says(returned), apimaster, aspect_ratio="{{ '16:9' }}")
    made = airflow.run_dag(dag).task("made")
    assert made.state == "success", made.log
    assert made.value["requested"] == {"resolution": "512", "aspect_ratio": ratio}
    assert prompts(sandbox) == ["a red fox"]
    assert not dag.get_task("made").multiple_outputs, "the function's annotation is not about the manifest"


@waiting_and_deferred
def test_an_image_that_the_function_names_is_edited(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str, deferrable: bool
) -> None:
    shared = fast(geminiimg_conn_id, deferrable=deferrable)
    with DAG("asks", schedule=None) as dag:

        @task.gemini_image(**shared)
        def made(animal: str) -> str:
            return f"a red {animal}"

        @task.gemini_image(prompt="make it {{ 'winter' }}", **shared)
        def edited(image: dict[str, Any], ti: Any = None) -> dict[str, Any]:
            return {"image": image, "variant": ti.task_id}

        edited(made("{{ 'fox' }}"))
    run = airflow.run_dag(dag)
    assert run.state == "success", run.log
    assert prompts(sandbox) == ["a red fox", "make it winter"]
    assert run.task("edited").value["operation"] == "edit"
    assert run.task("edited").value["requested"]["variant"] == "edited"


@pytest.mark.parametrize("of_the_function", [True, False])
def test_a_request_without_an_operation_edits_the_image_of_the_function_or_of_the_decorator(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, local_root: str, tmp_path: Path, of_the_function: bool
) -> None:
    (tmp_path / "fox.png").write_bytes(png())
    image = {"image": (tmp_path / "fox.png").as_uri()}
    returned = ImageRequest(prompt="a red fox", **image if of_the_function else {})
    run = airflow.run_dag(asks(ONE, Says(returned), apimaster, **{} if of_the_function else image))
    assert run.task("made").value["operation"] == "edit", run.log
    assert prompts(sandbox) == ["a red fox"]


def test_a_request_that_says_generate_is_refused_with_an_image_of_the_decorator(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, local_root: str
) -> None:
    returned = ImageRequest(operation="generate", prompt="a red fox")
    error = why(airflow.run_dag(asks(ONE, Says(returned), apimaster, image="/nowhere/fox.png")))
    assert 'Input images belong to the operation "edit"' in str(error)
    assert not sandbox.calls()


@pytest.mark.parametrize(
    ("root", "deferrable"), [("local_root", False), ("s3_root", True)], indirect=["root"], ids=["disk", "s3"]
)
def test_a_retry_makes_what_the_function_returned_first_and_a_clear_calls_it_again(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, root: str, deferrable: bool
) -> None:
    sandbox.faults(BUSY)
    body = Says("a red fox", "a grey wolf", "a brown bear")
    dag = asks(ONE, body, apimaster, deferrable=deferrable)
    run = airflow.run_dag(dag)
    assert run.state == "failed"
    assert not sandbox.ledger()
    assert "a red fox" in said_under(root)
    run.retry("made")
    assert run.state == "success", run.log
    assert (body.calls, prompts(sandbox)) == (1, ["a red fox"])
    assert "a red fox" not in said_under(root)
    run.retry("made")
    assert run.task("made").value["reused"] is True
    assert (body.calls, prompts(sandbox)) == (1, ["a red fox"]), "it has landed, and what it was is forgotten"
    run.clear("made")
    assert (body.calls, prompts(sandbox)) == (2, ["a red fox", "a grey wolf"])
    airflow.close()
    run = airflow.run_dag(dag)
    assert (body.calls, prompts(sandbox)) == (3, ["a red fox", "a grey wolf", "a brown bear"]), "a DAG run made again"
    assert run.state == "success", run.log
    assert not any(animal in said_under(root) for animal in body.values)


def test_a_job_that_was_paid_for_is_collected_though_what_the_function_returned_can_not_be_read(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, tmp_path: Path
) -> None:
    sandbox.faults(route="download", status=500, times=3)
    body = Says("a red fox", "a grey wolf")
    run = airflow.run_dag(asks(ONE, body, apimaster))
    assert run.state == "failed"
    [kept] = (tmp_path / "root" / "returned").rglob("*.json")
    kept.write_text('{"request": {"prompt": 1}}')
    run.retry("made")
    assert run.state == "success", run.log
    assert (body.calls, prompts(sandbox)) == (1, ["a red fox"])


def test_nothing_is_bought_where_what_the_function_returned_can_not_be_read(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, tmp_path: Path
) -> None:
    sandbox.faults(BUSY)
    body = Says("a red fox", "a grey wolf")
    run = airflow.run_dag(asks(ONE, body, apimaster))
    [kept] = (tmp_path / "root" / "returned").rglob("*.json")
    kept.unlink()
    run.retry("made")
    assert isinstance(why(run), LedgerError)
    assert (body.calls, sandbox.ledger()) == (1, [])


def test_a_function_that_fails_is_called_again(airflow: AirflowHarness, sandbox: Sandbox, apimaster: str) -> None:
    body = Says(RuntimeError("no idea"), "a red fox")
    run = airflow.run_dag(asks(ONE, body, apimaster))
    assert str(run.task("made").error) == "no idea"
    run.retry("made")
    assert run.state == "success", run.log
    assert (body.calls, prompts(sandbox)) == (2, ["a red fox"])


def unchanged(row: Any) -> Any:
    return row


def text_of(rows: Any) -> str:
    return str(rows[0]["text"])


MAPPED: dict[str, Callable[[Any, Any], Any]] = {
    "not mapped": lambda made, found: made(task(text_of)(found)),
    "expand": lambda made, found: made.partial(name="{{ 'x' }}").expand(text=found.map(lambda row: row["text"])),
    "expand_kwargs": lambda made, found: made.partial(name="{{ 'x' }}").expand_kwargs(found),
    "expand_kwargs, changed on the way": lambda made, found: made.expand_kwargs(found.map(unchanged)),
}


@pytest.mark.parametrize("how", MAPPED.values(), ids=MAPPED)
def test_braces_in_what_a_function_takes_from_a_task_and_returns_are_not_rendered(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, how: Callable[[Any, Any], Any]
) -> None:
    with DAG("asks", schedule=None) as dag:

        @task
        def upstream() -> Any:
            return [{"text": ASKING, "more": [ASKING]}]

        @task.gemini_image(**fast(apimaster, deferrable=True))
        def made(text: str, more: Any = (ASKING,), name: str = "x") -> dict[str, Any]:
            return {"prompt": text, "variant": f"{name} {more[0]}"}

        how(made, upstream())
    run = airflow.run_dag(dag)
    assert run.state == "success", run.log
    assert prompts(sandbox) == [ASKING]
    [image] = run.tasks("made")
    assert image.value["requested"]["variant"] == f"x {ASKING}"


@pytest.mark.parametrize("returned", ["list", "generator"])
def test_a_batch_is_made_of_what_a_function_returns_or_yields_and_a_retry_does_not_ask_again(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, root: str, returned: str
) -> None:
    said: list[list[Any]] = [["a red fox", {"prompt": ASKING, "n": 2}], ["a grey wolf"]]
    body = Says(*(rows if returned == "list" else (row for row in rows) for rows in said))
    sandbox.faults(BUSY)
    run = airflow.run_dag(asks(MANY, body, apimaster, max_concurrency=1))
    assert "2 of 3 images landed" in str(why(run))
    run.retry("made")
    assert run.state == "success", run.log
    assert run.task("made").value["counts"]["reused"] == 2
    bought = sorted([ASKING, ASKING, "a red fox"])
    assert (body.calls, sorted(prompts(sandbox))) == (1, bought)
    assert "a red fox" not in said_under(root)
    run.retry("made")
    assert run.task("made").value["counts"]["reused"] == 3
    assert (body.calls, sorted(prompts(sandbox))) == (1, bought), "all of it has landed"
    assert "Changed since record" not in run.log
    run.clear("made")
    assert (body.calls, prompts(sandbox)[3:]) == (2, ["a grey wolf"])


def test_a_batch_is_mapped_over_what_its_function_takes(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str
) -> None:
    with DAG("asks", schedule=None) as dag:

        @task.gemini_image_batch(**fast(apimaster))
        def made(animal: str, colours: list[str]) -> Iterator[str]:
            for colour in colours:
                yield f"a {colour} {animal}"

        made.partial(colours=["red", "grey"]).expand(animal=["fox", "wolf"])
    run = airflow.run_dag(dag)
    assert [each.value["counts"]["landed"] for each in run.tasks("made")] == [2, 2]
    assert sorted(prompts(sandbox)) == ["a grey fox", "a grey wolf", "a red fox", "a red wolf"]


WRONG: dict[str, tuple[str, Any, str]] = {
    "nothing": (ONE, None, "returned NoneType: .* takes a prompt, a dict"),
    "a number": (ONE, 7, "returned int: "),
    "a list": (ONE, ["secret fox"], "returned list: .* @task.gemini_image_batch"),
    "an empty prompt": (ONE, "", "returned an empty str"),
    "an empty dict": (ONE, {}, "returned an empty dict"),
    "a dict of numbers": (ONE, {1: "secret fox"}, "returned dict"),
    "a dict without a prompt": (ONE, {"aspect_ratio": "1:1"}, "prompt: is empty"),
    "a field that is not there": (ONE, {"prompt": "secret fox", "aspect_ration": "1:1"}, "Did you mean 'aspect_ratio'"),
    "a ratio that no model takes": (ONE, {"prompt": "secret fox", "aspect_ratio": "7:3"}, "aspect_ratio='7:3'"),
    "an edit without an image": (ONE, {"prompt": "secret fox", "operation": "edit"}, "image: not given"),
    "no rows": (MANY, [], "requests: is empty"),
    "one prompt for many": (MANY, "secret fox", "returned str: .* For one image use @task.gemini_image"),
    "a mapping for many": (MANY, {"prompt": "secret fox"}, "returned dict: "),
    "nothing for many": (MANY, None, "returned NoneType: "),
    "a row that is a number": (MANY, ["secret fox", 7], r"requests\[1\] \(given: int\)"),
    "a row with another field": (MANY, [{"prompt": "secret fox", "promt": "x"}], "Did you mean 'prompt'"),
}


@pytest.mark.parametrize(("kind", "returned", "said"), WRONG.values(), ids=WRONG)
def test_what_a_function_must_not_return_is_refused_before_anything_is_sent(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, local_root: str, kind: str, returned: Any, said: str
) -> None:
    run = airflow.run_dag(asks(kind, Says(returned), apimaster, retries=1))
    error = why(run)
    assert isinstance(error, BadRequestError)
    assert re.search(said, str(error)), str(error)
    assert "No money was spent." in str(error)
    assert run.task("made").try_number == 1
    assert not sandbox.calls()
    assert "secret fox" not in f"{error}{run.log}{said_under(local_root)}"


@pytest.mark.parametrize(
    ("kind", "argument"),
    [
        (ONE, {"aspect_ratio": "7:3"}),
        (ONE, {"on_unknown": "pray"}),
        (ONE, {"image": "a.png", "temperature": 9}),
        (MANY, {"max_concurrency": 0}),
    ],
    ids=str,
)
def test_an_argument_that_is_wrong_is_refused_when_the_dag_is_parsed(kind: str, argument: dict[str, Any]) -> None:
    with pytest.raises(BadRequestError, match=list(argument)[-1]):
        asks(kind, Says("a red fox"), "apimaster", **argument)


def test_images_to_go_by_may_be_an_argument_where_the_function_names_the_image_to_edit() -> None:
    assert asks(ONE, Says("a red fox"), "apimaster", reference_images=["a.png"]).task_ids == ["made"]
