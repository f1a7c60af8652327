"""All checks of the doctor, in order.

Invariant: this module imports nothing that may be missing: a check imports its module when it is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeAlias

from airflow_provider_geminiimg.core.execution.boundary import as_outcome
from airflow_provider_geminiimg.runtime.doctor.findings import Check, Finding, Level, UnavailableError
from airflow_provider_geminiimg.runtime.doctor.installation import REINSTALL

if TYPE_CHECKING:
    from airflow_provider_geminiimg.core.ledger.root_identity import KnownRoot
    from airflow_provider_geminiimg.runtime.doctor.limits import Slots

Make: TypeAlias = Callable[[Check], Iterator[Finding]]
_PACKAGE = __name__.rpartition(".")[0]
_OF_THE_ROOT = ("root identity", "root clock", "API server")  # not made if the root can't be used


@dataclass(frozen=True)
class Examination:
    """What to check.

    :param known: returns Airflow's copy of the root's identity.
    :param slots: of the pool of the image tasks.
    :param conn_ids: Airflow connections of type ``geminiimg``.
    :param outputs: URIs of directories for images.
    :param api_conn_id: an Airflow connection to the API server; ``None``: it is not asked.
    """

    known: Callable[[], KnownRoot]
    slots: Slots
    conn_ids: tuple[str, ...]
    outputs: tuple[str, ...] = ()
    api_conn_id: str | None = None

    def findings(self, more: Mapping[str, Make]) -> Iterator[Finding]:
        """Make all checks, one after the other.

        :param more: further checks, by their names.
        """
        checks: dict[str, Make] = {
            "versions": _check("installation", "versions"),
            "packages": _check("installation", "packages"),
            "provider": _check("installation", "provider"),
            "settings": _check("installation", "configuration"),
            "root": _check("storage", "root"),
            "root identity": _check("storage", "identity", known=self.known),
            "root clock": _check("storage", "clock"),
            "URIs": _check("storage", "uris", outputs=self.outputs),
            "proxy": _check("network", "proxies", conn_ids=self.conn_ids),
            "TLS": _check("network", "tls"),
        }
        for conn_id in self.conn_ids:
            checks[f"connection {conn_id}"] = _check("gateways", "connection", conn_id=conn_id)
            checks[f"limits {conn_id}"] = _check("limits", "limits", conn_id=conn_id, slots=self.slots)
        checks["API server"] = _check("views", "api_server", conn_id=self.api_conn_id)
        is_root_usable = True
        for name, make in {**checks, **more}.items():
            if name in _OF_THE_ROOT and not is_root_usable:
                yield Check(name).skipped("The root can't be used: see above.")
                continue
            for finding in _made(Check(name), make):
                is_root_usable = is_root_usable and (name != "root" or finding.level is not Level.ERROR)
                yield finding


def _check(module: str, name: str, **arguments: Any) -> Make:
    def make(check: Check) -> Iterator[Finding]:
        yield from partial(getattr(import_module(f"{_PACKAGE}.{module}"), name), **arguments)(check)

    return make


def _made(check: Check, make: Make) -> Iterator[Finding]:
    try:
        yield from make(check)
    except UnavailableError as error:
        yield check.skipped(error.message, error.remedy)
    except ImportError as error:
        yield check.error(f"The module {error.name} can't be imported.", REINSTALL)
    except Exception as error:
        yield check.failed(as_outcome(error))
