"""Both gateways in a box: for the demo, for users' own tests and for benchmarks. No key, no money, no network.

What must stay true: nothing in the hook, the operators or the plugin imports this package; it shares no code and no
table with the adapters that it tests; it never keeps an API key; importing it is cheap (FastAPI, uvicorn and Pillow
are loaded when a sandbox starts).

    with Sandbox(latency=0.2) as box:
        ...  # send requests to box.onemin_url and box.apimaster_url
        assert len(box.ledger()) == 1
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox.client import SandboxClient
    from airflow_provider_geminiimg.sandbox.images import read_image, read_submission
    from airflow_provider_geminiimg.sandbox.server import Sandbox

__all__ = ["Sandbox", "SandboxClient", "read_image", "read_submission"]

_HOME = {"Sandbox": "server", "SandboxClient": "client", "read_image": "images", "read_submission": "images"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
