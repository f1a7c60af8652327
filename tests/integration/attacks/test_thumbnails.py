"""Images that take a decoder's memory or time, each given to what makes thumbnails in a process of its own.

`scripts/test_compat` runs this with the oldest Pillow that the extra ``thumbnails`` allows, too, and so nothing of
Airflow is needed here. `test_headers` sends the same images through a task.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from tests.harness import REPOSITORY, TESTS
from tests.harness.hostile_images import BOMBS, LARGEST, TOO_MUCH

MEGABYTES, SECONDS = 60, 3.0  # beyond what the process has before, and of its processor time

RENDER = """
import json, sys, time, warnings
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import PIL.Image, PIL.PngImagePlugin, PIL.JpegImagePlugin, PIL.WebPImagePlugin
from airflow_provider_geminiimg.core.purchase.thumbnails import render
from tests.harness.hostile_images import BOMBS, LARGEST, TOO_MUCH

def peak():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024

said = {}
for name in sys.argv[2:]:
    data = {**BOMBS, **TOO_MUCH, **LARGEST}[name]()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is held now
    before, started, size = peak(), time.process_time(), 0
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            size = len(render(data))
        except Exception as error:
            assert type(error).__module__.partition(".")[0] != "PIL", error
    said[name] = [size, peak() - before, time.process_time() - started, len(warned)]
print(json.dumps(said))
"""


def rendered(*names: str) -> dict[str, list[float]]:
    """Of each image the size of its thumbnail, megabytes, seconds, and how many warnings there were."""
    done = subprocess.run(
        [sys.executable, "-c", RENDER, str(REPOSITORY), *names],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def bombs() -> dict[str, list[float]]:
    return rendered(*BOMBS, *TOO_MUCH)


@pytest.mark.parametrize("name", BOMBS)
def test_whatever_lies_beside_its_pixels_costs_a_thumbnail_nothing(bombs: dict[str, list[float]], name: str) -> None:
    size, megabytes, seconds, warned = bombs[name]
    assert size > 0
    assert megabytes < MEGABYTES
    assert seconds < SECONDS
    assert warned == 0


@pytest.mark.parametrize("name", TOO_MUCH)
def test_an_image_that_is_too_much_work_gets_no_thumbnail_before_any_work_is_done(
    bombs: dict[str, list[float]], name: str
) -> None:
    size, megabytes, seconds, _ = bombs[name]
    assert size == 0
    assert megabytes < MEGABYTES
    assert seconds < SECONDS


@pytest.mark.parametrize("name", LARGEST)
def test_the_largest_image_of_each_kind_takes_less_than_is_promised(name: str) -> None:
    [(size, megabytes, _, _)] = rendered(name).values()
    assert size > 0
    assert megabytes < 400


def test_the_oldest_pillow_that_is_allowed_is_one_that_is_tested() -> None:
    allowed = re.findall(r'\["Pillow>=([\d.]+)"\]', (REPOSITORY / "pyproject.toml").read_text())
    pins = [path.read_text() for path in sorted((TESTS / "compat" / "pins").glob("*.txt"))]
    tested = {found[1] for text in pins if (found := re.search(r"^pillow==([\d.]+)$", text, re.MULTILINE))}
    assert set(allowed) <= {version.removesuffix(".0") for version in tested}
