"""Plays one row of the failure matrix in the Airflow of this process: the fault, all that follows it by itself, and
what a person can do about the rest.

What must stay true: the steps that follow by themselves are Airflow's own (a retry, unless the error forbids it); the
submits are counted at the gateway; every error that ends an attempt is held against the gateway's ledger, whether what
it says of the money is true.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException

from airflow_provider_geminiimg.exceptions import GeminiImageError, OutcomeUnknownError
from airflow_provider_geminiimg.ledger import Ledger, Record
from airflow_provider_geminiimg.operators.generate import GeminiImageGenerateOperator
from airflow_provider_geminiimg.sandbox import Sandbox
from airflow_provider_geminiimg.storage import default_s3_client, open_store
from harness.gate import Held
from harness.inprocess import AirflowHarness, Run, Task
from harness.matrix import Balance, Row, weigh

ROUTES = {"1min": "onemin", "apimaster": "apimaster"}
MODES = ("waiting", "deferred")
AT_1MIN = tuple(("1min", mode) for mode in MODES)
AT_APIMASTER = tuple(("apimaster", mode) for mode in MODES)
EVERYWHERE = AT_1MIN + AT_APIMASTER
# Each gateway and each mode once, for rows on which one of them has no bearing.
STRAIGHT = (AT_1MIN[0], AT_APIMASTER[1])
CROSSED = (AT_1MIN[1], AT_APIMASTER[0])
BUY_AGAIN = {"on_unknown": "resubmit", "on_clear": "regenerate"}

LANDED = Balance(submitted=1, paid=1, landed=1, unknown=0, lost=0, paid_twice=0)
UNPAID = Balance(submitted=0, paid=0, landed=0, unknown=0, lost=0, paid_twice=0)
UNKNOWN_PAID = dataclasses.replace(LANDED, landed=0, unknown=1)
UNKNOWN_UNPAID = dataclasses.replace(UNPAID, unknown=1)
NO_PICTURE = dataclasses.replace(LANDED, landed=0, no_picture=1)


@dataclass(frozen=True)
class Case:
    """A row before it has happened.

    :param event: see `Row`.
    :param moment: see `Row`.
    :param then: see `Row`.
    :param expected: what must come out, without anything being bought on a person's word.
    :param faults: faults of the sandbox, with `route` as ``submit``, ``status`` or ``download``.
    :param settings: of the sandbox.
    :param arguments: of the operator.
    :param patches: what has other values while the row is played, as (object, name, value): waits and timeouts that
        would take minutes.
    :param prepare: what else is done before the first attempt.
    :param between: what is done between the first attempt and what follows it by itself.
    :param attempts: how many there are when nothing more happens by itself; a task may be retried once.
    :param error: what the task fails with when nothing more happens by itself; ``None``: there is a picture.
    :param says: what that error says, among more.
    :param still: what changes nothing about that error: ``retry``, ``clear``.
    :param mend: what a person then does, after which a Clear brings the picture; the row is weighed after that.
    :param buys: how many submits that Clear sends.
    :param again: the operator's arguments with which a Clear buys a picture; the row is weighed before that.
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
    again: Mapping[str, Any] | None = None
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
    """One item of one run, through all its attempts.

    :param airflow: the Airflow.
    :param sandbox: the gateway.
    :param connect: the fixture.
    :param root: URI of ``[geminiimg] root``.
    :param gateway: ``1min`` or ``apimaster``.
    :param mode: ``waiting`` or ``deferred``.
    """

    prompt = "a red fox"

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
        self.run: Run
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
        return {
            "resolution": "512",
            "geminiimg_conn_id": ROUTES[self.gateway],
            "deferrable": self.mode == "deferred",
            "poll_interval": 0.02,
            **self.arguments,
        }

    def dag(self, **changes: Any) -> DAG:
        with DAG("rows", schedule=None) as dag:
            GeminiImageGenerateOperator(**{"task_id": "made", "prompt": self.prompt, **self.usual(), **changes})
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

    def rival(self, **changes: Any) -> Callable[[], Any]:
        """An attempt that Airflow knows nothing of (a task whose supervisor was killed), to be called in a thread."""
        operator = self.dag(**{"deferrable": False, **changes}).tasks[0]
        ti = SimpleNamespace(
            dag_id="rows", run_id="run", task_id=operator.task_id, map_index=-1, max_tries=0, try_number=1
        )
        return lambda: operator.execute({"ti": ti})

    def clear(self, **changes: Any) -> None:
        self.run.clear("made", dag=self.dag(**changes) if changes else None)
        self.is_honest()

    # What is there

    @property
    def task(self) -> Task:
        return self.run.task("made")

    @property
    def error(self) -> BaseException | None:
        error = self.task.error
        return error.__cause__ if isinstance(error, AirflowFailException) else error

    @property
    def record(self) -> Record:
        """The only record there is."""
        ledger = Ledger(open_store(self.root, default_s3_client))
        [key] = ledger.store.keys("ledger/")
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
        return weigh(self.sandbox, self.root, asked_again={self.prompt: asked_again})

    def is_honest(self) -> None:
        """What the error of a failed task says of the money must be so."""
        if self.task.state == "success":
            return
        assert self.task.state == "failed", self.error
        paid = any(entry["charged"] for entry in self.sandbox.ledger() if entry["prompt"] == self.prompt)
        said = str(self.error)
        statements = {"No money was spent.": not paid, "The picture was paid for.": paid, "Money may have been": True}
        assert [true for statement, true in statements.items() if statement in said] == [True], (said, paid)

    def save(self, group: str, case: Case, balance: Balance) -> Row:
        state = str(self.task.state)
        return Row(group, case.event, case.moment, self.gateway, self.mode, balance, state, case.then).save()


def play(case: Case, stage: Play, group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Play a case, and keep its row.

    :raises AssertionError: it came out otherwise.
    """
    for target, name, value in case.patches:
        monkeypatch.setattr(target, name, value)
    stage.arguments.update(case.arguments)
    stage.sandbox.settings(**case.settings)
    for fault in case.faults:
        stage.fault(**fault)
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
        assert stage.submits() == sent + case.buys
    balance = stage.balance()
    assert (stage.task.state, balance) == ("failed" if _fails(case) else "success", case.expected), stage.error
    assert (balance.lost, balance.paid_twice) == (0, 0)
    stage.save(group, case, balance)
    if case.again is not None:
        _buy_again(case, stage)


def race(stage: Play, rival: Callable[[], Any], held: Sequence[Held]) -> BaseException | None:
    """Let an attempt and its rival go on together, once each is held at the gate; how the rival failed, if it did."""
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
    assert error.__class__ is case.error, error
    assert case.says in str(error)


def _buy_again(case: Case, stage: Play) -> None:
    sent, before = stage.submits(), stage.balance()
    stage.clear(**(case.again or {}))
    after = stage.balance(asked_again=1)
    assert stage.task.state == "success", stage.error
    assert stage.submits() == sent + 1
    assert (after.paid, after.landed) == (before.paid + 1, before.landed + 1)
    assert (after.unknown, after.lost, after.paid_twice) == (0, 0, 0)
