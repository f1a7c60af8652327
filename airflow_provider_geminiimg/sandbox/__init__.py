"""The sandbox: a local server that replaces both gateways, for the demo, for users' tests and for benchmarks.

Needs no API key, no money and no network.

Invariants: the hook, the operators and the plugin do not import this package. It shares no code and no tables with the
adapters that it tests. It never stores an API key. Importing it is cheap: FastAPI, uvicorn and Pillow are loaded when a
sandbox starts.

    with Sandbox(latency=0.2) as box:
        ...  # send requests to box.onemin_url and box.apimaster_url
        assert len(box.ledger()) == 1

In reading order:

- `server`: runs the sandbox in a thread or in the foreground
- `client`: controls a running sandbox
- `app`: the web application: checks, call list, faults
- `routes`: names of the gateways' routes
- `onemin`, `apimaster`: the two gateways
- `state`: jobs, uploads, calls and settings
- `faults`: failures that a test queues
- `images`, `fonts`: draw the images
- `pytest_plugin`: the fixture `geminiimg_sandbox`
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
