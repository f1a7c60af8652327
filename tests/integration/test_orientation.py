"""An image that an orientation tag turns, on its way in and out, in a real Airflow against the sandbox over HTTP."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG
from PIL import Image

from airflow_provider_geminiimg import GeminiImageBatchOperator, GeminiImageEditOperator, GeminiImageGenerateOperator
from airflow_provider_geminiimg.sandbox import images

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox
    from tests.harness.inprocess import AirflowHarness

pytestmark = pytest.mark.usefixtures("local_root")


def turned(data: bytes, orientation: int, kind: str) -> bytes:
    """The same image, stored on its side and displayed upright by its tag."""
    with Image.open(io.BytesIO(data)) as image:
        exif = image.getexif()
        exif[0x0112] = orientation
        buffer = io.BytesIO()
        image.transpose(Image.Transpose.ROTATE_90).save(buffer, kind, exif=exif.tobytes())
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
def test_an_image_that_its_tag_displays_as_asked_is_no_mismatch_and_stays_as_it_came(
    airflow: AirflowHarness,
    sandbox: Sandbox,
    apimaster: str,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    served: list[bytes] = []
    upright = images.draw

    def draw(sketch: Any) -> bytes:
        served.append(turned(upright(sketch), 6, kind))
        return served[-1]

    monkeypatch.setattr(images, "draw", draw)
    with DAG("turned", schedule=None) as dag:
        GeminiImageGenerateOperator(
            task_id="made",
            prompt=f"a fox as {kind}",
            aspect_ratio="9:16",
            on_mismatch="fail",
            geminiimg_conn_id=apimaster,
            poll_interval=0.02,
        )
    run = airflow.run_dag(dag)
    assert run.state == "success", run.log
    [image] = run.task("made").value["images"]
    assert (image["width"], image["height"]) == (768, 1376)
    assert Path(image["uri"].removeprefix("file://")).read_bytes() == served[0]
    assert len(sandbox.ledger()) == 1


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_an_input_that_its_tag_turns_is_sent_as_it_is_with_a_warning_that_names_it(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str, tmp_path: Path, orientation: int
) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 36), "navy").save(buffer, "PNG")
    cat, dog = tmp_path / "cat.jpg", tmp_path / "dog.png"
    cat.write_bytes(turned(buffer.getvalue(), orientation, "JPEG"))
    dog.write_bytes(buffer.getvalue())
    shared: dict[str, Any] = {"geminiimg_conn_id": onemin, "poll_interval": 0.02}
    with DAG("turned", schedule=None) as dag:
        GeminiImageEditOperator(task_id="one", prompt="a", image=str(cat), reference_images=[str(dog)], **shared)
        GeminiImageBatchOperator(task_id="many", requests=[{"prompt": "b", "image": str(cat)}], **shared)
    run = airflow.run_dag(dag)
    assert run.state == "success", run.log
    for task_id in ("one", "many"):
        lines = [line for line in run.task(task_id).log.splitlines() if "EXIF orientation" in line]
        assert lines
        assert all(f"{cat}' has EXIF orientation {orientation} and is sent unchanged" in line for line in lines)
    sent = [item["sha256"] for entry in sandbox.ledger() for item in entry["inputs"]]
    assert sorted(sent) == sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in (cat, cat, dog))
