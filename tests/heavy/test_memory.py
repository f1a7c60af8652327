"""How much memory a batch takes, by the kernel's count: it must hardly grow with the number of images."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from airflow_provider_geminiimg.sandbox import images
from tests.harness.attempts import Attempts

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox

MB = 1024 * 1024
FEW = 100
ITEMS = int(os.environ.get("ITEMS", "1000")) * 10
LARGE, WIDE = 200, 50
LARGE_BYTES = 8_000_000
EACH = 6_000  # bytes that an image may leave behind: its line of the plan, its outcome, what Airflow is to remember


def image_bytes(side: int) -> bytes:
    """Noise, which nothing packs: three bytes a pixel."""
    buffer = io.BytesIO()
    Image.frombytes("RGB", (side, side), os.urandom(3 * side * side)).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


@pytest.fixture
def measured(sandbox: Sandbox, apimaster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``measured(count, data)``: the peak of a process that makes so many images of these bytes, in bytes."""
    with Attempts(tmp_path) as attempts:

        def measure(count: int, data: bytes) -> int:
            monkeypatch.setattr(images, "draw", lambda sketch: data)
            sandbox.reset()
            sandbox.settings(latency=0)
            prompts = [f"image {number:05d} of a red fox in the snow, as a woodcut" for number in range(count)]
            dag_id = f"measured_{count}_{len(data)}"
            attempts.start(dag_id, prompts, geminiimg_conn_id=apimaster, max_concurrency=WIDE)
            result = attempts.ended()
            assert result["value"] is not None, result["error"]
            assert result["value"]["counts"]["landed"] == count
            shutil.rmtree(attempts.root)  # gigabytes
            print(f"{count} images of {len(data)} bytes: {result['peak'] / MB:.0f} MB, {result['cpu']:.1f} s of CPU")
            return int(result["peak"])

        yield measure


def test_ten_thousand_small_images_need_hardly_more_than_a_hundred(measured: Any) -> None:
    small = image_bytes(16)
    few, many = measured(FEW, small), measured(ITEMS, small)
    assert many <= few + ITEMS * EACH


def test_large_images_need_no_more_than_two_copies_of_those_that_are_under_way(measured: Any) -> None:
    large = image_bytes(round((LARGE_BYTES / 3) ** 0.5))
    base, peak = measured(1, large), measured(LARGE, large)
    assert peak <= base + WIDE * 16 * MB
