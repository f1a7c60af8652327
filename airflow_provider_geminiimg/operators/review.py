"""Asks a person which pictures may go on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from airflow.providers.common.compat.sdk import AirflowFailException, SkipMixin
from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import Param

from airflow_provider_geminiimg._compat import shown_request
from airflow_provider_geminiimg.arguments import choice
from airflow_provider_geminiimg.exceptions import BadRequestError, Billed, GeminiImageError
from airflow_provider_geminiimg.operators._shared import RefusesNothing
from airflow_provider_geminiimg.outcome import raise_outcome

if TYPE_CHECKING:
    from airflow.sdk import Context

Choose = Literal["all", "one", "several"]
OnReject = Literal["skip", "fail", "continue"]

COMMENT = "comment"
_SHOWN = "shown"


class GeminiImageReviewOperator(RefusesNothing, HITLOperator, SkipMixin):
    """Show pictures to a person, who approves, rejects or picks some, and may leave a comment. Buys nothing.

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
    :raises AirflowFailException: `images` is no manifest, Airflow shows the pictures of an earlier try, or a rejection
        with `on_reject` ``"fail"``.
    :raises BadRequestError: the answer makes no sense. A retry asks again.
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
        self.choose = choice("choose", choose, Choose)
        self.on_reject = choice("on_reject", on_reject, OnReject)
        super().__init__(options=self._options([]), multiple=choose == "several", **kwargs)
        # Null is allowed, because Airflow takes no answer, not even a rejection, without a text that it requires.
        self.params[COMMENT] = Param(None, type=["null", "string"], title="Comment")
        self.images = images

    def execute(self, context: Context) -> Any:
        """Show the pictures, and wait for a person."""
        try:
            self._refuse_unrendered()
            shown = self._show(self.images, "images")
            self._refuse_nothing()
            self._refuse_older(context)
        except GeminiImageError as error:
            raise_outcome(error)
        context["ti"].xcom_push(key=_SHOWN, value=list(shown.values()))
        return super().execute(context)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Return what was chosen of the pictures that were shown: `images` may have changed since.

        :param event: Airflow's: the answer, or what kept it from coming.
        """
        ti = context["ti"]
        try:
            shown = self._show(ti.xcom_pull(task_ids=self.task_id, key=_SHOWN, map_indexes=ti.map_index), _SHOWN)
        except GeminiImageError as error:
            raise_outcome(error)
        if "error" not in event:
            self._check_answer(event["chosen_options"])
        answer = super().execute_complete(context, event)
        comment = answer["params_input"].get(COMMENT)
        # Never null, which Airflow takes for an XCom that is not there.
        ti.xcom_push(key=COMMENT, value=comment.strip() if isinstance(comment, str) else "")
        chosen = answer["chosen_options"]
        if self.REJECT in chosen:
            return self._rejected(context)
        return [each for label, each in shown.items() if {label, self.APPROVE} & set(chosen)]

    def _show(self, images: Any, name: str) -> dict[str, dict[str, Any]]:
        """Put the pictures into the request. Returns their manifests by label."""
        from airflow_provider_geminiimg.review import labels, manifests, review_markdown

        shown = manifests(images, name)
        named = dict(zip(labels(shown), shown, strict=True))
        self.options = self._options(list(named))
        self.body = review_markdown(shown)
        return named

    def _options(self, names: list[str]) -> list[str]:
        return [self.APPROVE, self.REJECT] if self.choose == "all" else [*names, self.REJECT]

    def _refuse_older(self, context: Context) -> None:
        """Airflow keeps the request of an earlier try, and would show its pictures for those that came since."""
        if context["ti"].try_number == 1:
            return
        request = shown_request(
            ti_id=context["ti"].id,
            options=self.options,
            subject=self.subject,
            body=self.body,
            defaults=self.defaults,
            multiple=self.multiple,
            params=self.serialized_params,
            assigned_users=self.assigned_users or [],
        )
        if (request.options, request.body) != (self.options, self.body):
            raise BadRequestError(
                "The pictures are others than those that this task showed before, and Airflow goes on showing those.",
                hint="Delete this task instance, then clear a task before it and all downstream, with 'Run with latest "
                "bundle version': the request is then made anew. What was paid for is not bought again.",
            )

    def _check_answer(self, chosen: Sequence[str]) -> None:
        unknown = set(chosen) - set(self.options)
        problem = (
            "holds something that nobody could choose" if unknown
            else "is empty" if not chosen
            else "holds more than one choice" if len(set(chosen)) > 1 and not self.multiple
            else "rejects the pictures, and chooses some" if len(set(chosen)) > 1 and self.REJECT in chosen
            else None
        )  # fmt: skip
        if problem:
            raise BadRequestError(
                f"The answer {problem}.", billed=Billed.NO, hint="Clear this task, and it asks again; so does a retry."
            )

    def _rejected(self, context: Context) -> list[dict[str, Any]]:
        said = f"Rejected. What the person wrote is in the XCom {COMMENT!r} of this task."
        if self.on_reject == "fail":
            raise AirflowFailException(f"{said} Clear this task, and it asks again.")
        self.log.info(said)
        if self.on_reject == "skip":
            after = context["task"].get_direct_relatives(upstream=False)
            self.skip(ti=context["ti"], tasks=[task for task in after if not task.is_teardown])
        return []
