"""The operator that asks a person to approve images."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException, SkipMixin
from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import Param

from airflow_provider_geminiimg._compat import everybody_is_admin, resuming_with, shown_request
from airflow_provider_geminiimg.exceptions import BadRequestError, Billed, GeminiImageError, without_traceback
from airflow_provider_geminiimg.operators.arguments import Choose, OnReject, parsers
from airflow_provider_geminiimg.operators.base import CheckedArgumentsMixin
from airflow_provider_geminiimg.runtime.errors import raise_outcome

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_geminiimg.core.purchase.approval import Approval

_CHECKS = parsers("choose", "on_reject")

COMMENT = "comment"
_SHOWN = "shown"
_DELETE_THE_REQUEST = (
    "Delete this task instance, then clear an upstream task with all downstream tasks and 'Run with latest bundle "
    "version': Airflow then creates a new request. Images that are paid for are not bought again."
)


class GeminiImageReviewOperator(CheckedArgumentsMixin, HITLOperator, SkipMixin):
    """Show images to a person, who approves, rejects or picks some, and may write a comment. Buys nothing.

    The task shows the images of the ledger's records, and returns only those. It fails if a manifest differs from its
    record, or if a manifest, a record or an image file changes before the answer arrives.

    Returns the chosen manifests as a list, in the order shown; an empty list after a rejection with `on_reject`
    ``"continue"``. The XCom ``comment`` holds the comment; it is an empty text if there is none.

    Also takes the arguments of Airflow's `HITLOperator`, such as `assigned_users`, `notifiers`, `response_timeout` and
    `defaults` (``"Reject"``; with `choose` ``"all"`` also ``"Approve"``), except `options`, `multiple` and `body`.

    :param subject: the headline that the person reads. Templated; shown as plain text.
    :param images: a manifest, or a list of manifests, such as the output of a mapped task. Templated.
    :param choose: ``"all"`` (default): approve or reject all images together; ``"one"``: pick one or reject;
        ``"several"``: pick one or more, or reject.
    :param on_reject: ``"skip"`` (default) skips the tasks directly downstream, like Airflow's `ApprovalOperator`;
        ``"fail"`` fails this task, without retries; ``"continue"`` returns an empty list.
    :raises AirflowFailException: `images` is not a manifest or differs from its records; Airflow still shows the
        request of an earlier try, which has other images; or a rejection with `on_reject` ``"fail"``.
    :raises GeminiImageError: the answer is not valid, or the images have changed since they were shown. A retry asks
        again.
    """

    APPROVE = "Approve"
    REJECT = "Reject"

    template_fields: Sequence[str] = ("subject", "images")
    native_fields = ("images",)
    ui_color = "#e8f0fe"
    inherits_from_skipmixin = True

    def __init__(
        self,
        *,
        images: Any,
        choose: Choose = "all",
        on_reject: OnReject = "skip",
        **kwargs: Any,
    ) -> None:
        self.choose = _CHECKS["choose"]("choose", choose)
        self.on_reject = _CHECKS["on_reject"]("on_reject", on_reject)
        super().__init__(options=self._options([]), multiple=choose == "several", **kwargs)
        # Null is allowed: if the text were required, Airflow would accept no answer without it, not even a rejection.
        self.params[COMMENT] = Param(None, type=["null", "string"], title="Comment")
        self.images = images

    def execute(self, context: Context) -> Any:
        """Show the images and wait for the answer of a person."""
        from airflow_provider_geminiimg.gallery.markdown import manifests

        try:
            arguments = self._arguments()
            arguments.refuse_unrendered()
            given = manifests(self.images, "images")
            arguments.refuse_missing()
            approval = self._approval(context)
            shown = approval.vouched(given, "images")
            self._show(shown)
            digest = approval.keep(shown)
            self._refuse_older(context)
        except GeminiImageError as error:
            raise_outcome(error)
        context["ti"].xcom_push(key=_SHOWN, value=shown)
        with resuming_with(lambda: {"shown": digest, "until": self._until()}):
            return super().execute(context)

    def execute_complete(
        self, context: Context, event: dict[str, Any], shown: str | None = None, until: float | None = None
    ) -> Any:
        """Return the chosen images. `images` is not read again, because it may have changed.

        :param event: of Airflow's trigger: the answer, or an error.
        :param shown: SHA-256 of the saved list of images that were shown.
        :param until: Unix seconds after which an answer is refused; ``None``: no limit.
        """
        if "error" in event:
            return super().execute_complete(context, event)
        ti = context["ti"]
        try:
            approval = self._approval(context)
            kept = approval.recall(shown)
            named = self._show(kept)
            self._check_answer(event, until)
            answer = self._filled_in(context, event)
            chosen = answer["chosen_options"]
            picked = [each for label, each in named.items() if {label, self.APPROVE} & set(chosen)]
            approval.check(kept, ti.xcom_pull(task_ids=self.task_id, key=_SHOWN, map_indexes=ti.map_index), picked)
        except GeminiImageError as error:
            raise without_traceback(error) from None
        comment = answer["params_input"].get(COMMENT)
        # Never null: Airflow treats a null XCom as missing.
        ti.xcom_push(key=COMMENT, value=comment.strip() if isinstance(comment, str) else "")
        return self._rejected(context) if self.REJECT in chosen else picked

    def _filled_in(self, context: Context, event: dict[str, Any]) -> Any:
        try:
            return super().execute_complete(context, event)
        except Exception as error:  # Airflow's REST API accepts any form values and validates them only here
            raise _invalid_answer(f"has form values that do not fit the form ({type(error).__name__})") from None

    def _approval(self, context: Context) -> Approval:
        from airflow_provider_geminiimg.core.purchase.approval import Approval
        from airflow_provider_geminiimg.runtime.task_run import TaskRun

        attempt = TaskRun(context, self.log)
        return Approval(attempt.ledger, attempt.files, attempt.item, str(context["ti"].id))

    def _show(self, shown: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Put the images into the request to the person. Returns the manifests by label."""
        from airflow_provider_geminiimg.gallery.markdown import labels, review_markdown

        named = dict(zip(labels(shown), shown, strict=True))
        self.options = self._options(list(named))
        self.body = review_markdown(shown)
        return named

    def _until(self) -> float | None:
        return None if self.response_timeout is None else time.time() + self.response_timeout.total_seconds()

    def _options(self, names: list[str]) -> list[str]:
        return [self.APPROVE, self.REJECT] if self.choose == "all" else [*names, self.REJECT]

    def _refuse_older(self, context: Context) -> None:
        """Refuse to wait if Airflow still shows the request of an earlier try and that request differs."""
        if context["ti"].try_number == 1:
            return
        wanted = {
            "options": self.options,
            "body": self.body,
            "defaults": self.defaults,
            "multiple": self.multiple,
            "assigned_users": self.assigned_users or [],
        }
        request = shown_request(ti_id=context["ti"].id, subject=self.subject, params=self.serialized_params, **wanted)
        if (request.options, request.body) != (self.options, self.body):
            raise BadRequestError(
                "The images differ from those of this task's earlier request, and Airflow still shows those.",
                hint=_DELETE_THE_REQUEST,
            )
        asked = (request.defaults or None, bool(request.multiple), _ids(request.assigned_users or []))
        if asked != (self.defaults or None, self.multiple, _ids(self.assigned_users or [])):
            raise BadRequestError(
                "assigned_users, defaults or choose have changed in the DAG since this task's earlier request, and "
                "Airflow still uses the earlier values.",
                hint=_DELETE_THE_REQUEST,
            )

    def _check_answer(self, event: dict[str, Any], until: float | None) -> None:
        problem = self._problem_of_choice(event["chosen_options"]) or self._problem_of_responder(event, until)
        if problem:
            raise _invalid_answer(problem)

    def _problem_of_choice(self, chosen: Sequence[str]) -> str | None:
        unknown = set(chosen) - set(self.options)
        return (
            "has an option that was not offered" if unknown
            else "is empty" if not chosen
            else "has more than one option" if len(set(chosen)) > 1 and not self.multiple
            else "rejects the images and chooses some" if len(set(chosen)) > 1 and self.REJECT in chosen
            else None
        )  # fmt: skip

    def _problem_of_responder(self, event: dict[str, Any], until: float | None) -> str | None:
        """Why the answer is refused for its author or time. Airflow checks the author too, but not in every case."""
        responder = event.get("responded_by_user")
        if responder is None:
            by_default = self.response_timeout is not None and event["chosen_options"] == self.defaults
            return None if by_default else "has no known author"
        if until is not None and event["responded_at"].timestamp() > until:
            return f"arrived after response_timeout ({self.response_timeout})"
        assigned = _ids(self.assigned_users or [])
        if assigned and not _ids([responder]) <= assigned and not everybody_is_admin():
            return "is from a user who is not in assigned_users"
        return None

    def _rejected(self, context: Context) -> list[dict[str, Any]]:
        said = f"The images were rejected. The XCom {COMMENT!r} of this task holds the comment."
        if self.on_reject == "fail":
            raise AirflowFailException(f"{said} To ask again, clear this task.")
        self.log.info(said)
        if self.on_reject == "skip":
            after = context["task"].get_direct_relatives(upstream=False)
            self.skip(ti=context["ti"], tasks=[task for task in after if not task.is_teardown])
        return []


def _invalid_answer(problem: str) -> BadRequestError:
    hint = "To ask again, clear this task or let it retry."
    return BadRequestError(f"The answer {problem}.", billed=Billed.NO, hint=hint)


def _ids(users: Sequence[Any]) -> set[str]:
    return {str(user["id"] if isinstance(user, Mapping) else user.id) for user in users}
