"""Sphinx settings. The tables in the pages are made from the code here, so that they cannot drift from it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
# Importing Airflow writes its configuration there; a build must leave the user's own home alone.
os.environ["AIRFLOW_HOME"] = str(HERE / "_build" / "airflow")
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
os.environ["AIRFLOW__LOGGING__LOGGING_LEVEL"] = "WARNING"

import airflow_provider_geminiimg  # noqa: E402
from airflow_provider_geminiimg import exceptions  # noqa: E402
from airflow_provider_geminiimg.core.catalog import lookup  # noqa: E402
from airflow_provider_geminiimg.operators import retry_policy  # noqa: E402
from airflow_provider_geminiimg.provider import get_provider_info  # noqa: E402
from benchmarks import BENCHMARKS, results  # noqa: E402
from scripts import failure_matrix  # noqa: E402

# Autodoc imports with TYPE_CHECKING set, which Airflow's own pydantic models do not survive; so it finds all loaded.
for name in airflow_provider_geminiimg.__all__:
    getattr(airflow_provider_geminiimg, name)

project = "airflow-provider-geminiimg"
author = "The airflow-provider-geminiimg authors"
copyright = f"2026, {author}"
version = release = airflow_provider_geminiimg.__version__
# The day of the release, or "unreleased"; a version without a section is an error.
[released] = re.findall(
    rf"^## {re.escape(version)} \((.+)\)$", (HERE.parent / "CHANGELOG.md").read_text(), re.MULTILINE
)

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"Gemini Images for Airflow {version} ({released})"

myst_enable_extensions = ["substitution", "deflist", "colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_class_signature = "separated"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "show-inheritance": True, "exclude-members": "__new__, __init__"}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines
    )


def outcomes() -> Iterator[tuple[str, ...]]:
    for cls in exceptions.KINDS.values():
        meaning = (cls.__doc__ or "").strip().splitlines()[0]
        delay = retry_policy.DELAYS[cls.default_billed].total_seconds()
        retry, policy = ("yes", f"again after {delay:.0f} s") if cls.default_retryable else ("no", "fails at once")
        yield (f"`{cls.__name__}`", meaning, cls.default_billed.value, retry, policy, cls.fault.value)


def models() -> Iterator[tuple[str, ...]]:
    for row in lookup.ROWS:
        yield (
            row.gateway,
            " ".join(f"`{model}`" for model in (row.model, *lookup.other_ids(row)))
            + ("" if row.verified else " (unverified)"),
            row.operation,
            ", ".join(row.resolutions) or "–",
            " ".join(row.aspect_ratios) or "–",
            ", ".join(sorted(row.fields - {"resolution", "aspect_ratio", "image", "reference_images"})) or "–",
            _inputs(row),
            ", ".join(f"{size} {price}".strip() for size, price in row.prices.items()) + f" {row.currency}"
            if row.prices
            else "unknown",
            row.price_basis.replace("_", " "),
        )


def _inputs(row: lookup.ModelSpec) -> str:
    if "image" not in row.fields:
        return "–"
    each, total = (size // 1_000_000 for size in (row.max_input_bytes, row.max_total_input_bytes))
    return f"{row.max_reference_images}; {each} MB an image, {total} MB together"


def limits() -> Iterator[tuple[str, ...]]:
    for gateway, limit in lookup.LIMITS.items():
        least, most = limit.poll_interval
        yield (
            gateway,
            str(limit.requests_per_minute),
            str(limit.uploads_per_minute),
            str(limit.uploads_at_once),
            f"{least:g} to {most:g} s",
        )


def connection_fields() -> Iterator[tuple[str, ...]]:
    [connection] = get_provider_info()["connection-types"]
    for name, field in connection["conn-fields"].items():
        yield (f"`{name}`", field["label"], field["description"])


def settings() -> Iterator[tuple[str, ...]]:
    for name, option in get_provider_info()["config"]["geminiimg"]["options"].items():
        default = "unset" if option["default"] is None else f"`{option['default']}`"
        yield (f"`{name}`", default, f"`{option['example']}`", option["description"].replace("``", "`").strip())


def rows_of(group: str) -> Iterator[tuple[str, ...]]:
    shown = [failure_matrix.COUNTS.index(name) for name in ("submitted", "paid", "landed", "unknown", "no_image")]
    for line in failure_matrix.lines(row for row in MATRIX if row["group"] == group):
        row, counts = line.row, line.counts
        yield (row["event"], row["moment"], line.where, *(counts[at] for at in shown), row["state"], row["then"])


def figures(rows: Iterable[results.Row]) -> Iterator[tuple[str, ...]]:
    for row in rows:
        yield row.cells()[1:]


MATRIX = failure_matrix.read_committed()
MATRIX_HEAD = ("What happens", "When", "Where", "Submitted", "Paid", "Landed", "Unknown", "No image", "Task", "Then")

MACHINE, MEASURED = results.read()
GROWTH = HERE / "images" / "growth.svg"
SCALE = HERE / "images" / "scale.svg"

myst_substitutions = {
    **{
        f"bench_{name}": table(results.HEAD[1:], figures(row for row in MEASURED if row.benchmark == name))
        for name in BENCHMARKS
    },
    # Drawn by the benchmark itself, so there is none before its first run.
    "bench_growth_plot": "![What a batch costs, by its size](images/growth.svg)" if GROWTH.exists() else "No plot yet.",
    "bench_scale_plot": "![Cost against the number of records](images/scale.svg)" if SCALE.exists() else "No plot yet.",
    "bench_machine": ", ".join(f"{name} {value}" for name, value in MACHINE.items()),
    **{f"matrix_{group}": table(MATRIX_HEAD, rows_of(group)) for group in failure_matrix.GROUPS},
    **{f"matrix_{name}": str(count) for name, count in failure_matrix.total(MATRIX).items()},
    "matrix_rows": str(len(MATRIX)),
    "outcomes": table(
        ("Outcome", "Meaning", "Paid", "A retry can help", "`IMAGE_RETRY_POLICY`", "Who acts"), outcomes()
    ),
    "models": table(
        (
            "Gateway",
            "Model",
            "Operation",
            "Resolutions",
            "Aspect ratios",
            "Also",
            "References, input images",
            "Price of an image",
            "Basis",
        ),
        models(),
    ),
    "limits": table(("Gateway", "Requests a minute", "Uploads a minute", "Uploads at once", "Between polls"), limits()),
    "connection_fields": table(("Extra", "Label", "Meaning"), connection_fields()),
    "settings": table(("Option", "Default", "Example", "Meaning"), settings()),
}


_NAME = re.compile(r"(?<![`:\\])`([^`]+)`(?![`_])")


def names_as_code(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Show `name` in a docstring as code, also where letters follow it, which reST would not take."""
    lines[:] = [_NAME.sub(r"``\1``\\ ", line) for line in lines]


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", names_as_code)
