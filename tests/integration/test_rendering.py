"""What arguments come to when they are rendered: text stays text, and nothing is never taken for an absent argument."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import jinja2
import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import DAG, task

from airflow_provider_geminiimg import (
    GeminiImageBatchOperator,
    GeminiImageCollectOperator,
    GeminiImageEditOperator,
    GeminiImageGenerateOperator,
    GeminiImageJobSensor,
    GeminiImageReviewOperator,
    GeminiImageSubmitOperator,
)
from airflow_provider_geminiimg.exceptions import BadRequestError

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox
    from tests.harness.inprocess import AirflowHarness, Run

pytestmark = pytest.mark.usefixtures("local_root")

PNG = "s3://in/cat.png"
WAYS_TO_WAIT: dict[str, Any] = {"poll_interval": 0.02}
BASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "generate": (GeminiImageGenerateOperator, {"prompt": "a fox", **WAYS_TO_WAIT}),
    "edit": (GeminiImageEditOperator, {"prompt": "a fox", "image": PNG, **WAYS_TO_WAIT}),
    "submit": (GeminiImageSubmitOperator, {"prompt": "a fox", **WAYS_TO_WAIT}),
    "batch": (GeminiImageBatchOperator, {"requests": ["a fox", "a wolf"], **WAYS_TO_WAIT}),
    "sensor": (GeminiImageJobSensor, {"job_id": "1", **WAYS_TO_WAIT}),
    "collect": (GeminiImageCollectOperator, {}),
    "review": (GeminiImageReviewOperator, {"subject": "Look", "images": [{"images": [{"uri": PNG}]}]}),
}
NOTHING: dict[str, Any] = {
    "an XCom that is not there": "{{ ti.xcom_pull('nobody') }}",
    "an empty Variable": "{{ '' }}",
    "white space": "{{ ' ' }} \n",
    "a zero-width space": "{{ '\u200b' }}",
    "NaN": "{{ not_a_number }}",
    "an empty list": "{{ params.list }}",
    "JSON's null": "{{ none | tojson }}",
    "a parameter that is not there": "{{ params.gone }}",
    "what is not defined": "{{ gone }}",
    "a Variable that is not there": "{{ var.value.gone }}",
}
PARAMS: dict[str, Any] = {"list": [], "none": None, "number": 5}


def dag_of(native: bool = False, **options: Any) -> DAG:
    return DAG(
        "renders",
        schedule=None,
        params=PARAMS,
        render_template_as_native_obj=native,
        user_defined_macros={"not_a_number": float("nan")},
        **options,
    )


def named(run: Run, name: str, task_id: str = "made", map_index: int = -1) -> str:
    """The message with which the task failed, once and for good, naming the argument."""
    made = run.task(task_id, map_index)
    assert (made.state, made.try_number) == ("failed", 1), made.log
    assert isinstance(made.error, AirflowFailException), made.log
    assert isinstance(made.error.__cause__, BadRequestError)
    assert name in str(made.error)
    return str(made.error)


@pytest.mark.parametrize("native", [False, True], ids=["as text", "natively"])
@pytest.mark.parametrize("kind", BASES)
def test_every_argument_that_comes_to_nothing_is_an_error_that_names_it(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str, kind: str, native: bool
) -> None:
    operator, base = BASES[kind]
    shared = {"geminiimg_conn_id": onemin} if "geminiimg_conn_id" in operator.template_fields else {}
    with dag_of(native) as dag:
        for number, name in enumerate(operator.template_fields):
            template = ("{{ ti.xcom_pull('nobody') }}", "{{ '' }}", "{{ gone }}")[number % 3]
            operator(**{"task_id": name, "retries": 1, **shared, **base, name: template})
    run = airflow.run_dag(dag)
    for name in operator.template_fields:
        named(run, name, task_id=name)
    assert sandbox.calls() == []


@pytest.mark.parametrize("native", [False, True], ids=["as text", "natively"])
def test_whatever_the_reason_nothing_is_an_error(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str, native: bool
) -> None:
    names = ("prompt", "reference_images", "output_path", "max_cost")
    tasks = {}
    with dag_of(native) as dag:
        for name in names:
            for number, template in enumerate(NOTHING.values()):
                arguments = {"prompt": "a fox", "image": PNG, "geminiimg_conn_id": onemin, name: template}
                tasks[f"{name}-{number}"] = name
                GeminiImageEditOperator(task_id=f"{name}-{number}", retries=1, **arguments)
    run = airflow.run_dag(dag)
    for task_id, name in tasks.items():
        named(run, name, task_id)
    assert sandbox.calls() == []


def test_an_undefined_value_is_nothing_where_the_dag_lets_it_render(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str
) -> None:
    for native in (False, True):
        with dag_of(native, template_undefined=jinja2.Undefined) as dag:
            GeminiImageGenerateOperator(
                task_id="made", prompt="a fox", aspect_ratio="{{ gone }}", geminiimg_conn_id=onemin
            )
        named(airflow.run_dag(dag, run_id=f"run-{native}"), "aspect_ratio")
    assert sandbox.calls() == []


@task
def gives(value: Any) -> Any:
    return value


MAPPED: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "not mapped": lambda operator, shared: operator(**shared, aspect_ratio=gives(None)),
    "empty text, not mapped": lambda operator, shared: operator(**shared, aspect_ratio=gives(" ")),
    "partial": lambda operator, shared: operator.partial(**shared, aspect_ratio="{{ '' }}").expand(variant=["a"]),
    "partial of a task": lambda operator, shared: operator.partial(**shared, aspect_ratio=gives(None)).expand(
        variant=["a"]
    ),
    "expand": lambda operator, shared: operator.partial(**shared).expand(aspect_ratio=gives([None])),
    "expand over empty text": lambda operator, shared: operator.partial(**shared).expand(aspect_ratio=gives([""])),
    "expand over templates": lambda operator, shared: operator.partial(**shared).expand(aspect_ratio=["{{ '' }}"]),
    "expand over a word": lambda operator, shared: operator.partial(**shared).expand(aspect_ratio=gives(["None"])),
    "expand_kwargs": lambda operator, shared: operator.partial(**shared).expand_kwargs(gives([{"aspect_ratio": None}])),
    "expand_kwargs with empty text": lambda operator, shared: operator.partial(**shared).expand_kwargs(
        gives([{"aspect_ratio": ""}])
    ),
    "expand_kwargs with a template": lambda operator, shared: operator.partial(**shared).expand_kwargs(
        [{"aspect_ratio": "{{ ti.xcom_pull('nobody') }}"}]
    ),
}


@pytest.mark.parametrize("how", MAPPED.values(), ids=MAPPED)
def test_what_another_task_gives_as_nothing_is_an_error_however_it_is_mapped(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str, how: Callable[[Any, dict[str, Any]], Any]
) -> None:
    with dag_of() as dag:
        how(GeminiImageGenerateOperator, {"task_id": "made", "prompt": "a fox", "geminiimg_conn_id": onemin})
    run = airflow.run_dag(dag)
    named(run, "aspect_ratio", map_index=-1 if dag.get_task("made").is_mapped is False else 0)
    assert sandbox.calls() == []


WANTED_NOTHING: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "None": lambda operator, shared: operator(**shared, aspect_ratio=None, reference_images=None, max_cost=None),
    "an empty list": lambda operator, shared: operator(**shared, reference_images=[]),
    "the word for it": lambda operator, shared: operator(
        **shared, aspect_ratio="{{ params.none or 'unset' }}", max_cost="{{ 'unset' }}", output_path=" {{ 'unset' }} "
    ),
    "expand": lambda operator, shared: operator.partial(**shared).expand(aspect_ratio=[None]),
    "expand_kwargs": lambda operator, shared: operator.partial(**shared).expand_kwargs(
        [{"aspect_ratio": None, "variant": "x"}]
    ),
    "a row that leaves it out": lambda operator, shared: operator.partial(**shared).expand_kwargs(
        gives([{"variant": "x"}])
    ),
}


@pytest.mark.parametrize("native", [False, True], ids=["as text", "natively"])
@pytest.mark.parametrize("how", WANTED_NOTHING.values(), ids=WANTED_NOTHING)
def test_what_is_wanted_as_nothing_is_nothing(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str, how: Callable[[Any, dict[str, Any]], Any], native: bool
) -> None:
    with dag_of(native) as dag:
        shared = {"task_id": "made", "prompt": "a fox", "geminiimg_conn_id": onemin, **WAYS_TO_WAIT}
        how(GeminiImageGenerateOperator, shared)
    run = airflow.run_dag(dag)
    assert run.state == "success", run.log
    [paid] = sandbox.ledger()
    assert "aspectRatio" not in paid["fields"]


@pytest.mark.parametrize(
    "word",
    ["nan", "NaN", " nan\n", "None", "none", "NaT", "<NA>", "null", "NULL", "undefined", "N/A", "#N/A", "\u200b"],
)
def test_a_word_for_a_missing_value_is_no_prompt(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str, word: str
) -> None:
    with pytest.raises(BadRequestError, match="prompt"):
        GeminiImageGenerateOperator(task_id="made", prompt=word)
    for number, value in enumerate(["{{ word }}", gives]):
        with DAG("renders", schedule=None, user_defined_macros={"word": word}) as dag:
            GeminiImageGenerateOperator(
                task_id="made", prompt=value if isinstance(value, str) else value(word), geminiimg_conn_id=onemin
            )
        named(airflow.run_dag(dag, run_id=f"run-{number}"), "prompt")
    assert sandbox.calls() == []


def test_nan_is_no_prompt_and_no_label_but_words_about_it_are(sandbox: Sandbox) -> None:
    for wrong in ({"prompt": float("nan")}, {"prompt": float("inf")}, {"prompt": "a", "variant": float("nan")}):
        with pytest.raises(BadRequestError, match=list(wrong)[-1]):
            GeminiImageGenerateOperator(task_id="made", **wrong)
    GeminiImageGenerateOperator(task_id="made", prompt="A naan bread, null calories", variant="none")


INSIDE: dict[str, str] = {
    "an XCom that is not there": "Photo of {{ ti.xcom_pull('nobody') }} on white",
    "a parameter that is null": "A {{ params.none }} and {{ ds }}",
    "two that are null": "{{ none }}{{ none }}",
    "NaN": "Photo of {{ not_a_number }}",
    "pandas' missing value": "Photo of {{ not_available }}",
    "NumPy's NaN": "Photo of {{ narrow_nan }}",
    "a decimal NaN": "Photo of {{ decimal_nan }}",
    "an empty list": "Photo of {{ params.list }} on white",
    "an empty mapping": "Photo of {{ {} }} on white",
    "a name that is not there": "Photo of {{ gone }}",
    "a key that is not there": "Photo of {{ params.gone }}",
    "a key of a mapping, got": "Photo of {{ dag_run.conf.get('gone') }}",
    "joined to text": "{{ 'Photo of ' ~ ti.xcom_pull('nobody') }}",
    "joined by a filter": "{{ ['a fox', none] | join(' and ') }}",
    "joined after a filter": "Photo of {{ [none, 'a fox'] | map('string') | join(' and ') }}",
    "an attribute, joined": "Photo of {{ [{'it': none}, {'it': 'a fox'}] | map(attribute='it') | join(' and ') }}",
    "joined by an attribute": "Photo of {{ [{'it': none}, {'it': 'a fox'}] | join(' and ', attribute='it') }}",
    "a list of nothing": "Photo of {{ ti.xcom_pull(['nobody']) or [none] }} on white",
    "added to text": "{{ 'Photo of ' + params.none | string + ' on white' }}",
    "formatted": "{{ 'Photo of %s' | format(params.none) }}",
    "formatted by a percent sign": "{{ 'Photo of %s' % params.none }}",
    "one of two": "{{ 'Photo of %s on %s' % ('a fox', params.none) }}",
    "formatted by its method": "{{ 'Photo of {} on {}'.format('a fox', params.none) }}",
    "formatted by name": "{{ 'Photo of {it}'.format(it=params.none) }}",
    "formatted by a key": "{{ 'Photo of {it[is]}'.format(it={'is': none}) }}",
    "formatted by a mapping": "{{ 'Photo of {it}'.format_map({'it': none}) }}",
    "joined by its method": "{{ ' and '.join(['Photo of', none | string]) }}",
    "joined, in other letters": "{{ ('Photo of ' ~ params.none).upper() }}",
    "a part of it": "{{ ('Photo of ' ~ params.none ~ ' on white')[:13] }}",
    "a part in other letters": "{{ ('Photo of ' ~ params.none).upper()[5:] }}",
    "put after it": "Photo {{ 'of ' + ('%s on white' % params.none) }}",
    "twice": "Photo of {{ (params.none | string) * 2 }}",
    "replaced with it": "{{ 'Photo of it'.replace('it', params.none | string) }}",
    "in a call": "{% macro photo() %}Photo of {{ caller() }}{% endmacro %}{% call photo() %}{{ none }}{% endcall %}",
    "trimmed": "Photo of {{ params.none | trim }}",
    "in other letters": "Photo of {{ params.none | string | upper }}",
    "in a branch": "Photo of {% if true %}{{ params.none }}{% endif %} on white",
    "in a loop": "Photo of{% for each in ['a fox', none] %} {{ each }}{% endfor %}",
    "in a macro": "{% macro photo(it) %}Photo of {{ it }}{% endmacro %}{{ photo(params.none) }}",
}
MEANT: dict[str, tuple[str, str]] = {
    "an if without an else": ("A fox{{ ' at night' if params.none }}", "A fox"),
    "a default": ("A {{ params.none or 'fox' }} {{ params.none | default('there', true) }}", "A fox there"),
    "a condition": ("A {% if params.none is none %}fox{% endif %}", "A fox"),
    "a comparison": ("A {{ 'fox' if params.none | lower == 'none' else 'wolf' }}", "A fox"),
    "a comparison of joined text": ("A {{ 'fox' if 'x' ~ params.none == 'xNone' else 'wolf' }}", "A fox"),
    "a variable": ("{% set it = params.none %}A {{ it or 'fox' }}", "A fox"),
    "the word": ("Write {{ 'None' }} and {{ params.word }}", "Write None and None"),
    "empty text": ("A {{ '' }}fox", "A fox"),
    "nought": ("A {{ 0 }} and {{ false }}", "A 0 and False"),
    "a remainder": ("A {{ params.number % 3 }} {{ '%s-%02d' % ('b', 7) }}", "A 2 b-07"),
    "a method": ("A {{ '{}-{it}'.format('b', it='c') }}", "A b-c"),
    "an empty list, joined": ("A fox{{ params.list | join(', ') }}", "A fox"),
    "a word that is replaced": ("A {{ params.none | string | replace('None', 'fox') }}", "A fox"),
    "a part without it": ("{{ ('A fox' ~ params.none)[:5] }}", "A fox"),
    "a part that is compared": ("A {{ 'fox' if ('x' ~ params.none)[1:] == 'None' else 'wolf' }}", "A fox"),
    "a method that takes it out": ("A {{ ('fox' ~ params.none).replace('None', '') }}", "A fox"),
    "a sum": ("A {{ params.number + 2 * 3 - 1 }} {{ -params.number // 2 }} {{ 2 ** 3 / 4 }}", "A 10 -3 2.0"),
    "a call": ("{% macro a() %}A {{ caller() }}{% endmacro %}{% call a() %}fox{% endcall %}", "A fox"),
    "a value that no format asks for": ("A {{ '{}'.format('fox', params.none) }}", "A fox"),
    "joined": ("{{ 'A ' ~ params.number ~ ['b', 'c'] | join('+') }} {{ '%s' | format('d') }}", "A 5b+c d"),
}


def values_of(native: bool, **options: Any) -> DAG:
    """As `dag_of`, with all the values that the templates of `INSIDE` and `MEANT` name."""
    dag = dag_of(native, **options)
    # Neither library need be there.
    not_available = type("NAType", (), {"__repr__": lambda self: "<NA>"})()
    scalar = type("float32", (), {"__module__": "numpy", "ndim": 0, "item": lambda self: float("nan")})()
    dag.user_defined_macros = {
        **(dag.user_defined_macros or {}),
        "not_available": not_available,
        "narrow_nan": scalar,
        "decimal_nan": Decimal("nan"),
    }
    dag.params["word"] = "None"
    return dag


@pytest.mark.parametrize("native", [False, True], ids=["as text", "natively"])
def test_what_comes_to_nothing_inside_a_longer_text_is_an_error(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str, native: bool
) -> None:
    rows = [{"prompt": "a fox"}, *({"prompt": text} for text in INSIDE.values())]
    with values_of(native) as dag:
        for number, text in enumerate(INSIDE.values()):
            GeminiImageGenerateOperator(task_id=f"one-{number}", prompt=text, geminiimg_conn_id=onemin)
            GeminiImageBatchOperator(
                task_id=f"row-{number}", requests=["a wolf", rows[number + 1]], geminiimg_conn_id=onemin
            )
    run = airflow.run_dag(dag)
    for number, kind in enumerate(INSIDE):
        said = named(run, "prompt", f"one-{number}")
        assert "Photo" not in said, kind  # a prompt is not shown
        named(run, "requests" if "not there" in kind else "requests[1].prompt", f"row-{number}")
    assert sandbox.calls() == []


@pytest.mark.parametrize("native", [False, True], ids=["as text", "natively"])
def test_what_says_where_and_what_is_complete_too(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str, native: bool
) -> None:
    nothing = "{{ ti.xcom_pull('nobody') }}"
    wrong: dict[str, tuple[str, dict[str, Any]]] = {
        "generate": ("output_path", {"output_path": f"s3://out/{nothing}/"}),
        "submit": ("file_name", {"file_name": f"fox-{nothing}"}),
        "edit": ("image", {"image": f"s3://in/{nothing}.png"}),
        "sensor": ("job_id", {"job_id": f"job-{nothing}"}),
        "collect": ("external_dag_id", {"external_dag_id": f"dag-{nothing}"}),
        "review": ("subject", {"subject": f"Look at {nothing}"}),
        "batch": ("requests[0].sku", {"requests": [{"prompt": "a fox", "sku": f"A-{nothing}"}], "file_name": "{sku}"}),
    }
    others: dict[str, tuple[str, str, Any]] = {
        "variant": ("generate", "variant", f"v{nothing}"),
        "list": ("edit", "reference_images[1]", [PNG, f"s3://in/{nothing}.png"]),
        "text of a list": ("batch", "requests", f'["a fox", "a {nothing}"]'),
        "text of a path": ("edit", "reference_images", f"s3://in/{nothing}.png"),
        "set": ("edit", "reference_images", {PNG, f"s3://in/{nothing}.png"}),
        "shared": ("batch", "prompt", f"Photo of {nothing} and {{sku}}"),
    }
    with values_of(native) as dag:
        for kind, (_, arguments) in wrong.items():
            operator, base = BASES[kind]
            shared = {"geminiimg_conn_id": onemin} if "geminiimg_conn_id" in operator.template_fields else {}
            operator(**{"task_id": kind, **shared, **base, **arguments})
        for task_id, (kind, name, value) in others.items():
            operator, base = BASES[kind]
            field = {name.partition("[")[0]: value}
            operator(**{"task_id": task_id.replace(" ", "_"), "geminiimg_conn_id": onemin, **base, **field})
        shared = {"prompt": "a fox", "geminiimg_conn_id": onemin}
        GeminiImageGenerateOperator.partial(task_id="mapped", **shared).expand(file_name=[f"fox-{nothing}"])
    run = airflow.run_dag(dag)
    for kind, (name, _) in wrong.items():
        named(run, name, kind)
    for task_id, (_, name, _) in others.items():
        named(run, name, task_id.replace(" ", "_"))
    named(run, "file_name", "mapped", 0)
    assert sandbox.calls() == []


@pytest.mark.parametrize("native", [False, True], ids=["as text", "natively"])
def test_what_a_function_takes_is_complete_where_it_can_not_see_what_is_missing(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str, native: bool
) -> None:
    @task.gemini_image(geminiimg_conn_id=onemin, **WAYS_TO_WAIT)
    def says(it: str) -> str:
        return f"{it} at night"

    @task.gemini_image_batch(geminiimg_conn_id=onemin, **WAYS_TO_WAIT)
    def lists(texts: list[str]) -> list[str]:
        return texts

    with values_of(native) as dag:
        says("Photo of {{ ti.xcom_pull('nobody') }}")
        lists(["a fox", "Photo of {{ params.none }}"])
        says.override(task_id="sees")("{{ params.none }}")
    run = airflow.run_dag(dag)
    named(run, "op_args[0]", "says")
    named(run, "op_args[0][1]", "lists")
    assert run.task("sees").state == "success", run.log  # which may do with it what it likes
    assert [entry["prompt"] for entry in sandbox.ledger()] == ["None at night"]


@pytest.mark.parametrize("native", [False, True], ids=["as text", "natively"])
def test_what_is_meant_inside_a_longer_text_is_bought_as_it_is_meant(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str, native: bool
) -> None:
    with values_of(native) as dag:
        rows = [{"prompt": text, "kind": kind} for kind, (text, _) in MEANT.items()]
        GeminiImageBatchOperator(
            task_id="made", requests=rows, n=1, reuse="task", geminiimg_conn_id=onemin, **WAYS_TO_WAIT
        )
    run = airflow.run_dag(dag)
    assert run.state == "success", run.log
    assert {entry["prompt"] for entry in sandbox.ledger()} == {text for _, text in MEANT.values()}


def test_a_lenient_dag_is_told_of_what_is_not_defined_and_its_own_word_for_nothing_is_printed(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str
) -> None:
    shared = {"geminiimg_conn_id": onemin, **WAYS_TO_WAIT}
    for native in (False, True):
        with values_of(native, template_undefined=jinja2.Undefined) as dag:
            GeminiImageGenerateOperator(task_id="made", prompt="Photo of {{ gone }}", **shared)
        named(airflow.run_dag(dag, run_id=f"run-{native}"), "prompt")
        sandbox.reset()
        finalize = {"finalize": lambda value: "nobody" if value is None else value}
        with values_of(native, jinja_environment_kwargs=finalize) as dag:
            GeminiImageGenerateOperator(task_id="made", prompt="Photo of {{ params.none }}", **shared)
        run = airflow.run_dag(dag, run_id=f"own-{native}")
        assert run.state == "success", run.log
        assert [entry["prompt"] for entry in sandbox.ledger()] == ["Photo of nobody"]


@pytest.mark.parametrize("native", [False, True], ids=["as text", "natively"])
def test_filters_of_the_dag_are_its_own_and_change_nothing_else(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str, native: bool
) -> None:
    filters: dict[str, Any] = {
        "title": lambda value: "Nobody" if value is None else str(value).title(),
        "join": lambda value, by=", ": by.join(map(str, value)),
    }
    text = "{{ params.none | title }} and {{ 'a f' ~ 'ox' }} and {{ ['b', 'c'] | join }}"
    with values_of(native, user_defined_filters=filters) as dag:
        GeminiImageGenerateOperator(task_id="made", prompt=text, geminiimg_conn_id=onemin, **WAYS_TO_WAIT)
    run = airflow.run_dag(dag)
    assert run.state == "success", run.log
    assert [entry["prompt"] for entry in sandbox.ledger()] == ["Nobody and a fox and b, c"]


@pytest.mark.parametrize("native", [False, True], ids=["as text", "natively"])
def test_a_template_in_a_row_of_a_batch_that_comes_to_nothing_names_the_row(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str, native: bool
) -> None:
    rows = ["a wolf", {"prompt": "a fox", "aspect_ratio": "{{ ti.xcom_pull('nobody') }}"}]
    with dag_of(native) as dag:
        GeminiImageBatchOperator(task_id="made", requests=rows, geminiimg_conn_id=onemin)
    named(airflow.run_dag(dag), "requests[1].aspect_ratio")
    assert sandbox.calls() == []


def test_a_paid_job_lands_though_its_arguments_come_to_nothing_on_a_retry(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str
) -> None:
    def dag(**arguments: Any) -> DAG:
        with dag_of() as made:
            shared = {"prompt": "a fox", "geminiimg_conn_id": onemin, **WAYS_TO_WAIT}
            GeminiImageGenerateOperator(task_id="made", **{**shared, **arguments})
        return made

    sandbox.faults(route="download", status=500, times=3)
    run = airflow.run_dag(dag())
    assert (run.state, len(sandbox.ledger())) == ("failed", 1)
    gone = dict.fromkeys(("prompt", "aspect_ratio", "output_path", "max_cost", "timeout", "poll_interval"), "{{ '' }}")
    run.retry("made", dag=dag(**gone))
    assert run.state == "success", run.log
    assert len(sandbox.ledger()) == 1


def test_a_cap_of_a_batch_that_comes_to_nothing_on_a_retry_is_no_absent_cap(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str
) -> None:
    def dag(**arguments: Any) -> DAG:
        with dag_of() as made:
            shared = {"requests": ["a fox", "a wolf"], "geminiimg_conn_id": onemin, **WAYS_TO_WAIT}
            GeminiImageBatchOperator(task_id="made", **{**shared, **arguments})
        return made

    sandbox.faults(route="onemin.submit", status=429, headers={"Retry-After": "600"}, times=2)
    run = airflow.run_dag(dag(max_cost="50"))
    assert (run.state, sandbox.ledger()) == ("failed", [])
    run.retry("made", dag=dag(max_cost="{{ ti.xcom_pull('nobody') or '' }}"))
    assert "max_cost" in str(run.task("made").error)
    assert sandbox.ledger() == []


# Native rendering

LOOKS_LIKE_PYTHON = [
    "1e3",
    "'quoted'",
    '"quoted"',
    "[1,2]",
    "True",
    "{'a': 1}",
    "007",
    "1_000",
    "(1, 2)",
    "0x10",
    "1.50",
]
WITH_LAYOUT = [
    "two\nlines\n",
    " spaces ",
    "an {% raw %}{{ brace }}{% endraw %}",
    "# no comment",
    "a {{ params.number }}",
]


def prompts_of(airflow: AirflowHarness, sandbox: Sandbox, build: Callable[[Any], Any]) -> list[list[str]]:
    """What is bought without native rendering, and with it."""
    bought = []
    for native in (False, True):
        sandbox.reset()
        with dag_of(native) as dag:
            build(dag)
        run = airflow.run_dag(dag, run_id=f"native-{native}")
        assert run.state == "success", run.log
        bought.append(sorted(entry["prompt"] for entry in sandbox.ledger()))
    return bought


@pytest.mark.parametrize("text", [*LOOKS_LIKE_PYTHON, *WITH_LAYOUT])
def test_a_prompt_is_the_same_text_with_native_rendering(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str, text: str
) -> None:
    shared = {"geminiimg_conn_id": onemin, **WAYS_TO_WAIT}

    @task.gemini_image(**shared)
    def says(it: str) -> str:
        return it

    @task.gemini_image(prompt=text, **shared)
    def leaves_open() -> dict[str, Any]:
        return {"variant": "open"}

    def build(dag: DAG) -> None:
        dag.params["text"] = text if "{" not in text or "'a'" in text else "plain"
        GeminiImageGenerateOperator(task_id="literal", prompt=text, **shared)
        GeminiImageGenerateOperator(task_id="param", prompt="{{ params.text }}", variant="p", **shared)
        GeminiImageGenerateOperator(task_id="line", prompt="{{ params.text }}\n", variant="l", **shared)
        GeminiImageGenerateOperator.partial(task_id="partial", prompt=text, **shared).expand(variant=["007", "1e3"])
        GeminiImageGenerateOperator.partial(task_id="expand", variant="e", **shared).expand(prompt=[text])
        GeminiImageGenerateOperator.partial(task_id="kwargs", **shared).expand_kwargs(
            [{"prompt": text, "variant": "k"}]
        )
        GeminiImageBatchOperator(task_id="batch", requests=[text, {"prompt": "{{ params.text }}", "n": 2}], **shared)
        GeminiImageBatchOperator(task_id="all", requests=[{"variant": "007"}], prompt=text, **shared)
        says(text)
        says.override(task_id="from_param")("{{ params.text }}")
        leaves_open()

    as_text, natively = prompts_of(airflow, sandbox, build)
    assert natively == as_text
    if text in LOOKS_LIKE_PYTHON:
        assert set(as_text) == {text}


def test_labels_names_and_ids_are_text_with_native_rendering(
    airflow: AirflowHarness, sandbox: Sandbox, connect: Callable[..., str]
) -> None:
    connect("007", **sandbox.connection("apimaster"))
    for native in (False, True):
        with dag_of(native) as dag:
            GeminiImageGenerateOperator(
                task_id="made",
                prompt="a fox",
                geminiimg_conn_id="{{ '007' }}",
                variant="1e3",
                file_name="{{ '0' ~ '07' }}",
                **WAYS_TO_WAIT,
            )
            GeminiImageBatchOperator(
                task_id="batch",
                requests=[{"prompt": "a wolf", "sku": "007", "variant": "'x'"}],
                file_name="{sku}-{variant}",
                geminiimg_conn_id="007",
                **WAYS_TO_WAIT,
            )
        run = airflow.run_dag(dag, run_id=f"run-{native}")
        assert run.state == "success", run.log
        made = run.task("made").value
        assert made["requested"]["variant"] == "1e3"
        assert made["images"][0]["uri"].endswith("/007.png")


def test_a_whole_variant_buys_nothing_again_when_a_data_frame_makes_a_float_of_it(
    airflow: AirflowHarness, sandbox: Sandbox, onemin: str
) -> None:
    def dag(variant: Any, native: bool = False) -> DAG:
        with dag_of(native) as made:
            shared = {"prompt": "a fox", "geminiimg_conn_id": onemin, **WAYS_TO_WAIT}
            GeminiImageGenerateOperator(task_id="made", variant=variant, **shared)
        return made

    run = airflow.run_dag(dag(1))
    for again in (dag(1.0), dag("1.0"), dag("{{ 1.0 }}"), dag("{{ 1.0 }}", True)):
        run.clear("made", dag=again)
        assert run.state == "success", run.log
        assert run.task("made").value["images"][0]["uri"].endswith("-v1.png")
    assert len(sandbox.ledger()) == 1
    run.clear("made", dag=dag(2.0))
    assert len(sandbox.ledger()) == 2


def test_lists_and_numbers_keep_their_native_values(airflow: AirflowHarness, sandbox: Sandbox, onemin: str) -> None:
    with dag_of(True) as dag:
        dag.params["rows"] = [{"prompt": "1e3", "n": 2}, "'quoted'"]
        first = GeminiImageGenerateOperator(
            task_id="first", prompt="a fox", max_cost="{{ params.number }}", geminiimg_conn_id=onemin, **WAYS_TO_WAIT
        )
        edit = GeminiImageEditOperator(
            task_id="edit",
            prompt="at night",
            image="{{ ti.xcom_pull('first') }}",
            reference_images="{{ [ti.xcom_pull('first')] }}",
            geminiimg_conn_id=onemin,
            **WAYS_TO_WAIT,
        )
        GeminiImageBatchOperator(task_id="rows", requests="{{ params.rows }}", geminiimg_conn_id=onemin, **WAYS_TO_WAIT)
        first >> edit
    run = airflow.run_dag(dag)
    assert run.state == "success", run.log
    assert sorted(entry["prompt"] for entry in sandbox.ledger()) == ["'quoted'", "1e3", "1e3", "a fox", "at night"]


@pytest.mark.parametrize(
    "operator",
    [
        GeminiImageGenerateOperator,
        GeminiImageEditOperator,
        GeminiImageSubmitOperator,
        GeminiImageBatchOperator,
        GeminiImageCollectOperator,
        GeminiImageReviewOperator,
        GeminiImageJobSensor,
    ],
)
def test_an_argument_that_ends_like_a_file_name_is_never_read_from_a_file(operator: Any) -> None:
    """With a `template_ext` Airflow would replace ``requests="rows.json"`` by the text of a file of the DAG bundle."""
    assert list(operator.template_ext) == []
