"""What a person is shown and asked, and what becomes of the answer: in a real Airflow, through its REST API."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest
from airflow.models.hitl import HITLDetail
from airflow.models.taskinstance import TaskInstance
from airflow.models.trigger import handle_event_submit
from airflow.models.xcom import XComModel
from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import DAG, task
from airflow.triggers.base import TriggerEvent
from airflow.utils.session import create_session
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from airflow_provider_geminiimg import (
    GeminiImageEditOperator,
    GeminiImageGenerateOperator,
    GeminiImageReviewOperator,
    review_markdown,
)
from airflow_provider_geminiimg.core.ledger.layout import Item, record_key
from airflow_provider_geminiimg.exceptions import BadRequestError
from tests.harness import AIRFLOW
from tests.harness.reviews import key_of, land, manifest, named

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox
    from tests.harness.api_users import ApiUsers
    from tests.harness.inprocess import AirflowHarness, Run

UNSEEN = "\u2060"
OURS = re.compile(r"geminiimg/(f|thumbs)(/[\w%.~+-]+){7}")
TABLE = {"table", "thead", "tbody", "tr", "th", "td"}
# What Airflow's page makes links of, in text that has no markup left (remark-gfm does so after all unescaping).
AUTOLINK = re.compile(r"(https?://|www(?=\.))[-.\w]+|(?<![\w.+-])[-.\w+]+@[-\w]+(\.[-\w]+)+", re.IGNORECASE)

MARKUP = [
    "[click](javascript:alert(1))", "![x](https://evil.example/x.png)", "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>", "| a | b |", "a|b", "\\|", "\\\\|", "`code`", "``` fence", "**bold** _em_ ~~del~~",
    "https://evil.example/?a=b", "HTTP://EVIL.example", "www.evil.example", "mailto:a@evil.example", "me@evil.example",
    "//evil.example/x", "ftp://evil.example/x", "<https://evil.example>", "one\ntwo\r\n\r\n# three", "&lt;b&gt; &amp;",
    "[ref]\n\n[ref]: https://evil.example", "[^1]", "\\", "--- | ---", "\u202egnp.exe", "a\u2028b\x00c", "](x)",
    "{{ conn.onemin.password }}", "\ud800", " ", "![", "x](geminiimg/f/a/b/c/0/0/1/0)", "http:/\u2060/evil.example",
]  # fmt: skip


class Page(HTMLParser):
    """What a reader gets: tags, addresses, and the text of every cell."""

    def __init__(self, markdown: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.addresses: list[tuple[str, str]] = []
        self.cells: list[str] = []
        self.runs: list[str] = []
        renderer = MarkdownIt("gfm-like")
        renderer.linkify.set({"fuzzy_link": False})  # type: ignore[union-attr]
        self.feed(renderer.render(markdown))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [(name, value or "") for name, value in attrs if name in ("href", "src")]
        assert {name for name, _ in attrs} <= {"href", "src", "alt"}, attrs
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells:
            self.runs.append(data)
            self.cells[-1] += data

    def facts(self) -> list[str]:
        return [cell.replace(UNSEEN, "").strip() for cell in self.cells]

    def assert_harmless(self) -> None:
        assert self.tags <= {*TABLE, "a", "img"}
        assert all(OURS.fullmatch(value) for _, value in self.addresses), self.addresses
        assert not any(AUTOLINK.search(text) for text in self.runs), self.runs


def plain(text: str) -> str:
    """What is left of a text on one short line."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if len(line) <= 120 else line[:119] + "…"


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_an_image_opens_in_full_size_and_its_facts_stand_below() -> None:
    page = Page(review_markdown(manifest(mismatch="It is 4:3, not 16:9.")))
    page.assert_harmless()
    at = "look/run/drafts/-1/0/1/0"
    assert page.addresses == [("href", f"geminiimg/f/{at}"), ("src", f"geminiimg/thumbs/{at}")]
    name, _, facts = page.facts()
    assert name == "1: a.png"
    assert facts == "1024 × 768 · gemini-3.1-flash-image-preview · 0.04 USD · not as asked: It is 4:3, not 16:9."


@pytest.mark.parametrize(("columns", "rows"), [(3, [3, 3, 1]), (1, [1] * 7), (9, [7])])
def test_as_many_images_stand_side_by_side_as_columns_say(columns: int, rows: list[int]) -> None:
    page = Page(review_markdown(named(*"abcdefg"), columns))
    page.assert_harmless()
    tables = review_markdown(named(*"abcdefg"), columns).split("\n\n")
    assert [table.splitlines()[0].count("|") - 1 for table in tables] == rows
    assert [fact for fact in page.facts() if re.match(r"\d: ", fact)] == [
        f"{n}: {c}" for n, c in enumerate("abcdefg", 1)
    ]


def test_every_image_of_a_manifest_is_shown() -> None:
    two = manifest(images=[{"uri": "s3://b/a.png"}, {"uri": "s3://b/b.png"}], cost=None)
    page = Page(review_markdown([two, *named("c.png")]))
    assert [value[-1] for name, value in page.addresses if name == "src"] == ["0", "1", "0"]
    assert page.facts()[:3] == ["1: a.png (1 of 2)", "1: b.png (2 of 2)", "2: c.png"]
    assert page.facts()[-3] == "? × ? · gemini-3.1-flash-image-preview · cost unknown"


@pytest.mark.parametrize("markup", MARKUP)
def test_markup_in_any_text_shows_as_text(markup: str) -> None:
    odd = manifest(
        markup, model=markup, mismatch=markup, cost={"amount": markup, "currency": markup}, prompt=markup,
        image={"width": markup, "height": markup, "media_type": markup}, requested={"variant": markup},
    )  # fmt: skip
    page = Page(review_markdown([odd, *named("b.png")]))
    page.assert_harmless()
    assert len(page.addresses) == 4
    name, second, *_, facts, _ = page.facts()
    assert second == "2: b.png"
    assert name == f"1: {plain(f'file:///pictures/{markup}'.rsplit('/', 1)[-1]) or 'image'}"
    for fact in {plain(f"{markup} × {markup}"), plain(markup), plain(f"not as asked: {markup}")}:
        assert fact in facts


ANY_TEXT = st.one_of(
    st.sampled_from(MARKUP), st.text(), st.lists(st.sampled_from([*MARKUP, "/", ":", "@", "w"])).map("".join)
)
ANYTHING = st.one_of(
    ANY_TEXT, st.none(), st.integers(), st.floats(), st.lists(ANY_TEXT), st.dictionaries(ANY_TEXT, ANY_TEXT)
)
ANY_KEY = st.one_of(
    ANYTHING,
    st.builds(key_of, ANY_TEXT, ANY_TEXT, ANY_TEXT, st.integers(-1, 9), st.integers(1, 99)),
    st.lists(st.text("ab.%2E/=:", min_size=1), min_size=6, max_size=6).map(
        lambda parts: f"ledger/{'/'.join(parts)}/1.json"
    ),
)


@settings(deadline=None)
@given(
    name=ANY_TEXT,
    record=ANY_KEY,
    values=st.dictionaries(st.sampled_from(["model", "mismatch", "cost"]), ANYTHING),
    size=ANYTHING,
)
def test_whatever_a_manifest_holds_only_our_addresses_are_links(
    name: str, record: Any, values: dict[str, Any], size: Any
) -> None:
    body = review_markdown([manifest(name, record, {"width": size}, **values), *named("last.png")])
    page = Page(body)
    page.assert_harmless()
    assert len([fact for fact in page.facts() if fact == "2: last.png"]) == 1
    assert page.addresses[-1] == ("src", "geminiimg/thumbs/look/run/drafts/0/0/1/0")
    body.encode()


@pytest.mark.parametrize(
    "record",
    [
        5, "", "x", "ledger/default/look/run/drafts/-1/0/one.json", "ledger/default/look/run/drafts/first/0/1.json",
        "ledger/default/look/../drafts/-1/0/1.json", "ledger/default/look/%2E%2E/drafts/-1/0/1.json",
        "ledger/default/%2E/run/drafts/-1/0/1.json", "ledger/default/look/%FF/drafts/-1/0/1.json",
        "ledger/default/look/a%2fb/drafts/-1/0/1.json", "ledger/default/look/%ED%A0%80/drafts/-1/0/1.json",
        "ledger/default/look/run/drafts/007/0/1.json", "ledger/other/look/run/drafts/-1/0/1.json",
        record_key(Item("default", "d" * 130, "run", "drafts", -1), 1),
    ],
)  # fmt: skip
def test_a_record_without_an_address_in_the_gallery_gets_no_link(record: Any) -> None:
    page = Page(review_markdown(manifest(record=record)))
    assert page.addresses == []
    assert page.facts()[:2] == ["1: a.png", "No preview"]


def test_names_that_no_address_takes_as_they_are_are_quoted() -> None:
    page = Page(review_markdown(manifest(record=key_of("d.1", "a/b?c#d e)", "group.t", 3))))
    page.assert_harmless()
    assert page.addresses[0] == ("href", "geminiimg/f/d.1/a%2Fb%3Fc%23d%20e%29/group.t/3/0/1/0")


def test_a_signed_link_is_not_shown() -> None:
    uri = "https://host.example/a.png?X-Amz-Signature=secret"
    assert "secret" not in review_markdown(manifest(images=[{"uri": uri}]))


BAD_IMAGES: list[Any] = [
    None, 5, "", "no json", "[]", [], {}, [None], {"images": []}, {"images": [{}]}, {"images": [{"uri": 5}]}, b"x",
    {"uri": "s3://b/a.png"}, [["a"]], {"images": "text"}, "[" * 9999,
]  # fmt: skip


@pytest.mark.parametrize("value", BAD_IMAGES)
def test_what_is_no_manifest_is_refused(value: Any) -> None:
    with pytest.raises(BadRequestError, match=r"not a manifest|neither|no image") as refused:
        review_markdown(value)
    assert "No money was spent" in str(refused.value)


def test_less_than_one_column_is_refused() -> None:
    with pytest.raises(BadRequestError, match="columns=0"):
        review_markdown(manifest(), columns=0)


# --- what is asked ----------------------------------------------------------------------------------------------------


def reviewing(images: Any, **arguments: Any) -> DAG:
    """Somebody's DAG: images, a review of them, and a task that gets what came of it."""
    with DAG("look") as dag:

        @task
        def drafts() -> Any:
            return images

        review = GeminiImageReviewOperator(task_id="review", subject="Which?", images=drafts(), **arguments)

        @task
        def after(chosen: list[dict[str, Any]], comment: str) -> dict[str, Any]:
            return {"chosen": chosen, "comment": comment}

        after(review.output, review.output["comment"])
    return dag


@pytest.fixture
def ask(airflow: AirflowHarness, local_root: str) -> Callable[..., Run]:
    """Run such a DAG, with images that have landed, until it waits for a person."""

    def start(images: Any, **arguments: Any) -> Run:
        land(local_root, [images] if isinstance(images, dict) else images)
        return airflow.run_dag(reviewing(images, **arguments))

    return start


ABC = named("a.png", "b.png", "c.png")


@pytest.mark.parametrize(
    ("choose", "answer", "chosen"),
    [
        ("all", ["Approve"], ABC),
        ("one", ["2: b.png"], ABC[1:2]),
        ("several", ["3: c.png", "1: a.png", "3: c.png"], [ABC[0], ABC[2]]),
        ("several", ["2: b.png"], ABC[1:2]),
    ],
)
def test_what_a_person_chose_goes_on_with_the_comment(
    ask: Callable[..., Run], api_users: ApiUsers, choose: str, answer: list[str], chosen: Any
) -> None:
    run = ask(ABC, choose=choose)
    assert api_users.answer(run, "review", *answer, comment="  bluer, please ").status_code == 200
    run.go_on()
    assert run.state == "success", run.log
    assert run.task("after").value == {"chosen": chosen, "comment": "bluer, please"}
    assert run.task("review").value == chosen


@pytest.mark.parametrize("written", [{}, {"comment": None}, {"comment": "  "}])
def test_a_comment_may_be_left_out(ask: Callable[..., Run], api_users: ApiUsers, written: dict[str, Any]) -> None:
    run = ask(ABC)
    assert api_users.answer(run, "review", "Approve", **written).status_code == 200
    assert run.go_on().task("after").value == {"chosen": ABC, "comment": ""}


def test_a_single_manifest_is_a_list_of_one(ask: Callable[..., Run], api_users: ApiUsers) -> None:
    run = ask(ABC[0], choose="one")
    api_users.answer(run, "review", "1: a.png")
    assert run.go_on().task("review").value == ABC[:1]


@pytest.mark.parametrize("choose", ["all", "one", "several"])
@pytest.mark.parametrize(
    ("on_reject", "review", "after", "state"),
    [
        ("skip", "success", "skipped", "success"),
        ("fail", "failed", "upstream_failed", "failed"),
        ("continue", "success", "success", "success"),
    ],
)
def test_a_rejection_does_what_on_reject_says_and_keeps_the_comment(
    ask: Callable[..., Run], api_users: ApiUsers, choose: str, on_reject: str, review: str, after: str, state: str
) -> None:
    run = ask(ABC, choose=choose, on_reject=on_reject, retries=2, retry_delay=dt.timedelta(0))
    api_users.answer(run, "review", "Reject", comment="too dark")
    run.go_on()
    assert (run.task("review").state, run.task("after").state, run.state) == (review, after, state), run.log
    assert run.xcom("review", "comment") == "too dark"
    assert run.task("review").executions == 2
    assert "too dark" not in run.task("review").log
    if on_reject == "continue":
        assert run.task("after").value == {"chosen": [], "comment": "too dark"}


@pytest.mark.parametrize(
    ("choose", "options"),
    [
        ("all", ["Approve", "Reject"]),
        ("one", ["1: same.png", "2: same.png", "Reject"]),
        ("several", ["1: same.png", "2: same.png", "Reject"]),
    ],
)
def test_the_request_tells_the_images_apart_and_shows_them(
    ask: Callable[..., Run], api_users: ApiUsers, choose: str, options: list[str]
) -> None:
    images = named("same.png", "same.png")
    request = api_users.request(ask(images, choose=choose), "review", user="vera")
    assert request["options"] == options
    assert (request["subject"], request["multiple"]) == ("Which?", choose == "several")
    assert request["body"] == review_markdown(images)
    assert list(request["params"]) == ["comment"]
    assert request["params"]["comment"]["schema"]["type"] == ["null", "string"]


@pytest.mark.parametrize("markup", ["[a](javascript:x)|\n<b>", "\u202egnp.a", "Reject", "x" * 200])
def test_an_option_is_one_line_of_text_and_chooses_its_image(
    ask: Callable[..., Run], api_users: ApiUsers, markup: str
) -> None:
    images = named(markup, "b.png")
    run = ask(images, choose="one")
    options = api_users.request(run, "review")["options"]
    assert options == [f"1: {plain(markup)}", "2: b.png", "Reject"]
    api_users.answer(run, "review", options[0])
    assert run.go_on().task("review").value == images[:1]


def test_a_viewer_sees_the_request_and_only_a_user_answers_it(ask: Callable[..., Run], api_users: ApiUsers) -> None:
    run = ask(ABC)
    assert api_users.answer(run, "review", "Approve", user="norole").status_code == 403
    assert api_users.answer(run, "review", "Approve", user="vera").status_code == 403
    assert api_users.request(run, "review", user="vera")["response_received"] is False
    assert api_users.answer(run, "review", "Approve", user="ursula").status_code == 200
    assert api_users.answer(run, "review", "Reject", user="ursula").status_code == 409
    assert run.go_on().task("review").value == ABC


def test_only_who_is_assigned_answers(ask: Callable[..., Run], api_users: ApiUsers) -> None:
    run = ask(ABC, assigned_users={"id": "admin", "name": "admin"})
    assert api_users.answer(run, "review", "Approve", user="ursula").status_code == 403
    assert api_users.answer(run, "review", "Approve", user="admin").status_code == 200


def test_only_who_is_assigned_answers_a_try_that_is_the_first_to_ask(
    ask: Callable[..., Run], api_users: ApiUsers, local_root: str
) -> None:
    run = ask([])
    assert run.state == "failed"
    land(local_root, ABC)
    run.clear(dag=reviewing(ABC, assigned_users={"id": "admin", "name": "admin"}))
    assert api_users.answer(run, "review", "Approve", user="ursula").status_code == 403
    assert api_users.answer(run, "review", "Approve", user="admin").status_code == 200
    assert run.go_on().task("review").value == ABC


# --- answers that make no sense ---------------------------------------------------------------------------------------


def slip_in(run: Run, *chosen: str, **params: Any) -> Run:
    """An answer that Airflow's API would refuse, as if it had not."""
    event = {"chosen_options": list(chosen), "params_input": params, "responded_by_user": None}
    with create_session() as session:
        ti = session.query(TaskInstance).filter_by(dag_id="look", run_id=run.run_id, task_id="review").one()
        responded_at = dt.datetime.now(dt.timezone.utc)
        handle_event_submit(TriggerEvent({**event, "responded_at": responded_at}), task_instance=ti, session=session)
    return run.go_on()


def test_airflow_refuses_what_is_no_option(ask: Callable[..., Run], api_users: ApiUsers) -> None:
    run = ask(ABC, choose="one")
    for chosen in (["4: d.png"], ["1: b.png"], ["Approve"], ["1: a.png", "2: b.png"], []):
        assert api_users.answer(run, "review", *chosen).status_code in (400, 422), chosen


@pytest.mark.parametrize(
    ("choose", "chosen", "said"),
    [
        ("one", ["4: d.png"], "was not offered"),
        ("one", ["Approve"], "was not offered"),
        ("all", ["1: a.png"], "was not offered"),
        ("several", ["1: a.png", "x"], "was not offered"),
        ("one", ["1: a.png", "2: b.png"], "more than one option"),
        ("all", ["Approve", "Reject"], "more than one option"),
        ("several", ["1: a.png", "Reject"], "rejects the images and chooses some"),
        ("several", [], "is empty"),
    ],
)
def test_an_answer_that_makes_no_sense_chooses_nothing(
    ask: Callable[..., Run], choose: str, chosen: list[str], said: str
) -> None:
    run = slip_in(ask(ABC, choose=choose), *chosen)
    review = run.task("review")
    assert (review.state, review.value, run.task("after").state) == ("failed", None, "upstream_failed"), run.log
    assert said in str(review.error)
    assert "No money was spent" in str(review.error)


def test_a_rejection_that_also_chooses_is_asked_again_by_a_retry(ask: Callable[..., Run], api_users: ApiUsers) -> None:
    run = ask(ABC, choose="several", retries=1, retry_delay=dt.timedelta(0))
    assert api_users.answer(run, "review", "1: a.png", "Reject").status_code == 200
    run.go_on()
    assert run.state == "running", run.log
    assert api_users.answer(run, "review", "1: a.png").status_code == 200
    assert run.go_on().task("review").value == ABC[:1]


@pytest.mark.parametrize(
    "params", [{"comment": {"a": 1}}, {"comment": 5}, {"other": "x"}, {"comment": "x", "images": []}]
)
def test_a_comment_that_is_no_text_or_a_field_that_was_not_asked_for_fails_the_task(
    ask: Callable[..., Run], api_users: ApiUsers, params: dict[str, Any]
) -> None:
    run = ask(ABC)
    api_users.answer(run, "review", "Approve", **params)
    run.go_on()
    assert (run.task("review").state, run.task("review").value) == ("failed", None)
    assert not run.xcom("review", "comment")


@pytest.mark.parametrize("value", [each for each in BAD_IMAGES if not isinstance(each, bytes)])
def test_nobody_is_asked_about_what_is_no_image(airflow: AirflowHarness, value: Any) -> None:
    with DAG("look") as dag:
        GeminiImageReviewOperator(task_id="review", subject="Which?", images=value, retries=2)
    review = airflow.run_dag(dag).task("review")
    assert (review.state, review.executions) == ("failed", 1)
    assert "images" in str(review.error)
    with create_session() as session:
        assert session.query(HITLDetail).count() == 0


@pytest.mark.parametrize("wrong", [{"choose": "two"}, {"on_reject": "retry"}, {"choose": None}])
def test_a_word_that_is_not_known_is_refused_when_the_dag_is_parsed(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadRequestError, match=next(iter(wrong))):
        reviewing(ABC, **wrong)


# --- time and change --------------------------------------------------------------------------------------------------


def test_nobody_answers_and_the_default_counts(ask: Callable[..., Run]) -> None:
    from airflow.jobs.scheduler_job_runner import SchedulerJobRunner

    run = ask(ABC, choose="one", defaults="Reject", response_timeout=dt.timedelta(microseconds=1))
    with create_session() as session:
        scheduler = SchedulerJobRunner.__new__(SchedulerJobRunner)  # its method, without a scheduler's start-up
        scheduler.check_awaiting_input_timeouts(session=session)
    run.go_on()
    assert (run.task("review").state, run.task("after").state) == ("success", "skipped"), run.log


def test_what_was_shown_is_returned_whatever_came_since(ask: Callable[..., Run], api_users: ApiUsers) -> None:
    run = ask(ABC, choose="one")
    XComModel.set("return_value", named("other.png"), dag_id="look", task_id="drafts", run_id=run.run_id)
    assert run.xcom("drafts", "return_value") == named("other.png")
    api_users.answer(run, "review", "2: b.png")
    assert run.go_on().task("review").value == ABC[1:2], run.log


def test_a_cleared_review_asks_again(ask: Callable[..., Run], api_users: ApiUsers) -> None:
    run = ask(ABC)
    api_users.answer(run, "review", "Reject")
    assert run.go_on().state == "success"
    run.clear("review", "after")
    assert api_users.request(run, "review")["response_received"] is False
    api_users.answer(run, "review", "Approve")
    assert run.go_on().task("after").value == {"chosen": ABC, "comment": ""}


def test_images_that_airflow_would_not_show_are_not_asked_about(
    ask: Callable[..., Run], api_users: ApiUsers, local_root: str
) -> None:
    run = ask(ABC)
    api_users.answer(run, "review", "Reject")
    run.go_on()
    others = named("a.png", "b.png", "c.png")
    others[1]["record"] = key_of(map_index=1, n=2)
    land(local_root, others[1:2])
    run.clear(dag=reviewing(others))
    review = run.task("review")
    if AIRFLOW >= (3, 4):  # it shows the request of the last try
        assert api_users.request(run, "review")["body"] == review_markdown(others)
        api_users.answer(run, "review", "Approve")
        assert run.go_on().task("review").value == others
        return
    assert (review.state, run.task("after").state) == ("failed", "upstream_failed"), run.log
    assert "Delete this task instance" in str(review.error)

    of_run = f"/api/v2/dags/look/dagRuns/{run.run_id}"
    assert api_users.call("ursula", "DELETE", f"{of_run}/taskInstances/review").status_code == 200
    clear = {"dry_run": False, "dag_run_id": run.run_id, "task_ids": ["drafts"], "only_failed": False}
    options = {"include_downstream": True, "run_on_latest_version": True}
    cleared = api_users.call("ursula", "POST", "/api/v2/dags/look/clearTaskInstances", json={**clear, **options})
    assert cleared.status_code == 200, cleared.text
    run.go_on()
    assert api_users.request(run, "review")["body"] == review_markdown(others)
    api_users.answer(run, "review", "Approve")
    assert run.go_on().task("review").value == others


# --- with real images -----------------------------------------------------------------------------------------------


def test_the_comment_of_a_rejection_is_what_the_edit_is_asked_for(
    airflow: AirflowHarness, api_users: ApiUsers, sandbox: Sandbox, apimaster: str, local_root: str
) -> None:
    with DAG("look", default_args={"geminiimg_conn_id": apimaster, "poll_interval": 0.05}) as dag:
        draft = GeminiImageGenerateOperator(task_id="draft", prompt="A fox")
        review = GeminiImageReviewOperator(task_id="review", subject="Good?", images=draft.output, on_reject="continue")

        @task.branch
        def decide(chosen: list[dict[str, Any]]) -> str:
            return "publish" if chosen else "revise"

        @task
        def publish() -> None: ...

        revise = GeminiImageEditOperator(task_id="revise", image=draft.output, prompt=review.output["comment"])
        decide(review.output) >> [publish(), revise]
    run = airflow.run_dag(dag)
    comment = "Make it {{ conn.apimaster.password }} and blue"
    api_users.answer(run, "review", "Reject", comment=comment)
    run.go_on()
    assert run.state == "success", run.log
    assert [run.task(name).state for name in ("publish", "revise")] == ["skipped", "success"]
    assert [bought["prompt"] for bought in sandbox.ledger()] == ["A fox", comment]


def test_the_body_is_one_for_airflows_own_operators(airflow: AirflowHarness, api_users: ApiUsers) -> None:
    images = named("{{ 1/0 }}.png")
    with DAG("look") as dag:

        @task
        def body() -> str:
            return review_markdown(images)

        ApprovalOperator(task_id="review", subject="Publish?", body=body())
    assert api_users.request(airflow.run_dag(dag), "review")["body"] == review_markdown(images)
