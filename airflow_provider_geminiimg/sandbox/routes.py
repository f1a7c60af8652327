"""Names of the gateways' routes, for faults and the call list."""

from __future__ import annotations

NOBODY = "00000000-0000-0000-0000-000000000000"

# (method, path, or the start of a path, ending in "/") -> route name
ROUTES: dict[tuple[str, str], str] = {
    ("POST", "/api/features"): "onemin.submit",
    ("GET", f"/api/results/{NOBODY}"): "onemin.check",
    ("GET", "/api/results/"): "onemin.status",
    ("POST", "/api/assets"): "onemin.upload",
    ("GET", "/models"): "onemin.models",
    ("POST", "/v1/images/generations"): "apimaster.submit_sync",
    ("POST", "/v1/images/generations/async"): "apimaster.submit",
    ("GET", "/v1/tasks/"): "apimaster.status",
    ("GET", "/v1/models"): "apimaster.check",
    ("POST", "/v1/chat/completions"): "apimaster.chat",
    ("GET", "/asset.1min.ai/"): "download",
    ("GET", "/imgs/"): "download",
}


def route_of(method: str, path: str) -> str | None:
    """Return the name of a gateway's route; ``None`` for the sandbox's own addresses."""
    if path.startswith("/_sandbox/"):
        return None
    if (method, path) in ROUTES:
        return ROUTES[method, path]
    starts = (
        name for (verb, key), name in ROUTES.items() if verb == method and key[-1] == "/" and path.startswith(key)
    )
    return next(starts, "unknown")
