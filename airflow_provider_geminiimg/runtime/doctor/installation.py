"""Checks of what is installed: versions, packages, provider, plugin, settings."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
import warnings
from collections.abc import Iterator

import airflow
from packaging.requirements import Requirement

from airflow_provider_geminiimg import __version__, settings
from airflow_provider_geminiimg._compat import LACKS, TESTED_AIRFLOWS
from airflow_provider_geminiimg.runtime.doctor.findings import Check, Finding

_NAME = "airflow-provider-geminiimg"
_PLUGIN = "airflow_provider_geminiimg.gallery.plugin.GalleryPlugin"
_TESTED_PYTHONS = ((3, 10), (3, 13))  # pyproject.toml
_REINSTALL = f"Install the package itself (pip install {_NAME}), not only a copy of its files, and restart Airflow."


def versions(check: Check) -> Iterator[Finding]:
    """Airflow and Python, and whether this package is tested with them."""
    name = ".".join(airflow.__version__.split(".")[:2])
    here = f"{_NAME} {__version__} on Airflow {airflow.__version__}"
    if name in TESTED_AIRFLOWS:
        lacks = LACKS.get(name)
        yield check.ok(f"{here}, which is tested." + (f" Airflow {name} has no {lacks}." if lacks else ""))
    else:
        yield check.warning(
            f"{here}, which is not tested. Tested: {', '.join(TESTED_AIRFLOWS)}.",
            "Look for a newer version of the package, or test yours before you rely on it.",
        )
    oldest, newest = [".".join(map(str, version)) for version in _TESTED_PYTHONS]
    python = ".".join(map(str, sys.version_info[:3]))
    if _TESTED_PYTHONS[0] <= sys.version_info[:2] <= _TESTED_PYTHONS[1]:
        yield check.ok(f"Python {python}, which is tested.")
    else:
        yield check.warning(
            f"Python {python}, which is not tested.", f"Use a Python from {oldest} to {newest} for the workers."
        )


def packages(check: Check) -> Iterator[Finding]:
    """The packages that this one requires, and those of its extras that are installed."""
    try:
        required = [Requirement(text) for text in importlib.metadata.requires(_NAME) or ()]
    except importlib.metadata.PackageNotFoundError:
        yield check.error("The package is not installed: its metadata is missing.", _REINSTALL)
        return
    wrong = dict.fromkeys(filter(None, map(_conflict, required)))
    for conflict, requirement in wrong:
        yield check.error(conflict, f'Run pip install "{requirement}" with the constraints file of your Airflow.')
    if not wrong:
        yield check.ok("All required packages have supported versions.")
    if importlib.util.find_spec("PIL") is None:
        yield check.warning(
            "Pillow is not installed here, so tasks make no thumbnails, and the gallery loads whole images.",
            f"Run pip install '{_NAME}[thumbnails]' for the workers.",
        )


def _conflict(requirement: Requirement) -> tuple[str, str] | None:
    """Why an installed package does not meet a requirement, and the requirement; packages of extras may be missing."""
    is_extra = requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})
    wanted = f"{requirement.name}{requirement.specifier}"
    try:
        installed = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return None if is_extra else (f"{requirement.name} is not installed.", wanted)
    if requirement.specifier.contains(installed, prereleases=True):
        return None
    return f"{requirement.name} {installed} is installed, and {wanted} is required.", wanted


def provider(check: Check) -> Iterator[Finding]:
    """Whether Airflow knows the provider, its connection type, and its plugin."""
    try:
        from airflow.providers_manager import ProvidersManager
    except ImportError:
        yield check.skipped("Only the task SDK of Airflow is installed here, which registers no providers.")
        return
    manager = ProvidersManager()  # type: ignore[no-untyped-call]
    if _NAME not in manager.providers:
        yield check.error("Airflow does not know the provider, so it has no connection type geminiimg.", _REINSTALL)
        return
    yield check.ok("Airflow has registered the provider and its connection type.")
    if _PLUGIN not in [plugin.plugin_class for plugin in manager.plugins]:
        yield check.error("Airflow has not registered the gallery's plugin.", _REINSTALL)
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Airflow's own imports
            import airflow_provider_geminiimg.gallery.app  # noqa: F401
    except ImportError as error:
        yield check.warning(
            f"The gallery can't be loaded here: {error.name} is missing.",
            "If this is the API server, install Airflow completely (pip install apache-airflow).",
        )
    else:
        yield check.ok("Airflow has registered the gallery's plugin, and it can be loaded.")


def configuration(check: Check) -> Iterator[Finding]:
    """The section ``[geminiimg]``."""
    read = (settings.max_batch_images, settings.keep_records_days, settings.gallery_tabs, settings.record_prompts)
    values = {each.__name__: each() for each in read}
    shown = ", ".join(f"{name} = {value}" for name, value in values.items() if value is not None)
    yield check.ok(f"root = {settings.root()}, namespace = {settings.namespace()}, {shown}")
