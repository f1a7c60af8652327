"""Checks of the root and of the other URIs in use."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from airflow.providers.common.compat.sdk import conf

from airflow_provider_geminiimg import settings
from airflow_provider_geminiimg.core.execution.task_log import Logs
from airflow_provider_geminiimg.core.ledger.root_identity import KnownRoot, RootCheck
from airflow_provider_geminiimg.core.storage import WEB_SCHEMES, Files, Store, join_uri, locate, open_store
from airflow_provider_geminiimg.exceptions import GeminiImageError
from airflow_provider_geminiimg.hooks.object_stores import AIRFLOW_OPENERS
from airflow_provider_geminiimg.runtime.doctor.findings import Check, Finding, Level

MAX_SKEW = 10.0
"""Seconds that two clocks may differ. The budget of a day ends by the worker's clock, and ages are counted by the
store's."""
REFUSED_SKEW = 300.0
"""Seconds after which stores may refuse signed requests: 15 minutes for S3, Google and Azure."""
_SYNCHRONIZE = "Synchronize the clock of this machine (NTP)."


def open_root() -> Store:
    """The store of the root.

    :raises BadRequestError: the root can't be opened.
    """
    return open_store(settings.root(), AIRFLOW_OPENERS)


def root(check: Check) -> Iterator[Finding]:
    """Whether the root holds claims: exclusive creation and conditional replacement, tried with an object."""
    store = open_root()
    store.probe()
    yield check.ok(f"{store.uri} can be written from here, and only one of two writers creates an object.")
    if store.uri.startswith("file:") and runs_elsewhere():
        yield check.warning(
            "The root is a folder, and the executor starts tasks on other machines or in containers: all workers and "
            "triggerers and the API server must see this same folder.",
            "Mount it on every machine, or set [geminiimg] root to a bucket. The doctor as a task compares what they "
            "see.",
        )


def runs_elsewhere() -> bool:
    """Whether one of the executors may start tasks on other machines."""
    names = re.split("[,;]", conf.get("core", "executor", fallback="LocalExecutor"))
    # Each is "name", "path.of.a.Class", and either of them with "team=" before and ":alias" after it.
    classes = {name.rpartition("=")[2].partition(":")[0].rpartition(".")[2].strip() for name in names}
    return not classes <= {"LocalExecutor", "SequentialExecutor"}


_IDENTITIES = {
    "known": "The root is the one that this Airflow knows.",
    "unknown": "The root was used before, but not by this Airflow: its first purchase adopts it.",
    "new": "The root is new: nothing was bought under it yet.",
}


def identity(check: Check, known: Callable[[], KnownRoot]) -> Iterator[Finding]:
    """Whether this is the root that this Airflow used before."""
    yield check.ok(_IDENTITIES[RootCheck(open_root(), known(), _NO_LOG, first_attempt=False).compare()])


class _NoLog:
    """A log that writes nothing: findings say it."""

    def debug(self, message: object, /, *args: object) -> None: ...

    info = warning = error = debug


_NO_LOG: Logs = _NoLog()


def clock(check: Check) -> Iterator[Finding]:
    """The clock of the store beside the one of this machine."""
    before = time.time()
    stores = open_root().now()
    yield skew(check, stores, before, time.time(), "the store of the root")


def skew(check: Check, theirs: float, before: float, after: float, whose: str, *, signs: bool = True) -> Finding:
    """The finding for a clock that was read between two times of this machine's clock.

    :param theirs: Unix seconds, in whole seconds at the worst.
    :param signs: whether requests to it are signed with the time.
    """
    off = max(0.0, before - (theirs + 1.0), theirs - after)
    if off <= MAX_SKEW:
        return check.ok(f"The clocks of this machine and of {whose} agree.")
    message = f"The clocks of this machine and of {whose} differ by about {off:.0f} s."
    return (check.error if signs and off > REFUSED_SKEW else check.warning)(message, _SYNCHRONIZE)


def uris(check: Check, outputs: Sequence[str]) -> Iterator[Finding]:
    """Whether images can be written to the given directories, and the configured roots can be opened.

    :param outputs: URIs of directories.
    """
    allowed = settings.allowed_roots()
    images = join_uri(settings.root(), "images")
    files = Files(AIRFLOW_OPENERS, allowed_roots=[*allowed, images] if allowed else [], root=settings.root())
    for uri in outputs:
        try:
            files.check_writable(uri)
        except GeminiImageError as error:
            yield check.failed(error)
        else:
            yield check.ok(f"{locate(uri).shown} accepts images.")
    for setting, roots in (("allowed_roots", allowed), ("gallery_roots", settings.gallery_roots())):
        for uri in roots:
            try:
                found = _opened(check, uri, setting)
            except GeminiImageError as error:
                found = check.failed(error, Level.WARNING)
            yield found


def _opened(check: Check, uri: str, setting: str) -> Finding:
    """The finding for a root of a setting, of which one file is asked for that usually does not exist."""
    place = locate(uri, setting)
    if place.scheme in WEB_SCHEMES:
        return check.skipped(f"{place.shown} of {setting} is a web address.")
    if place.scheme == "file" and not Path(place.path).is_dir():
        return check.warning(
            f"{place.shown} of {setting} is not a folder on this machine.", f"Mount it, or correct {setting}."
        )
    Files(AIRFLOW_OPENERS).sha256(join_uri(uri, ".geminiimg-doctor"))
    return check.ok(f"{place.shown} of {setting} can be opened.")
