"""The DAG that README and quick start show, as it stands there: run twice in a day."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import NO_LIMIT
from tests.harness import REPOSITORY

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox
    from tests.harness.inprocess import AirflowHarness

PAGES = ("README.md", "docs/quickstart.md")
BUCKET = "s3://aws_default@my-bucket"


def shown(page: str, folder: Path) -> Any:
    """The DAG of the page's first Python block, with a folder of this machine instead of the bucket."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    [code, *_] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert BUCKET in code
    assert "file_name=" in code, "what has to be shown is how a name works for more than one run"
    names: dict[str, Any] = {"__name__": "shown"}
    exec(compile(code.replace(BUCKET, str(folder)).replace("\ncampaign()", "\nmade = campaign()"), page, "exec"), names)
    return names["made"]


@pytest.mark.usefixtures("local_root")
@pytest.mark.parametrize("page", PAGES)
def test_the_first_dag_that_is_shown_works_twice_in_a_day(
    airflow: AirflowHarness, sandbox: Sandbox, connect: Callable[..., str], tmp_path: Path, page: str
) -> None:
    connect("geminiimg_default", **sandbox.connection("1min", **NO_LIMIT))
    dag = shown(page, tmp_path)
    dag.task_dict["hero"].poll_interval = 0.02  # the model's own time would only be waited for
    landed = []
    for hour in (9, 18):
        moment = dt.datetime(2026, 3, 1, hour, tzinfo=dt.timezone.utc)
        run = airflow.run_dag(dag, run_id=f"at-{hour}", logical_date=moment)
        assert run.state == "success", run.log
        landed.append(Path(run.task("hero").value["images"][0]["uri"].removeprefix("file://")))
        run.clear()
        assert run.task("hero").value["reused"] is True
    assert landed[0] != landed[1]
    assert landed[0].parent == landed[1].parent, "the folder is the day's"
    assert all(path.exists() for path in landed)
    assert len(sandbox.ledger()) == 2
