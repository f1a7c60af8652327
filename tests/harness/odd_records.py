"""Records that nobody can show, add up or send: what whoever can write the root may leave there.

What must stay true: all but one value is what a record of a landed image holds, so that it is the value that is odd.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace

from airflow_provider_geminiimg.core.ledger.layout import Item, record_key
from airflow_provider_geminiimg.core.ledger.record import Record
from airflow_provider_geminiimg.core.storage import Store
from tests.harness.records import ITEM, landed

_HERE = "<here>"
_IMAGE = '"images": [{"uri": "file:///p.png", "sha256": "0"}]'

ODD_VALUES: Mapping[str, tuple[str, str]] = {
    # what is odd: (the field, the JSON that stands there)
    "a cost that is a number": ("cost", "7"),
    "a cost that is a list": ("cost", "[]"),
    "a cost of NaN": ("cost", '{"amount": NaN, "currency": "USD", "basis": "gateway"}'),
    "a cost of 1e400": ("cost", '{"amount": 1e400, "currency": "USD", "basis": "gateway"}'),
    "a cost of 400 digits": ("cost", f'{{"amount": {"9" * 400}, "currency": "USD", "basis": "gateway"}}'),
    "a cost of 5000 digits": ("cost", f'{{"amount": {"9" * 5000}, "currency": "USD", "basis": "gateway"}}'),
    "a cost in words": ("cost", '{"amount": "much", "currency": "USD", "basis": "gateway"}'),
    "a cost without a currency": ("cost", '{"amount": 1.0}'),
    "a cost in a list of currencies": ("cost", '{"amount": 1.0, "currency": ["USD"], "basis": "gateway"}'),
    "a manifest that is a number": ("manifest", "7"),
    "a manifest that is a list": ("manifest", '[{"uri": "x", "sha256": "y"}]'),
    "images that are a number": ("manifest", '{"images": 7}'),
    "images that are numbers": ("manifest", '{"images": [7]}'),
    "an image without an address": ("manifest", '{"images": [{"sha256": "0"}]}'),
    "an address that is a list": ("manifest", '{"images": [{"uri": ["x"], "sha256": "0"}]}'),
    "a width in words": ("manifest", '{"images": [{"uri": "x", "sha256": "0", "width": "wide"}]}'),
    "a mismatch that is a list": ("manifest", f'{{{_IMAGE}, "mismatch": [1]}}'),
    "a manifest's cost that is a text": ("manifest", f'{{{_IMAGE}, "cost": "much"}}'),
    "a manifest's cost of minus infinity": ("manifest", f'{{{_IMAGE}, "cost": {{"amount": -Infinity}}}}'),
    "a time out of range": ("submitted_at", "1e18"),
    "a time before all times": ("submitted_at", "-1e18"),
    "a time that is none": ("landed_at", '"nan"'),
    "a time of 1e400": ("landed_at", "1e400"),
    "a naive time": ("submitted_at", '"2026-01-01T00:00:00"'),
    "the year 10000": ("landed_at", "253402300800"),
    "a claim out of range": ("claimed_at", "1e300"),
    "a deadline that is no number": ("answer_within", '"NaN"'),
    "a model that is a list": ("model", '["gemini"]'),
    "half a character": ("model", '"\\ud800"'),
    "half a character in a name": ("request_fields", '{"\\udc00": 1}'),
    "half a character in an address": ("manifest", '{"images": [{"uri": "s3://b/\\udfff", "sha256": "0"}]}'),
    "a job that is an object": ("job_id", '{"id": 1}'),
    "a status that is none": ("state", '"done"'),
    "a status in capitals": ("state", '"LANDED"'),
    "a status that is null": ("state", "null"),
    "an outcome that is a list": ("outcome", "[]"),
    "an outcome that is billed perhaps": ("outcome", '{"kind": "storage", "billed": "perhaps"}'),
    "an outcome with a list for a message": ("outcome", '{"kind": "storage", "billed": "no", "message": ["x"]}'),
    "an outcome to retry after NaN": ("outcome", '{"kind": "storage", "billed": "no", "retry_after": NaN}'),
    "a nesting of 100": ("request_fields", '{"a": ' * 100 + "1" + "}" * 100),
    "a nesting of 100,000": ("request_fields", "[" * 100_000 + "]" * 100_000),
    "a ratio that is a number": ("request_fields", '{"aspect_ratio": 1.5}'),
    "an input without an address": ("inputs", "[{}]"),
    "an input that is a text": ("inputs", '["s3://b/k"]'),
    "a copy that is a number": ("copies", "[7]"),
    "a copy of nothing": ("copies", '[{"destination": {"directory": "x", "stem": "y"}, "manifest": {}}]'),
    "another number": ("n", "7"),
    "a number below 1": ("n", "-4"),
    "a text of 5 MB": ("prompt", f'"{"x" * 5_000_000}"'),
    "another record's key": ("key", f'"{record_key(replace(ITEM, task_id="other"), 1)}"'),
    "a schema of later": ("schema", "2"),
    "a schema that is a list": ("schema", "[1]"),
}
ODD_BYTES: Mapping[str, bytes] = {
    "nothing": b"",
    "null": b"null",
    "no JSON": b"{",
    "brackets alone": b"[" * 100_000,
    "no text": b"\xff\xfe\xff",
    "a list": b"[1]",
}
ODD = (*ODD_VALUES, *ODD_BYTES)


def odd_record(what: str, record: Record) -> bytes:
    """A record, but for what is odd about it."""
    if what in ODD_BYTES:
        return ODD_BYTES[what]
    name, value = ODD_VALUES[what]
    return json.dumps({**asdict(record), name: _HERE}).replace(json.dumps(_HERE), value).encode()


def put_odd(store: Store, what: str, item: Item) -> str:
    """Write an odd record where the first record of an item lies; its key."""
    key = record_key(item, 1)
    assert store.create(key, odd_record(what, landed(item)))
    return key


def put_all(store: Store) -> dict[str, str]:
    """Write each of them as a task of its own of one run; their keys."""
    return {what: put_odd(store, what, replace(ITEM, task_id=f"odd-{at:02}")) for at, what in enumerate(ODD)}
