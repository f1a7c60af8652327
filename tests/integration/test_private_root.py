"""What lies under a root on disk is its owner's alone, whatever the umask; what a user named elsewhere follows it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG

from airflow_provider_geminiimg import GeminiImageBatchOperator, GeminiImageGenerateOperator
from airflow_provider_geminiimg.core.storage import Files, open_store
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS

if TYPE_CHECKING:
    from tests.harness.inprocess import AirflowHarness, Run


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def open_to_others(top: Path) -> list[str]:
    """What somebody else than the owner may do anything with, `top` included."""
    return sorted(str(path) for path in [top, *top.rglob("*")] if mode(path) & 0o077)


def modes(top: Path) -> tuple[set[int], set[int]]:
    """The modes of the folders and of the files, `top` included."""
    paths = [top, *top.rglob("*")]
    return {mode(path) for path in paths if path.is_dir()}, {mode(path) for path in paths if path.is_file()}


@pytest.fixture
def make(airflow: AirflowHarness, local_root: str) -> Callable[..., Run]:
    """Run a DAG with an image and a batch of two."""

    def start(conn_id: str, **arguments: Any) -> Run:
        with DAG("private", default_args={"geminiimg_conn_id": conn_id, "poll_interval": 0.05, **arguments}) as dag:
            GeminiImageGenerateOperator(task_id="one", prompt="A fox")
            GeminiImageBatchOperator(task_id="many", requests=[{"prompt": "A hare"}, {"prompt": "An owl"}])
        run = airflow.run_dag(dag)
        assert run.state == "success", run.log
        return run

    return start


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o277], ids=oct)
def test_everything_that_tasks_write_under_the_root_is_its_owners_alone(
    make: Callable[..., Run], onemin: str, tmp_path: Path, mask: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[int] = set()
    fsync = os.fsync

    def watched(handle: int) -> None:
        synced.add(stat.S_IMODE(os.fstat(handle).st_mode))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", watched)  # each file is synced before it gets its name
    with umask(mask):
        make(onemin)
    assert modes(tmp_path / "root") == ({0o700}, {0o600})
    assert len(list((tmp_path / "root" / "images").rglob("*.png"))) == 3
    assert synced <= {0o600, 0o700, mode(tmp_path)}


def test_an_output_path_under_the_root_is_private_too(
    make: Callable[..., Run], onemin: str, local_root: str, tmp_path: Path
) -> None:
    (tmp_path / "root").mkdir(0o755)
    (tmp_path / "link").symlink_to(tmp_path / "root" / "published")
    with umask(0o022):
        make(onemin, output_path=f"{local_root}/published")
        assert modes(tmp_path / "root" / "published") == ({0o700}, {0o600})
        files = Files(AIRFLOW_OPENERS, root=local_root)
        files.put(str(tmp_path / "link" / "more" / "a.txt"), b"1", media_type="text/plain")
    assert modes(tmp_path / "root" / "published" / "more") == ({0o700}, {0o600})


def test_an_output_path_elsewhere_follows_the_umask(make: Callable[..., Run], onemin: str, tmp_path: Path) -> None:
    with umask(0o027):
        make(onemin, output_path=str(tmp_path / "root-of-mine" / "published"))
    assert modes(tmp_path / "root-of-mine") == ({0o750}, {0o640})
    assert modes(tmp_path / "root") == ({0o700}, {0o600})


def test_folders_of_images_that_an_earlier_version_left_open_are_closed_when_one_lands_there(
    make: Callable[..., Run], onemin: str, tmp_path: Path
) -> None:
    before = tmp_path / "root" / "images" / "private" / "run" / "one" / "-1"
    with umask(0o022):
        before.mkdir(parents=True)
        (before / "earlier.png").write_bytes(b"1")
        (tmp_path / "root" / "mine").mkdir()
        make(onemin)
    assert open_to_others(tmp_path / "root" / "images") == [str(before / "earlier.png")]  # behind closed folders
    assert mode(tmp_path / "root") == mode(tmp_path / "root" / "mine") == 0o755  # made by others than this package


@pytest.mark.parametrize("mask", [0o000, 0o077, 0o777], ids=oct)
def test_a_store_is_private_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    store = open_store(str(tmp_path / "root"), AIRFLOW_OPENERS)
    with umask(mask):
        store.probe()
        version = store.create("a/b/c.json", b"1")
        assert version is not None
        store.replace("a/b/c.json", b"2", version)
    assert modes(tmp_path / "root") == ({0o700}, {0o600})
