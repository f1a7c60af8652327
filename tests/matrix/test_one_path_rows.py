"""The failure matrix: what protects the image of a task protects each image of a batch, and the other way round."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from airflow_provider_geminiimg import _compat
from airflow_provider_geminiimg.__main__ import main
from airflow_provider_geminiimg.exceptions import BadRequestError, LedgerError, OutcomeUnknownError
from tests.harness.rows import (
    AT_1MIN,
    AT_APIMASTER,
    BOTH_PATHS,
    IN_BATCHES,
    LANDED,
    OTHER_PATHS,
    UNKNOWN_PAID,
    Case,
    Play,
    each,
    play,
)

ANOTHER = "a blue fox"
TWO_LANDED = dataclasses.replace(LANDED, submitted=2, paid=2, landed=2)
EITHER = tuple(sorted({*BOTH_PATHS, *OTHER_PATHS}))


def download_fails(stage: Play) -> None:
    """Let the first attempt end with a job on record."""
    stage.fault("download", status=500, times=3 * stage.images)


# The prompt is changed, and changed back


def cleared_to_another(stage: Play) -> None:
    stage.clear(prompt=ANOTHER)
    assert stage.task.state == "success", stage.error
    back(stage)


def cleared_to_a_refused_one(stage: Play) -> None:
    stage.fault("submit", status=401, times=stage.images)
    first, stage.prompt = stage.prompt, ANOTHER
    stage.clear(prompt=ANOTHER)
    assert stage.task.state == "failed"
    stage.prompt = first
    back(stage)


def back(stage: Play) -> None:
    """The DAG as it was, for the Clear that follows."""
    stage.run.dag = stage.dag()


PROMPTS = [
    Case("The prompt is changed, and changed back", "by two Clears",
         "The first image lies there and is on record: it is returned, not bought again.",
         TWO_LANDED, mend=cleared_to_another, images=3, where=EITHER),
    Case("The prompt is changed to one that is refused, and changed back", "by two Clears",
         "The first image lies there and is on record: it is returned, not bought again.",
         mend=cleared_to_a_refused_one, images=2, where=BOTH_PATHS),
    Case('The prompt is changed, and changed back, with `reuse="dag"`', "by two Clears",
         "The first image lies there and is on record: it is returned, not bought again.",
         TWO_LANDED, arguments={"reuse": "dag"}, mend=cleared_to_another, images=2, where=OTHER_PATHS),
]  # fmt: skip


# What Airflow remembers, and the root lacks


def move(stage: Play, *folders: str) -> Callable[[], None]:
    """Take folders away from the root; what brings them back."""
    aside = stage.folder.with_name("aside")
    for folder in folders:
        (aside / folder).parent.mkdir(parents=True, exist_ok=True)
        (stage.folder / folder).rename(aside / folder)

    def bring_back() -> None:
        for folder in folders:
            shutil.rmtree(stage.folder / folder, ignore_errors=True)
            (aside / folder).rename(stage.folder / folder)

    return bring_back


def lose_the_root(stage: Play) -> Callable[[], None]:
    aside = stage.folder.with_name("of-another-worker")
    stage.folder.rename(aside)

    def bring_back() -> None:
        shutil.rmtree(stage.folder, ignore_errors=True)
        aside.rename(stage.folder)

    return bring_back


def lose_the_ledger(stage: Play) -> Callable[[], None]:
    return move(stage, "ledger")


def lose_records_and_images(stage: Play) -> Callable[[], None]:
    return move(stage, "ledger", "images")


def another_namespace(stage: Play) -> Callable[[], None]:
    stage.patch.setenv("AIRFLOW__GEMINIIMG__NAMESPACE", "another")
    return lambda: stage.patch.delenv("AIRFLOW__GEMINIIMG__NAMESPACE")


def without(lose: Callable[[Play], Callable[[], None]]) -> Callable[[Play], None]:
    """A retry and a Clear while something is lost, and a Clear when it is found again."""

    def lost(stage: Play) -> None:
        find, sent = lose(stage), stage.submits()
        try:
            for step in (stage.retry, stage.clear):
                step()
                assert isinstance(stage.error, LedgerError), stage.error
                assert stage.submits() == sent
        finally:
            find()
        stage.clear()

    return lost


def is_gone(event: str, lose: Callable[[Play], Callable[[], None]], **more: Any) -> list[Case]:
    """Once after the image has landed, and once while its job is still to be collected."""
    then = "Airflow's task state names it: nothing is sent, the error says so. Restore it and clear: nothing is bought."
    return [
        Case(event, "after the image has landed", then, mend=without(lose), images=3, where=BOTH_PATHS, **more),
        Case(event, "while a job is to be collected", then, prepare=download_fails, between=without(lose),
             images=2, attempts=4, where=OTHER_PATHS, **more),
    ]  # fmt: skip


def nothing(stage: Play) -> None:
    """The Clear alone mends it."""


def made_again(stage: Play) -> None:
    """Delete the DAG run, and make it again."""
    stage.airflow.close()
    stage.start()


def with_a_state_store(stage: Play) -> None:
    """Airflow is upgraded to one that has a task state store, and the templates render to something else."""
    stage.patch.setattr(_compat, "HAS_TASK_STATE_STORE", True)
    stage.run.retry("made", dag=stage.dag(prompt=ANOTHER))


class Elsewhere:
    """The task state store of another Airflow."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}

    def get(self, name: str) -> Any:
        return self._values.get(name)

    def set(self, name: str, value: Any, **how: Any) -> None:
        self._values[name] = value


def another_airflow(stage: Play) -> None:
    """Another Airflow, with the same root and namespace, runs a DAG of the same name; then this one goes on."""
    stage.rival(task_state_store=Elsewhere(), prompt=ANOTHER)()
    sent = stage.submits()
    stage.retry()
    assert isinstance(stage.error, LedgerError), stage.error
    assert "namespace" in str(stage.error)
    assert stage.submits() == sent


REMEMBERED = [
    *is_gone("The root is not shared between workers", lose_the_root),
    *is_gone("The ledger is gone", lose_the_ledger),
    *is_gone("Records are purged, and the images moved away", lose_records_and_images),
    *is_gone("[geminiimg] namespace is changed", another_namespace),
    Case("A DAG run is deleted, and made again", "after its request was refused for the key",
         "It is a new run: with the key corrected, it buys.",
         faults=({"route": "submit", "status": 401},), between=made_again, images=2, where=EITHER),
    Case("A DAG run is deleted, and made again", "after its image has landed",
         "It is a new run that asks for the same image: what lies there is returned.",
         between=made_again, images=2, where=EITHER),
    Case("Another Airflow uses the same root and namespace", "between two attempts",
         "Nothing is sent, the error names `namespace`. What each of them has paid for has landed.",
         TWO_LANDED, between=another_airflow, error=LedgerError, says="namespace", still=("clear",), attempts=3,
         where=(AT_1MIN[0], AT_APIMASTER[1])),
    Case("Another Airflow uses the same root and namespace", "between two attempts",
         "Nothing is sent, the error names `namespace`. A Clear returns this one's own images, which lie there.",
         TWO_LANDED, between=another_airflow, error=LedgerError, says="namespace", attempts=3, mend=nothing,
         images=2, where=IN_BATCHES),
    Case("Airflow gets a task state store, and the prompt renders differently", "between two attempts",
         "Airflow's task state has no entry for the record, so no record is missing: the recorded request counts.",
         patches=((_compat, "HAS_TASK_STATE_STORE", False),), prepare=download_fails, between=with_a_state_store,
         attempts=2, images=2, where=EITHER),
]  # fmt: skip


# Names and places


def first_folder_is_deleted(stage: Play) -> None:
    """Have it copied to another folder, and delete the one where it landed."""
    stage.arguments.update(output_path=f"{stage.root}-other")
    first = stage.returned()
    stage.clear(output_path=f"{stage.root}-other")
    for uri in first:
        path = Path(uri.removeprefix("file://"))
        path.unlink()
        path.with_suffix(".json").unlink()
    stage.sandbox.settings(link_seconds=0)  # so that no other one can be fetched instead


def lies_in_the_other_folder(stage: Play) -> None:
    assert all(uri.startswith(f"{stage.root}-other/") for uri in stage.returned())


def cleared_to_a_corrected_prompt(stage: Play) -> None:
    stage.prompt = ANOTHER
    stage.clear(prompt=ANOTHER)
    assert stage.task.state == "success", stage.error


def is_named(*names: str) -> Callable[[Play], None]:
    def named(stage: Play) -> None:
        assert [Path(uri).stem for uri in stage.returned()] == list(names)

    return named


PLACES = [
    Case("The image is copied to another folder, and the first one is deleted", "before a Clear",
         "The copy lies where it is asked for: it is returned, and the gateway is not asked for it.",
         mend=first_folder_is_deleted, holds=lies_in_the_other_folder, images=2, where=EITHER),
    Case("The prompt of an image with a `file_name` is corrected", "after it has landed",
         "A Clear buys the new one. It is written beside the first, whose name it keeps, with a suffix.",
         TWO_LANDED, arguments={"file_name": "fox"}, mend=cleared_to_a_corrected_prompt, holds=is_named("fox-2"),
         where=EITHER),
]  # fmt: skip


# Whose job it is


def points_elsewhere(stage: Play) -> None:
    """The connection gets the key of another account."""
    stage.connect(password="the-key-of-another-account")


def points_back(stage: Play) -> None:
    stage.connect()


def polls_name_another_job(stage: Play) -> None:
    """Some polls are answered with the record of another task's job."""
    stage.rival(task_id="other", prompt="a grey wolf")()
    [other] = stage.sandbox.ledger()[-1:] if stage.images == 1 else stage.sandbox.ledger()[:1]
    stage.fault("status", body=status_of(stage, other), times=2 * stage.images)


def status_of(stage: Play, entry: dict[str, Any]) -> Any:
    """What the gateway answers to whoever asks about a job."""
    if stage.gateway == "1min":
        url, head = f"{stage.sandbox.onemin_url}/api/results/{entry['job_id']}", {"API-KEY": "sandbox-key"}
    else:
        url = f"{stage.sandbox.apimaster_url}/tasks/{entry['job_id']}?model={entry['model']}"
        head = {"Authorization": "Bearer sandbox-key"}
    stage.sandbox.settings(poll_shape="completed")
    answer = httpx.get(url, headers=head)
    assert entry["job_id"] in json.dumps(answer.json()), answer.text
    return answer.json()


def is_no_answer_to_another(stage: Play) -> None:
    """The job of one record is not taken for that of another."""
    sent = stage.submits()
    stage.rival(task_id="other", prompt="a grey wolf")()
    other = stage.sandbox.ledger()[-1]["job_id"]
    assert main(["jobs", "resolve", stage.record.key, "--job", other]) != 0
    stage.clear()
    assert isinstance(stage.error, OutcomeUnknownError), stage.error
    assert stage.submits() == sent + stage.images


JOBS = [
    Case("The connection gets the key of another account", "while a job is to be collected",
         "Nothing is sent, and the job does not count as lost. Point the connection back, then clear: it lands.",
         arguments={"on_unknown": "resubmit"}, prepare=download_fails, between=points_elsewhere, attempts=2,
         error=BadRequestError, still=("retry", "clear"), mend=points_back, images=2, where=EITHER),
    Case("A poll is answered with another job's record", "while a job is running",
         "A failed poll does not fail the job: it is polled again.",
         prepare=polls_name_another_job, expected=TWO_LANDED, where=EITHER),
    Case("A person resolves an unknown outcome with another record's job", "after the answer was lost",
         "It is refused: a job belongs to one record.",
         UNKNOWN_PAID, faults=({"route": "submit", "drop": True, "charge": "after"},), error=OutcomeUnknownError,
         holds=is_no_answer_to_another, where=EITHER),
]  # fmt: skip


@pytest.mark.parametrize(("case", "gateway", "mode"), each([*PROMPTS, *REMEMBERED, *PLACES]))
def test_paid_work_is_safe_on_each_path(case: Case, stage: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    play(case, stage, "storage", monkeypatch)


@pytest.mark.parametrize(("case", "gateway", "mode"), each(JOBS))
def test_a_job_belongs_to_one_record_on_each_path(case: Case, stage: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    play(case, stage, "gateway", monkeypatch)
