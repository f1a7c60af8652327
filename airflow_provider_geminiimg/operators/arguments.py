"""One table of the operators' and the sensor's arguments: the parser of each.

A parser takes the argument's name and its rendered value, returns the value to use, and raises `BadRequestError` for
any other. Invariant: an argument that several operators have is parsed in one way.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

from airflow.providers.common.compat.sdk import conf

from airflow_provider_geminiimg.core.validation.arguments import (
    MAX_VARIANTS,
    OnClear,
    OnMismatch,
    OnUnknown,
    ReuseScope,
    choice,
    delimiter,
    encoding,
    flag,
    money,
    seconds,
    stem,
    text,
    texts,
    whole,
)
from airflow_provider_geminiimg.core.validation.resolution import read_resolutions
from airflow_provider_geminiimg.core.validation.task_arguments import Checks
from airflow_provider_geminiimg.core.validation.texts import given
from airflow_provider_geminiimg.exceptions import BadRequestError

Choose = Literal["all", "one", "several"]
IfNoImage = Literal["fail", "generate"]
OnItemFailure = Literal["collect", "fail_fast"]
OnReject = Literal["skip", "fail", "continue"]

DEFAULT_DEFERRABLE = conf.getboolean("operators", "default_deferrable", fallback=False)
MAX_CONCURRENCY = 1000  # images of a batch in flight


def parsers(*names: str) -> Checks:
    """The parsers of these arguments, in this order."""
    return MappingProxyType({name: _PARSERS[name] for name in names})


def _deferrable(name: str, value: Any) -> bool:
    found = flag(name, value)
    return DEFAULT_DEFERRABLE if found is None else found


def _dry_run(name: str, value: Any) -> bool:
    return flag(name, value) or False


def _resolutions(name: str, value: Any) -> Mapping[str, Any]:
    return read_resolutions(value)


def _min_success(name: str, value: Any) -> int | float:
    """A count (a whole number) or a ratio (a number with a point, up to 1.0)."""
    shown = str(value).strip()
    try:
        number = float("nan") if isinstance(value, bool) else float(shown) if "." in shown else int(shown)
    except ValueError:
        number = float("nan")
    if not (0 <= number <= 1 if isinstance(number, float) else number >= 0):
        raise BadRequestError(f"{name}{given(value)}: takes a count such as 5, or a ratio from 0.0 to 1.0.")
    return number


_PARSERS: Checks = MappingProxyType(
    {
        "api_conn_id": text,
        "choose": partial(choice, allowed=Choose),
        "conn_ids": texts,
        "deferrable": _deferrable,
        "delimiter": delimiter,
        "dry_run": _dry_run,
        "encoding": encoding,
        "external_dag_id": text,
        "external_run_id": text,
        "external_task_id": text,
        "file_name": stem,
        "geminiimg_conn_id": text,
        "if_no_image": partial(choice, allowed=IfNoImage),
        "job_id": text,
        "max_concurrency": partial(whole, most=MAX_CONCURRENCY),
        "max_cost": money,
        "min_success": _min_success,
        "model": text,
        "n": partial(whole, most=MAX_VARIANTS),
        "on_clear": partial(choice, allowed=OnClear),
        "on_item_failure": partial(choice, allowed=OnItemFailure),
        "on_mismatch": partial(choice, allowed=OnMismatch),
        "on_reject": partial(choice, allowed=OnReject),
        "on_unknown": partial(choice, allowed=OnUnknown),
        "output_path": text,
        "output_paths": texts,
        "poll_interval": seconds,
        "requests_per_minute": partial(whole, most=1_000_000),
        "resolve": _resolutions,
        "reuse": partial(choice, allowed=ReuseScope),
        "timeout": seconds,
    }
)
