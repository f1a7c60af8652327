"""What the package has written, as text that is the same on every machine and on every day.

What must stay true: nothing is changed but values that are random, a time, a process or a gateway's, found by the names
of their fields, and whatever repeats them elsewhere (a job's id in a key, say). What takes their place has their shape,
so that the package can read the text as its own.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends

from airflow_provider_geminiimg.core.ledger.layout import ROOT_KEY
from tests.harness import TESTS

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox

FOLDER = TESTS / "golden"
BUCKET = "golden"
ROOT = f"s3://{BUCKET}/geminiimg"
IMAGES = f"s3://{BUCKET}/pictures"
INPUT = f"s3://{BUCKET}/inputs/tiny.png"
TINY = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)

_LINK = re.compile(r"http://127\.0\.0\.1:\d+/[^\"\\ ]+")
_HOST = re.compile(r"127\.0\.0\.1:\d+")
_RANDOM = re.compile(r'"(?:claim|attempt|told|request_id|try)": ?"([0-9A-Za-z-]{16,40})"')
_LEASE = re.compile(r'"leases": ?\{"([0-9a-f]{16})"')
_TIME = re.compile(r'("(?:claimed_at|submitted_at|landed_at|at|deadline)": ?)[0-9.]+')
_MOMENT = re.compile(r'("(?:submitted_at|landed_at)": ?)"[^"]+"')
_OTHERS = (
    (re.compile(r'("host": ?)"[^"]*"'), r'\1"worker"'),
    (re.compile(r'("pid": ?)\d+'), r"\g<1>4242"),
    (re.compile(r'("age_seconds": ?)[0-9.]+'), r"\g<1>60.0"),
    (_TIME, r"\g<1>1700000000.0"),
    (_MOMENT, r'\1"2023-11-14T22:13:20.000+00:00"'),
    (_LINK, "http://gateway.invalid/image"),
    (_HOST, "gateway.invalid"),
    (re.compile(r"budget at \d{4}-\d\d-\d\d 00:00 UTC"), "budget at 2023-11-15 00:00 UTC"),
    # The operating system decides how a connection breaks.
    (re.compile(r"\((?:RemoteProtocol|Read)Error\)"), "(RemoteProtocolError)"),
)
_DAY = re.compile(r"(budgets/.+/)\d{4}-\d\d-\d\d\.json")
_SHOWN = re.compile(r"(shown/.+-)[0-9a-f]{64}\.json")
_IMAGES = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"RIFF": "image/webp"}


class Stable:
    """Gives each value that differs from run to run one that does not; the same one each time.

    :param sandbox: the gateway: its jobs are numbered in the order in which it took them.
    :param root: where everything lies, instead of `ROOT`.
    """

    def __init__(self, sandbox: Sandbox, root: str = ROOT) -> None:
        self.sandbox = sandbox
        self._root = root
        self._names: dict[str, str] = {}
        self._sizes: set[int] = set()

    def objects(self, objects: Mapping[str, bytes]) -> dict[str, str]:
        """Keys and contents; of an image only what kind it is.

        The root's identity and the index of open records have random keys or contents, and the summaries follow from
        the records. They are in every story.
        """
        objects = {
            key: data
            for key, data in objects.items()
            if key != ROOT_KEY and not key.startswith(("open/", "summaries/"))
        }
        for key, data in sorted(objects.items()):
            if media_type(data) and data != TINY and not key.startswith("thumbs/"):
                self._name(hashlib.sha256(data).hexdigest())
                self._sizes.add(len(data))
        texts = {key: media_type(data) or data.decode() for key, data in objects.items()}
        for key in sorted(texts, key=lambda key: ("/ledger/" not in f"/{key}", key)):  # records first
            self.learn(texts[key])
        return dict(sorted(self._object(key, text) for key, text in texts.items()))

    def _object(self, key: str, text: str) -> tuple[str, str]:
        stable = self.text(text)
        key = _DAY.sub(r"\g<1>2023-11-14.json", self.text(key))
        if _SHOWN.fullmatch(key):
            assert hashlib.sha256(text.encode()).hexdigest() in self._names, "it is named by its content"
            key = _SHOWN.sub(rf"\g<1>{hashlib.sha256(stable.encode()).hexdigest()}.json", key)
        return key, stable

    def learn(self, text: str) -> None:
        """Look for values that are random."""
        for entry in self.sandbox.ledger():
            self._names.setdefault(entry["job_id"], _shaped(entry["job_id"], entry["number"]))
        for pattern in (_RANDOM, _LEASE):
            for value in pattern.findall(text):
                self._name(value)
        if '"manifests": ' in text:
            self._name(hashlib.sha256(text.encode()).hexdigest())

    def text(self, text: str) -> str:
        """A text with all values that are known by now."""
        text = text.replace(self._root, ROOT)
        for real, stable in self._names.items():
            text = text.replace(real, stable)
        for size in self._sizes:
            text = re.sub(rf'("size": ?){size}\b', r"\g<1>1000", text)
        for pattern, instead in _OTHERS:
            text = pattern.sub(instead, text)
        return text

    def _name(self, real: str) -> None:
        if real not in self._names.values():
            self._names.setdefault(real, _shaped(real, len(self._names) + 1))


def media_type(data: bytes) -> str | None:
    """What kind of image it is, if it is one."""
    return next((f"({kind})" for start, kind in _IMAGES.items() if data.startswith(start)), None)


def _shaped(real: str, number: int) -> str:
    """A value of the same shape, with a number at its end."""
    head, _, tail = real.rpartition("task_")
    zeros = re.sub(r"[0-9A-Za-z]", "0", tail if not head else real)
    return ("task_" if real.startswith("task_") else "") + zeros[: -len(str(number))] + str(number)


def stored() -> dict[str, bytes]:
    """What lies in the bucket now, but for what the test put there; keys under the root as the package knows them."""
    keys = s3_backends[DEFAULT_ACCOUNT_ID]["aws"].buckets[BUCKET].keys
    return {
        name.removeprefix("geminiimg/"): key.value for name, key in list(keys.items()) if not name.startswith("inputs/")
    }


def make_bucket() -> None:
    s3 = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    s3.create_bucket(BUCKET, "us-east-1")
    s3.put_object(BUCKET, INPUT.removeprefix(f"s3://{BUCKET}/"), TINY)


def remove_bucket() -> None:
    s3 = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    for key in list(s3.buckets[BUCKET].keys):
        s3.delete_object(BUCKET, key)
    s3.delete_bucket(BUCKET)


def joined(sections: Iterable[tuple[str, str]]) -> str:
    """Titles and texts as one file."""
    return "".join(f"=== {title}\n{text}\n" for title, text in sections)


def parted(text: str) -> Iterator[tuple[str, str]]:
    """Titles and texts of such a file."""
    for section in re.split(r"^=== ", text, flags=re.MULTILINE)[1:]:
        title, _, rest = section.partition("\n")
        yield title, rest.removesuffix("\n")
