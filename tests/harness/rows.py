"""Plays one row of the failure matrix in the Airflow of this process: the fault, all that follows it by itself, and
what a person can do about the rest. A case is played as a task of one image, and as a batch of one image or of more.

What must stay true: a case says nothing of how it is played, and comes out alike however it is; the steps that follow
by themselves are Airflow's own (a retry, unless the error forbids it); the submits are counted at the gateway; every
error that ends an attempt is held against the gateway's ledger, whether what it says of the money is true; what a task
returns in the end is what it was asked for, by what is drawn on it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException

from airflow_provider_geminiimg.core.ledger.record import Record
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.storage import Files, open_store
from airflow_provider_geminiimg.exceptions import GeminiImageError, IncompleteError, OutcomeUnknownError, from_dict
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS
from airflow_provider_geminiimg.operators.batch import GeminiImageBatchOperator
from airflow_provider_geminiimg.operators.generate import GeminiImageGenerateOperator
from airflow_provider_geminiimg.sandbox import Sandbox, read_submission
from tests.harness.inprocess import AirflowHarness, Run, Task
from tests.harness.matrix import Balance, Row, weigh
from tests.harness.s3_proxy import Held
from tests.harness.totals import totals_agree

ROUTES = {"1min": "onemin", "apimaster": "apimaster"}
MODES = ("waiting", "deferred")
BATCH = "batch"
AT_1MIN = tuple(("1min", mode) for mode in MODES)
AT_APIMASTER = tuple(("apimaster", mode) for mode in MODES)
EVERYWHERE = AT_1MIN + AT_APIMASTER
# Each gateway and each mode once, for rows on which one of them has no bearing.
STRAIGHT = (AT_1MIN[0], AT_APIMASTER[1])
CROSSED = (AT_1MIN[1], AT_APIMASTER[0])
IN_BATCHES = (("1min", BATCH), ("apimaster", BATCH))
# As a single image at one gateway, as a batch at the other one.
BOTH_PATHS = (AT_1MIN[0], IN_BATCHES[1])
OTHER_PATHS = (AT_APIMASTER[1], IN_BATCHES[0])
BUY_AGAIN = {"on_unknown": "resubmit", "on_clear": "regenerate"}

LANDED = Balance(submitted=1, paid=1, landed=1, unknown=0, lost=0, paid_twice=0)
UNPAID = Balance(submitted=0, paid=0, landed=0, unknown=0, lost=0, paid_twice=0)
UNKNOWN_PAID = dataclasses.replace(LANDED, landed=0, unknown=1)
UNKNOWN_UNPAID = dataclasses.replace(UNPAID, unknown=1)
NO_IMAGE = dataclasses.replace(LANDED, landed=0, no_image=1)


@dataclass(frozen=True)
class Case:
    """A row before it has happened.

    :param event: see `Row`.
    :param moment: see `Row`.
    :param then: see `Row`.
    :param expected: what must come out, of one image, without anything being bought on a person's word.
    :param faults: faults of the sandbox, with `route` as ``submit``, ``status`` or ``download``; of one image.
    :param settings: of the sandbox.
    :param arguments: of the operator.
    :param patches: what has other values while the row is played, as (object, name, value): waits and timeouts that
        would take minutes.
    :param prepare: what else is done before the first attempt.
    :param between: what is done between the first attempt and what follows it by itself.
    :param attempts: how many there are when nothing more happens by itself; a task may be retried once.
    :param error: what the task fails with when nothing more happens by itself; ``None``: there is an image.
    :param says: what that error says, among more.
    :param still: what changes nothing about that error: ``retry``, ``clear``.
    :param mend: what a person then does, after which a Clear brings the image; the row is weighed after that.
    :param buys: how many submits that Clear sends, of one image.
    :param holds: what must hold in the end, too.
    :param again: the operator's arguments with which a Clear buys an image; the row is weighed before that.
    :param images: of how many images a batch is.
    :param where: on which gateways in which modes, as pairs.
    """

    event: str
    moment: str
    then: str
    expected: Balance = LANDED
    faults: Sequence[Mapping[str, Any]] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    patches: Sequence[tuple[Any, str, Any]] = ()
    prepare: Callable[[Play], None] | None = None
    between: Callable[[Play], None] | None = None
    attempts: int = 1
    error: type[GeminiImageError] | None = None
    says: str = ""
    still: Sequence[str] = ()
    mend: Callable[[Play], None] | None = None
    buys: int = 0
    holds: Callable[[Play], None] | None = None
    again: Mapping[str, Any] | None = None
    images: int = 1
    where: Sequence[tuple[str, str]] = EVERYWHERE


def unknown(event: str, moment: str, *, charged: bool, **more: Any) -> Case:
    """A case whose outcome nobody knows: no step follows by itself, and a Clear buys only where it is told to."""
    return Case(
        event,
        f"{moment}, {'charged' if charged else 'not charged'}",
        'Nothing is sent again. Look at the gateway\'s console; a Clear with `on_unknown="resubmit"` buys again.',
        UNKNOWN_PAID if charged else UNKNOWN_UNPAID,
        **{"error": OutcomeUnknownError, "still": ("retry", "clear"), "again": BUY_AGAIN, **more},
    )


def each(cases: Sequence[Case]) -> Iterator[Any]:
    """The parameters ``case, gateway, mode`` of a test, with ids that are sentences."""
    for case in cases:
        for gateway, mode in case.where:
            yield pytest.param(case, gateway, mode, id=f"{case.event}, {case.moment} ({gateway}, {mode})")


class Play:
    """One task of one run, through all its attempts: one image, or a batch of them.

    :param airflow: the Airflow.
    :param sandbox: the gateway.
    :param connect: the fixture.
    :param root: URI of ``[geminiimg] root``.
    :param gateway: ``1min`` or ``apimaster``.
    :param mode: ``waiting``, ``deferred`` or ``batch``.
    """

    prompt = "a red fox"
    images = 1

    def __init__(
        self,
        airflow: AirflowHarness,
        sandbox: Sandbox,
        connect: Callable[..., str],
        root: str,
        gateway: str,
        mode: str,
    ) -> None:
        self.airflow, self.sandbox, self.root, self.gateway, self.mode = airflow, sandbox, root, gateway, mode
        self.arguments: dict[str, Any] = {}
        self.trouble: Any = None  # what a row's storage is in
        self.until = 0.0  # Unix time at which what a row waits for ends
        self.run: Run
        self.patch: pytest.MonkeyPatch  # for what a case changes on its way
        self._connect = connect
        self.connect()

    # What happens

    def connect(self, **changes: Any) -> None:
        """Make the connection, to the sandbox unless told otherwise."""
        usual = self.sandbox.connection(self.gateway, requests_per_minute=100_000)
        self._connect(ROUTES[self.gateway], **{**usual, **changes})

    def fault(self, route: str, **fault: Any) -> None:
        """Queue a fault of this gateway's ``submit`` or ``status``, or of ``download``."""
        self.sandbox.faults(route=route if route == "download" else f"{ROUTES[self.gateway]}.{route}", **fault)

    def usual(self) -> dict[str, Any]:
        """The operator's arguments, but for the prompt."""
        waits = {} if self.mode == BATCH else {"deferrable": self.mode == "deferred"}
        conn_id = ROUTES[self.gateway]
        return {"resolution": "512", "geminiimg_conn_id": conn_id, "poll_interval": 0.02, **waits, **self.arguments}

    def prompts(self, prompt: str) -> list[str]:
        """Those of the images: `prompt`, and as many more."""
        return [prompt if number == 0 else f"{prompt}, number {number}" for number in range(self.images)]

    def dag(self, **changes: Any) -> DAG:
        given = {"task_id": "made", "prompt": self.prompt, **self.usual(), **changes}
        with DAG("rows", schedule=None) as dag:
            if self.mode == BATCH:
                GeminiImageBatchOperator(requests=self.prompts(given.pop("prompt")), **given)
            else:
                GeminiImageGenerateOperator(**given)
        return dag

    def start(self) -> None:
        """The first attempt."""
        self.run = self.airflow.run_dag(self.dag())
        self.is_honest()

    def go_on(self) -> None:
        """What follows by itself: a failed task is retried, unless its error forbids that."""
        if self.task.state == "failed" and not isinstance(self.task.error, AirflowFailException):
            self.retry()

    def retry(self) -> None:
        self.run.retry("made")
        self.is_honest()

    def rival(self, task_state_store: Any = None, **changes: Any) -> Callable[[], Any]:
        """An attempt that Airflow knows nothing of (a task whose supervisor was killed), to be called in a thread.

        :param task_state_store: that of the Airflow that it is of, if of any.
        """
        waits = {} if self.mode == BATCH else {"deferrable": False}
        operator = self.dag(**{**waits, **changes}).tasks[0]
        ti: Any = SimpleNamespace(
            dag_id="rows", run_id="run", task_id=operator.task_id, map_index=-1, max_tries=0, try_number=1
        )
        return lambda: operator.execute({"ti": ti, "task_state_store": task_state_store})

    def clear(self, **changes: Any) -> None:
        self.run.clear("made", dag=self.dag(**changes) if changes else None)
        self.is_honest()

    # What is there

    @property
    def task(self) -> Task:
        return self.run.task("made")

    @property
    def error(self) -> BaseException | None:
        """Why there is no image; in a batch, why the first of those that there are not is not there."""
        error = self.task.error
        outcome = error.__cause__ if isinstance(error, AirflowFailException) else error
        failed = [line for line in self.lines() if "error" in line] if isinstance(outcome, IncompleteError) else []
        return _error_of(failed[0]) if failed else outcome

    def lines(self) -> list[dict[str, Any]]:
        """The lines of a batch's manifest."""
        uri = f"{self.root}/images/rows/run/made/-1/manifest.jsonl"
        data = Files(AIRFLOW_OPENERS).read(uri, max_bytes=1 << 20)
        return [json.loads(line) for line in data.splitlines()]

    def returned(self) -> list[str]:
        """The URIs of the images that the task gives back, in the order of the prompts."""
        manifests = self.lines() if self.mode == BATCH else [self.task.value]
        return [manifest["images"][0]["uri"] for manifest in manifests]

    @property
    def record(self) -> Record:
        """The only record there is of the task."""
        ledger = Ledger(open_store(self.root, AIRFLOW_OPENERS))
        [key] = ledger.store.keys("ledger/default/rows/run/made/")
        found = ledger.read(key)
        assert found is not None
        return found.record

    @property
    def folder(self) -> Path:
        """The root's folder on disk."""
        return Path(self.root.removeprefix("file://"))

    def submits(self) -> int:
        """Paid requests that have reached the gateway."""
        return len(self.sandbox.calls(f"{ROUTES[self.gateway]}.submit"))

    def balance(self, asked_again: int = 0) -> Balance:
        again = dict.fromkeys(self.prompts(self.prompt), asked_again)
        return weigh(self.sandbox, self.root, asked_again=again)

    def is_honest(self) -> None:
        """What the error of a failed task says of the money must be so."""
        if self.task.state == "success":
            return
        assert self.task.state == "failed", self.error
        paid = any(entry["charged"] for entry in self.sandbox.ledger() if entry["prompt"] == self.prompt)
        said = str(self.error)
        statements = {"No money was spent.": not paid, "The image was paid for.": paid, "Money may have been": True}
        assert [true for statement, true in statements.items() if statement in said] == [True], (said, paid)

    def is_what_was_asked(self) -> None:
        """What a task gives back that succeeds was made of its own prompts."""
        made_of = {entry["number"]: entry["prompt"] for entry in self.sandbox.ledger()}
        files = Files(AIRFLOW_OPENERS)
        numbers = [read_submission(files.read(uri, max_bytes=1 << 24)) for uri in self.returned()]
        assert [made_of[number] for number in numbers] == self.prompts(self.prompt)

    def save(self, group: str, case: Case, balance: Balance) -> Row:
        state = str(self.task.state)
        return Row(group, case.event, case.moment, self.gateway, self.mode, balance, state, case.then).save()


def play(case: Case, stage: Play, group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Play a case, and keep its row.

    :raises AssertionError: it came out otherwise.
    """
    stage.patch = monkeypatch
    for target, name, value in case.patches:
        monkeypatch.setattr(target, name, value)
    stage.images = case.images if stage.mode == BATCH else 1
    stage.arguments.update(case.arguments)
    stage.sandbox.settings(**case.settings)
    for fault in case.faults:
        stage.fault(**{**fault, "times": fault.get("times", 1) * stage.images})
    if case.prepare is not None:
        case.prepare(stage)
    stage.start()
    if case.between is not None:
        case.between(stage)
    stage.go_on()
    _nothing_follows(case, stage)
    if case.mend is not None:
        case.mend(stage)
        sent = stage.submits()
        stage.clear()
        assert stage.submits() == sent + case.buys * stage.images
    balance = stage.balance()
    expected = Balance(**{name: count * stage.images for name, count in dataclasses.asdict(case.expected).items()})
    assert (stage.task.state, balance) == ("failed" if _fails(case) else "success", expected), stage.error
    assert (balance.lost, balance.paid_twice) == (0, 0)
    if not _fails(case):
        stage.is_what_was_asked()
    if case.holds is not None:
        case.holds(stage)
    totals_agree(stage.root)
    stage.save(group, case, balance)
    if case.again is not None:
        _buy_again(case, stage)


def race(stage: Play, rival: Callable[[], Any], held: Sequence[Held]) -> BaseException | None:
    """Let an attempt and its rival go on together, once each is held at the proxy; how the rival failed, if it did."""
    first, second = held

    def start_together() -> None:
        second.reached()
        first.let_go()
        second.let_go()

    with ThreadPoolExecutor() as pool:
        other = pool.submit(rival)
        first.reached()
        starting = pool.submit(start_together)
        stage.start()
        starting.result()
        return other.exception()


def _fails(case: Case) -> bool:
    return case.error is not None and case.mend is None


def _nothing_follows(case: Case, stage: Play) -> None:
    assert stage.task.try_number == case.attempts, stage.error
    if case.error is None:
        assert stage.task.state == "success", stage.error
        return
    _is_expected(case, stage.error)
    sent = stage.submits()
    for step in case.still:
        getattr(stage, step)()
        _is_expected(case, stage.error)
        assert stage.submits() == sent, f"a {step} sent something"


def _is_expected(case: Case, error: BaseException | None) -> None:
    assert case.error is not None
    assert isinstance(error, GeminiImageError), error
    assert error.kind == case.error.kind, error
    assert case.says in str(error)


def _error_of(line: Mapping[str, Any]) -> GeminiImageError:
    """The error that a line of a manifest tells of."""
    return from_dict({"kind": line["error"], "message": line["message"], "billed": line["billed"]})


def _buy_again(case: Case, stage: Play) -> None:
    sent, before = stage.submits(), stage.balance()
    stage.clear(**(case.again or {}))
    after = stage.balance(asked_again=1)
    assert stage.task.state == "success", stage.error
    assert stage.submits() == sent + stage.images
    assert (after.paid, after.landed) == (before.paid + stage.images, before.landed + stage.images)
    assert (after.unknown, after.lost, after.paid_twice) == (0, 0, 0)
