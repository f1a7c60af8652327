"""One record: its fields, and how it is read and written.

Invariants: a record that cannot be read, or that a newer version wrote, is an error that names it. Code that uses a
`Record` needs no further checks of its values (`record_values`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from airflow_provider_geminiimg.core.ledger.record_values import (
    UNREADABLE,
    Seconds,
    UnixTime,
    is_copy,
    is_cost,
    is_manifest,
    is_request,
    parsed,
    sane_cost,
    with_sane_cost,
)
from airflow_provider_geminiimg.exceptions import Billed, GeminiImageError, LedgerError, from_dict

SCHEMA = 1

State = Literal["intent", "submitted", "answered", "landed", "failed"]


@dataclass(frozen=True)
class Destination:
    """The destination of an image: a directory URI, and a file name without its extension."""

    directory: str
    stem: str


@dataclass(frozen=True)
class Record:
    """One submission that may have cost money.

    :param key: key of the record, relative to the root.
    :param n: number of the submission within its item, from 1.
    :param claim: random; identifies the attempt that created the record.
    :param generation: ``ti.max_tries`` when it was claimed or landed. A larger value later means a Clear.
    :param answer_within: seconds from the record's last write until the answer is overdue (read timeout + 60).
    :param wire_model: the id that was sent for `model`; a poll needs it.
    :param request_fields: the gateway-neutral request fields, without the prompt.
    :param inputs: address (without query) and SHA-256 of each input image.
    :param destination: the requested destination.
    :param suffix: added to the file name if an earlier image of the same item has, or may still get, the name.
    :param resubmission: paid again after an unknown outcome, in this generation.
    :param links: result links, only while ``answered``.
    :param spooled: keys of inline results under the root, only while ``answered``.
    :param extra_jobs: further jobs that another concurrent attempt paid for.
    :param outcome: the last error, from `GeminiImageError.to_dict`.
    :param manifest: the stored images.
    :param copies: manifests of copies that a Clear with another destination requested.
    :param asked: the last requested destination; ``None`` if there is only one, or in records of earlier versions.
    :param reused_from: key of another task's record whose image was copied; nothing was paid for this record.
    :param copied_from: keys of the records that the image of `reused_from` was copied from, nearest first. Any of them
        may have been removed.
    :param told: token of the task state store that has the claim of this record; ``None`` if Airflow has no such store,
        or in records of earlier versions.
    :param regenerate: paid because a Clear requested a new image in place of a stored one, in this generation.
    :param decided_by: number of the older record that a Clear of this generation returned to; ``None`` if this record
        decides.
    :param api_host: host of the base URL that the request was sent to; ``None`` if unknown, then nothing is compared.
    :param key_digest: `GatewayConnection.key_digest` of the API key; ``None`` if unknown, then nothing is compared.
    :param buy_again: a person decided that the next attempt pays once, whether or not this submission was charged.
    """

    key: str
    n: int
    state: State
    claim: str
    generation: int
    host: str
    pid: int
    claimed_at: UnixTime
    answer_within: Seconds
    conn_id: str
    gateway: str
    model: str
    wire_model: str
    operation: str
    fingerprint: str
    request_fields: dict[str, Any]
    prompt_sha256: str
    inputs: list[dict[str, str]]
    destination: Destination
    cost: dict[str, Any]
    expected_seconds: Seconds
    schema: int = SCHEMA
    suffix: str = ""
    prompt: str | None = field(default=None, repr=False)
    resubmission: bool = False
    job_id: str | None = None
    submitted_at: UnixTime | None = None
    landed_at: UnixTime | None = None
    deferrals: int = 0
    links: list[str] = field(default_factory=list, repr=False)
    spooled: list[str] = field(default_factory=list)
    extra_jobs: list[str] = field(default_factory=list)
    outcome: dict[str, Any] | None = None
    manifest: dict[str, Any] | None = None
    copies: list[dict[str, Any]] = field(default_factory=list)
    asked: Destination | None = None
    reused_from: str | None = None
    copied_from: list[str] = field(default_factory=list)
    told: str | None = None
    regenerate: bool = False
    decided_by: int | None = None
    api_host: str | None = None
    key_digest: str | None = None
    buy_again: bool = False

    @property
    def error(self) -> GeminiImageError | None:
        """The last error, if any."""
        return None if self.outcome is None else from_dict(self.outcome)

    @property
    def billed(self) -> Billed:
        """Whether money was spent, according to the record."""
        if self.error is not None:
            return self.error.billed
        if self.reused_from is not None:
            return Billed.NO
        return Billed.UNKNOWN if self.state == "intent" else Billed.YES


_RECORD: TypeAdapter[Record] = TypeAdapter(Record)


def parse_record(uri: str, key: str, data: bytes) -> Record:
    """Read a record.

    :param uri: of the root, for errors.
    :param key: where it is stored.
    :raises LedgerError: it cannot be read, or a newer version of this package wrote it.
    """
    where = f"Record {key} under {uri}"
    values = parsed(where, data)
    schema = values.get("schema") if isinstance(values, Mapping) else None
    if not isinstance(schema, int) or isinstance(schema, bool) or schema > SCHEMA:
        raise LedgerError(
            f"{where} has schema {schema!r:.40}; this version reads up to {SCHEMA}.",
            hint="Nothing was sent. Run the version of airflow-provider-geminiimg that wrote it.",
        )
    try:
        record = _RECORD.validate_python(values)
    except ValidationError as error:
        raise _no_record(where, {str(each["loc"][0]) for each in error.errors(include_input=False)}) from None
    if wrong := _wrong_fields(record):
        raise _no_record(where, wrong)
    if record.state == "landed" and record.manifest is None:
        raise LedgerError(f"{where} has the state landed, but contains no image.", hint=UNREADABLE)
    if record.key != key or not key.endswith(f"/{record.n}.json"):
        raise LedgerError(f"{where} contains the key or number of another record.", hint=UNREADABLE)
    return _with_sane_costs(record)


def dump_record(record: Record) -> bytes:
    """Return what is stored of a record."""
    return _RECORD.dump_json(record)


def with_error(record: Record, error: GeminiImageError, state: State | None = None) -> Record:
    """Return `record` with an error, and optionally in another state."""
    return replace(record, outcome=error.to_dict(), state=state or record.state)


def _with_sane_costs(record: Record) -> Record:
    """Return the record without implausible amounts, which earlier versions accepted from gateways."""
    manifest = None if record.manifest is None else with_sane_cost(record.manifest)
    copies = [{**copy, "manifest": with_sane_cost(copy["manifest"])} for copy in record.copies]
    return replace(record, cost=sane_cost(record.cost), manifest=manifest, copies=copies)


def _wrong_fields(record: Record) -> set[str]:
    """Return the names of fields with invalid values."""
    fits = {
        "outcome": _is_outcome(record),
        "inputs": all({"uri", "sha256"} <= each.keys() for each in record.inputs),
        "cost": is_cost(record.cost),
        "request_fields": is_request(record.request_fields),
        "manifest": record.manifest is None or is_manifest(record.manifest),
        "copies": all(map(is_copy, record.copies)),
    }
    return {name for name, fit in fits.items() if not fit}


def _is_outcome(record: Record) -> bool:
    try:
        _ = record.error
    except (TypeError, ValueError):
        return False
    return True


def _no_record(where: str, fields: Collection[str]) -> LedgerError:
    return LedgerError(f"{where} has invalid fields: {', '.join(sorted(fields))}.", hint=UNREADABLE)
