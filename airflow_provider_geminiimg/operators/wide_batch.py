"""A batch that several workers make: a task group that Airflow distributes.

The *plan* reads and checks the rows once and saves a plan for each shard. The mapped *shards* make the images. The
*merge* writes one manifest and returns one summary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import BaseOperator, TaskGroup, conf

from airflow_provider_geminiimg.core.validation.arguments import whole
from airflow_provider_geminiimg.core.validation.task_arguments import Checks
from airflow_provider_geminiimg.exceptions import BadRequestError
from airflow_provider_geminiimg.gallery.link import ImagesLink
from airflow_provider_geminiimg.operators.arguments import parsers
from airflow_provider_geminiimg.operators.base import PaidTaskMixin
from airflow_provider_geminiimg.operators.batch import GeminiImageBatchOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

_OF_SHARDS = (
    *("geminiimg_conn_id", "max_concurrency", "requests_per_minute", "min_success", "timeout", "poll_interval"),
    *("on_item_failure", "on_unknown", "on_clear", "reuse", "on_mismatch"),
)
_NOT_OF_SHARDS = frozenset(GeminiImageBatchOperator.template_fields) - {*_OF_SHARDS}
_OF_PLAN = frozenset(("trigger_rule",))
_OF_MERGE = frozenset(("do_xcom_push", "multiple_outputs", "outlets"))
_AFTER_ALL = "all_done_min_one_success"  # also after shards that failed, but not without a plan


class GeminiImagePlanOperator(GeminiImageBatchOperator):
    """The plan of `image_batch`.

    :param shards: see `image_batch`.
    :param images_per_shard: see `image_batch`.
    :param images_task_id: id of the task whose instances make the shards.
    """

    def __init__(
        self, *, shards: int | None = None, images_per_shard: int | None = None, images_task_id: str, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.shards = shards
        self.images_per_shard = images_per_shard
        self.images_task_id = images_task_id

    def execute(self, context: Context) -> list[dict[str, int]]:  # type: ignore[override]
        """Read and check the rows, and save a plan for each shard; return what the shards are mapped over."""
        from airflow_provider_geminiimg.core.batch.shards import ShardSize
        from airflow_provider_geminiimg.runtime.batch_task import BatchTask
        from airflow_provider_geminiimg.runtime.wide_batch_task import run_plan

        task = BatchTask(self._arguments(), self._rows, self._new_guard(), self.log, False, False)
        size = ShardSize(self.shards, self.images_per_shard, _max_shards())
        return run_plan(task, size, self.images_task_id, context)


class GeminiImageShardOperator(GeminiImageBatchOperator):
    """Makes the images of one shard of `image_batch`.

    :param shard: one of the values that the plan returned.
    """

    checks: ClassVar[Checks] = {name: GeminiImageBatchOperator.checks[name] for name in _OF_SHARDS}
    template_fields: Sequence[str] = ("shard", *_OF_SHARDS)

    def __init__(self, *, shard: Any, **kwargs: Any) -> None:
        super().__init__(requests=(), **kwargs)
        self.shard = shard

    def execute(self, context: Context) -> dict[str, Any]:
        """Make the missing images of the shard; return its summary."""
        from airflow_provider_geminiimg.runtime.batch_task import BatchTask
        from airflow_provider_geminiimg.runtime.wide_batch_task import run_shard

        pushes, several = self.do_xcom_push, self.multiple_outputs
        task = BatchTask(self._arguments(), self._rows, self._new_guard(), self.log, pushes, several)
        return run_shard(task, self.shard, context)


class GeminiImageMergeOperator(PaidTaskMixin, BaseOperator):
    """Writes the manifest of `image_batch`, and returns its summary.

    :param plan: what the plan returned.
    :param min_success: see `GeminiImageBatchOperator`.
    :param images_task_id: id of the task whose instances made the shards.
    """

    checks: ClassVar[Checks] = parsers("min_success")
    template_fields: Sequence[str] = ("plan", *checks)
    ui_color = GeminiImageBatchOperator.ui_color
    operator_extra_links = (ImagesLink(),)

    def __init__(self, *, plan: Any, images_task_id: str, min_success: float | str = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.plan = plan
        self.images_task_id = images_task_id
        self.min_success = min_success

    def execute(self, context: Context) -> dict[str, Any]:
        """Write the manifest; return the summary."""
        from airflow_provider_geminiimg.runtime.batch_task import BatchTask
        from airflow_provider_geminiimg.runtime.wide_batch_task import run_merge

        pushes, several = self.do_xcom_push, self.multiple_outputs
        task = BatchTask(self._arguments(), lambda _: None, self._new_guard(), self.log, pushes, several)
        return run_merge(task, self.plan, self.images_task_id, context)


def image_batch(
    group_id: str,
    *,
    requests: Any,
    shards: int | None = None,
    images_per_shard: int | None = None,
    **arguments: Any,
) -> TaskGroup:
    """A batch that several workers make. Call it inside a DAG.

    The task group has three tasks: ``plan`` reads and checks all rows and saves the plan; ``shards`` is mapped, and
    each of its instances makes a part of the images; ``merge`` writes one manifest and returns what
    `GeminiImageBatchOperator` returns. Give exactly one of `shards` and `images_per_shard`.

    :param group_id: id of the task group.
    :param requests: as for `GeminiImageBatchOperator`.
    :param shards: number of mapped tasks, 1 to ``[core] max_map_length`` (Airflow's default: 1024). A batch with fewer
        images has fewer.
    :param images_per_shard: images of one mapped task, from 1.
    :param arguments: the other arguments of `GeminiImageBatchOperator`, and those of ``BaseOperator``. Of these,
        ``trigger_rule`` is for the plan, ``outlets``, ``do_xcom_push`` and ``multiple_outputs`` are for the merge, all
        others for each of the three tasks. `max_concurrency` and `requests_per_minute` apply to each shard. `max_cost`
        is divided among the shards. A ratio as `min_success` applies to each shard and to the whole; of a count, each
        shard needs its part.
    :returns: the task group. ``group.children[f"{group.group_id}.merge"].output`` is the summary.
    :raises BadRequestError: an argument is wrong. The plan, the shards and the merge fail with the errors of
        `GeminiImageBatchOperator`.
    """
    size = {"shards": shards, "images_per_shard": images_per_shard}
    _check_size(size)
    with TaskGroup(group_id) as group:
        _add_tasks(str(group.child_id("shards")), arguments, requests=requests, **size)  # type: ignore[no-untyped-call]
    return group


def _add_tasks(shards_task_id: str, arguments: Mapping[str, Any], **of_plan: Any) -> None:
    """Add the three tasks to the current task group.

    :param arguments: of all three; each takes those that it has.
    :param of_plan: of the plan only.
    """
    of_merge = {name: value for name, value in arguments.items() if name in _OF_MERGE}
    common = {name: value for name, value in arguments.items() if name not in _OF_MERGE | _OF_PLAN}
    of_shards = {name: value for name, value in common.items() if name not in _NOT_OF_SHARDS}
    of_merge |= {name: value for name, value in of_shards.items() if name not in _OF_SHARDS or name == "min_success"}
    of_plan |= {name: value for name, value in arguments.items() if name in common or name in _OF_PLAN}
    plan = GeminiImagePlanOperator(task_id="plan", images_task_id=shards_task_id, **of_plan)
    shards = GeminiImageShardOperator.partial(task_id="shards", **of_shards).expand(shard=plan.output)
    merge = GeminiImageMergeOperator(
        task_id="merge", plan=plan.output, images_task_id=shards_task_id, trigger_rule=_AFTER_ALL, **of_merge
    )
    shards >> merge


def _check_size(given: Mapping[str, Any]) -> None:
    """:raises BadRequestError: not exactly one of the arguments is given, or it is wrong."""
    if sum(value is not None for value in given.values()) != 1:
        raise BadRequestError("image_batch: takes one of shards and images_per_shard.")
    most = _max_shards()
    shards = given["shards"]
    if isinstance(shards, int) and shards > most:
        raise BadRequestError(
            f"shards: {shards} are more than Airflow maps; [core] max_map_length is {most}.",
            hint="Use fewer shards; each can have any number of images.",
        )
    whole("shards", shards, most)
    whole("images_per_shard", given["images_per_shard"], 1_000_000)


def _max_shards() -> int:
    return int(conf.getint("core", "max_map_length", fallback=1024))
