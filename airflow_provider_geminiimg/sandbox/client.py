"""Talks to a running sandbox: its ledger, calls, faults and settings, and the connections that point to it.

What must stay true: the same object serves a sandbox in this process, in another one, and in a container.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import httpx

GATEWAYS = {"1min": "", "apimaster": "/v1"}
SAMPLE_KEY = "sandbox-key"


class SandboxClient:
    """The control side of a sandbox.

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
        """:param gateway: ``1min`` or ``apimaster``."""
        return f"{self.url}{GATEWAYS[gateway]}"

    def connection(self, gateway: str, *, key: str = SAMPLE_KEY, **extra: Any) -> dict[str, Any]:
        """An Airflow connection to this sandbox, as a dictionary.

        :param gateway: ``1min`` or ``apimaster``.
        :param key: any text; one that starts with ``bad`` is refused by the sandbox.
        :param extra: more extras of the connection.
        """
        return {
            "conn_type": "geminiimg",
            "host": self.base_url(gateway),
            "password": key,
            "extra": {"gateway": gateway, **extra},
        }

    def connection_json(self, gateway: str, *, key: str = SAMPLE_KEY, **extra: Any) -> str:
        """The same as JSON, fit for an ``AIRFLOW_CONN_…`` variable."""
        return json.dumps(self.connection(gateway, key=key, **extra))

    def connection_uri(self, gateway: str, *, key: str = SAMPLE_KEY) -> str:
        """The same as a URI."""
        return f"geminiimg://:{quote(key, safe='')}@{quote(self.base_url(gateway), safe='')}/?gateway={gateway}"

    def ledger(self) -> list[dict[str, Any]]:
        """Every submission that was accepted, in order, with its price and whether it is charged."""
        return list(self._ask("GET", "ledger"))

    def calls(self, route: str | None = None, *, count: int = 0, timeout: float = 30.0) -> list[dict[str, Any]]:
        """Every API call so far.

        :param route: only this route's.
        :param count: wait until there are so many.
        :param timeout: seconds to wait for them at most; then what there is.
        """
        query = {"count": count, "wait": int(count > 0), "timeout": timeout, **({"route": route} if route else {})}
        return list(self._ask("GET", "calls", params=query))

    def links(self) -> list[str]:
        """Every result link that was given out, signatures included: what must not be found in any log."""
        return list(self._ask("GET", "links"))

    def faults(self, *faults: dict[str, Any], **fault: Any) -> list[dict[str, Any]]:
        """Queue faults: dictionaries, or one by keywords. Fields: `airflow_provider_geminiimg.sandbox.faults.Fault`.

        :raises ValueError: where a fault is not understood.
        """
        return list(self._ask("POST", "faults", json=[*faults, *([fault] if fault else [])]))

    def settings(self, **changes: Any) -> dict[str, Any]:
        """Change settings and return all. Fields: `airflow_provider_geminiimg.sandbox.state.Settings`.

        :raises ValueError: where a setting is not understood.
        """
        return dict(self._ask("POST", "settings", json=changes))

    def held(self, count: int = 1, *, timeout: float = 30.0) -> list[str]:
        """The routes of the calls that are held, once there are `count` of them.

        :param timeout: seconds to wait for them at most; then what there is.
        """
        return list(self._ask("GET", "held", params={"count": count, "wait": 1, "timeout": timeout})["routes"])

    def release(self) -> int:
        """Let every held call go on; how many there were."""
        return int(self._ask("POST", "release", json={})["released"])

    def reset(self) -> None:
        """Forget jobs, calls, faults and uploads, drop held calls, go back to the first settings."""
        self._ask("POST", "reset", json={})

    def close(self) -> None:
        self._http.close()

    def _ask(self, method: str, path: str, **more: Any) -> Any:
        response = self._http.request(method, path, **more)
        if response.status_code == 422:
            raise ValueError(f"The sandbox does not understand this: {response.text}")
        return response.raise_for_status().json()
