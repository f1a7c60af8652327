"""Checks of proxies and TLS."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

import httpx

from airflow_provider_geminiimg.runtime.doctor.findings import Check, Finding

_CA_OF_OTHERS = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE")
_CA_OURS = ("SSL_CERT_FILE", "SSL_CERT_DIR")


def proxies(check: Check) -> Iterator[Finding]:
    """The proxies of the environment. Their addresses may hold a password, so only their names are shown."""
    found = {scheme: url for scheme, url in getproxies().items() if scheme in ("http", "https", "all")}
    names = ", ".join(f"{scheme.upper()}_PROXY" for scheme in found)
    if not found:
        yield check.ok("No proxy is set.")
        return
    if _is_socks(found) and importlib.util.find_spec("socksio") is None:
        yield check.error(
            f"A SOCKS proxy is set ({names}), and the package socksio is not installed: no gateway can be called.",
            "Run pip install 'httpx[socks]', or set an HTTP proxy.",
        )
    yield check.warning(
        f"A proxy is set ({names}). Calls of the gateways go through it; downloads of images do not, because each "
        "host's address is checked first.",
        "Allow workers to connect to the hosts of image links (port 443) directly. Images of a link that can't be "
        "reached are kept open, and collected later.",
    )


def _is_socks(found: dict[str, str]) -> bool:
    return any(urlsplit(url).scheme.startswith("socks") for url in found.values())


def tls(check: Check) -> Iterator[Finding]:
    """The CA certificates."""
    for name in _CA_OURS:
        if (path := os.environ.get(name)) and not Path(path).exists():
            yield check.error(
                f"{name} names {path}, which does not exist: no gateway can be called.",
                f"Correct {name}, or remove it from the environment of all components.",
            )
            return
    try:
        httpx.create_ssl_context(trust_env=True)
    except (OSError, ValueError) as error:
        yield check.error(
            f"The CA certificates can't be loaded ({type(error).__name__}).", "Correct SSL_CERT_FILE or SSL_CERT_DIR."
        )
        return
    others = [name for name in _CA_OF_OTHERS if os.environ.get(name)]
    if others and not any(os.environ.get(name) for name in _CA_OURS):
        yield check.warning(
            f"{', '.join(others)} is set, but the calls of the gateways read SSL_CERT_FILE.",
            "Set SSL_CERT_FILE to the same file if your network replaces certificates.",
        )
        return
    yield check.ok("The CA certificates can be loaded.")
