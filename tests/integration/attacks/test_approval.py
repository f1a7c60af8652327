"""What somebody may try so that other images go on than the ones a person approved: through the operator, by REST."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import json
import operator
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from airflow.models.hitl import HITLDetail
from airflow.models.taskinstance import TaskInstance
from airflow.models.trigger import handle_event_submit
from airflow.sdk import DAG, task
from airflow.sdk.serde import deserialize, serialize
from airflow.triggers.base import TriggerEvent
from airflow.utils.session import create_session

from airflow_provider_geminiimg import GeminiImageGenerateOperator, GeminiImageReviewOperator, review_markdown
from airflow_provider_geminiimg.core.ledger.layout import Item
from airflow_provider_geminiimg.core.ledger.record import Destination
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.reconcile import Scope, purge
from airflow_provider_geminiimg.core.storage import open_store
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS, default_s3_client
from tests.harness.records import landed
from tests.harness.reviews import FOLDER, key_of, land, manifest, named, write

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox
    from tests.harness.api_users import ApiUsers
    from tests.harness.inprocess import AirflowHarness, Run

ABC = named("a.png", "b.png", "c.png")
EVIL = manifest("evil.png", key_of(map_index=9))
ASSIGNED = {"id": "admin", "name": "admin"}


def reviewing(images: Any, **arguments: Any) -> DAG:
    with DAG("look") as dag:

        @task
        def drafts() -> Any:
            return images

        review = GeminiImageReviewOperator(task_id="review", subject="Which?", images=drafts(), **arguments)

        @task
        def after(chosen: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return chosen

        after(review.output)
    return dag


@pytest.fixture
def ask(airflow: AirflowHarness, local_root: str) -> Callable[..., Run]:
    """Run such a DAG, with images that have landed, until it waits for a person."""

    def start(images: Any = ABC, **arguments: Any) -> Run:
        land(local_root, [*ABC, EVIL])
        return airflow.run_dag(reviewing(images, **arguments))

    return start


def edit(
    api_users: ApiUsers, run: Run, value: Any, key: str = "shown", task_id: str = "review", map_index: int = -1
) -> None:
    """Edit an XCom as a user who is assigned to nothing."""
    path = f"/api/v2/dags/look/dagRuns/{run.run_id}/taskInstances/{task_id}/xcomEntries/{key}"
    said = api_users.call("ursula", "PATCH", path, json={"value": value, "map_index": map_index})
    assert said.status_code == 200, said.text


def refused(run: Run, said: str, map_index: int = -1) -> None:
    """Nothing went on, and the review says why, and what to do."""
    review = run.task("review", map_index)
    assert review.state == "failed", run.log
    assert said in str(review.error), review.error
    assert "To ask again" in str(review.error) or "Delete this task instance" in str(review.error)
    assert review.value is None
    assert run.task("after").state == "upstream_failed"


def kept(root: str) -> list[Path]:
    return sorted(Path(root.removeprefix("file://")).glob("shown/**/*.json"))


# --- the XCom while a review waits ------------------------------------------------------------------------------------


def swapped_uri(shown: list[dict[str, Any]]) -> Any:
    shown[0]["images"][0]["uri"] = EVIL["images"][0]["uri"]
    return shown


def swapped_order(shown: list[dict[str, Any]]) -> Any:
    return [shown[1], shown[0], shown[2]]


def another_hash(shown: list[dict[str, Any]]) -> Any:
    shown[0]["images"][0]["sha256"] = "0" * 64
    return shown


def one_more(shown: list[dict[str, Any]]) -> Any:
    return [*shown, EVIL]


def one_less(shown: list[dict[str, Any]]) -> Any:
    return shown[:2]


def another_fact(shown: list[dict[str, Any]]) -> Any:
    shown[0]["note"] = "x"
    return shown


EDITS: list[Callable[[list[dict[str, Any]]], Any]] = [
    swapped_uri, swapped_order, another_hash, one_more, one_less, another_fact, lambda _: [EVIL] * 3, lambda _: [],
    lambda _: "no manifests", json.dumps,
]  # fmt: skip


@pytest.mark.parametrize("change", EDITS)
@pytest.mark.parametrize(("choose", "answer"), [("all", "Approve"), ("one", "1: a.png")])
def test_an_xcom_that_is_edited_while_a_person_is_asked_lets_nothing_go_on(
    ask: Callable[..., Run], api_users: ApiUsers, choose: str, answer: str, change: Callable[[Any], Any]
) -> None:
    run = ask(choose=choose, assigned_users=ASSIGNED)
    edit(api_users, run, change(run.xcom("review", "shown")))
    assert api_users.answer(run, "review", answer, user="admin").status_code == 200
    refused(run.go_on(), "XCom")


def test_an_xcom_that_is_removed_while_a_person_is_asked_lets_nothing_go_on(
    ask: Callable[..., Run], api_users: ApiUsers
) -> None:
    run = ask()
    path = f"/api/v2/dags/look/dagRuns/{run.run_id}/taskInstances/review/xcomEntries/shown"
    assert api_users.call("ursula", "DELETE", path).status_code == 204
    api_users.answer(run, "review", "Approve")
    refused(run.go_on(), "XCom")


def test_a_retry_after_an_edit_asks_about_the_images_again_and_they_go_on(
    ask: Callable[..., Run], api_users: ApiUsers
) -> None:
    run = ask(retries=1, retry_delay=dt.timedelta(0))
    edit(api_users, run, [EVIL] * 3)
    api_users.answer(run, "review", "Approve")
    run.go_on()
    assert (run.state, run.task("review").value) == ("running", None), run.log
    assert api_users.request(run, "review")["body"] == review_markdown(ABC)
    api_users.answer(run, "review", "Approve")
    assert run.go_on().task("after").value == ABC, run.log


def test_mapped_reviews_are_bound_to_their_own_images(
    airflow: AirflowHarness, api_users: ApiUsers, local_root: str
) -> None:
    land(local_root, [*ABC, EVIL])
    with DAG("look") as dag:
        mapped = GeminiImageReviewOperator.partial(task_id="review", subject="Good?", trigger_rule="all_done")
        review = mapped.expand(images=[[ABC[0]], [ABC[1]]])

        @task
        def after(chosen: Any) -> Any:
            return list(chosen)

        after(review.output)
    run = airflow.run_dag(dag)
    first, second = (run.xcom("review", "shown", map_index) for map_index in (0, 1))
    edit(api_users, run, second, map_index=0)
    edit(api_users, run, first, map_index=1)
    for map_index in (0, 1):
        api_users.answer(run, "review", "Approve", map_index=map_index)
    run.go_on()
    refused(run, "XCom", 0)
    refused(run, "XCom", 1)


# --- manifests that say something else than their records -------------------------------------------------------------


def of(record: dict[str, Any], images: list[dict[str, Any]]) -> dict[str, Any]:
    return {**record, "images": images}


A, B, C = (each["images"][0] for each in ABC)
TWO = manifest(images=[A, B], record=key_of(map_index=5))
LIES: dict[str, tuple[Any, str]] = {
    "the image of another record": (of(ABC[0], [B]), "has other images"),
    "the address of another image": (of(ABC[0], [{**A, "uri": B["uri"]}]), "has other images"),
    "an address without a hash": (of(ABC[0], [{"uri": B["uri"]}]), "has other images"),
    "another hash": (of(ABC[0], [{**A, "sha256": B["sha256"]}]), "has other images"),
    "one image more": (of(ABC[0], [A, B]), "has other images"),
    "one image of two": (of(TWO, [B]), "has other images"),
    "images the other way round": (of(TWO, [B, A]), "has other images"),
    "an address nobody landed": (of(ABC[0], [{**A, "uri": "file:///etc/passwd"}]), "has other images"),
    "another spelling": (of(ABC[0], [{**A, "uri": f"{FOLDER}/a.png"}]), "has other images"),
    "a web address": (of(ABC[0], [{**A, "uri": "https://evil.example/a.png?sig=secret"}]), "has other images"),
    "no record": ({**ABC[0], "record": None}, "names no record"),
    "no record at all": ({"images": [A]}, "names no record"),
    "a record that is none": ({**ABC[0], "record": "ledger/../x"}, "names no record"),
    "a record that is not there": ({**ABC[0], "record": key_of("other")}, "is not under"),
    "a record that has not landed": ({**ABC[0], "record": key_of(map_index=6)}, "has not landed"),
    "a record that can't be read": ({**ABC[0], "record": key_of(map_index=7)}, "is not JSON"),
    "values that are no JSON": ({**ABC[0], "when": dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)}, "not plain JSON"),
}


@pytest.mark.parametrize(("lie", "said"), LIES.values(), ids=LIES)
def test_nobody_is_asked_about_a_manifest_that_its_record_does_not_bear_out(
    ask: Callable[..., Run], local_root: str, lie: Any, said: str
) -> None:
    ledger = Ledger(open_store(local_root, AIRFLOW_OPENERS))
    land(local_root, [TWO])
    ledger.create(landed(Item("default", "look", "run", "drafts", 6), state="submitted", manifest=None))
    ledger.store.create(key_of(map_index=7), b"?")
    run = ask([ABC[1], lie])
    review = run.task("review")
    assert review.state == "failed", run.log
    assert said in str(review.error)
    assert "secret" not in review.log
    with create_session() as session:
        assert session.query(HITLDetail).count() == 0


def test_what_is_shown_and_goes_on_are_the_records_facts(
    ask: Callable[..., Run], api_users: ApiUsers, local_root: str
) -> None:
    odd = manifest("odd.png", key_of(map_index=3), mismatch="It is 4:3, not 16:9.")
    land(local_root, [odd])
    image = {**odd["images"][0], "width": 1, "media_type": "text/html"}
    run = ask({**odd, "images": [image], "mismatch": None, "model": "best", "cost": None, "note": "kept"})
    assert api_users.request(run, "review")["body"] == review_markdown(odd)
    api_users.answer(run, "review", "Approve")
    assert run.go_on().task("after").value == [{**odd, "note": "kept"}]


def test_a_copy_that_the_record_names_is_shown_and_goes_on(
    ask: Callable[..., Run], api_users: ApiUsers, local_root: str
) -> None:
    there = {**A, "uri": f"file://{FOLDER}/copies/a.png"}
    copied = {**ABC[0], "images": [there], "record": key_of(map_index=4)}
    write(there["uri"], b"a.png")
    destination = {"directory": f"file://{FOLDER}/copies", "stem": "a"}
    Ledger(open_store(local_root, AIRFLOW_OPENERS)).create(
        landed(
            Item("default", "look", "run", "drafts", 4),
            manifest={**copied, "images": [A]},
            destination=Destination(f"file://{FOLDER}", "a"),
            copies=[{"destination": destination, "manifest": copied}],
        )
    )
    run = ask([copied])
    api_users.answer(run, "review", "Approve")
    assert run.go_on().task("after").value == [copied]


def test_an_upstream_xcom_that_is_edited_before_the_review_shows_what_goes_on(
    ask: Callable[..., Run], api_users: ApiUsers
) -> None:
    run = ask([ABC[0]])
    api_users.answer(run, "review", "Reject")
    run.go_on()
    edit(api_users, run, [EVIL], key="return_value", task_id="drafts")
    run.clear("review", "after")
    review = run.task("review")  # Airflow goes on showing a.png, so nobody is asked
    assert review.state == "failed", run.log
    refused(run, "differ from those")


# --- images that change while a review waits --------------------------------------------------------------------------


def overwritten(path: Path) -> None:
    path.write_bytes(b"evil")


def removed(path: Path) -> None:
    path.unlink()


def swapped_for_a_link(path: Path) -> None:
    path.unlink()
    path.symlink_to(FOLDER / "evil.png")


def grown(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(2**33)


@pytest.mark.parametrize("change", [overwritten, removed, swapped_for_a_link, grown])
@pytest.mark.parametrize(("choose", "answer"), [("all", "Approve"), ("several", "2: b.png")])
def test_an_image_that_changes_while_a_person_is_asked_does_not_go_on(
    ask: Callable[..., Run], api_users: ApiUsers, choose: str, answer: str, change: Callable[[Path], None]
) -> None:
    run = ask(choose=choose)
    (path := FOLDER / "b.png").touch()
    change(path)
    try:
        api_users.answer(run, "review", answer)
        refused(run.go_on(), "Changed since it was shown")
    finally:
        path.unlink(missing_ok=True)


def test_an_image_that_changes_and_is_not_picked_keeps_nothing_back(
    ask: Callable[..., Run], api_users: ApiUsers
) -> None:
    run = ask(choose="several")
    overwritten(FOLDER / "b.png")
    api_users.answer(run, "review", "1: a.png", "3: c.png")
    assert run.go_on().task("after").value == [ABC[0], ABC[2]]


@pytest.mark.parametrize("change", [overwritten, removed])
def test_nobody_is_asked_about_an_image_that_is_not_the_one_that_landed(
    airflow: AirflowHarness, local_root: str, change: Callable[[Path], None]
) -> None:
    land(local_root, ABC)
    change(FOLDER / "b.png")
    run = airflow.run_dag(reviewing(ABC))
    assert run.task("review").state == "failed"
    assert "images[1]" in str(run.task("review").error)


def test_a_record_that_is_edited_while_a_person_is_asked_lets_nothing_go_on(
    ask: Callable[..., Run], api_users: ApiUsers, local_root: str
) -> None:
    run = ask()
    path = Path(local_root.removeprefix("file://")) / ABC[0]["record"]
    path.write_text(path.read_text().replace("a.png", "evil.png").replace(A["sha256"], EVIL["images"][0]["sha256"]))
    api_users.answer(run, "review", "Approve")
    refused(run.go_on(), "Changed since it was shown")


@pytest.mark.parametrize("on", ["local_root", "s3_root"])
def test_what_was_approved_is_what_is_in_the_store(
    airflow: AirflowHarness, api_users: ApiUsers, sandbox: Sandbox, onemin: str, request: pytest.FixtureRequest, on: str
) -> None:
    root = request.getfixturevalue(on)
    with DAG("look") as dag:
        drafts = GeminiImageGenerateOperator.partial(
            task_id="drafts", prompt="A fox", geminiimg_conn_id=onemin, poll_interval=0.05, output_path=f"{root}/out"
        ).expand(variant=["1", "2"])
        review = GeminiImageReviewOperator(task_id="review", subject="Good?", images=drafts.output)

        @task
        def after(chosen: Any) -> Any:
            return list(chosen)

        after(review.output)
    run = airflow.run_dag(dag)
    shown = run.xcom("review", "shown")
    assert shown == [run.task("drafts", map_index).value for map_index in (0, 1)]
    api_users.answer(run, "review", "Approve")
    assert run.go_on().task("after").value == shown, run.log

    run.clear("review", "after")
    at = shown[1]["images"][0]["uri"]
    other = b"\x89PNG of somebody else"
    if on == "s3_root":
        bucket, _, key = at.removeprefix("s3://").partition("/")
        default_s3_client(None).put_object(Bucket=bucket, Key=key, Body=other)
    else:
        Path(at.removeprefix("file://")).write_bytes(other)
    api_users.answer(run, "review", "Approve")
    refused(run.go_on(), "the file was replaced")
    assert len(sandbox.ledger()) == 2


# --- what was kept, and what Airflow hands on -------------------------------------------------------------------------


def test_what_was_shown_is_kept_under_the_root_by_its_hash(
    ask: Callable[..., Run], api_users: ApiUsers, local_root: str
) -> None:
    ask(ABC)
    (path,) = kept(local_root)
    assert path.stem.endswith(f"-{hashlib.sha256(path.read_bytes()).hexdigest()}")
    assert json.loads(path.read_bytes())["manifests"] == ABC
    assert path.stat().st_mode & 0o077 == 0


def test_what_was_shown_is_purged_when_it_is_old(ask: Callable[..., Run], local_root: str) -> None:
    ask(ABC)
    ledger = Ledger(open_store(local_root, AIRFLOW_OPENERS))

    def purged(days: float, **scope: Any) -> list[str]:
        async def keys() -> list[str]:
            found = purge(ledger, Scope("default", **scope), days=days, dry_run=scope == {})
            return [key async for key in found if key.startswith("shown/")]

        return asyncio.run(keys())

    (path,) = kept(local_root)
    (key,) = purged(0)
    assert path.as_uri() == f"{local_root}/{key}"
    assert purged(1, dag_id="look") == purged(0, dag_id="other") == purged(0, task_id="drafts") == []
    assert path.exists()
    assert purged(0, task_id="review") == [key]
    assert kept(local_root) == []


def an_edit(path: Path) -> None:
    path.write_text(path.read_text().replace("a.png", "evil.png"))


def an_edit_under_its_hash(path: Path) -> None:
    data = path.read_bytes().replace(b"a.png", b"evil.png")
    path.rename(path.with_name(f"{path.stem[:-64]}{hashlib.sha256(data).hexdigest()}.json")).write_bytes(data)


def a_removal(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("change", "said"),
    [(an_edit, "was edited"), (an_edit_under_its_hash, "removed or edited"), (a_removal, "removed or edited")],
)
def test_what_was_kept_and_is_edited_lets_nothing_go_on(
    ask: Callable[..., Run], api_users: ApiUsers, local_root: str, change: Callable[[Path], None], said: str
) -> None:
    run = ask()
    change(kept(local_root)[0])
    api_users.answer(run, "review", "Approve")
    refused(run.go_on(), said)


def test_a_root_that_is_not_shared_lets_nothing_go_on(
    ask: Callable[..., Run], api_users: ApiUsers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ask()
    api_users.answer(run, "review", "Approve")
    monkeypatch.setenv("AIRFLOW__GEMINIIMG__ROOT", str(tmp_path / "another"))
    refused(run.go_on(), "workers do not share the root")


def hand_on(run: Run, change: Callable[[dict[str, Any]], None]) -> None:
    """Edit what Airflow hands on to the end of a review, which no API does."""
    with create_session() as session:
        ti = session.query(TaskInstance).filter_by(dag_id="look", run_id=run.run_id, task_id="review").one()
        kwargs: Any = deserialize(ti.next_kwargs)
        change(kwargs)
        ti.next_kwargs = cast(Any, serialize(kwargs))


def test_arguments_that_are_edited_while_a_person_is_asked_let_nothing_else_go_on(
    ask: Callable[..., Run], api_users: ApiUsers, local_root: str
) -> None:
    run = ask([ABC[0]])
    api_users.answer(run, "review", "Reject")
    run.go_on()
    earlier = kept(local_root)[0].stem[-64:]
    for digest in ("0" * 64, earlier, "", 5):
        run.clear("review", "after")
        hand_on(run, operator.methodcaller("update", shown=digest))
        api_users.answer(run, "review", "Approve")
        refused(run.go_on(), "The list of the images that this task showed")


def test_without_its_hash_what_this_try_showed_is_found_all_the_same(
    ask: Callable[..., Run], api_users: ApiUsers, local_root: str
) -> None:
    run = ask([ABC[0]])  # as in Airflow's dag.test(), which hands nothing on
    hand_on(run, dict.clear)
    api_users.answer(run, "review", "Approve")
    assert run.go_on().task("after").value == [ABC[0]], run.log


# --- who answers, and when --------------------------------------------------------------------------------------------


def slip_in(run: Run, *chosen: str, user: str | None, after: float = 0.0) -> Run:
    """An answer that Airflow's API would refuse, as if it had not."""
    responder = None if user is None else {"id": user, "name": user}
    at = dt.datetime.now(dt.timezone.utc) + dt.timedelta(seconds=after)
    event = {"chosen_options": list(chosen), "params_input": {}, "responded_by_user": responder, "responded_at": at}
    with create_session() as session:
        ti = session.query(TaskInstance).filter_by(dag_id="look", run_id=run.run_id, task_id="review").one()
        handle_event_submit(TriggerEvent(event), task_instance=ti, session=session)
    return run.go_on()


def test_an_answer_by_somebody_who_is_not_assigned_lets_nothing_go_on(ask: Callable[..., Run]) -> None:
    refused(slip_in(ask(assigned_users=ASSIGNED), "Approve", user="ursula"), "assigned_users")


def test_an_answer_by_nobody_lets_nothing_go_on(ask: Callable[..., Run]) -> None:
    refused(slip_in(ask(), "Approve", user=None), "no known author")


def test_nobodys_answer_counts_only_where_it_is_the_default(ask: Callable[..., Run]) -> None:
    run = ask(response_timeout=dt.timedelta(hours=1), defaults="Reject")
    refused(slip_in(run, "Approve", user=None, after=7200), "no known author")


def test_an_answer_that_comes_too_late_lets_nothing_go_on(ask: Callable[..., Run]) -> None:
    run = ask(response_timeout=dt.timedelta(hours=1), defaults="Reject")
    refused(slip_in(run, "Approve", user="ursula", after=3601), "response_timeout")


def test_a_late_answer_that_airflow_takes_lets_nothing_go_on(ask: Callable[..., Run], api_users: ApiUsers) -> None:
    run = ask(response_timeout=dt.timedelta(microseconds=1))
    assert api_users.answer(run, "review", "Approve").status_code == 200  # before the scheduler has looked
    refused(run.go_on(), "response_timeout")


def test_a_second_answer_in_the_place_of_the_first_lets_nothing_go_on(
    ask: Callable[..., Run], api_users: ApiUsers
) -> None:
    run = ask(assigned_users=ASSIGNED, choose="one")
    api_users.answer(run, "review", "1: a.png", user="admin")
    assert api_users.answer(run, "review", "2: b.png", user="admin").status_code == 409
    refused(slip_in(run, "2: b.png", user="ursula"), "assigned_users")


def test_where_everybody_is_an_admin_everybody_may_answer(
    ask: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS", "True")
    run = slip_in(ask(assigned_users=ASSIGNED), "Approve", user="ursula")
    assert run.task("after").value == ABC, run.log


@pytest.mark.parametrize(
    "changed",
    [{"assigned_users": ASSIGNED}, {"defaults": "Reject"}, {"defaults": "Approve", "assigned_users": ASSIGNED}],
)
def test_who_may_answer_and_what_nobodys_answer_is_are_the_dags_of_now(
    ask: Callable[..., Run], api_users: ApiUsers, changed: dict[str, Any]
) -> None:
    run = ask(defaults="Approve")
    api_users.answer(run, "review", "Reject")
    run.go_on()
    run.clear(dag=reviewing(ABC, **changed))
    refused(run, "still uses the earlier values")


def test_a_person_who_was_not_assigned_before_a_clear_does_not_answer_it(
    ask: Callable[..., Run], api_users: ApiUsers
) -> None:
    run = ask(assigned_users=ASSIGNED)
    api_users.answer(run, "review", "Reject", user="admin")
    run.go_on()
    run.clear("review", "after")
    assert api_users.answer(run, "review", "Approve", user="ursula").status_code == 403
    api_users.answer(run, "review", "Approve", user="admin")
    assert run.go_on().task("after").value == ABC


@pytest.mark.parametrize("form", [{"comment": 5}, {"comment": ["a"]}, {"comment": "a", "images": "x"}, {"other": "a"}])
def test_an_answer_that_fills_in_another_form_by_rest_is_one_clear_error_and_a_retry_asks_again(
    ask: Callable[..., Run], api_users: ApiUsers, form: dict[str, Any]
) -> None:
    run = ask()
    assert api_users.answer(run, "review", "Approve", **form).status_code == 200
    refused(run.go_on(), "The answer has form values that do not fit the form")
    assert run.retry("review").task("review").state == "awaiting_input"
