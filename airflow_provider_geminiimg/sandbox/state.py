"""State of the sandbox: jobs, uploads, calls and settings.

Invariants: a key is never stored here (callers pass `account`, a short hash). A job is recorded and charged in one
step. A job's state is computed from its times by the wall clock, so nothing runs in the background.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any, Literal
from urllib.parse import quote, urlencode

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from airflow_provider_geminiimg.sandbox.faults import Faults, Outcome
from airflow_provider_geminiimg.sandbox.images import Input, Shape

CALLS_KEPT = 100_000
FAILURES: frozenset[str] = frozenset({"refused", "refused_echo", "failed", "bare_failed"})


class Settings(BaseModel):
    """Behaviour of the sandbox; ``POST /_sandbox/settings`` changes any field.

    :param latency: duration of a job in seconds (default 2; 0.2 for `Sandbox`).
    :param honour_async: ``False``: the gateways ignore "async", and answer later with the finished image.
    :param credits: total 1min credits of the team; ``None`` (default) = unlimited.
    :param balance: total USD of the APIMaster account; ``None`` (default) = unlimited.
    :param balance_error: ``plain`` (default): 406 and 402; ``odd``: an error inside a 200, and 403.
    :param link_seconds: lifetime of a result link in seconds (default: seven days).
    :param sync_gives_up: seconds after which a synchronous call is answered without its image (default 180). 1min:
        ``PROCESSING``. APIMaster: a 408; the job continues, and is charged when it ends.
    :param submit_code: whether APIMaster's submit answers contain ``code``: ``always``, ``never``, or ``alternate``
        (default), alternating between submissions.
    :param poll_shape: format of APIMaster's polls: ``succeeded`` (``url`` is a string), ``completed`` (a list, with
        cost, expiry and progress), ``alternate`` (default) between these, ``new_api`` (a task row as new-api writes
        it), or ``new_api_old`` (the same from before it had a field for the link).
    :param sync_shape: format of APIMaster's synchronous answers: ``data``, ``task``, or ``alternate`` (default).
    :param result_object: format of 1min's ``resultObject``: ``list`` (default), ``string``, ``images``, ``output``,
        ``mixed``.
    :param models: the ids that both gateways serve and list; ``None`` (default) = all that the sandbox knows, and ids
        that are newer than this package.
    :param printed_sizes: an image of 21:9 at 512 has 792 x 168 pixels, as in Google's table, instead of half of 1K
        (default).
    :param link_place: position of 1min's ``temporaryUrl``: in the ``record`` (default) or at the ``top`` level.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    latency: float = Field(default=2.0, ge=0)
    honour_async: bool = True
    credits: int | None = None
    balance: Decimal | None = None
    balance_error: Literal["plain", "odd"] = "plain"
    link_seconds: int = Field(default=604_800, ge=0)
    sync_gives_up: float = Field(default=180.0, ge=0)
    submit_code: Literal["alternate", "always", "never"] = "alternate"
    poll_shape: Literal["alternate", "succeeded", "completed", "new_api", "new_api_old"] = "alternate"
    sync_shape: Literal["alternate", "data", "task"] = "alternate"
    result_object: Literal["list", "string", "images", "output", "mixed"] = "list"
    link_place: Literal["record", "top"] = "record"
    models: tuple[str, ...] | None = None
    printed_sizes: bool = False

    def serves(self, model: str) -> bool:
        return self.models is None or model in self.models


@dataclass(frozen=True)
class Order:
    """A parsed submit request, before it is charged."""

    gateway: str
    route: str
    account: str
    operation: str
    model: str
    prompt: str = field(repr=False)
    fields: Mapping[str, Any]
    ignored: Sequence[str]
    shape: Shape
    inputs: Sequence[Input]
    price: Decimal
    currency: str
    mode: str = "async"
    outcome: Outcome = "image"


@dataclass
class Job:
    """An accepted submission. It is charged immediately, or if it is `hidden`, when it ends."""

    order: Order
    number: int
    job_id: str
    key: str
    created: float
    ready_at: float
    hidden: bool = False

    @property
    def done(self) -> bool:
        return time.time() >= self.ready_at

    @property
    def failed(self) -> bool:
        return self.order.outcome in FAILURES

    @property
    def refunded(self) -> bool:
        """Whether the money was returned: APIMaster refunds failed jobs, 1min only if the submit itself returned the
        failure.
        """
        return self.done and self.failed and (self.order.gateway == "apimaster" or self.order.mode == "sync")

    @property
    def charged(self) -> bool:
        return not self.refunded and (self.done or not self.hidden)

    async def finish(self, patience: float | None = None) -> None:
        """Wait for the job's end, at most `patience` seconds.

        A sleep may end slightly before the wall clock reaches the time, hence the loop.
        """
        give_up = self.ready_at if patience is None else min(self.ready_at, self.created + patience)
        while (left := give_up - time.time()) > 0:  # noqa: ASYNC110 - the clock is what is waited for
            await asyncio.sleep(left + 0.001)

    def progress(self) -> int:
        took = max(self.ready_at - self.created, 0.001)
        return min(99, int(100 * (time.time() - self.created) / took))

    def entry(self) -> dict[str, Any]:
        """Return this job in the format of ``GET /_sandbox/ledger``."""
        order = self.order
        return {
            "number": self.number,
            "gateway": order.gateway,
            "account": order.account,
            "route": order.route,
            "mode": order.mode,
            "operation": order.operation,
            "model": order.model,
            "prompt": order.prompt,
            "fields": dict(order.fields),
            "ignored": list(order.ignored),
            "inputs": [{"sha256": item.sha256, "media_type": item.media_type} for item in order.inputs],
            "width": order.shape.width,
            "height": order.shape.height,
            "price": float(order.price),
            "currency": order.currency,
            "charged": self.charged,
            "refunded": self.refunded,
            "hidden": self.hidden,
            "job_id": self.job_id,
            "time": self.created,
            "outcome": order.outcome if self.done else "running",
        }


class Refused(Exception):
    """A call that the gateway answers with an error.

    :param status: the HTTP status.
    :param body: the JSON body.
    """

    def __init__(self, status: int, body: Mapping[str, Any]) -> None:
        super().__init__(status)
        self.status = status
        self.body = body


class Box:
    """The complete state of one sandbox. Used from its event loop only."""

    def __init__(self, settings: Settings) -> None:
        self._first_settings = settings
        self._secret = secrets.token_bytes(32)
        self._changed: asyncio.Condition | None = None
        self.faults = Faults(self.touch)
        self.reset()

    def reset(self) -> None:
        """Delete everything, restore the initial settings, and drop held calls."""
        self.settings = self._first_settings
        self.jobs: dict[str, Job] = {}
        self.assets: dict[str, bytes] = {}
        self.calls: deque[dict[str, Any]] = deque(maxlen=CALLS_KEPT)
        self.links: dict[str, None] = {}
        self._by_key: dict[str, Job] = {}
        self.faults.reset()
        self.touch()

    def change(self, values: Mapping[str, Any]) -> Settings:
        self.settings = Settings(**{**self.settings.model_dump(), **values})
        return self.settings

    # Jobs

    def spent(self, gateway: str) -> Decimal:
        return sum(
            (job.order.price for job in self.jobs.values() if job.order.gateway == gateway and job.charged), Decimal()
        )

    def can_pay(self, order: Order) -> bool:
        purse = {"1min": self.settings.credits, "apimaster": self.settings.balance}[order.gateway]
        return purse is None or self.spent(order.gateway) + order.price <= purse

    def accept(self, order: Order, *, job_id: str, hidden: bool = False) -> Job:
        """Record the job and charge for it, in one step."""
        now = time.time()
        number = len(self.jobs) + 1
        stamp = datetime.fromtimestamp(now, timezone.utc).strftime("%Y_%m_%d_%H_%M_%S")
        if order.gateway == "1min":
            key = f"development/images/{stamp}_{number:06d}.{order.shape.extension}"
        else:
            # As in the vendor's sample, the name always ends in .jpg.
            key = f"imgs/{int(now * 1e6)}{number:03d}.jpg"
        job = Job(order, number, job_id, key, now, now + self.settings.latency, hidden)
        self.jobs[job_id] = self._by_key[key] = job
        self.touch()
        return job

    def job_of_key(self, key: str) -> Job | None:
        return self._by_key.get(key)

    def store_asset(self, name: str, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()[:12]
        safe = "".join(c if c.isalnum() or c in "._-" else "_" for c in name)[-60:] or "asset"
        key = f"development/images/{datetime.now(timezone.utc):%Y_%m_%d}_{digest}_{secrets.token_hex(3)}_{safe}"
        self.assets[key] = data
        return key

    # Links

    def signed_link(self, base_url: str, key: str) -> str:
        """Return a link in the form of S3's signed links, with its own expiry."""
        path = f"/asset.1min.ai/{quote(key)}"
        date = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        query = {
            "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
            "X-Amz-Credential": f"SANDBOX/{date[:8]}/us-east-1/s3/aws4_request",
            "X-Amz-Date": date,
            "X-Amz-Expires": str(self.settings.link_seconds),
            "X-Amz-SignedHeaders": "host",
            "X-Amz-Signature": self.signature(key, date, str(self.settings.link_seconds)),
        }
        return self._served(f"{base_url}{path}?{urlencode(query)}")

    def plain_link(self, base_url: str, key: str) -> str:
        """Return an unsigned link that is valid for `Settings.link_seconds`."""
        return self._served(f"{base_url}/{key}")

    def _served(self, link: str) -> str:
        self.links[link] = None
        return link

    def signature(self, key: str, date: str, expires: str) -> str:
        return hmac.new(self._secret, f"{key}\n{date}\n{expires}".encode(), hashlib.sha256).hexdigest()

    # Waiting

    def touch(self) -> None:
        """Wake all waiting callers of `until`."""
        condition = self._changed
        if condition is None:
            return

        async def wake() -> None:
            async with condition:
                condition.notify_all()

        task = asyncio.get_running_loop().create_task(wake())
        task.add_done_callback(lambda done: done.exception())

    async def until(self, ready: Callable[[], bool], timeout: float) -> bool:
        """Wait until `ready()` is true, at most `timeout` seconds; return whether it is."""
        if self._changed is None:
            self._changed = asyncio.Condition()
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(ready), timeout)
            except asyncio.TimeoutError:
                return False
        return True


async def json_object(request: Request) -> dict[str, Any] | None:
    """Return the body of a request; ``None`` if it is not a JSON object."""
    try:
        body = json.loads(await request.body())
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


def account_of(key: str) -> str:
    """Return a short hash that distinguishes accounts and does not reveal the key."""
    return hashlib.sha256(key.encode()).hexdigest()[:8]
