"""Asks a person which images may go on."""

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
    "Delete this task instance, then clear a task before it and all downstream, with 'Run with latest bundle version': "
    "the request is then made anew. What was paid for is not bought again."
)


class GeminiImageReviewOperator(CheckedArgumentsMixin, HITLOperator, SkipMixin):
    """Show images to a person, who approves, rejects or picks some, and may leave a comment. Buys nothing.

    What is shown is what the records say landed, and only that goes on: a manifest that says something else, and what
    is edited or replaced until the answer is there, is an error.

    Returns the manifests that were chosen, as a list in the order in which they were shown; an empty list after a
    rejection that goes on. The comment is in the XCom ``comment``: a text, empty where nobody wrote one.

    Takes the arguments of Airflow's `HITLOperator` too, such as `assigned_users`, `notifiers`, `response_timeout` and
    `defaults` (``"Reject"``; with `choose` ``"all"`` also ``"Approve"``), except `options`, `multiple` and `body`.

    :param subject: the headline that the person reads. Templated, shown as text.
    :param images: what to look at: a manifest, or a list of manifests, such as the output of a mapped task. Templated.
    :param choose: ``"all"`` (default): approve or reject them together; ``"one"``: pick one or reject; ``"several"``:
        pick one or more, or reject.
    :param on_reject: ``"skip"`` (default) skips the tasks directly downstream, as Airflow's `ApprovalOperator` does;
        ``"fail"`` fails this task, without retries; ``"continue"`` goes on with an empty list.
    :raises AirflowFailException: `images` is no manifest, or not what its records say; Airflow shows the request of an
        earlier try, and that is another; or a rejection with `on_reject` ``"fail"``.
    :raises GeminiImageError: the answer makes no sense, or what would go on is not what was shown. A retry asks again.
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
        # Null is allowed, because Airflow takes no answer, not even a rejection, without a text that it requires.
        self.params[COMMENT] = Param(None, type=["null", "string"], title="Comment")
        self.images = images

    def execute(self, context: Context) -> Any:
        """Show the images, and wait for a person."""
        from airflow_provider_geminiimg.gallery.markdown import manifests

        try:
            arguments = self._arguments()
            arguments.refuse_unrendered()
            given = manifests(self.images, "images")
            arguments.refuse_nothing()
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
        """Return what was chosen of the images that were shown: `images` may have changed since.

        :param event: Airflow's: the answer, or what kept it from coming.
        :param shown: SHA-256 of what was shown.
        :param until: Unix seconds after which no answer counts; ``None``: any time.
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
        # Never null, which Airflow takes for an XCom that is not there.
        ti.xcom_push(key=COMMENT, value=comment.strip() if isinstance(comment, str) else "")
        return self._rejected(context) if self.REJECT in chosen else picked

    def _filled_in(self, context: Context, event: dict[str, Any]) -> Any:
        try:
            return super().execute_complete(context, event)
        except Exception as error:  # Airflow takes any form by REST, and compares it with its fields only here
            raise _unfit(f"fills in the form with what it does not take ({type(error).__name__})") from None

    def _approval(self, context: Context) -> Approval:
        from airflow_provider_geminiimg.core.purchase.approval import Approval
        from airflow_provider_geminiimg.runtime.task_run import TaskRun

        attempt = TaskRun(context, self.log)
        return Approval(attempt.ledger, attempt.files, attempt.item, str(context["ti"].id))

    def _show(self, shown: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Put the images into the request. Returns their manifests by label."""
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
        """Airflow keeps the request of an earlier try, and would show that one and let its people answer."""
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
                "The images are others than those that this task showed before, and Airflow goes on showing those.",
                hint=_DELETE_THE_REQUEST,
            )
        asked = (request.defaults or None, bool(request.multiple), _ids(request.assigned_users or []))
        if asked != (self.defaults or None, self.multiple, _ids(self.assigned_users or [])):
            raise BadRequestError(
                "The DAG's assigned_users, defaults or choose are others than when this task asked before, and Airflow "
                "goes on with those of then.",
                hint=_DELETE_THE_REQUEST,
            )

    def _check_answer(self, event: dict[str, Any], until: float | None) -> None:
        problem = self._problem_of_choice(event["chosen_options"]) or self._problem_of_responder(event, until)
        if problem:
            raise _unfit(problem)

    def _problem_of_choice(self, chosen: Sequence[str]) -> str | None:
        unknown = set(chosen) - set(self.options)
        return (
            "holds something that nobody could choose" if unknown
            else "is empty" if not chosen
            else "holds more than one choice" if len(set(chosen)) > 1 and not self.multiple
            else "rejects the images, and chooses some" if len(set(chosen)) > 1 and self.REJECT in chosen
            else None
        )  # fmt: skip

    def _problem_of_responder(self, event: dict[str, Any], until: float | None) -> str | None:
        """What is wrong with who answered, or when. Airflow checks the first; this is for what gets past it."""
        responder = event.get("responded_by_user")
        if responder is None:
            by_default = self.response_timeout is not None and event["chosen_options"] == self.defaults
            return None if by_default else "came from nobody that Airflow knows"
        if until is not None and event["responded_at"].timestamp() > until:
            return f"came after response_timeout ({self.response_timeout})"
        assigned = _ids(self.assigned_users or [])
        if assigned and not _ids([responder]) <= assigned and not everybody_is_admin():
            return "came from somebody who is not in assigned_users"
        return None

    def _rejected(self, context: Context) -> list[dict[str, Any]]:
        said = f"Rejected. What the person wrote is in the XCom {COMMENT!r} of this task."
        if self.on_reject == "fail":
            raise AirflowFailException(f"{said} Clear this task, and it asks again.")
        self.log.info(said)
        if self.on_reject == "skip":
            after = context["task"].get_direct_relatives(upstream=False)
            self.skip(ti=context["ti"], tasks=[task for task in after if not task.is_teardown])
        return []


def _unfit(problem: str) -> BadRequestError:
    hint = "Clear this task, and it asks again; so does a retry."
    return BadRequestError(f"The answer {problem}.", billed=Billed.NO, hint=hint)


def _ids(users: Sequence[Any]) -> set[str]:
    return {str(user["id"] if isinstance(user, Mapping) else user.id) for user in users}
