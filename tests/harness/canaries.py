"""Canaries: texts that must not turn up in anything that is written, and the search for them in all of it.

What must stay true: the search is stricter than any reader. It knows the encodings in which texts travel, takes any 16
characters in a row for the whole, reads what Airflow's own log masking has not yet seen, and excuses nothing but
`AIRFLOWS_COPIES`, and that only for an operator's own arguments.
"""

from __future__ import annotations

import base64
import contextlib
import html
import json
import logging
import pickle
import secrets
import sqlite3
import traceback
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, quote_plus, urlsplit

from tests.harness import AIRFLOW

PIECE = 16  # characters in a row that count as a leak
_BLOCK = PIECE // 2  # every piece holds one whole block that starts at a multiple of this

RENDERED_FIELDS = "rtif_v2" if AIRFLOW >= (3, 4) else "rendered_task_instance_fields"
AIRFLOWS_COPIES = {
    "serialized_dag": "the DAG as the scheduler knows it, every operator's arguments included",
    "dag_code": "the DAG's source",
    RENDERED_FIELDS: "the arguments after rendering, for the page of the task instance",
}
"""Tables that hold operators' arguments by Airflow's design, and why. Keys and links are searched for there too."""

IMAGES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF")
"""How files begin that are not searched: the sandbox draws the prompt into its images, and into their metadata."""

THE_GATEWAYS_SIDE = ("PIL.", "werkzeug")
"""Loggers of the sandbox and of the S3 server, which run in the tests' process, and know what they were sent."""

NOISY_LOGGERS = ("", "airflow", "httpx", "httpcore", "botocore", "boto3", "s3transfer", "urllib3", "asyncio", "aiohttp")


@dataclass(frozen=True)
class Leak:
    """A canary where none may be: which, where, and what stands around it."""

    canary: str
    where: str
    around: bytes


@dataclass(frozen=True)
class Text:
    """Something that was written.

    :param where: what it was found in.
    :param copy: whether it is one of Airflow's own copies of an operator's arguments.
    """

    where: str
    data: bytes
    copy: bool = False


@dataclass
class _Canary:
    name: str
    argument: bool
    pieces: frozenset[bytes]
    blocks: frozenset[bytes]
    whole: frozenset[bytes]


# What encodings treat differently; none so long that a piece of any form could be free of random digits.
_ODD = (" „", "“ ", " & ", '"', '" ', ",\n", "<", "> ", "% ", "\\", "狐", " ü", "")


@dataclass
class Canaries:
    """The secrets of one test, each random.

    :param key: the API key.
    :param prompt: the prompt, with all that encodings treat differently.
    :param query: the query of an input image's address.
    """

    key: str = field(default_factory=lambda: f"sk-{secrets.token_hex(16)}/+={secrets.token_hex(8)}")
    prompt: str = field(default_factory=lambda: "".join(secrets.token_hex(8) + odd for odd in _ODD))
    query: str = field(default_factory=lambda: f"sig={secrets.token_hex(32)}&t={secrets.token_hex(16)}")
    _known: list[_Canary] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        self.add("key", self.key)
        self.add("prompt", self.prompt, argument=True)
        self.add("query", self.query, argument=True)

    def add(self, name: str, secret: str | bytes, *, argument: bool = False) -> None:
        """Search for one more.

        :param argument: it stands in an operator's arguments, which Airflow keeps copies of.
        """
        pieces, blocks = set(), set()
        whole = set(_base64(secret.encode() if isinstance(secret, str) else secret))
        if isinstance(secret, bytes):
            whole.add(secret)
        else:
            for form in _forms(secret):
                text = form.lower()
                pieces |= {text[at : at + PIECE].encode() for at in range(len(text) - PIECE + 1)}
                blocks |= {text[at : at + _BLOCK].encode() for at in range(0, len(text) - _BLOCK + 1, _BLOCK)}
        self._known.append(_Canary(name, argument, frozenset(pieces), frozenset(blocks), frozenset(whole)))

    def add_links(self, links: Iterable[str]) -> None:
        """Search for result links: their signatures, and the names in their paths, which are as good as a link."""
        for link in links:
            parts = urlsplit(link)
            self.add("link", parts.path.rpartition("/")[2])
            for value in parts.query.split("&"):
                if value.startswith("X-Amz-Signature="):
                    self.add("signature", value.partition("=")[2])

    def leaks(self, texts: Iterable[Text]) -> list[Leak]:
        """Every canary in every text."""
        return [leak for text in texts for leak in self._leaks(text)]

    def _leaks(self, text: Text) -> Iterator[Leak]:
        lower = text.data.lower()
        for canary in self._known:
            if text.copy and canary.argument:
                continue
            at = _find_piece(lower, canary)
            if at is None:
                at = next((at for form in canary.whole if (at := text.data.find(form)) >= 0), None)
            if at is not None:
                yield Leak(canary.name, text.where, text.data[max(0, at - 120) : at + 200])


def _find_piece(lower: bytes, canary: _Canary) -> int | None:
    for block in canary.blocks:
        at = lower.find(block)
        while at >= 0:
            around = lower[max(0, at - 2 * PIECE) : at + 3 * PIECE]
            if any(piece in around for piece in canary.pieces):
                return at
            at = lower.find(block, at + 1)
    return None


def _forms(text: str) -> set[str]:
    """The ways in which a text travels."""
    escaped = json.dumps(text)[1:-1]
    return {
        text,
        escaped,
        json.dumps(text, ensure_ascii=False)[1:-1],
        json.dumps(escaped)[1:-1],
        repr(text)[1:-1],
        ascii(text)[1:-1],
        ascii(text.encode())[2:-1],
        html.escape(text),
        quote(text),
        quote(text, safe=""),
        quote_plus(text),
    }


def _base64(data: bytes) -> Iterator[bytes]:
    """`data` as it stands inside of base64, wherever in the encoded bytes it begins."""
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + data)
        end = len(encoded) - (0 if (before + len(data)) % 3 == 0 else 4)
        whole_groups = encoded[4 if before else 0 : end]
        yield from (whole_groups, whole_groups.translate(_URL_SAFE))


_URL_SAFE = bytes.maketrans(b"+/", b"-_")


# What there is to search


def files(folder: Path) -> Iterator[Text]:
    """Every file under a folder, and every name; images by their names only."""
    for path in sorted(folder.rglob("*")):
        yield Text(f"name of {path}", str(path.relative_to(folder)).encode())
        if path.is_file():
            data = path.read_bytes()
            if not data.startswith(IMAGES):
                yield Text(str(path), data)


def bucket(client: Any, name: str) -> Iterator[Text]:
    """Every object of a bucket, with its name and headers; images by these only."""
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=name):
        for entry in page.get("Contents", ()):
            found = client.get_object(Bucket=name, Key=entry["Key"])
            data = found.pop("Body").read()
            yield Text(f"head of s3://{name}/{entry['Key']}", repr((entry["Key"], found)).encode())
            if not data.startswith(IMAGES):
                yield Text(f"s3://{name}/{entry['Key']}", data)


def database(path: Path) -> Iterator[Text]:
    """Every value of every row of every table."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            rows = connection.execute(f'SELECT * FROM "{table}"')
            columns = [column[0].encode() for column in rows.description]
            written = (
                b"%b=%b" % (name, _bytes(value)) for row in rows for name, value in zip(columns, row, strict=True)
            )
            yield Text(f"table {table}", b"\n".join(written), table in AIRFLOWS_COPIES)


def _bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        return str(value).encode()
    with contextlib.suppress(zlib.error):
        return value + zlib.decompress(value)
    return value


def exception(error: BaseException, frames: Callable[[str], Literal["search", "copy", "skip"]]) -> Iterator[Text]:
    """All that an exception and those behind it can be made to say, local variables included.

    :param frames: what to do about a stack frame, by the name of its file.
    """
    for each in _chain(error):
        where = f"exception {type(each).__name__}"
        yield Text(f"{where}: text", f"{each}\n{each!r}\n{each.args!r}\n{vars(each)!r}".encode())
        yield Text(f"{where}: traceback", "".join(traceback.format_exception(each)).encode())
        with contextlib.suppress(TypeError, AttributeError, pickle.PicklingError):
            yield Text(f"{where}: pickle", pickle.dumps(each))
        for frame in traceback.StackSummary.extract(traceback.walk_tb(each.__traceback__), capture_locals=True):
            if (how := frames(frame.filename)) != "skip":
                named = f"{where}: variables in {Path(frame.filename).name}:{frame.name}"
                yield Text(named, "\n".join((frame.locals or {}).values()).encode(), copy=how == "copy")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and all that it hangs on to, also what its printed form leaves out."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            yield each
            waiting += [each.__cause__, each.__context__, *getattr(each, "exceptions", ())]


class Logs:
    """Everything that is logged at DEBUG and above while `recording`, before Airflow's masking.

    `texts` are the records; `loggers` the names that they came from.
    """

    def __init__(self) -> None:
        self.texts: list[Text] = []
        self.loggers: set[str] = set()

    @contextlib.contextmanager
    def recording(self) -> Iterator[Logs]:
        with self._stdlib(), self._structlog():
            yield self

    @contextlib.contextmanager
    def _stdlib(self) -> Iterator[None]:
        handler = _Handler(self)
        named = [logging.getLogger(name) for name in logging.root.manager.loggerDict]
        loud = [logger for logger in named if logger.name.partition(".")[0] in NOISY_LOGGERS]
        before = [(logger, logger.level, logger.disabled) for logger in [logging.root, *loud]]
        loggers = [
            logging.root,
            *(logger for logger in named if not logger.propagate and not logger.name.startswith(THE_GATEWAYS_SIDE)),
        ]
        disabled, logging.root.manager.disable = logging.root.manager.disable, 0
        for logger, _, _ in before:
            logger.setLevel(logging.DEBUG)
            logger.disabled = False
        for logger in loggers:
            logger.addHandler(handler)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeHandler(handler)
            for logger, level, was_disabled in before:
                logger.setLevel(level)
                logger.disabled = was_disabled
            logging.root.manager.disable = disabled

    @contextlib.contextmanager
    def _structlog(self) -> Iterator[None]:
        import structlog
        from airflow._shared.logging import structlog as core
        from airflow.sdk._shared.logging import structlog as sdk

        processors = structlog.get_config()["processors"]  # changed in place: loggers that exist share this list
        levels = [module.PER_LOGGER_LEVELS for module in (core, sdk)]
        before = [dict(each) for each in levels]
        for each in levels:
            each.update(dict.fromkeys(each, logging.DEBUG))
        processors.insert(0, self._event)
        try:
            yield
        finally:
            processors.remove(self._event)
            for each, old in zip(levels, before, strict=True):
                each.update(old)

    def _event(self, logger: Any, method: str, event: Any) -> Any:
        name = str(event.get("logger_name") or getattr(logger, "name", None) or "structlog")
        message = type(event.get("msg")).__name__
        if not (message == _MASK and event.get("event") == _IN_PROCESS):
            said = f"{event.get('event')}\n{dict(event)!r}"
            self.add(name, said, event.get("exc_info"), message == _RENDERED)
        return event

    def add(self, name: str, said: str, exc_info: Any = None, copy: bool = False) -> None:
        if name.startswith(THE_GATEWAYS_SIDE):
            return
        self.loggers.add(name)
        if exc_info:
            said += "\n" + _formatted(exc_info)
        self.texts.append(Text(f"log of {name}", said.encode("utf-8", "backslashreplace"), copy))


class _Handler(logging.Handler):
    def __init__(self, logs: Logs) -> None:
        super().__init__(logging.DEBUG)
        self.logs = logs

    def emit(self, record: logging.LogRecord) -> None:
        said = f"{record.getMessage()}\n{record.__dict__!r}\n{record.exc_text}\n{record.stack_info}"
        self.logs.add(record.name, said, record.exc_info)


def _formatted(exc_info: Any) -> str:
    import sys

    error = exc_info if isinstance(exc_info, BaseException) else (exc_info if isinstance(exc_info, tuple) else None)
    if error is None:
        error = sys.exc_info()
    if isinstance(error, tuple):
        error = error[1]
    return "" if error is None else "".join(traceback.format_exception(error))


def output(where: str, data: bytes) -> Iterator[Text]:
    """What a process printed, or a log file, line by line where Airflow logs what it keeps copies of."""
    lines: list[bytes] = []
    for line in data.splitlines(keepends=True):
        if _RENDERED.encode() in line:
            yield Text(where, line, copy=True)
        elif not (_IN_PROCESS.encode() in line and _MASK.encode() in line):
            lines.append(line)
    yield Text(where, b"".join(lines))


# At DEBUG Airflow logs the message by which a task hands over its rendered fields.
_RENDERED = "SetRenderedFields"
# Airflow's supervisor for tests in one process logs what it asks itself to mask; no other supervisor does.
_IN_PROCESS, _MASK = "Sending request", "MaskSecret"
