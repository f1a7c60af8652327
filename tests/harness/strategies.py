"""Hypothesis strategies: what a gateway, a host of images, a disk or a user may come up with.

What must stay true: nothing is left out because it could not happen. What is likely to be misread is made more often.
"""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st
from pydantic import TypeAdapter

from airflow_provider_geminiimg.core.ledger.record import Record
from airflow_provider_geminiimg.exceptions import KINDS
from tests.harness.attacks import image_bytes
from tests.harness.decided import (
    NUMBERS,
    Decider,
    Make,
    decided,
    documents,
    just,
    lists,
    mappings,
    one_of,
    sampled,
    scalars,
    some_of,
    texts,
    tuples,
)
from tests.harness.records import make_record

SECRET = "sk-fuzz/0123456789+abcdef=="
PROMPT = "a red fox in the snow, as a woodcut"
KEY = "development/images/2025_01_15_city.png"
LINK = "https://apimaster.ai/imgs/1782633695067198543.jpg"
SIGNED = f"https://s3.amazonaws.com/{KEY}?X-Amz-Date=20250115T105045Z&X-Amz-Expires=604800&X-Amz-Signature=abc"

# What gateways say

_WORDS = [
    *("SUCCESS", "FAILURE", "PROCESSING", "succeeded", "failed", "in_progress", "submitted", "task_not_exist"),
    *("moderation_blocked", "SAFETY", "insufficient_user_quota", "INSUFFICIENT_CREDITS", "bad_response"),
    *(
        KEY,
        LINK,
        SIGNED,
        "data:image/png;base64,AA==",
        "data:;base64,?",
        "DATA:,",
        "task_01K8SGYNNNVBQTXNR4MM964S7K",
    ),
    *(
        "http://[::1",
        "https://h:99999/x",
        "https://①/",
        "https://a\\@b/",
        "//x",
        "..",
        "\ud800",
        "\0",
        "a\nb",
        "9" * 400,
    ),
    *(
        '{"error": {"code": 1}}',
        '{"error": "' * 20,
        "[" * 2_000,
        '"finish_reason": "SAFETY"',
        f"key {SECRET}",
        PROMPT,
    ),
    *("request id: 20250115204512", "1e400", "-1", "50%", "nan", " "),
]
_SCALARS = scalars(_WORDS)
_NAMES = sampled(
    [
        *(
            "aiRecord",
            "aiRecordDetail",
            "uuid",
            "status",
            "resultObject",
            "responseObject",
            "temporaryUrl",
            "errorMessage",
        ),
        *("error", "errorCode", "code", "message", "details", "type", "param", "reason", "finishReason"),
        *("data", "task_id", "id", "result", "images", "image", "output", "url", "urls", "b64_json", "key", "path"),
        *("progress", "cost", "expires_at", "fileContent", "asset", "models", "teamUser"),
    ]
)
_VALUES = documents(_SCALARS, _NAMES)
JSON = decided(_VALUES)
_OBJECTS = mappings(_NAMES, _VALUES, 5)
_PIECES = [
    *("", " ", "\n", ", ", ":", ".", "<", ">", "result: ", "![a fox](", "[", "](", ")", '<img src="', '">', "a fox"),
    *(LINK, SIGNED, "//h.test/a.webp", "https://h.test/p?x=1&amp;y=2", "data:image/png;base64,AAAA", KEY, "A" * 64),
]
_CONTENT = one_of(*[lambda by: "".join(lists(sampled(_PIECES), 6)(by))] * 2, _VALUES)
_STATUS = one_of(*[sampled(["SUCCESS", "FAILURE", "PROCESSING", "succeeded", "failed", "in_progress"])] * 3, _VALUES)
_IDS = one_of(*[sampled(["job-1", "task_01K8SGYNNNVBQTXNR4MM964S7K"])] * 2, _VALUES)
_IMAGE = one_of(_CONTENT, some_of({"url": _CONTENT, "b64_json": _CONTENT, "expires_at": _SCALARS}))
_TASK = some_of(
    {
        "task_id": _IDS,
        "id": _IDS,
        "status": _STATUS,
        "result": one_of(lambda by: {"images": lists(_IMAGE, 2)(by)}, _CONTENT),
        "cost": _SCALARS,
        "progress": _SCALARS,
        "error": _VALUES,
    }
)
_JOB = some_of(
    {
        "uuid": _IDS,
        "status": _STATUS,
        "aiRecordDetail": some_of({"resultObject": one_of(lists(_CONTENT, 2), _CONTENT), "responseObject": _CONTENT}),
        "temporaryUrl": _CONTENT,
        "errorMessage": _VALUES,
    }
)
_ANSWERS = some_of(
    {
        "aiRecord": one_of(just(None), *[_JOB] * 3, _OBJECTS),
        "temporaryUrl": _CONTENT,
        "data": one_of(*[_TASK] * 3, lists(one_of(_TASK, _IMAGE), 2), _OBJECTS),
        "code": _VALUES,
        "error": _VALUES,
        "message": _VALUES,
        "asset": _OBJECTS,
        "fileContent": _OBJECTS,
    }
)


def written(make: Make) -> st.SearchStrategy[bytes]:
    return decided(lambda by: json.dumps(make(by)).encode())


_WRITTEN = written(one_of(_VALUES, _ANSWERS, _ANSWERS))
BODIES = st.one_of(
    st.binary(max_size=60),
    _WRITTEN,
    st.builds(lambda body, at: body[:at], _WRITTEN, st.integers(0, 60)),
    st.builds(
        lambda open_, times: open_ * times,
        st.sampled_from([b"[", b'{"data":', b'{"aiRecord":', b"<"]),
        st.integers(1, 9_999),
    ),
)
STATUSES = st.one_of(
    st.just(200), st.sampled_from([400, 401, 403, 404, 408, 429, 500, 502, 503, 522]), st.integers(100, 999)
)
_HEADER_NAMES = sampled(
    [
        b"Retry-After",
        b"Date",
        b"Content-Type",
        b"X-Request-Id",
        b"X-Oneapi-Request-Id",
        b"Location",
        b"Set-Cookie",
        b"Link",
    ]
)
_HEADER_VALUES = one_of(
    lambda by: bytes(byte for byte in by.bytes(by.below(13)) if byte not in b"\r\n\0"),
    sampled(
        [
            b"1e999",
            b"0",
            b"-5",
            b"Wed, 21 Oct 9999 07:28:00 -2359",
            b"Wed, 99 Oct 2026",
            b"text/html",
            b"application/json",
        ]
    ),
    sampled([b"https:x", b"data:,x", b"//", b"https://[half/", b"/next", b"a=b; Domain=.", b"a=" + b"x" * 5_000]),
)
HEADERS = decided(lists(tuples(_HEADER_NAMES, _HEADER_VALUES), 4), 64)

# What comes over the wire

_LINES = st.one_of(
    st.builds(lambda status, why: b"HTTP/1.1 %d %b" % (status, why), STATUSES, st.binary(max_size=6)),
    st.sampled_from([b"HTTP/1.0 200", b"HTTP/1.1 200 OK", b"HTTP/2 200", b"HTTP/1.1 2000 OK", b"SSH-2.0-x", b""]),
    st.binary(max_size=20),
)
_TRANSFER = st.sampled_from(
    [
        b"Content-Encoding: gzip",
        b"Content-Encoding: identity",
        b"Content-Encoding: br, gzip",
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: gzip, chunked",
        b"Content-Length: 5",
        b"Content-Length: 18446744073709551616",
        b"Content-Length: -1",
        b"Content-Length: " + b"9" * 5_000,
        b"Connection: close",
        b"Connection: upgrade\r\nUpgrade: websocket",
        b"X: " + b"x" * 200_000,
    ]
)
LENGTHS = st.sampled_from(["right", "none", "short"])
_CHUNKS = st.sampled_from([b"", b"5\r\nhello\r\n0\r\n\r\n", b"zz\r\n", b"ffffffffffffffffffff\r\nx", b"0\r\n\r\n"])


def response(
    line: bytes, headers: list[tuple[bytes, bytes]], more: list[bytes], length: str, body: bytes, chunks: bytes
) -> bytes:
    head = [line, *(b"%b: %b" % pair for pair in headers), *more]
    if length != "none":
        head.append(b"Content-Length: %d" % (len(body) + (7 if length == "short" else 0)))
    return b"\r\n".join(head) + b"\r\n\r\n" + chunks + body


WIRE_ANSWERS = st.one_of(
    st.binary(max_size=200),
    st.builds(response, _LINES, HEADERS, st.lists(_TRANSFER, max_size=2), LENGTHS, BODIES, _CHUNKS),
    st.builds(response, st.just(b"HTTP/1.1 200 OK"), HEADERS, st.just([]), st.just("right"), BODIES, st.just(b"")),
)

IMAGES = {kind: image_bytes((9, 7), kind) for kind in ("PNG", "JPEG", "WEBP")}


def mutated(data: bytes, at: int, cut: int, inserted: bytes) -> bytes:
    at %= len(data)
    return data[:at] + inserted + data[at + cut :]


BYTES = st.one_of(
    st.binary(max_size=80),
    st.builds(
        lambda magic, rest: magic + rest,
        st.sampled_from([data[:n] for data in IMAGES.values() for n in (2, 4, 8, 16, 33)]),
        st.binary(max_size=80),
    ),
    st.builds(
        mutated,
        st.sampled_from(list(IMAGES.values())),
        st.integers(0, 1_000),
        st.integers(0, 60),
        st.binary(max_size=12),
    ),
)

# What lies in the ledger

RECORD: TypeAdapter[Record] = TypeAdapter(Record)
_BILLED = ["no", "yes", "unknown"]
_ODDLY_SAID = mappings(
    one_of(
        *[sampled(["kind", "message", "billed", "retryable", "hint", "code", "status_code", "retry_after", "new"])] * 7,
        texts(10),
    ),
    one_of(_VALUES, sampled([*KINDS, *_BILLED])),
    8,
)


def _said(by: Decider) -> dict[str, Any]:
    return {"kind": by.one([*KINDS]), "message": texts(12)(by), "billed": by.one(_BILLED)}


_ANY_SAID = one_of(_ODDLY_SAID, _said)
OUTCOMES = decided(_ANY_SAID)
_HELD = one_of(*[just("s3://b/k")] * 3, _VALUES)
_IMAGES = lists(some_of({"uri": _HELD, "sha256": _HELD, "width": _SCALARS, "size": _SCALARS}), 2)
_MANIFESTS = one_of(_VALUES, lambda by: {"images": one_of(_IMAGES, _VALUES)(by)})
_COPIES = lists(one_of(_OBJECTS, lambda by: {"destination": _VALUES(by), "manifest": _MANIFESTS(by)}), 2)
_STATES = sampled(["intent", "submitted", "answered", "landed", "failed"])
_FIELDS: dict[str, Any] = json.loads(RECORD.dump_json(make_record(claim="c", job_id="job-1", submitted_at=1.0)))
_FLAG = sampled([False, True])
_CHANGED = one_of(
    mappings(sampled(list(_FIELDS)), _VALUES, 2),
    some_of({"outcome": one_of(_ANY_SAID, _VALUES), "manifest": _MANIFESTS, "copies": _COPIES}),
    some_of({"outcome": _said, "claimed_at": NUMBERS, "generation": sampled([0, 1, 2])}),
    some_of({"outcome": _said, "resubmission": _FLAG, "regenerate": _FLAG, "buy_again": _FLAG}),
)
_IN_PLACE = {"images": [{"uri": "s3://b/k", "sha256": "0" * 64}]}


def _record(by: Decider) -> dict[str, Any]:
    return {**_FIELDS, "state": _STATES(by), "manifest": _IN_PLACE, **_CHANGED(by)}


RECORDS = st.one_of(BODIES, *[written(_record) for _ in range(5)])  # made five times, as what is the same counts once

# What is said, and what is written in addresses

KEYS = st.text("abcdefXYZ0189-_./+=&%\"'\\", min_size=8, max_size=40)
TEXTS = st.one_of(st.text(max_size=200), st.sampled_from(_WORDS))

ADDRESSES = st.one_of(
    st.text(max_size=40),
    st.builds(
        lambda scheme, rest: f"{scheme}{rest}",
        st.sampled_from(
            ["s3://", "s3://conn@", "file://", "https://", "HTTPS://", "/", "gs://", "data:", "https://a@", "::"]
        ),
        st.text("ab/.%2eE@:?#\\[]\0\n狐 ", max_size=20),
    ),
)

# What users write: rows and connections

_CELLS = one_of(_SCALARS, sampled(["16:9", "1K", "4K", "{sku}", "{prompt}", "{a|b}", "unset", "nan", "s3://b/k"]))
_COLUMNS = one_of(
    sampled(
        [
            *("prompt", "Prompt ", "aspect_ratio", "resolution", "model", "variant", "n", "image", "image_2", "sku"),
            *("reference_images", "reference image 1", "temperature", "top_p", "google_search", "file_name", "", "{x}"),
        ]
    ),
    texts(12),
)
_ROW = one_of(*[mappings(_COLUMNS, one_of(_CELLS, _CELLS, _VALUES), 5)] * 3, _CELLS, _VALUES)
_TABLES = one_of(*[lists(_ROW, 4)] * 3, _VALUES)
ROWS = decided(_TABLES)
_CELL = one_of(_COLUMNS, lambda by: str(_CELLS(by)), sampled(['"', '""', '"a', "sep=;"]))


def _separated(by: Decider) -> bytes:
    separator, end = by.one([",", ";", "\t", "|", "^"]), by.one(["\n", "\r\n", "\r", "\u2028"])
    encoding = by.one(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252", "mac_roman"])
    width = by.below(6)
    rows = [[_COLUMNS(by) for _ in range(width)], *lists(lists(_CELL, 5), 4)(by)]
    return end.join(separator.join(row) for row in rows).encode(encoding, "replace")


def _lines(by: Decider) -> bytes:
    return b"\n".join(json.dumps(each).encode() for each in lists(_ROW, 4)(by))


ROW_FILES = st.one_of(BODIES, *[decided(_separated) for _ in range(3)], written(_TABLES), decided(_lines))
TEMPLATES = st.one_of(
    st.none(), st.text(max_size=20), st.sampled_from(["{sku}", "{prompt}-{n}", "{", "../{sku}", "{a}/{b}"])
)
HOSTS = st.one_of(
    st.none(),
    st.text(max_size=30),
    st.builds(
        lambda scheme, name, rest: f"{scheme}{name}{rest}",
        st.sampled_from(["", "http://", "https://", "HTTPS://", "ftp://", "//", "https:", "https:\\\\", "s3://"]),
        st.sampled_from(
            [
                *(
                    "xn--0",
                    "xn--",
                    "a" * 64 + ".test",
                    "a." * 130,
                    "127.0.0.1",
                    "[::1]",
                    "[::1",
                    "[fe80::1%25eth0]",
                    "①②③",
                ),
                *(
                    "localhost",
                    "user:pass@h",
                    "h@",
                    "0x7f.1",
                    "-",
                    ".",
                    "..",
                    "a b",
                    "h\0",
                    "狐.test",
                    "\ud800",
                    "ß",
                    "h:",
                ),
            ]
        ),
        st.one_of(
            st.just(""), st.sampled_from([":99999", ":-1", ":0", ":443/v1", "/v1?x=1", "#f", "/..", "/%00", "/\n"])
        ),
    ),
)
_SETTINGS = (
    *("model", "requests_per_minute", "max_concurrency", "price_base", "price_currency", "daily_budget", "run_budget"),
    *("prices", "shared_limits", "allow_http", "unknown"),
)
_SETTING = one_of(_VALUES, sampled(["1", "1e400", "9" * 400, "-1", "true", "nan", "USD", "gemini-3-pro-image"]))
_GATEWAYS = one_of(just("1min"), just("apimaster"), just("1min"), _VALUES)
EXTRAS = decided(lambda by: {"gateway": _GATEWAYS(by), **some_of(dict.fromkeys(_SETTINGS, _SETTING))(by)})

# What lies under the root besides, and what a gallery is asked

DOCUMENTS = st.one_of(
    BODIES,
    written(
        mappings(
            sampled(
                [
                    *("version", "told", "generation", "directory", "items", "request", "currency", "spent", "leases"),
                    *("record", "claim", "item", "stem", "released"),
                ]
            ),
            one_of(_VALUES, just(1), mappings(texts(8), NUMBERS, 3)),
            8,
        )
    ),
)
_ITEM = {
    "row": 0,
    "operation": "generate",
    "values": {"prompt": "a fox"},
    "labels": {"sku": "A"},
    "fingerprint": "f" * 64,
    "input_sha256": [],
    "stem": "fox",
    "line": None,
    "host": None,
}
_PLAN = {"version": 1, "told": None, "generation": 0, "directory": "file:///pictures", "items": [_ITEM]}
_PLANNED = mappings(sampled(list(_ITEM)), one_of(_VALUES, mappings(texts(9), _VALUES, 2)), 2)
_WHOLE = one_of(just({}), mappings(sampled(list(_PLAN)), _VALUES, 1))
SAVED_PLANS = written(lambda by: {**_PLAN, "items": [{**_ITEM, **_PLANNED(by)}, _ITEM], **_WHOLE(by)})

_PARTS = one_of(
    lambda by: texts(12)(by).encode("utf-8", "replace").decode(),
    sampled(
        [
            "campaign",
            "manual__2026-01-01T00:00:00+00:00",
            "hero",
            "-1",
            "0",
            "1",
            "~",
            "..",
            "%2e%2e",
            "9" * 5_000,
            "\0",
        ]
    ),
)
_DAGS = one_of(just("campaign"), _PARTS)
_RUNS = one_of(just("manual__2026-01-01T00:00:00+00:00"), _PARTS)
GALLERY_PATHS = decided(
    one_of(
        lambda by: "/" + "/".join(lists(_PARTS, 9)(by)),
        lambda by: "/".join(["", by.one(["f", "thumbs"]), *[_PARTS(by) for _ in range(7)]]),
        lambda by: f"/api/dags/{_DAGS(by)}/runs/{_RUNS(by)}/{by.one(['images', 'summary', 'sources'])}",
        sampled(["/", "/static/0/main.js", "/static/..", "/api/dags"]),
    )
)
_QUERY_NAMES = sampled(
    [b"task_id", b"map_index", b"item", b"n", b"model", b"status", b"after", b"limit", b"dag_id", b"x"]
)
_QUERY_VALUES = one_of(
    lambda by: b"".join(b"%%%02x" % byte for byte in by.bytes(by.below(9))),
    lambda by: texts(10)(by).encode("utf-8", "surrogatepass"),
    sampled(
        [
            *(b"hero", b"-1", b"0", b"1", b"landed", b"9" * 5_000, b"%00", b"%ed%a0%80", b"1e400", b"nan", b"", b"%zz"),
            *(b"ledger/a/b/c/d/" + b"9" * 5_000 + b"/0/1.json", b"ledger/default/campaign/r/hero/-1/0/1.json"),
        ]
    ),
)
GALLERY_QUERIES = decided(
    lambda by: b"&".join(b"%b=%b" % pair for pair in lists(tuples(_QUERY_NAMES, _QUERY_VALUES), 5)(by))
)
