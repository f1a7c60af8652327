"""Checks of proxies and TLS."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from airflow_provider_geminiimg.core.gateways.connection import is_loopback
from airflow_provider_geminiimg.exceptions import GeminiImageError
from airflow_provider_geminiimg.hooks.geminiimg import GeminiImageHook
from airflow_provider_geminiimg.runtime.doctor.findings import Check, Finding

_CA_OF_OTHERS = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE")
_SOCKS = ("socks5", "socks5h")
_PROXIES = ("http", "https", *_SOCKS)


def proxies(check: Check, conn_ids: Sequence[str]) -> Iterator[Finding]:
    """The proxies that calls of the gateways use. An address may hold a password, so only names are shown."""
    found = {name: url for conn_id in conn_ids for name, url in _proxies_of(conn_id)}
    if not found:
        yield check.ok("Calls of the gateways use no proxy.")
        return
    for name, url in found.items():
        yield from _unusable(check, name, url)
    yield check.warning(
        f"Calls of the gateways use the proxy of {', '.join(found)}. Downloads of images do not, because the address "
        "of each host is checked first.",
        "Allow workers to connect to the hosts of image links (port 443) directly. Images of a link that can't be "
        "reached are kept open, and collected later.",
    )


def _proxies_of(conn_id: str) -> Iterator[tuple[str, str]]:
    """The name and the address of the proxy that a connection uses."""
    try:
        url = httpx.URL(GeminiImageHook(conn_id).connection().base_url)
    except GeminiImageError:  # the check of the connection says why
        return
    if is_loopback(url.host) or proxy_bypass(url.host):
        return
    for scheme, proxy in getproxies().items():
        if scheme in (url.scheme, "all"):
            yield f"{scheme.upper()}_PROXY", proxy
            return


def _unusable(check: Check, name: str, url: str) -> Iterator[Finding]:
    try:
        scheme = urlsplit(url if "://" in url else f"http://{url}").scheme
    except ValueError:
        scheme = "no valid address"
    if scheme not in _PROXIES:
        yield check.error(
            f"The proxy of {name} is of a kind that can't be used ({scheme}): no gateway can be called.",
            f"Set {name} to a proxy whose address begins with {', '.join(_PROXIES)}.",
        )
    elif scheme in _SOCKS and importlib.util.find_spec("socksio") is None:
        yield check.error(
            f"{name} is a SOCKS proxy, and the package socksio is not installed: no gateway can be called.",
            "Run pip install 'httpx[socks]', or set an HTTP proxy.",
        )


def tls(check: Check) -> Iterator[Finding]:
    """The CA certificates. As httpx, it reads ``SSL_CERT_DIR`` only without ``SSL_CERT_FILE``."""
    file, folders = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    name = "SSL_CERT_FILE" if file else "SSL_CERT_DIR"
    missing = not Path(file).exists() if file else folders and not any(map(_has_files, folders.split(os.pathsep)))
    if missing:
        yield check.error(
            f"{name} names nothing that exists: no gateway can be called.",
            f"Correct {name}, or remove it from the environment of all components.",
        )
        return
    try:
        httpx.create_ssl_context(trust_env=True)
    except (OSError, ValueError) as error:
        yield check.error(f"The CA certificates can't be loaded ({type(error).__name__}).", f"Correct {name}.")
        return
    others = [other for other in _CA_OF_OTHERS if os.environ.get(other)]
    if others and not (file or folders):
        yield check.warning(
            f"{', '.join(others)} is set, but the calls of the gateways read SSL_CERT_FILE.",
            "Set SSL_CERT_FILE to the same file if your network replaces certificates.",
        )
        return
    yield check.ok("The CA certificates can be loaded.")


def _has_files(folder: str) -> bool:
    return Path(folder).is_dir() and any(Path(folder).iterdir())
