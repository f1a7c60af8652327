"""Checks of the connection's limits beside Airflow's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from airflow.providers.common.compat.sdk import conf

from airflow_provider_geminiimg.core.catalog.lookup import LIMITS
from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection
from airflow_provider_geminiimg.exceptions import GeminiImageError
from airflow_provider_geminiimg.hooks.geminiimg import GeminiImageHook
from airflow_provider_geminiimg.runtime.doctor.findings import Check, Finding, UnavailableError
from airflow_provider_geminiimg.runtime.doctor.storage import runs_elsewhere

CALLS_PER_IMAGE = 4
"""A submit and about three polls; docs/benchmarks.md, "A batch"."""

UNLIMITED = 1_000_000  # tasks at once

Slots = Callable[[], int]
"""Returns the slots of the pool of the image tasks; raises `UnavailableError` if they are not known."""


def limits(check: Check, conn_id: str, slots: Slots) -> Iterator[Finding]:
    """Whether tasks would wait for the connection's limits in a worker, or the triggerer for room.

    Nothing is found for a connection that can't be used: the check of the connection says why.
    """
    try:
        found = GeminiImageHook(conn_id).connection()
    except GeminiImageError:
        return
    at_once = conf.getint("core", "parallelism", fallback=32) or UNLIMITED
    try:
        at_once = min(at_once, slots())
    except UnavailableError as error:
        yield check.skipped(error.message, error.remedy)
    if not at_once:
        yield check.error("The pool has no slots, so no task of it ever runs.", "Give it slots: airflow pools set.")
        return
    yield from _connection(check, found, at_once)
    yield from _triggerer(check, found)


def _connection(check: Check, found: GatewayConnection, at_once: int) -> Iterator[Finding]:
    if not found.shared_limits and runs_elsewhere():
        yield check.warning(
            "shared_limits is off: each worker process and triggerer has the limits of the connection for itself.",
            "Switch shared_limits on, or divide the limits by the number of processes.",
        )
    most, per_minute = found.max_concurrency, _per_minute(found)
    if most is not None and most < at_once:
        yield check.warning(
            f"Up to {at_once} tasks run at once, and the connection sends {most} paid requests at once: the other "
            "tasks wait in their workers.",
            f"Raise max_concurrency, or give the image tasks a pool of {most} slots, and run doctor --pool NAME.",
        )
    elif per_minute < at_once:
        yield check.warning(
            f"Up to {at_once} tasks run at once, and the connection allows {per_minute} calls per minute: tasks wait "
            "in their workers for longer than a minute.",
            "Raise requests_per_minute if the account allows more, or give the image tasks a smaller pool, and run "
            "doctor --pool NAME.",
        )
    else:
        yield check.ok(
            f"{per_minute} calls per minute make about {per_minute // CALLS_PER_IMAGE} images per minute; up to "
            f"{at_once} tasks run at once."
        )


def _triggerer(check: Check, found: GatewayConnection) -> Iterator[Finding]:
    capacity, images = conf.getint("triggerer", "capacity", fallback=1000), _per_minute(found) // CALLS_PER_IMAGE
    if capacity < images:
        yield check.warning(
            f"A triggerer waits for {capacity} images at once, and the connection makes up to {images} per minute.",
            "Raise [triggerer] capacity, or run more triggerers.",
        )
    else:
        yield check.ok(f"A triggerer waits for {capacity} images at once.")


def _per_minute(found: GatewayConnection) -> int:
    return found.requests_per_minute or LIMITS[found.gateway].requests_per_minute
