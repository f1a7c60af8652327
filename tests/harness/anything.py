"""Anything at all, as hypothesis strategies: what a gateway, a host of pictures, a disk or a user may come up with.

What must stay true: nothing is left out because it could not happen. What is likely to be misread is made more often.
"""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st
from pydantic import TypeAdapter

from airflow_provider_geminiimg.exceptions import KINDS
from airflow_provider_geminiimg.ledger import Record
from harness.attacks import picture
from harness.odd_records import ODD, odd_record
from harness.records import landed, make_record

SECRET = "sk-fuzz/0123456789+abcdef=="
PROMPT = "a red fox in the snow, as a woodcut"
KEY = "development/images/2025_01_15_city.png"
LINK = "https://apimaster.ai/imgs/1782633695067198543.jpg"
SIGNED = f"https://s3.amazonaws.com/{KEY}?X-Amz-Date=20250115T105045Z&X-Amz-Expires=604800&X-Amz-Signature=abc"

# What gateways say

_WORDS = st.sampled_from(
    [
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
)
_SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12), _WORDS)
_NAMES = st.sampled_from(
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
JSON = st.recursive(_SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=5))
_OBJECTS = st.dictionaries(_NAMES, JSON, max_size=5)
_ANSWERS = st.fixed_dictionaries(
    {},
    optional={
        "aiRecord": _OBJECTS | st.none(),
        "temporaryUrl": JSON,
        "data": _OBJECTS | st.lists(_OBJECTS, max_size=2),
        "code": JSON,
        "error": JSON,
        "message": JSON,
        "asset": _OBJECTS,
        "fileContent": _OBJECTS,
    },
)
_WRITTEN = st.one_of(JSON, _ANSWERS).map(lambda value: json.dumps(value).encode())
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
_HEADER_NAMES = st.sampled_from(
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
_HEADER_VALUES = st.one_of(
    st.binary(max_size=12).map(lambda value: bytes(byte for byte in value if byte not in b"\r\n\0")),
    st.sampled_from(
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
    st.sampled_from(
        [b"https:x", b"data:,x", b"//", b"https://[half/", b"/next", b"a=b; Domain=.", b"a=" + b"x" * 5_000]
    ),
)
HEADERS = st.lists(st.tuples(_HEADER_NAMES, _HEADER_VALUES), max_size=4)

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

PICTURES = {kind: picture((9, 7), kind) for kind in ("PNG", "JPEG", "WEBP")}


def mutated(data: bytes, at: int, cut: int, inserted: bytes) -> bytes:
    at %= len(data)
    return data[:at] + inserted + data[at + cut :]


BYTES = st.one_of(
    st.binary(max_size=80),
    st.builds(
        lambda magic, rest: magic + rest,
        st.sampled_from([data[:n] for data in PICTURES.values() for n in (2, 4, 8, 16, 33)]),
        st.binary(max_size=80),
    ),
    st.builds(
        mutated,
        st.sampled_from(list(PICTURES.values())),
        st.integers(0, 1_000),
        st.integers(0, 60),
        st.binary(max_size=12),
    ),
)

# What lies in the ledger

RECORD: TypeAdapter[Record] = TypeAdapter(Record)
OUTCOMES = st.one_of(
    JSON,
    st.dictionaries(
        st.sampled_from(
            ["kind", "message", "billed", "retryable", "hint", "code", "status_code", "retry_after", "new"]
        ),
        st.one_of(JSON, st.sampled_from([*KINDS, "yes", "no", "unknown"])),
    ),
)
_IMAGES = st.lists(
    st.dictionaries(st.sampled_from(["uri", "sha256", "width", "size"]), JSON | st.just("s3://b/k")), max_size=2
)
_MANIFESTS = st.one_of(JSON, st.fixed_dictionaries({"images": JSON | _IMAGES}))
_STATES = st.sampled_from(["intent", "submitted", "answered", "landed", "failed"])
_FIELDS: dict[str, Any] = json.loads(RECORD.dump_json(make_record(claim="c", job_id="job-1", submitted_at=1.0)))
RECORDS = st.builds(
    lambda changed, state: json.dumps({**_FIELDS, "state": state, **changed}).encode(),
    st.one_of(
        st.dictionaries(st.sampled_from(list(_FIELDS)), JSON, max_size=2),
        st.fixed_dictionaries(
            {},
            optional={
                "outcome": OUTCOMES,
                "manifest": _MANIFESTS,
                "copies": st.lists(
                    _OBJECTS | st.fixed_dictionaries({"destination": JSON, "manifest": _MANIFESTS}), max_size=2
                ),
            },
        ),
    ),
    _STATES,
)

# What is said, and what is written in addresses

KEYS = st.text("abcdefXYZ0189-_./+=&%\"'\\", min_size=8, max_size=40)
TEXTS = st.one_of(st.text(max_size=200), _WORDS)

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

_CELLS = st.one_of(
    _SCALARS, st.sampled_from(["16:9", "1K", "4K", "{sku}", "{prompt}", "{a|b}", "unset", "nan", "s3://b/k"])
)
_COLUMNS = st.one_of(
    st.sampled_from(
        [
            *("prompt", "Prompt ", "aspect_ratio", "resolution", "model", "variant", "n", "image", "image_2", "sku"),
            *("reference_images", "reference image 1", "temperature", "top_p", "google_search", "file_name", "", "{x}"),
        ]
    ),
    st.text(max_size=12),
)
ROWS = (
    st.lists(st.one_of(st.dictionaries(_COLUMNS, st.one_of(_CELLS, JSON), max_size=5), _CELLS, JSON), max_size=4) | JSON
)
_SEPARATED = st.builds(
    lambda rows, separator, end, encoding: end.join(separator.join(row) for row in rows).encode(encoding, "replace"),
    st.lists(
        st.lists(st.one_of(_COLUMNS, _CELLS.map(str), st.sampled_from(['"', '""', '"a', "sep=;"])), max_size=5),
        max_size=5,
    ),
    st.sampled_from([",", ";", "\t", "|", "^"]),
    st.sampled_from(["\n", "\r\n", "\r", "\u2028"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252", "mac_roman"]),
)
ROW_FILES = st.one_of(
    BODIES,
    _SEPARATED,
    ROWS.map(lambda value: json.dumps(value).encode()),
    ROWS.map(lambda value: b"\n".join(json.dumps(each).encode() for each in value) if isinstance(value, list) else b""),
)
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
EXTRAS = st.fixed_dictionaries(
    {"gateway": st.sampled_from(["1min", "apimaster"]) | JSON},
    optional={
        name: st.one_of(
            JSON, st.sampled_from(["1", "1e400", "9" * 400, "-1", "true", "nan", "USD", "gemini-3-pro-image"])
        )
        for name in (
            *("model", "requests_per_minute", "max_concurrency", "price_base", "price_currency", "daily_budget"),
            *("prices", "allow_http", "unknown"),
        )
    },
)

# What lies under the root besides, and what a gallery is asked

ODD_RECORDS = st.sampled_from(ODD).map(lambda what: odd_record(what, landed()))
DOCUMENTS = st.one_of(
    BODIES,
    st.dictionaries(
        st.sampled_from(
            [
                *("version", "told", "generation", "directory", "items", "request", "currency", "spent", "leases"),
                *("record", "claim", "item", "stem", "released"),
            ]
        ),
        st.one_of(JSON, st.just(1), st.dictionaries(st.text(max_size=8), st.integers(), max_size=3)),
    ).map(lambda value: json.dumps(value).encode()),
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
SAVED_PLANS = st.builds(
    lambda plan, item: json.dumps({**_PLAN, "items": [{**_ITEM, **item}, _ITEM], **plan}).encode(),
    st.dictionaries(st.sampled_from(list(_PLAN)), JSON, max_size=1),
    st.dictionaries(
        st.sampled_from(list(_ITEM)),
        st.one_of(JSON, st.dictionaries(st.text(max_size=9), JSON, max_size=2)),
        max_size=2,
    ),
)

_PARTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
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
GALLERY_PATHS = st.one_of(
    st.builds(lambda parts: "/" + "/".join(parts), st.lists(_PARTS, max_size=9)),
    st.builds(
        lambda kind, parts: f"/{kind}/{'/'.join(parts)}",
        st.sampled_from(["f", "thumbs"]),
        st.lists(_PARTS, min_size=7, max_size=7),
    ),
    st.builds(
        lambda dag, run, what: f"/api/dags/{dag}/runs/{run}/{what}",
        st.one_of(_PARTS, st.just("campaign")),
        st.one_of(_PARTS, st.just("manual__2026-01-01T00:00:00+00:00")),
        st.sampled_from(["pictures", "summary", "sources"]),
    ),
    st.sampled_from(["/", "/static/gallery.js", "/static/..", "/api/dags"]),
)
_QUERY_NAMES = st.sampled_from(
    ["task_id", "map_index", "item", "n", "model", "standing", "after", "limit", "dag_id", "x"]
)
_QUERY_VALUES = st.one_of(
    st.binary(max_size=8).map(lambda value: b"".join(b"%%%02x" % byte for byte in value)),
    st.text(max_size=10).map(lambda value: value.encode("utf-8", "surrogatepass")),
    st.sampled_from(
        [
            *(b"hero", b"-1", b"0", b"1", b"landed", b"9" * 5_000, b"%00", b"%ed%a0%80", b"1e400", b"nan", b"", b"%zz"),
            *(b"ledger/a/b/c/d/" + b"9" * 5_000 + b"/0/1.json", b"ledger/default/campaign/r/hero/-1/0/1.json"),
        ]
    ),
)
GALLERY_QUERIES = st.lists(st.tuples(_QUERY_NAMES, _QUERY_VALUES), max_size=5).map(
    lambda pairs: b"&".join(b"%b=%b" % (name.encode(), value) for name, value in pairs)
)
