"""The ``[geminiimg]`` section of Airflow's configuration; nothing else reads it."""

from __future__ import annotations

import functools
import logging
import os
from pathlib import Path

from airflow.providers.common.compat.sdk import conf

from airflow_provider_geminiimg._compat import HAS_TASK_STATE_STORE
from airflow_provider_geminiimg.core.validation.arguments import MAX_IMAGES, whole
from airflow_provider_geminiimg.exceptions import BadRequestError

SECTION = "geminiimg"
MOST_BATCH_IMAGES = 1_000_000
LEAST_DAYS, MOST_DAYS = 30, 36_500
log = logging.getLogger(__name__)


def root() -> str:
    """URI of the folder that holds the ledger and, unless configured otherwise, the images.

    Default: ``geminiimg`` in ``AIRFLOW_HOME``, on local disk.
    """
    home = Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser().absolute()
    default = f"file://{home}/geminiimg"
    given = str(conf.get(SECTION, "root", fallback="") or "").strip()
    shortened = given.rstrip("/")
    # What is nothing but slashes after its scheme is left for `open_store` to refuse; unset is only what is empty.
    value = (given if shortened == "" or shortened.endswith(":") else shortened) or default
    if value == default and not HAS_TASK_STATE_STORE:
        _warn_of_default_root()
    return value


@functools.cache
def _warn_of_default_root() -> None:
    log.warning(
        "[geminiimg] root is not set, and this Airflow (before 3.3) has no task state store to notice that workers do "
        "not share the ledger. Set root to storage that all workers share."
    )


def namespace() -> str:
    """What tells the ledgers of several Airflows under one root apart. Default: ``default``."""
    return str(conf.get(SECTION, "namespace", fallback="") or "").strip() or "default"


def allowed_roots() -> list[str]:
    """URI prefixes that inputs and outputs must lie under; empty: any."""
    return _list("allowed_roots")


def gallery_roots() -> list[str]:
    """URI prefixes, besides the root, from which the gallery may show images. Default: none."""
    return _list("gallery_roots")


def gallery_tabs() -> bool:
    """Whether DAGs, runs, tasks and task instances have a tab with their images. Default: true."""
    return bool(conf.getboolean(SECTION, "gallery_tabs", fallback=True))


def record_prompts() -> bool:
    """Whether prompts themselves go into ledger and sidecar. Default: false, a hash."""
    return bool(conf.getboolean(SECTION, "record_prompts", fallback=False))


def max_batch_images() -> int:
    """How many images one batch may ask for, and so how many rows it may have. Default: 10,000.

    :raises BadRequestError: it is no whole number from 1 to `MOST_BATCH_IMAGES`.
    """
    given = str(conf.get(SECTION, "max_batch_images", fallback="") or "").strip()
    return whole(f"[{SECTION}] max_batch_images", given, MOST_BATCH_IMAGES) or MAX_IMAGES


def keep_records_days() -> int | None:
    """How many days the collect operator keeps records that have ended; ``None``, the default: for ever.

    :raises BadRequestError: it is no whole number from `LEAST_DAYS` to `MOST_DAYS`.
    """
    name = f"[{SECTION}] keep_records_days"
    given = str(conf.get(SECTION, "keep_records_days", fallback="") or "").strip()
    days = whole(name, given, MOST_DAYS)
    if days is not None and days < LEAST_DAYS:
        raise BadRequestError(
            f"{name} = {days}: must be at least {LEAST_DAYS}.",
            hint="A task that still waits for a retry may pay again if its records are removed.",
        )
    return days


def _list(name: str) -> list[str]:
    value = str(conf.get(SECTION, name, fallback="") or "")
    return [part.strip() for part in value.replace("\n", ",").split(",") if part.strip()]
