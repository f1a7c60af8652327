"""All checks of the doctor, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from airflow_provider_geminiimg.core.execution.boundary import as_outcome
from airflow_provider_geminiimg.core.ledger.root_identity import KnownRoot
from airflow_provider_geminiimg.runtime.doctor import gateways, installation, network, storage, views
from airflow_provider_geminiimg.runtime.doctor.findings import Check, Finding, UnavailableError
from airflow_provider_geminiimg.runtime.doctor.limits import Slots, limits

_Make: TypeAlias = Callable[[Check], Iterator[Finding]]


@dataclass(frozen=True)
class Examination:
    """What to check.

    :param known: Airflow's copy of the root's identity.
    :param slots: of the pool of the image tasks.
    :param conn_ids: Airflow connections of type ``geminiimg``.
    :param outputs: URIs of directories for images.
    :param api_conn_id: an Airflow connection to the API server; ``None``: it is not asked.
    """

    known: KnownRoot
    slots: Slots
    conn_ids: tuple[str, ...]
    outputs: tuple[str, ...] = ()
    api_conn_id: str | None = None

    def findings(self, more: Mapping[str, _Make]) -> Iterator[Finding]:
        """Make all checks, one after the other.

        :param more: further checks, by their names.
        """
        checks: dict[str, _Make] = {
            "versions": installation.versions,
            "packages": installation.packages,
            "provider": installation.provider,
            "settings": installation.configuration,
            "root": storage.root,
            "root identity": partial(storage.identity, known=self.known),
            "root clock": storage.clock,
            "URIs": partial(storage.uris, outputs=self.outputs),
            "proxy": network.proxies,
            "TLS": network.tls,
        }
        for conn_id in self.conn_ids:
            checks[f"connection {conn_id}"] = partial(gateways.connection, conn_id=conn_id)
            checks[f"limits {conn_id}"] = partial(limits, conn_id=conn_id, slots=self.slots)
        checks["API server"] = partial(views.api_server, conn_id=self.api_conn_id)
        for name, make in {**checks, **more}.items():
            yield from _made(Check(name), make)


def _made(check: Check, make: _Make) -> Iterator[Finding]:
    try:
        yield from make(check)
    except UnavailableError as error:
        yield check.skipped(error.message, error.remedy)
    except Exception as error:
        yield check.failed(as_outcome(error))
