"""Bad input, through the operators in a real Airflow: one clear error, before anything is sent or paid for.

What must stay true of each: the message names the field, what was given and what is allowed, and holds neither the
prompt nor the query of an address; Airflow does not retry it; the gateway was not called, and its ledger is empty.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import io
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG, literal, task
from airflow.sdk.exceptions import AirflowFailException
from PIL import Image

from airflow_provider_geminiimg.exceptions import (
    AuthenticationError,
    BadRequestError,
    Billed,
    GeminiImageError,
    StorageError,
)
from airflow_provider_geminiimg.operators.edit import GeminiImageEditOperator
from airflow_provider_geminiimg.operators.generate import GeminiImageGenerateOperator
from airflow_provider_geminiimg.operators.submit import GeminiImageSubmitOperator

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox
    from tests.harness.inprocess import AirflowHarness, Run

GENERATE, EDIT = GeminiImageGenerateOperator, GeminiImageEditOperator
PROMPT = "canary prompt that stands in no error"
SIGNATURE = "X-Amz-Signature=canary"
PRO, FLASH_25 = "gemini-3-pro-image-preview", "gemini-2.5-flash-image"
LIMIT = 7_000_000  # bytes of one input image


@dataclass
class World:
    """One Airflow, both gateways, a root on disk."""

    airflow: AirflowHarness
    sandbox: Sandbox
    root: Path
    folder: Path
    runs: int = 0

    def run(self, operator: Any, **arguments: Any) -> Run:
        """The run of a DAG with this one task, ``made``."""
        with DAG("bad", schedule=None) as dag:
            operator(**{**usual(), **arguments})
        self.runs += 1
        return self.airflow.run_dag(dag, run_id=f"run-{self.runs}")

    def refused(self, operator: Any, *says: str, **arguments: Any) -> str:
        """Run a task that must be refused, and give its message."""
        return self.is_refused(self.run(operator, **arguments), *says)

    def is_refused(self, run: Run, *says: str, map_index: int = -1, paid: int = 0) -> str:
        made = run.task("made", map_index)
        assert (made.state, made.try_number) == ("failed", 1), made.log
        assert isinstance(made.error, AirflowFailException), made.log
        assert_clear(made.error.__cause__, *says)
        assert str(made.error) == str(made.error.__cause__)
        assert_discreet(run.log)
        self.paid(paid)
        return str(made.error)

    def paid(self, submissions: int) -> None:
        """So many were paid for; where none was, nothing was sent or recorded either."""
        assert len(self.sandbox.ledger()) == submissions
        if not submissions:
            assert self.sandbox.calls() == []
            assert list(self.root.glob("ledger/**/*.json")) == []

    def image_file(self, name: str = "cat.png", size: int = 0) -> str:
        """An image on disk, of at least `size` bytes."""
        path = self.folder / name
        path.write_bytes(png(size))
        return str(path)


def usual() -> dict[str, Any]:
    """Arguments that no test is about. A second try would show: it may start at once."""
    return {
        "task_id": "made",
        "prompt": PROMPT,
        "geminiimg_conn_id": "onemin",
        "poll_interval": 0.02,
        "deferrable": False,
        "retries": 1,
        "retry_delay": dt.timedelta(0),
    }


def assert_clear(error: BaseException | None, *says: str, kind: type[GeminiImageError] = BadRequestError) -> None:
    assert isinstance(error, kind)
    assert error.billed is Billed.NO
    text = str(error)
    assert all(part in text for part in says), text
    assert "No money was spent." in text
    assert len(text) < 700, "too long for anybody at 3 a.m."
    assert_discreet(text)


def assert_discreet(text: str) -> None:
    assert PROMPT not in text
    assert SIGNATURE not in text


def png(size: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 36), "navy").save(buffer, "PNG")
    data, end = buffer.getvalue()[:-12], buffer.getvalue()[-12:]
    body = b"fiLl" + b"\0" * max(0, size - len(data) - 24)
    return data + struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) + end


@pytest.fixture
def world(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str, apimaster: str, local_root: str, tmp_path: Path
) -> World:
    (tmp_path / "folder").mkdir()
    return World(airflow, sandbox, Path(local_root.removeprefix("file://")), tmp_path / "folder")


# --- fields -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One wrong value.

    :param says: what the message must hold beside the field's name: the value, and what is allowed.
    :param beside: further arguments.
    :param at_parse: whether a literal is already refused when the DAG is parsed.
    """

    id: str
    field: str
    value: Any
    says: Sequence[str]
    operator: Any = GENERATE
    beside: Mapping[str, Any] = field(default_factory=dict)
    at_parse: bool = True


def an_edit(id: str, field: str, value: Any, *says: str, at_parse: bool = True, **beside: Any) -> Case:
    return Case(id, field, value, says, EDIT, {"image": "s3://in/cat.png", **beside}, at_parse)


RATIOS = "Allowed: 1:1, 1:4, 1:8, 2:3, 3:2, 3:4, 4:1, 4:3, 4:5, 5:4, 8:1, 9:16, 16:9, 21:9."
SECONDS = "a number of seconds. Allowed: above 0, up to 2592000"
PLAIN_NAME = "Allowed: a plain name"
REPR = "| tojson"
ON_APIMASTER = {"geminiimg_conn_id": "apimaster"}
LONG = "x" * 121

CASES = [
    # what every gateway refuses
    Case("a model of 5 MB", "model", "x" * 5_000_000, ("200 printable characters",)),
    Case("a model with NUL", "model", "gemini\0", ("printable characters",)),
    Case("an empty prompt", "prompt", "", ["is empty", "must describe the image"]),
    Case("a prompt of blanks", "prompt", " \n", ["is empty"]),
    Case("a list where the prompt is meant", "prompt", [PROMPT], ["must be text, not list"]),
    Case("a mapping where the prompt is meant", "prompt", {"text": PROMPT}, ["must be text, not dict"]),
    Case("a flag where the prompt is meant", "prompt", True, ["must be text, not bool"]),
    Case("a list where the model is meant", "model", [PRO], ["list of 1", "must be text"]),
    Case("a list where the resolution is meant", "resolution", ["1K"], ["list of 1", "must be text"]),
    Case("a list where the ratio is meant", "aspect_ratio", ["16:9"], ["list of 1", "must be text"]),
    Case("a list where the variant is meant", "variant", ["a"], ["list of 1", "must be text"]),
    Case("a resolution that does not exist", "resolution", "8K", ["'8K'", "Allowed: 512, 1K, 2K, 4K."]),
    Case("a resolution in pixels", "resolution", 1024, ["'1024'", "Allowed: 512, 1K, 2K, 4K."]),
    Case("a resolution too small for the model", "resolution", "512", ["'512'", "1K, 2K, 4K"], beside={"model": PRO}),
    Case("a ratio that does not exist", "aspect_ratio", "17:9", ["'17:9'", RATIOS]),
    Case("a ratio with another sign", "aspect_ratio", "16x9", ["'16x9'", RATIOS, "Did you mean '16:9'?"]),
    Case("a temperature above its bounds", "temperature", 2.1, ["2.1", "Allowed: 0.0 to 2.0"]),
    Case("a temperature below its bounds", "temperature", -0.1, ["-0.1", "Allowed: 0.0 to 2.0"]),
    Case("a temperature that is no number", "temperature", "warm", ["'warm'", "a number from 0.0 to 2.0"]),
    Case("a temperature that is not finite", "temperature", "nan", ["'nan'", "a number from 0.0 to 2.0"]),
    Case("a top_p above its bounds", "top_p", "1.01", ["1.01", "Allowed: 0.0 to 1.0"]),
    Case("a top_p below its bounds", "top_p", -1, ["-1", "Allowed: 0.0 to 1.0"]),
    Case("a search that is neither on nor off", "google_search", "maybe", ["'maybe'", "true or false"]),
    Case("an image search alone", "google_image_search", True, ["needs google_search=True"], beside=ON_APIMASTER),
    Case(
        "an image search without its search",
        "google_image_search",
        True,
        ["needs google_search=True, given: False"],
        beside={**ON_APIMASTER, "google_search": False},
    ),
    Case("an image to edit where there is none", "image", "s3://in/cat.png", ["is not accepted by", "EditOperator"]),
    Case(
        "a signed reference where there is none",
        "reference_images",
        [f"https://in.test/cat.png?{SIGNATURE}"],
        ["1 given", "is not accepted by", "EditOperator"],
    ),
    # what belongs to the package
    Case("a timeout of nothing", "timeout", 0, ["=0", SECONDS]),
    Case("a timeout in the past", "timeout", "-5", ["'-5'", SECONDS]),
    Case("a timeout in words", "timeout", "soon", ["'soon'", SECONDS]),
    Case("a timeout beyond the calendar", "timeout", 1e12, ["1000000000000.0", SECONDS]),
    Case("a poll interval that is a flag", "poll_interval", True, ["True", SECONDS]),
    Case("a list where the poll interval is meant", "poll_interval", [5], ["list of 1", SECONDS]),
    Case("an on_unknown that does not exist", "on_unknown", "retry", ["'retry'", "Allowed: 'fail' or 'resubmit'"]),
    Case("an on_clear that does not exist", "on_clear", "buy", ["'buy'", "Allowed: 'reuse' or 'regenerate'"]),
    Case("a reuse that does not exist", "reuse", "run", ["'run'", "Allowed: 'task' or 'dag'"]),
    Case("an on_mismatch that does not exist", "on_mismatch", "", ["''", "Allowed: 'accept' or 'fail'"]),
    Case("a list where the folder is meant", "output_path", ["/out"], ["list of 1", "must be text"]),
    Case("a list where the connection is meant", "geminiimg_conn_id", ["onemin"], ["list of 1", "must be text"]),
    Case("a path where the file name is meant", "file_name", "a/b", ["'a/b'", "is a path", PLAIN_NAME]),
    Case("a file name that leads upwards", "file_name", "..", ["'..'", "is a path", PLAIN_NAME]),
    Case("a file name with an extension", "file_name", "fox.PNG", ["'fox.PNG'", "extension", PLAIN_NAME]),
    Case("a hidden file name", "file_name", ".fox", ["'.fox'", "hidden", PLAIN_NAME]),
    Case("a file name that is too long", "file_name", LONG, ["'xxx", "longer than 120 bytes", PLAIN_NAME]),
    Case("a file name with a line break", "file_name", "a\nb", ["a\\nb", "control characters", PLAIN_NAME]),
    Case("an empty file name", "file_name", "", ["''", "empty", PLAIN_NAME]),
    Case("a list where the file name is meant", "file_name", ["fox"], ["list of 1", "not text", PLAIN_NAME]),
    # what one gateway takes and the other refuses: known only with the connection
    Case("a search on 1min", "google_search", True, ["True", "which accepts: prompt, resolution"], at_parse=False),
    Case(
        "a temperature on APIMaster",
        "temperature",
        0.5,
        ["0.5", "on apimaster", "which accepts: prompt, resolution, aspect_ratio"],
        beside=ON_APIMASTER,
        at_parse=False,
    ),
    Case("a top_p on APIMaster", "top_p", 0.5, ["0.5", "which accepts: prompt"], beside=ON_APIMASTER, at_parse=False),
    Case("a ratio for 3-pro on 1min", "aspect_ratio", "1:1", ["'1:1'", PRO], beside={"model": PRO}, at_parse=False),
    Case(
        "a size for 2.5", "resolution", "1K", ["'1K'", FLASH_25, "which accepts: prompt."], beside={"model": FLASH_25}
    ),
    # images that go in
    an_edit("an edit without its image", "image", None, "not given", "as a URI or a manifest"),
    an_edit("an edit whose image renders to nothing", "image", "", "not given", "as a URI or a manifest"),
    an_edit("a list where the image is meant", "image", ["/cat.png"], "list of 1", "must be one image"),
    an_edit("the text of a list where the image is meant", "image", "['/cat.png']", "['/cat.png']", REPR),
    an_edit("a number where the image is meant", "image", 5, "=5", "must be one image, as a URI or as a manifest"),
    an_edit(
        "a manifest with two images where one is meant",
        "image",
        {"images": [{"uri": f"https://in.test/1.png?{SIGNATURE}"}, {"uri": "s3://in/2.png"}]},
        "must be exactly one image; this manifest has 2",
    ),
    an_edit("a manifest without images", "image", {"images": []}, "dict of 1", "a manifest with images"),
    an_edit("a mapping that is no manifest", "reference_images", {"a": 1}, "dict of 1", "a manifest with images"),
    an_edit("the text of a list of references", "reference_images", f"['https://a.test/?{SIGNATURE}']", REPR),
    an_edit("a number among references", "reference_images", ["s3://in/1.png", 5], "[1]=5", "must be URIs"),
    an_edit(
        "a ratio for an edit with 3-pro on 1min",
        "aspect_ratio",
        "1:1",
        "'1:1'",
        "which accepts: prompt, image",
        model=PRO,
        at_parse=False,
    ),
    an_edit("three references on 1min", "reference_images", ["s3://r"] * 3, "3 given", "at most 2", at_parse=False),
    an_edit("fourteen references", "reference_images", ["s3://r"] * 14, "14 given", "at most 13", **ON_APIMASTER),
]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)


def rendered(case: Case) -> DAG:
    """The value comes out of a template, as text, or natively as what it is."""
    arguments = {**usual(), **case.beside, case.field: "{{ params.value }}"}
    native = not isinstance(case.value, str)
    with DAG("bad", schedule=None, params={"value": case.value}, render_template_as_native_obj=native) as dag:
        case.operator(**arguments)
    return dag


def mapped(case: Case) -> DAG:
    """The task is mapped over the value."""
    arguments = {**usual(), **case.beside}
    arguments.pop(case.field, None)
    with DAG("bad", schedule=None) as dag:
        case.operator.partial(**arguments).expand(**{case.field: [case.value]})
    return dag


@pytest.mark.parametrize("case", [case for case in CASES if case.at_parse], ids=lambda case: case.id)
def test_a_literal_that_is_wrong_everywhere_is_refused_when_the_dag_is_parsed(case: Case, world: World) -> None:
    with DAG("bad", schedule=None), pytest.raises(BadRequestError) as caught:
        case.operator(**{**usual(), **case.beside, case.field: case.value})
    assert_clear(caught.value, case.field, *case.says)
    world.paid(0)


@pytest.mark.parametrize("case", [case for case in CASES if not case.at_parse], ids=lambda case: case.id)
def test_a_literal_that_one_gateway_takes_waits_for_the_connection(case: Case, world: World) -> None:
    world.refused(case.operator, case.field, *case.says, **{**case.beside, case.field: case.value})


@each_case
def test_a_rendered_value_is_refused_when_the_task_runs(case: Case, world: World) -> None:
    world.is_refused(world.airflow.run_dag(rendered(case)), case.field, *case.says)


@each_case
def test_a_value_that_a_task_is_mapped_over_is_refused_when_it_runs(case: Case, world: World) -> None:
    world.is_refused(world.airflow.run_dag(mapped(case)), case.field, *case.says, map_index=0)


def test_what_is_no_plain_literal_passes_the_parser(world: World) -> None:
    with DAG("bad", schedule=None):

        @task
        def upstream() -> str:
            return "17:9"

        for number, later in enumerate([literal("17:9"), upstream(), upstream().map(str), "{{ params.ratio }}"]):
            GENERATE(**{**usual(), "task_id": f"made{number}", "aspect_ratio": later})
        # Airflow makes no operator here: nothing of a mapped task is known to it before it runs.
        GENERATE.partial(**usual(), aspect_ratio="17:9").expand(variant=["a", "b"])
    world.paid(0)


def test_a_marked_literal_is_refused_when_the_task_runs(world: World) -> None:
    world.refused(GENERATE, "aspect_ratio", "'17:9'", RATIOS, aspect_ratio=literal("17:9"))


def test_a_wrong_argument_of_a_mapped_task_is_refused_by_each_of_its_instances(world: World) -> None:
    with DAG("bad", schedule=None) as dag:
        GENERATE.partial(**usual(), aspect_ratio="17:9").expand(variant=["a", "b"])
    run = world.airflow.run_dag(dag)
    for map_index in (0, 1):
        world.is_refused(run, "aspect_ratio", "'17:9'", RATIOS, map_index=map_index)


@pytest.mark.parametrize("value", ["maybe", 1, ["true"], "{{ true }}"])
def test_a_mapped_deferrable_that_is_no_yes_or_no_is_refused_before_money_is_spent(world: World, value: Any) -> None:
    arguments = usual()
    del arguments["deferrable"]
    with DAG("bad", schedule=None) as dag:
        GENERATE.partial(**arguments).expand(deferrable=[value])
    run = world.airflow.run_dag(dag)
    world.is_refused(run, "deferrable", "must be true or false", map_index=0)


@pytest.mark.parametrize(("value", "defers"), [("False", False), ("true", True), (False, False), (True, True)], ids=str)
def test_a_mapped_deferrable_is_read_like_other_yes_or_no_arguments(world: World, value: Any, defers: bool) -> None:
    arguments = usual()
    del arguments["deferrable"]
    with DAG("mapped", schedule=None) as dag:
        GENERATE.partial(**arguments).expand(deferrable=[value])
    made = world.airflow.run_dag(dag).task("made", 0)
    assert (made.state, bool(made.triggers)) == ("success", defers), made.log
    world.paid(1)


def test_one_wrong_row_of_a_mapped_task_costs_nothing_and_the_others_land(world: World) -> None:
    with DAG("bad", schedule=None) as dag:
        GENERATE.partial(**usual()).expand(aspect_ratio=["1:1", "17:9", "16:9"])
    run = world.airflow.run_dag(dag)
    world.is_refused(run, "aspect_ratio", "'17:9'", RATIOS, map_index=1, paid=2)
    assert [made.state for made in run.tasks("made")] == ["success", "failed", "success"]


@pytest.mark.parametrize("native", [False, True], ids=["as text", "natively"])
def test_a_template_that_renders_to_nothing_in_a_needed_field_is_refused(world: World, native: bool) -> None:
    arguments = {**usual(), "prompt": "{{ params.nothing }}", "image": "s3://in/cat.png"}
    with DAG("bad", schedule=None, params={"nothing": ""}, render_template_as_native_obj=native) as dag:
        EDIT(**arguments)
    world.is_refused(world.airflow.run_dag(dag), "prompt", "is empty")


def test_the_model_of_the_connection_decides_what_a_request_may_say(world: World, connect: Callable[..., str]) -> None:
    connect("small", **world.sandbox.connection("1min", model=FLASH_25))
    world.refused(GENERATE, "aspect_ratio='1:1'", FLASH_25, aspect_ratio="1:1", geminiimg_conn_id="small")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"prompt": "{{ '' }}"}, ["prompt", "is empty"]),
        ({"image": "s3://in/cat.png", "top_p": "{{ 2 }}"}, ["top_p=2.0", "Allowed: 0.0 to 1.0"]),
        ({"image": "s3://in/cat.png", "aspect_ratio": "1:1", "model": PRO}, ["aspect_ratio='1:1'", "edit on 1min"]),
        ({"reference_images": "{{ 's3://in/cat.png' }}"}, ["reference_images (1 given)", "generate on 1min"]),
        ({"image": "{{ '' }}"}, ["image: not given", "edit on 1min", "as a URI or a manifest"]),
    ],
    ids=[
        "an empty prompt",
        "a top_p out of bounds",
        "a field that an edit does not take",
        "references alone",
        "an image to edit that renders to nothing",
    ],
)
def test_a_submit_refuses_like_the_others(world: World, arguments: dict[str, Any], says: list[str]) -> None:
    shared = usual()
    del shared["deferrable"]
    with DAG("bad", schedule=None) as dag:
        GeminiImageSubmitOperator(**{**shared, **arguments})
    world.is_refused(world.airflow.run_dag(dag), *says)


def test_a_deferrable_task_refuses_before_it_defers(world: World) -> None:
    run = world.run(GENERATE, aspect_ratio="{{ '17:9' }}", deferrable=True)
    world.is_refused(run, "aspect_ratio", "'17:9'", RATIOS)
    assert run.task("made").triggers == []


# --- the connection ---------------------------------------------------------------------------------------------------

CONNECTIONS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "of another type": ({"conn_type": "http"}, ["type 'http'", "Allowed: geminiimg"]),
    "without a gateway": ({"extra": {}}, ["gateway", "Given: nothing", "Allowed: one of 1min, apimaster"]),
    "to an unknown gateway": ({"extra": {"gateway": "2min"}}, ["gateway", "'2min'", "Allowed: one of 1min, apimaster"]),
    "with a model that is no text": ({"extra": {"gateway": "1min", "model": [PRO]}}, ["model", "Allowed: text"]),
    "with a limit that is no number": (
        {"extra": {"gateway": "1min", "requests_per_minute": "many"}},
        ["requests_per_minute", "'many'", "Allowed: a whole number from 1 to 1,000,000"],
    ),
    "with a price below nothing": (
        {"extra": {"gateway": "1min", "price_base": -1}},
        ["price_base", "-1", "Allowed: a number of 0 or more"],
    ),
    "whose host is no address": ({"host": f"https://a.test/?{SIGNATURE}"}, ["host", "Allowed: a host name or an"]),
}


@pytest.mark.parametrize(("wrong", "says"), CONNECTIONS.values(), ids=[f"a connection {name}" for name in CONNECTIONS])
def test_a_wrong_connection_is_refused(
    world: World, connect: Callable[..., str], wrong: dict[str, Any], says: list[str]
) -> None:
    connect("wrong", **{**world.sandbox.connection("1min"), **wrong})
    world.refused(GENERATE, "Connection 'wrong'", *says, geminiimg_conn_id="wrong")


@pytest.mark.parametrize("conn_id", ["nowhere", "{{ 'nowhere' }}", "no where"])
def test_a_connection_that_is_not_there_is_refused(world: World, conn_id: str) -> None:
    world.refused(GENERATE, "geminiimg_conn_id", "there is no Airflow connection", geminiimg_conn_id=conn_id)


@pytest.mark.parametrize("conn_id", ["", "{{ '' }}", None])
def test_a_connection_that_is_not_named_is_refused(world: World, conn_id: Any) -> None:
    world.refused(GENERATE, "geminiimg_conn_id=", "takes the id", geminiimg_conn_id=conn_id)


@pytest.mark.parametrize("gateway", ["1min", "apimaster"])
def test_plain_http_to_a_public_host_is_refused_because_the_key_would_show(
    world: World, connect: Callable[..., str], gateway: str
) -> None:
    connect("wrong", host="http://api.example.com", password="key", extra={"gateway": gateway})
    world.refused(
        GENERATE, "Connection 'wrong'", "Given: 'http://api.example.com'", "Allowed: https", geminiimg_conn_id="wrong"
    )


@pytest.mark.parametrize("gateway", ["1min", "apimaster"])
@pytest.mark.parametrize("key", [None, "  ", "key\nwith a line break"], ids=["none", "blanks", "no header's"])
def test_a_missing_or_unsendable_key_is_an_authentication_error(
    world: World, connect: Callable[..., str], gateway: str, key: str | None
) -> None:
    connect("keyless", host=world.sandbox.base_url(gateway), password=key, extra={"gateway": gateway})
    made = world.run(GENERATE, geminiimg_conn_id="keyless", retries=0).task("made")
    assert made.state == "failed"
    assert_clear(made.error, "Connection 'keyless'", "password", "Put a valid API key", kind=AuthenticationError)
    assert_discreet(made.log)
    assert "with a line break" not in made.log
    world.paid(0)


# --- input images ---------------------------------------------------------------------------------------------------

ALLOWED = "Allowed: an image that the worker can read, image/png, image/jpeg, image/webp, of at most 7000000 bytes"
CONTENTS = {
    "an empty file": (b"", "is empty (0 bytes)"),
    "a web page": (b"<!doctype html><title>Sign in</title>", "is an HTML page"),
    "an error as JSON": (b'{"error": "denied"}', "is JSON"),
    "a GIF": (b"GIF89a" + bytes(40), "is a GIF"),
    "a HEIC": (b"\0\0\0\x18ftypheic" + bytes(40), "is HEIC or AVIF"),
    "a drawing": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is an SVG drawing"),
    "an image that is cut": (png()[:60], "is incomplete or damaged"),
    "an image that is too large": (png(LIMIT + 1), f"is larger than the {LIMIT} bytes"),
}


@pytest.mark.parametrize("place", ["a disk", "S3"])
@pytest.mark.parametrize(("content", "said"), CONTENTS.values(), ids=CONTENTS)
def test_what_is_no_usable_image_is_refused(
    world: World, request: pytest.FixtureRequest, content: bytes, said: str, place: str
) -> None:
    uri = str(world.folder / "cat.png")
    if place == "S3":
        uri = f"{request.getfixturevalue('s3')}/cat.png"
        put_object(uri, content)
    else:
        Path(uri).write_bytes(content)
    world.refused(EDIT, "image=", uri, said, ALLOWED, image=uri)


def put_object(uri: str, content: bytes) -> None:
    import boto3

    bucket, _, key = uri.removeprefix("s3://").partition("/")
    boto3.client("s3").put_object(Bucket=bucket, Key=key, Body=content)


UNREADABLE = {
    "a file that is not there": ("{folder}/absent.png", "absent.png': does not exist"),
    "a folder": ("{folder}", "is not a regular file"),
    "a relative path": ("in/cat.png", "'in/cat.png' is neither a URI nor an absolute path"),
    "a link without its scheme": (f"in.test/cat.png?{SIGNATURE}", "'in.test/cat.png' is neither a URI nor"),
    "a path that leads upwards": ("{folder}/../../etc/cat.png", 'contains ".."'),
    "a file on another host": ("file://host/cat.png", "a file URI has no host"),
    "a scheme that nobody serves": ("nowhere://in/cat.png", "no installed Airflow provider supports"),
    "a query that no store knows": (f"nowhere://in/cat.png?{SIGNATURE}", "'nowhere://in/cat.png' contains \"?\""),
    "an object that is not there": ("{s3}/absent.png", "absent.png': does not exist"),
    "a bucket that is not there": ("{s3}-gone/cat.png", "Create the bucket test-"),
    "a bucket without a name": ("s3:///cat.png", "names no bucket"),
    "a connection that is not there": (
        "s3://nowhere@in/cat.png",
        "the Airflow connection 'nowhere', which does not exist",
    ),
    "a password in the address": (f"s3://user:{SIGNATURE}@in/cat.png", "a s3:// URI cannot contain a password"),
    "an object that S3 denies": ("{refusing}/denied.png", "AccessDenied (HTTP 403)"),
    "a link inwards": (f"https://127.0.0.1/cat.png?{SIGNATURE}", "127.0.0.1, which is not a public address"),
    "a link to the cloud's own address": (f"https://169.254.169.254/?{SIGNATURE}", "not a public address"),
    "a link in plain http": (f"http://example.com/cat.png?{SIGNATURE}", "is plain http; only https is allowed"),
    "a link with a password": (f"https://user:{SIGNATURE}@example.com/cat.png", "user name or password"),
    "a link that is none": (f"https://[in/cat.png?{SIGNATURE}", "is not an https address"),
    "a data URI": (f"data:image/png;base64,{SIGNATURE}", "is neither a URI nor an absolute path"),
}


@pytest.mark.parametrize(("uri", "said"), UNREADABLE.values(), ids=UNREADABLE)
def test_an_image_that_can_not_be_read_is_refused(world: World, places: Places, uri: str, said: str) -> None:
    world.refused(EDIT, "image", said, image=uri.format_map(places))


def test_a_wrong_reference_is_named_by_its_place_and_no_other_is_uploaded(world: World) -> None:
    references = [world.image_file("a.png"), str(world.folder / "absent.png")]
    world.refused(
        EDIT, "reference_images[1]=", "does not exist", ALLOWED, image=world.image_file(), reference_images=references
    )


def test_images_that_are_too_large_together_are_refused(world: World) -> None:
    references = [world.image_file(f"{number}.png", 5_100_000) for number in range(2)]
    image = world.image_file("cat.png", 5_100_000)
    says = "image, reference_images[0], reference_images[1]", "bytes together", "Allowed: 15000000"
    world.refused(EDIT, *says, image=image, reference_images=references, **ON_APIMASTER)


def test_an_image_that_can_not_be_read_just_now_is_tried_again(world: World, places: Places) -> None:
    run = world.run(EDIT, image=f"{places['refusing']}/busy.png")
    made = run.task("made")
    assert (made.state, made.try_number) == ("failed", 2)
    assert_clear(made.error, "image=", "busy.png", "503", kind=StorageError)
    world.paid(0)


class RefusingS3:
    """Before the S3 server: what it says to anything named after a refusal, and to anything written to a bucket."""

    ANSWERS = {"denied": ("403 Forbidden", "AccessDenied"), "busy": ("503 Slow Down", "SlowDown")}

    def __init__(self, app: Any) -> None:
        self.app = app

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        for word, (status, code) in self.ANSWERS.items():
            if f"/{word}" in environ["PATH_INFO"]:
                start_response(status, [("Content-Type", "application/xml")])
                return [f"<Error><Code>{code}</Code><Message>No.</Message></Error>".encode()]
        return self.app(environ, start_response)


@pytest.fixture(scope="module")
def refusing_s3() -> Iterator[str]:
    from tests.harness.moto import start_moto

    with start_moto(RefusingS3) as url:
        yield url


class Places(dict[str, str]):
    """Where images are, by name, made when a test asks for it: ``folder``, ``s3``, and ``refusing``, a bucket."""

    def __init__(self, world: World, request: pytest.FixtureRequest) -> None:
        super().__init__(folder=str(world.folder))
        self.request = request

    def __missing__(self, name: str) -> str:
        bucket = str(self.request.getfixturevalue("s3"))
        if name == "refusing":
            extra = {
                "endpoint_url": self.request.getfixturevalue("refusing_s3"),
                "region_name": "us-east-1",
                "config_kwargs": {"retries": {"total_max_attempts": 1}},
            }
            connect = self.request.getfixturevalue("connect")
            connect("refusing_aws", conn_type="aws", login="a", password="b", extra=extra)
            bucket = bucket.replace("s3://", "s3://refusing_aws@")
        return self.setdefault(name, bucket)


@pytest.fixture
def places(world: World, request: pytest.FixtureRequest) -> Places:
    return Places(world, request)


# --- where the image goes -------------------------------------------------------------------------------------------

FOLDERS = {
    "a folder below a file": ("{folder}/file/out", ["/file/out", "Not a directory", "Check that the disk is"]),
    "a folder that is a file": ("{folder}/file", ["/file", "cannot be written to", "Check that the disk is"]),
    "a folder where none can be made": ("/proc/nowhere", ["/proc/nowhere", "cannot be written to"]),
    "a relative folder": ("pictures/out", ["'pictures/out/", "is neither a URI nor an absolute path", "Write it as"]),
    "a folder that leads upwards": ("{folder}/../out", ['contains ".."']),
    "a bucket that is not there": ("{s3}-gone/out", ["NoSuchBucket", "Create the bucket"]),
    "a bucket without a name": ("s3:///out", ["s3:///out/fox names no bucket"]),
    "a bucket that denies writing": ("{refusing}/denied", ["AccessDenied (HTTP 403)", "Grant the worker's AWS"]),
    "a connection that is not there": (
        "s3://nowhere@out/x",
        ["the Airflow connection 'nowhere', which does not exist"],
    ),
    "a web address": (f"https://out.test/x?{SIGNATURE}", ["https://out.test/x", "is a web address, not a place"]),
    "a scheme that nobody serves": ("nowhere://out/x", ["no installed Airflow provider supports nowhere://", "s3://"]),
}


@pytest.mark.parametrize(("uri", "says"), FOLDERS.values(), ids=FOLDERS)
def test_a_folder_that_can_not_be_written_is_refused(world: World, places: Places, uri: str, says: list[str]) -> None:
    (world.folder / "file").write_text("a file")
    world.refused(GENERATE, "output_path", *says, output_path=uri.format_map(places), file_name="fox")


def test_a_bucket_that_can_not_be_written_just_now_is_tried_again(world: World, places: Places) -> None:
    made = world.run(GENERATE, output_path=f"{places['refusing']}/busy").task("made")
    assert (made.state, made.try_number) == ("failed", 2)
    assert_clear(made.error, "output_path", "/busy", "503", kind=StorageError)
    world.paid(0)


@pytest.fixture
def fence(world: World, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one folder that `[geminiimg] allowed_roots` allows; its link ``out`` leads away."""
    inside = world.folder / "inside"
    inside.mkdir()
    (inside / "out").symlink_to(world.folder)
    monkeypatch.setenv("AIRFLOW__GEMINIIMG__ALLOWED_ROOTS", f"{inside.as_uri()}, s3://in/pictures")
    return inside


OUTSIDE = {
    "a folder beside the root": "{folder}/elsewhere",
    "a folder whose name begins like the root": "{folder}/insider",
    "a folder through a symbolic link": "{folder}/inside/out/elsewhere",
    "a folder above the root": "{folder}",
    "a key beside the root": "s3://in/others",
    "the root by another connection": "s3://mine@in/pictures",
}
BOUNDS = "is outside [geminiimg] allowed_roots"


@pytest.mark.parametrize("uri", OUTSIDE.values(), ids=OUTSIDE)
def test_what_lies_outside_the_allowed_roots_is_neither_read_nor_written(
    world: World, fence: Path, places: Places, uri: str
) -> None:
    world.image_file()
    uri = uri.format_map(places)
    allowed = f"Allowed: {fence}, s3://in/pictures"
    world.refused(GENERATE, "output_path: ", uri.rpartition("/")[2], BOUNDS, allowed, output_path=uri, file_name="fox")
    manifest = {"images": [{"uri": f"{uri}/cat.png"}]}
    world.refused(EDIT, "image: ", f"{uri}/cat.png", BOUNDS, allowed, image=manifest)
    assert not (world.folder / "elsewhere").exists()


def test_dots_lead_out_of_no_allowed_root(world: World, fence: Path) -> None:
    world.image_file()
    world.refused(GENERATE, "output_path", 'contains ".."', output_path=f"{fence}/../elsewhere")
    world.refused(EDIT, "image", 'contains ".."', image=f"{fence}/../cat.png")
    world.refused(EDIT, "image", 'contains ".."', image=f"https://in.test/a/%2e%2e/cat.png?{SIGNATURE}")


def test_what_lies_within_the_allowed_roots_is_read_and_written(world: World, fence: Path) -> None:
    (fence / "cat.png").write_bytes(png())
    run = world.run(EDIT, image=str(fence / "cat.png"), output_path=fence.as_uri(), file_name="fox")
    assert run.state == "success", run.log
    assert [path.stem for path in fence.glob("fox.*") if path.suffix != ".json"] == ["fox"]
    world.paid(1)


# --- names that are taken ---------------------------------------------------------------------------------------------

TAKEN = ["Allowed: a name that is free there", "nothing is ever replaced"]


@pytest.mark.parametrize("name", ["fox.png", "fox.jpg", "fox.json"])
@pytest.mark.parametrize("place", ["folder", "s3"])
def test_a_name_that_a_foreign_file_has_is_taken(world: World, places: Places, place: str, name: str) -> None:
    uri = f"{places[place]}/{name}"
    if place == "s3":
        put_object(uri, b"somebody's")
    else:
        Path(uri).write_bytes(b"somebody's")
    world.refused(GENERATE, "file_name='fox'", f"{name} exists", *TAKEN, output_path=places[place], file_name="fox")


def named(task_id: str, folder: str, **more: Any) -> Any:
    return GENERATE(**{**usual(), "task_id": task_id, "output_path": folder, "file_name": "fox", **more})


@pytest.mark.parametrize("spelled", ["{folder}", "file://{folder}", "{folder}//", "{folder}/link"])
def test_a_name_that_another_task_claimed_is_taken_however_its_folder_is_written(
    world: World, places: Places, spelled: str
) -> None:
    (world.folder / "link").symlink_to(world.folder)
    with DAG("bad", schedule=None) as dag:
        named("first", places["folder"]) >> named("made", spelled.format_map(places))
    run = world.airflow.run_dag(dag)
    assert run.task("first").state == "success", run.log
    world.is_refused(run, "file_name='fox'", "default/bad/run/first/", "claimed it", *TAKEN, paid=1)
    assert sorted(path.name for path in world.folder.iterdir()) == ["fox.json", "fox.png", "link"]


def test_a_name_is_taken_from_the_claim_on_not_only_when_an_image_has_it(world: World, places: Places) -> None:
    world.sandbox.faults(route="download", status=500, times=3)
    with DAG("bad", schedule=None) as dag:
        named("first", places["folder"], retries=0) >> named("made", places["folder"], trigger_rule="all_done")
    run = world.airflow.run_dag(dag)
    assert run.task("first").state == "failed"
    world.is_refused(run, "file_name='fox'", "claimed it", *TAKEN, paid=1)


@pytest.mark.parametrize("deferrable", [False, True], ids=["waiting", "deferred"])
@pytest.mark.parametrize("place", ["folder", "s3"])
def test_of_two_mapped_tasks_with_one_file_name_one_pays_and_one_is_refused(
    world: World, places: Places, place: str, deferrable: bool
) -> None:
    arguments = {**usual(), "output_path": places[place], "file_name": "fox", "deferrable": deferrable}
    with DAG("bad", schedule=None) as dag:
        GENERATE.partial(**arguments).expand(variant=["a", "b"])
    run = world.airflow.run_dag(dag)
    by_state = {made.state: made.map_index for made in run.tasks("made")}
    assert sorted(by_state) == ["failed", "success"], run.log
    world.is_refused(run, "file_name='fox'", "claimed it", *TAKEN, map_index=by_state["failed"], paid=1)


# --- values as people write them --------------------------------------------------------------------------------------


def submission(world: World, run: Run) -> dict[str, Any]:
    """The one submission of a run that ended well, as the gateway understood it."""
    assert run.state == "success", run.log
    (entry,) = world.sandbox.ledger()
    assert entry["ignored"] == []
    return entry


def digests(*paths: str) -> list[str]:
    return [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths]


def test_numbers_and_flags_may_come_out_of_templates_as_text(world: World) -> None:
    wanted = {"resolution": "{{ 256 * 2 }}", "poll_interval": "{{ 0.02 }}", "timeout": " 60 ", "file_name": "{{ 7 }}"}
    run = world.run(GENERATE, **wanted, temperature="{{ 0.7 }}", top_p=" 0.9 ", variant="{{ 3 }}")
    entry = submission(world, run)
    assert {name: entry["fields"][name] for name in ("imageSize", "temperature", "topP")} == {
        "imageSize": "512", "temperature": 0.7, "topP": 0.9,
    }  # fmt: skip
    manifest = run.task("made").value
    assert manifest["requested"] == {"resolution": "512", "temperature": 0.7, "top_p": 0.9, "variant": "3"}
    assert manifest["images"][0]["uri"].endswith("/7.png")


def test_flags_may_come_out_of_templates_as_text(world: World) -> None:
    run = world.run(GENERATE, google_search="{{ true }}", google_image_search="{{ 1 == 2 }}", **ON_APIMASTER)
    fields = submission(world, run)["fields"]
    assert (fields["google_search"], fields["google_image_search"]) == (True, False)


@pytest.mark.parametrize(
    ("prompt", "native"),
    [(123, False), ("{{ 123 }}", True), ("{{ 123 }}", False), ("{{ params.number }}", True)],
    ids=["a number", "rendered natively", "rendered to text", "a parameter that is a number"],
)
def test_a_number_where_the_prompt_is_meant_becomes_its_text(world: World, prompt: Any, native: bool) -> None:
    with DAG("good", schedule=None, params={"number": 123}, render_template_as_native_obj=native) as dag:
        GENERATE(**{**usual(), "prompt": prompt})
    assert submission(world, world.airflow.run_dag(dag))["prompt"] == "123"


@pytest.mark.parametrize(
    ("template", "native"),
    [("{{ params.refs | tojson }}", False), ("{{ params.refs }}", True), ("{{ params.refs | tojson }}", True)],
    ids=["a JSON array", "a list, natively", "a JSON array, natively"],
)
def test_a_list_of_references_may_come_out_of_a_template(world: World, template: str, native: bool) -> None:
    paths = [world.image_file("a.png", 5_000), world.image_file("b.png", 6_000)]
    image = world.image_file()
    with DAG("good", schedule=None, params={"refs": paths}, render_template_as_native_obj=native) as dag:
        EDIT(**{**usual(), "image": image, "reference_images": template})
    entry = submission(world, world.airflow.run_dag(dag))
    assert [item["sha256"] for item in entry["inputs"]] == digests(image, *paths)


def test_a_list_that_a_template_renders_to_its_python_text_is_refused_with_the_way_out(world: World) -> None:
    paths = [world.image_file("a.png"), world.image_file("b.png")]
    with DAG("bad", schedule=None, params={"refs": paths}) as dag:
        EDIT(**{**usual(), "image": world.image_file(), "reference_images": "{{ params.refs }}"})
    world.is_refused(world.airflow.run_dag(dag), "reference_images=", "a.png", REPR)


def test_images_go_from_task_to_task_as_manifests_lists_and_mapped_outputs(world: World) -> None:
    shared = {**usual(), "resolution": "512"}

    @task
    def both(one: dict[str, Any], all_others: list[dict[str, Any]]) -> list[Any]:
        return [one, all_others[0]["images"][0]["uri"]]

    with DAG("good", schedule=None) as dag:
        made = GENERATE(**shared)
        variants = GENERATE.partial(**{**shared, "task_id": "variants"}).expand(variant=["a", "b"])
        EDIT(**{**shared, "task_id": "mapped", "image": made.output, "reference_images": variants.output})
        EDIT(
            **{
                **shared,
                "task_id": "listed",
                "image": "{{ ti.xcom_pull('made') | tojson }}",
                "reference_images": both(made.output, variants.output),
            }
        )
        made >> dag.get_task("listed")
    run = world.airflow.run_dag(dag)
    assert run.state == "success", run.log
    sha = {
        (made.task_id, made.map_index): made.value["images"][0]["sha256"]
        for made in run.tasks()
        if made.task_id != "both"
    }
    inputs = {
        tuple(item["sha256"] for item in entry["inputs"])
        for entry in world.sandbox.ledger()
        if entry["operation"] == "edit"
    }
    assert inputs == {
        (sha["made", -1], sha["variants", 0], sha["variants", 1]),
        (sha["made", -1], sha["made", -1], sha["variants", 0]),
    }
    assert len(world.sandbox.ledger()) == 5


def test_a_mapped_output_with_too_many_images_is_refused_by_the_number_it_turned_out_to_have(world: World) -> None:
    paths = [world.image_file(f"{number}.png") for number in range(3)]

    @task
    def reference(path: str) -> str:
        return path

    with DAG("bad", schedule=None) as dag:
        EDIT(**{**usual(), "image": paths[0], "reference_images": reference.expand(path=paths)})
    world.is_refused(world.airflow.run_dag(dag), "reference_images", "3 given", "at most 2")


def test_a_mapped_output_where_one_image_is_meant_is_refused(world: World) -> None:
    @task
    def image_file(path: str) -> str:
        return path

    with DAG("bad", schedule=None) as dag:
        EDIT(**{**usual(), "image": image_file.expand(path=["s3://in/1.png", "s3://in/2.png"])})
    world.is_refused(world.airflow.run_dag(dag), "image", "must be one image")
