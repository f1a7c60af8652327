"""Permitted values of a record, so that code which displays, adds up or sends them needs no further checks.

Invariants: a permitted value can be written as JSON, shown as a date, printed and added up. All values that this
package writes are permitted. Unknown fields from later versions are permitted, too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from airflow_provider_geminiimg.core.redaction.ranges import AMOUNT
from airflow_provider_geminiimg.exceptions import LedgerError

MAX_BYTES = 4 << 20
"""Maximum size of a record. The largest ones contain sixteen links, and copies of one image in many places."""

MAX_NEW_BYTES = MAX_BYTES - (128 << 10)
"""Maximum size of a new record. Links and the manifest are added later, and must fit into `MAX_BYTES`."""

_MAX_DEPTH = 32
_MAX_NUMBER = 1 << 63

UNREADABLE = (
    "Nothing was sent. Restore the record; or check the gateway's console for the payment, and make the image in a "
    "DAG run with a new run id."
)
"""What to do about a record that can't be read."""

UnixTime = Annotated[float, Field(ge=0, le=253_402_300_799, allow_inf_nan=False)]
"""Seconds since 1970, up to the last year that `datetime` supports."""
Seconds = Annotated[float, Field(ge=0, le=10_000_000_000, allow_inf_nan=False)]

_Types = tuple[type, ...]
_TEXT: _Types = (str,)
_MAYBE_TEXT: _Types = (str, type(None))
_WHOLE: _Types = (int,)
_COST: Mapping[str, _Types] = {
    "amount": (int, float, type(None)),
    "currency": _MAYBE_TEXT,
    "basis": _MAYBE_TEXT,
    "estimate": (bool,),
}
_IMAGE: Mapping[str, _Types] = {
    **dict.fromkeys(("uri", "media_type", "sha256"), _TEXT),
    **dict.fromkeys(("width", "height"), (int, type(None))),
    "size": _WHOLE,
}
_REQUEST: Mapping[str, _Types] = dict.fromkeys(("resolution", "aspect_ratio"), _MAYBE_TEXT)
_MANIFEST: Mapping[str, _Types] = {
    **dict.fromkeys(("gateway", "model", "operation", "fingerprint", "record", "submitted_at", "landed_at"), _TEXT),
    **dict.fromkeys(("job_id", "mismatch"), _MAYBE_TEXT),
    "reused": (bool,),
    "requested": (dict,),
}


def parsed(where: str, data: bytes) -> Any:
    """Parse the JSON of a record.

    :param where: names the record in an error.
    :raises LedgerError: it is not JSON, or has values that are never permitted.
    """
    if len(data) > MAX_BYTES:
        raise LedgerError(f"{where} is not a record: it has more than {MAX_BYTES} bytes.", hint=UNREADABLE)
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        raise LedgerError(f"{where} is not JSON ({len(data)} bytes).", hint=UNREADABLE) from None
    if not is_plain(values):
        raise LedgerError(f"{where} contains an invalid number or text.", hint=UNREADABLE)
    return values


def is_plain(value: Any) -> bool:
    """Return whether parsed JSON can be displayed and written again.

    It contains no infinite or huge number, no lone surrogate, and no nesting deeper than `_MAX_DEPTH`.
    """
    rest = [(value, 0)]
    while rest:
        each, depth = rest.pop()
        if depth > _MAX_DEPTH or not _is_plain_value(each):
            return False
        if isinstance(each, dict):
            rest += [(inner, depth + 1) for pair in each.items() for inner in pair]
        elif isinstance(each, list):
            rest += [(inner, depth + 1) for inner in each]
    return True


def _is_plain_value(value: Any) -> bool:
    if isinstance(value, str):
        return value.isascii() or not any("\ud800" <= char <= "\udfff" for char in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, int) or abs(value) < _MAX_NUMBER


def is_cost(value: Any) -> bool:
    """Return whether a value has the form of `manifest.Cost`; an amount requires a currency."""
    if not _fits(value, _COST):
        return False
    return value.get("amount") is None or isinstance(value.get("currency"), str)


def with_sane_cost(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest without an implausible amount."""
    return {**manifest, **({"cost": sane_cost(manifest["cost"])} if "cost" in manifest else {})}


def sane_cost(cost: Mapping[str, Any]) -> dict[str, Any]:
    """Return a cost without an implausible amount."""
    known = cost.get("amount") is None or AMOUNT.of(cost["amount"]) is not None
    return dict(cost) if known else {**cost, "amount": None}


def is_request(value: Any) -> bool:
    """Return whether a value has the form of `CheckedRequest.fields`, for the fields that other code reads."""
    return _fits(value, _REQUEST)


def is_manifest(value: Any) -> bool:
    """Return whether a value has the form that `manifest.build` returns, with at least one image."""
    images = value.get("images") if isinstance(value, Mapping) else None
    if not isinstance(images, list) or not images or not _fits(value, _MANIFEST):
        return False
    named = all(_fits(image, _IMAGE) and {"uri", "sha256"} <= image.keys() for image in images)
    return named and is_cost(value.get("cost", {})) and is_request(value.get("requested", {}))


def is_copy(value: Any) -> bool:
    """Return whether a value has the form of an entry of `Record.copies`."""
    destination = value.get("destination") if isinstance(value, Mapping) else None
    if not isinstance(destination, Mapping) or destination.keys() != {"directory", "stem"}:
        return False
    return all(isinstance(text, str) for text in destination.values()) and is_manifest(value.get("manifest"))


def _fits(value: Any, shape: Mapping[str, _Types]) -> bool:
    """Return whether the fields that are present have the types of `shape`."""
    if not isinstance(value, Mapping):
        return False
    return all(_is(value[name], types) for name, types in shape.items() if name in value)


def _is(value: Any, types: _Types) -> bool:
    return isinstance(value, types) and (bool in types or not isinstance(value, bool))
