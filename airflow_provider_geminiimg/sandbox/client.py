"""Client of a running sandbox: its ledger, calls, faults and settings, and connections to it.

Invariant: the client works the same for a sandbox in this process, in another process, and in a container.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import httpx

GATEWAYS = {"1min": "", "apimaster": "/v1"}
SAMPLE_KEY = "sandbox-key"


class SandboxClient:
    """Controls a sandbox.

    :param url: the sandbox's address, for example ``http://127.0.0.1:8099``.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.Client(base_url=f"{self.url}/_sandbox/", trust_env=False, timeout=70)

    @property
    def onemin_url(self) -> str:
        """Base URL of 1min's API."""
        return self.base_url("1min")

    @property
    def apimaster_url(self) -> str:
        """Base URL of APIMaster's API."""
        return self.base_url("apimaster")

    def base_url(self, gateway: str) -> str:
        """Return the base URL of a gateway.

        :param gateway: ``1min`` or ``apimaster``.
        """
        return f"{self.url}{GATEWAYS[gateway]}"

    def connection(self, gateway: str, *, key: str = SAMPLE_KEY, **extra: Any) -> dict[str, Any]:
        """Return an Airflow connection to this sandbox as a dictionary.

        :param gateway: ``1min`` or ``apimaster``.
        :param key: any text. The sandbox refuses a key that starts with ``bad``.
        :param extra: further extra fields of the connection.
        """
        return {
            "conn_type": "geminiimg",
            "host": self.base_url(gateway),
            "password": key,
            "extra": {"gateway": gateway, **extra},
        }

    def connection_json(self, gateway: str, *, key: str = SAMPLE_KEY, **extra: Any) -> str:
        """Return the connection as JSON, for an ``AIRFLOW_CONN_…`` variable."""
        return json.dumps(self.connection(gateway, key=key, **extra))

    def connection_uri(self, gateway: str, *, key: str = SAMPLE_KEY) -> str:
        """Return the connection as a URI."""
        return f"geminiimg://:{quote(key, safe='')}@{quote(self.base_url(gateway), safe='')}/?gateway={gateway}"

    def ledger(self) -> list[dict[str, Any]]:
        """Return every accepted submission, in order, with its price and whether it is charged."""
        return list(self._ask("GET", "ledger"))

    def calls(self, route: str | None = None, *, count: int = 0, timeout: float = 30.0) -> list[dict[str, Any]]:
        """Return all API calls so far.

        :param route: only calls of this route.
        :param count: wait for this number of calls.
        :param timeout: maximum wait in seconds; after it, the existing calls are returned.
        """
        query = {"count": count, "wait": int(count > 0), "timeout": timeout, **({"route": route} if route else {})}
        return list(self._ask("GET", "calls", params=query))

    def links(self) -> list[str]:
        """Return every result link that was returned, with its signature. These must not appear in any log."""
        return list(self._ask("GET", "links"))

    def faults(self, *faults: dict[str, Any], **fault: Any) -> list[dict[str, Any]]:
        """Queue faults, as dictionaries or one as keywords. Fields: `airflow_provider_geminiimg.sandbox.faults.Fault`.

        :raises ValueError: a fault is invalid.
        """
        return list(self._ask("POST", "faults", json=[*faults, *([fault] if fault else [])]))

    def settings(self, **changes: Any) -> dict[str, Any]:
        """Change settings, and return all of them. Fields: `airflow_provider_geminiimg.sandbox.state.Settings`.

        :raises ValueError: a setting is invalid.
        """
        return dict(self._ask("POST", "settings", json=changes))

    def held(self, count: int = 1, *, timeout: float = 30.0) -> list[str]:
        """Wait for `count` held calls, and return the routes of all held calls.

        :param timeout: maximum wait in seconds; after it, the existing ones are returned.
        """
        return list(self._ask("GET", "held", params={"count": count, "wait": 1, "timeout": timeout})["routes"])

    def release(self) -> int:
        """Continue every held call, and return their number."""
        return int(self._ask("POST", "release", json={})["released"])

    def reset(self) -> None:
        """Delete jobs, calls, faults and uploads, drop held calls, and restore the initial settings."""
        self._ask("POST", "reset", json={})

    def close(self) -> None:
        self._http.close()

    def _ask(self, method: str, path: str, **more: Any) -> Any:
        response = self._http.request(method, path, **more)
        if response.status_code == 422:
            raise ValueError(f"The sandbox refuses this request: {response.text}")
        return response.raise_for_status().json()
