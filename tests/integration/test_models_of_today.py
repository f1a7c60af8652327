"""Models, ids and prices as they change: what an account is sent, told, charged and never charged twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from airflow.sdk import DAG

from airflow_provider_geminiimg.core import request
from airflow_provider_geminiimg.core.catalog import lookup
from airflow_provider_geminiimg.core.catalog.google_models import GOOGLE_MODELS, expected_pixels
from airflow_provider_geminiimg.core.catalog.lookup import other_id
from airflow_provider_geminiimg.core.images.inspection import ImageInfo, mismatch
from airflow_provider_geminiimg.hooks.geminiimg import GeminiImageHook
from airflow_provider_geminiimg.operators.batch import GeminiImageBatchOperator
from airflow_provider_geminiimg.operators.edit import GeminiImageEditOperator
from airflow_provider_geminiimg.operators.generate import GeminiImageGenerateOperator

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_provider_geminiimg.sandbox import Sandbox
    from tests.harness.inprocess import AirflowHarness, Run

pytestmark = pytest.mark.usefixtures("local_root")

FLASH, GA, PRO = "gemini-3.1-flash-image-preview", "gemini-3.1-flash-image", "gemini-3-pro-image-preview"


def dag(conn_id: str, model: str | None, *, batch: bool = False, dag_id: str = "models", **more: Any) -> DAG:
    with DAG(dag_id, schedule=None) as made:
        common = {"task_id": "picture", "geminiimg_conn_id": conn_id, "model": model, "poll_interval": 0.05, **more}
        if batch:
            GeminiImageBatchOperator(requests=["a fox", "a hen"], **common)
        else:
            GeminiImageGenerateOperator(prompt="a fox", **common)
    return made


def sent_models(sandbox: Sandbox) -> list[str]:
    return [job["model"] for job in sandbox.ledger()]


# Ids of one model


def test_the_default_is_the_gateways_own_and_what_is_written_is_what_is_sent(
    sandbox: Sandbox, onemin: str, apimaster: str
) -> None:
    for conn_id, usual in ((onemin, FLASH), (apimaster, GA)):
        for model in (None, FLASH, GA):
            hook = GeminiImageHook(conn_id)
            hook.submit(prompt=f"{conn_id} {model}", model=model)
            assert sent_models(sandbox)[-1] == (model or usual)


@pytest.mark.parametrize("batch", [False, True], ids=["single", "batch"])
@pytest.mark.parametrize(("before", "after"), [(FLASH, GA), (GA, FLASH), (FLASH, None), (None, GA)])
def test_another_id_of_the_same_model_buys_nothing_again_after_a_clear(
    airflow: AirflowHarness, sandbox: Sandbox, apimaster: str, before: str | None, after: str | None, batch: bool
) -> None:
    run = airflow.run_dag(dag(apimaster, before, batch=batch))
    assert run.state == "success", run.log
    bought = len(sandbox.ledger())
    run.dag = dag(apimaster, after, batch=batch)
    run.clear("picture")
    assert run.state == "success", run.log
    assert len(sandbox.ledger()) == bought == (2 if batch else 1)


@pytest.mark.parametrize("batch", [False, True], ids=["single", "batch"])
@pytest.mark.parametrize("after", [GA, FLASH, None])
def test_what_0_1_bought_under_a_successors_id_is_not_bought_again(
    airflow: AirflowHarness,
    sandbox: Sandbox,
    apimaster: str,
    monkeypatch: pytest.MonkeyPatch,
    after: str | None,
    batch: bool,
) -> None:
    real = request.CheckedRequest.fingerprint

    def as_0_1_did(self: request.CheckedRequest, **place: Any) -> str:
        row = replace(self.row, fingerprint_model=self.row.wire_model)
        return real(replace(self, row=row), **place)

    with monkeypatch.context() as old:
        old.setattr(request.CheckedRequest, "fingerprint", as_0_1_did)
        run = airflow.run_dag(dag(apimaster, GA, batch=batch))
    assert run.state == "success", run.log
    bought = len(sandbox.ledger())
    run.dag = dag(apimaster, after, batch=batch)
    run.clear("picture")
    assert run.state == "success", run.log
    assert len(sandbox.ledger()) == bought


# A model that the gateway does not serve


def why(run: Run) -> str:
    return str(run.task("picture").error)


@pytest.mark.parametrize("model", [FLASH, GA, PRO, "gemini-3-pro-image"])
@pytest.mark.parametrize("gateway", ["1min", "apimaster"])
def test_a_refused_model_names_the_other_id_and_what_the_gateway_serves_and_costs_nothing(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str, apimaster: str, gateway: str, model: str
) -> None:
    other = str(other_id(model))
    sandbox.settings(models=[other, "gemini-nano-banana-2.1"])
    run = airflow.run_dag(dag({"1min": onemin, "apimaster": apimaster}[gateway], model))
    assert run.state == "failed"
    said = why(run)
    assert f"is {other}" in said
    assert "lists these image models now: " in said
    assert {other, "gemini-nano-banana-2.1"} == set(said.partition("now: ")[2].split(". ")[0].rstrip(".").split(", "))
    assert "No money was spent." in said
    assert sandbox.ledger() == []
    run.dag = dag({"1min": onemin, "apimaster": apimaster}[gateway], other)
    run.clear("picture")
    assert run.state == "success", run.log
    assert sent_models(sandbox) == [other]


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "No available channel for model x under group default", "code": "model_not_found"}},
        {"error": {"message": "models/gemini-3.1-flash-image-preview is not found for API version v1beta"}},
        {"error": {"message": "The model has been retired", "code": "bad_response"}},
    ],
    ids=["no channel", "Google's words", "retired"],
)
def test_whatever_words_a_gateway_refuses_a_model_with_the_successor_is_named(
    sandbox: Sandbox, apimaster: str, body: dict[str, Any]
) -> None:
    sandbox.faults(route="apimaster.submit", status=400, body=json.dumps(body))
    with pytest.raises(Exception, match=f"The successor of {FLASH} is {GA}"):
        GeminiImageHook(apimaster).submit(prompt="a fox", model=FLASH)


def test_another_refusal_asks_for_no_list(sandbox: Sandbox, apimaster: str) -> None:
    sandbox.faults(route="apimaster.submit", status=400)
    with pytest.raises(Exception, match="refused the request"):
        GeminiImageHook(apimaster).submit(prompt="a fox")
    assert sandbox.calls("apimaster.check") == []


# The free test of a connection


def test_the_connections_test_reads_1mins_public_list_without_the_key(sandbox: Sandbox, onemin: str) -> None:
    works, message = GeminiImageHook(onemin).test_connection()
    assert works
    assert FLASH in message
    [call] = sandbox.calls("onemin.models")
    assert call["with_key"] is False
    assert sandbox.ledger() == []


@pytest.mark.parametrize("gateway", ["1min", "apimaster"])
def test_the_connections_test_warns_of_a_default_that_is_not_served_and_names_its_other_id(
    sandbox: Sandbox, connect: Callable[..., str], gateway: str
) -> None:
    for models, said in (
        ([GA, "gemini-3.1-flash-lite-image"], f"The default model {FLASH} is not among them: it is listed as {GA}"),
        (["gemini-nano-banana-2.1"], f"The default model {FLASH} is not among them: change it"),
    ):
        sandbox.settings(models=models)
        works, message = GeminiImageHook(connect("m", **sandbox.connection(gateway, model=FLASH))).test_connection()
        assert works
        assert said in message


@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 404}, {"drop": True}, {"body": "<html>"}])
def test_a_list_that_can_not_be_read_does_not_fail_the_connections_test(
    sandbox: Sandbox, onemin: str, fault: dict[str, Any]
) -> None:
    sandbox.faults(route="onemin.models", **fault)
    works, message = GeminiImageHook(onemin).test_connection()
    assert works
    assert "accepts the key" in message
    assert "could not be read" in message


# Sizes


def test_google_lists_pixels_for_every_size_and_ratio_of_its_models_and_each_of_them_is_no_mismatch() -> None:
    for model, google in GOOGLE_MODELS.items():
        for size in google.sizes or (None,):
            for ratio in google.ratios:
                pixels = expected_pixels(model, size, ratio)
                assert pixels
                for width, height in pixels:
                    info = ImageInfo("image/png", "png", width, height)
                    assert mismatch(info, resolution=size, aspect_ratio=ratio, listed=pixels) is None


@pytest.mark.parametrize(
    ("width", "height", "right"),
    [
        (792, 168, True),
        (792, 336, True),
        (800, 168, True),
        (784, 172, True),
        (512, 512, False),
        (168, 792, False),
        (792, 264, False),
        (1024, 256, False),
        (688, 384, False),
    ],
)
def test_21_9_at_512_is_right_in_both_of_googles_sizes_and_in_no_other_shape(
    width: int, height: int, right: bool
) -> None:
    listed = expected_pixels(FLASH, "512", "21:9")
    said = mismatch(ImageInfo("image/png", "png", width, height), resolution="512", aspect_ratio="21:9", listed=listed)
    assert (said is None) == right


@pytest.mark.parametrize("printed", [True, False])
def test_21_9_at_512_lands_without_a_mismatch_and_a_wrong_shape_with_one(
    airflow: AirflowHarness, sandbox: Sandbox, geminiimg_conn_id: str, printed: bool
) -> None:
    sandbox.settings(printed_sizes=printed)
    wanted = {"resolution": "512", "aspect_ratio": "21:9", "on_mismatch": "fail"}
    run = airflow.run_dag(dag(geminiimg_conn_id, None, **wanted))
    assert run.state == "success", run.log
    [image] = run.task("picture").value["images"]
    assert (image["width"], image["height"]) == ((792, 168) if printed else (792, 336))
    sandbox.faults(route=f"{geminiimg_conn_id}.submit", outcome="wrong_size")
    run = airflow.run_dag(dag(geminiimg_conn_id, None, dag_id="wrong", **wanted))
    assert run.state == "failed"
    assert "the requested aspect_ratio 21:9" in why(run)


# A ratio for an edit


@pytest.mark.parametrize("model", [None, FLASH, GA])
def test_an_edit_on_1min_takes_a_ratio_and_sends_it(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str, tmp_path: Path, model: str | None
) -> None:
    from tests.unit.sandbox.test_sandbox import png

    (tmp_path / "in.png").write_bytes(png())
    with DAG("edit", schedule=None) as made:
        GeminiImageEditOperator(
            task_id="picture",
            prompt="at night",
            image=(tmp_path / "in.png").as_uri(),
            aspect_ratio="16:9",
            model=model,
            geminiimg_conn_id=onemin,
            poll_interval=0.05,
        )
    run = airflow.run_dag(made)
    assert run.state == "success", run.log
    assert run.task("picture").value["mismatch"] is None
    [job] = sandbox.ledger()
    assert job["fields"]["aspectRatio"] == "16:9"


# Prices


def test_an_estimate_says_that_it_is_one_in_manifest_sidecar_log_and_summary(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str, tmp_path: Path
) -> None:
    run = airflow.run_dag(dag(onemin, None, output_path=tmp_path.as_uri(), file_name="hero"))
    cost = {"amount": 0.0672, "currency": "USD", "basis": "google_list", "estimate": True}
    assert run.task("picture").value["cost"] == cost
    assert json.loads((tmp_path / "hero.json").read_text())["cost"] == cost
    assert "0.0672 USD (estimated by google_list)" in run.log
    run = airflow.run_dag(dag(onemin, None, batch=True, dag_id="many"))
    assert run.task("picture").value["cost"] == {"USD (google_list, estimate)": 0.1344}


@pytest.mark.parametrize(
    ("extra", "warns"),
    [
        ({}, False),
        ({"price_base": 0.065}, False),
        ({"price_base": 0.06}, True),
        ({"price_base": 0.08}, True),
        ({"prices": {GA: 0.02}}, True),
        ({"price_base": 500, "price_currency": "credits"}, False),
    ],
)
def test_what_the_gateway_reports_goes_before_the_estimate_and_a_difference_is_said(
    airflow: AirflowHarness, sandbox: Sandbox, connect: Callable[..., str], extra: dict[str, Any], warns: bool
) -> None:
    sandbox.settings(poll_shape="completed")
    run = airflow.run_dag(dag(connect("p", **sandbox.connection("apimaster", **extra)), None))
    reported = {"amount": 0.0672, "currency": "USD", "basis": "gateway", "estimate": False}
    assert run.task("picture").value["cost"] == reported
    assert ("The gateway reports that the image" in run.log) == warns


# The sandbox


def test_the_sandbox_lists_the_models_of_both_gateways(sandbox: Sandbox) -> None:
    shown = httpx.get(f"{sandbox.onemin_url}/models", params={"feature": "IMAGE_EDITOR"}).json()
    assert "gemini-2.5-flash-image-preview" in {row["modelId"] for row in shown["models"]}
    assert shown["total"] == len(shown["models"])
    assert httpx.get(f"{sandbox.onemin_url}/models").json() == {"models": [], "total": 0}
    assert set(lookup.DEFAULT_MODELS.values()) <= {
        row["modelId"]
        for row in httpx.get(f"{sandbox.onemin_url}/models", params={"feature": "IMAGE_GENERATOR"}).json()["models"]
    }
