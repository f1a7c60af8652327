"""Checks of what is installed: versions, packages, provider, plugin, settings.

Invariant: importing this module imports nothing that may be missing, because its checks find what is missing.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from airflow_provider_geminiimg import __version__
from airflow_provider_geminiimg.runtime.doctor.findings import Check, Finding

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_NAME = "airflow-provider-geminiimg"
_PLUGIN = "airflow_provider_geminiimg.gallery.plugin.GalleryPlugin"
_TESTED_PYTHONS = ((3, 10), (3, 13))  # pyproject.toml
_EXTRAS = ("amazon", "azure", "google", "thumbnails")  # the others are for developers
REINSTALL = f"Install the package itself (pip install {_NAME}), not only a copy of its files, and restart Airflow."


def versions(check: Check) -> Iterator[Finding]:
    """Airflow and Python, and whether this package is tested with them."""
    import airflow

    from airflow_provider_geminiimg._compat import LACKS, TESTED_AIRFLOWS

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
    from packaging.requirements import Requirement

    try:
        required = [Requirement(text) for text in importlib.metadata.requires(_NAME) or ()]
    except importlib.metadata.PackageNotFoundError:
        yield check.error("The package is not installed: its metadata is missing.", REINSTALL)
        return
    all_right = True
    for requirement in required:
        conflict = _conflict(requirement)
        if conflict is None or not (_applies(requirement, "") or any(_applies(requirement, name) for name in _EXTRAS)):
            continue
        all_right = False
        remedy = (
            f'Run pip install "{requirement.name}{requirement.specifier}" with the constraints file of your Airflow.'
        )
        yield (check.error if _applies(requirement, "") else check.warning)(conflict, remedy)
    if all_right:
        yield check.ok("All required packages have supported versions.")
    if importlib.util.find_spec("PIL") is None:
        yield check.warning(
            "Pillow is not installed here, so tasks make no thumbnails, and the gallery loads whole images.",
            f"Run pip install '{_NAME}[thumbnails]' for the workers.",
        )


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or bool(requirement.marker.evaluate({"extra": extra}))


def _conflict(requirement: Requirement) -> str | None:
    """Why an installed package does not meet a requirement; packages of extras may be missing."""
    try:
        installed = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{requirement.name} is not installed." if _applies(requirement, "") else None
    if requirement.specifier.contains(installed, prereleases=True):
        return None
    return f"{requirement.name} {installed} is installed, and {requirement.name}{requirement.specifier} is required."


def provider(check: Check) -> Iterator[Finding]:
    """Whether Airflow knows the provider, its connection type, and its plugin."""
    try:
        from airflow.providers_manager import ProvidersManager
    except ImportError:
        yield check.skipped("Only the task SDK of Airflow is installed here, which registers no providers.")
        return
    manager = ProvidersManager()  # type: ignore[no-untyped-call]
    if _NAME not in manager.providers:
        yield check.error("Airflow does not know the provider, so it has no connection type geminiimg.", REINSTALL)
        return
    yield check.ok("Airflow has registered the provider and its connection type.")
    if _PLUGIN not in [plugin.plugin_class for plugin in manager.plugins]:
        yield check.error("Airflow has not registered the gallery's plugin.", REINSTALL)
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
    """The section ``[geminiimg]``, each setting apart."""
    from airflow_provider_geminiimg import settings
    from airflow_provider_geminiimg.core.storage import locate
    from airflow_provider_geminiimg.exceptions import GeminiImageError

    read = {
        "root": lambda: locate(settings.root(), "root").shown,
        "namespace": settings.namespace,
        "allowed_roots": lambda: [locate(uri, "allowed_roots").shown for uri in settings.allowed_roots()],
        "gallery_roots": lambda: [locate(uri, "gallery_roots").shown for uri in settings.gallery_roots()],
        "max_batch_images": settings.max_batch_images,
        "keep_records_days": settings.keep_records_days,
        "gallery_tabs": settings.gallery_tabs,
        "record_prompts": settings.record_prompts,
    }
    shown = []
    for name, value in read.items():
        try:
            shown.append(f"{name} = {value()}")
        except GeminiImageError as error:
            yield check.failed(error)
        except Exception as error:
            yield check.error(
                f"[geminiimg] {name} can't be read ({type(error).__name__}).",
                f"Correct the value: airflow config get-value geminiimg {name} shows it.",
            )
    yield check.ok(", ".join(shown))
