"""Checks whether the API server and the triggerer see the same root, by a token that this process leaves there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import pydantic
from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook

from airflow_provider_geminiimg import __version__, settings
from airflow_provider_geminiimg.core.ledger.root_token import RootView, leave_token, remove_token
from airflow_provider_geminiimg.exceptions import BadRequestError
from airflow_provider_geminiimg.gallery.routes import PREFIX, ROOT
from airflow_provider_geminiimg.runtime.doctor.findings import Check, Finding
from airflow_provider_geminiimg.runtime.doctor.storage import open_root

_SECONDS = 60.0
_NO_GALLERY = (
    "The API server does not have the gallery: the package is not installed there, or an older version is.",
    "Install this version of the package for the API server, and restart it.",
)
_VIEW = pydantic.TypeAdapter(RootView)


def api_server(check: Check, conn_id: str | None) -> Iterator[Finding]:
    """The root as the API server sees it.

    :param conn_id: an Airflow connection to the API server; ``None``: it is not asked.
    """
    if conn_id is None:
        yield check.skipped(
            "The API server was not asked whether it sees the same root.",
            "Name a connection with its address as host, and a user and password, or an access token as password.",
        )
        return
    store = open_root()
    token = leave_token(store, settings.namespace())
    try:
        view = _asked(check, conn_id, token)
    finally:
        remove_token(store, token)
    yield view if isinstance(view, Finding) else seen(check, view, "API server")


def triggerer(check: Check, event: Mapping[str, Any] | None) -> Iterator[Finding]:
    """The root as a triggerer sees it.

    :param event: of `GeminiImageRootTrigger`; ``None``: no triggerer has answered in time.
    """
    if event is None:
        yield check.error(
            "No triggerer has answered in time, so deferred images are not polled until their deadline.",
            "Start a triggerer (airflow triggerer), or look at its log: this package must be installed there.",
        )
    else:
        yield seen(check, _VIEW.validate_python(dict(event)), "triggerer")


def seen(check: Check, view: RootView, who: str) -> Finding:
    """The finding for the view of another process."""
    if view.problem is not None:
        return check.error(
            f"The {who} can't read the root ({view.problem}).",
            f"Give the {who} the same [geminiimg] root, its Airflow connection, the package's extra for the kind of "
            "store, and the right to read it. Its log has the error.",
        )
    if not view.found:
        return check.error(
            f"The {who} sees another root: a test object from here is not there.",
            f"Set the same [geminiimg] root for workers and the {who}, on storage that all of them share.",
        )
    if not view.same_namespace:
        return check.error(
            f"The {who} has another namespace, so it does not see the records of the workers.",
            f"Set the same [geminiimg] namespace for workers and the {who}.",
        )
    if view.version != __version__:
        return check.warning(
            f"The {who} runs version {view.version} of this package, and this process {__version__}.",
            "Install one version everywhere, and restart the components.",
        )
    return check.ok(f"The {who} sees the same root.")


def _asked(check: Check, conn_id: str, token: str) -> RootView | Finding:
    try:
        found = BaseHook.get_connection(conn_id)
    except AirflowNotFoundException:
        raise BadRequestError(
            f"There is no Airflow connection {conn_id!r}.",
            hint="Create it, of type http, with the address of the API server as host.",
        ) from None
    base = _address(found)
    try:
        with httpx.Client(timeout=_SECONDS) as client:
            access = _access_token(client, base, found.login, found.password)
            answer = client.get(f"{base}{PREFIX}/{ROOT.at(token=token)}", headers={"Authorization": f"Bearer {access}"})
            answer.raise_for_status()
            if "json" not in answer.headers.get("content-type", ""):
                return check.error(*_NO_GALLERY)  # Airflow's own page, for an address that it does not know
            return _VIEW.validate_python(answer.json())
    except httpx.HTTPStatusError as error:
        return _refused(check, error.response)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
        return check.error(
            f"The API server was not reached, or it gave no usable answer ({type(error).__name__}).",
            f"Correct the host of the connection {conn_id!r}: the address of Airflow's pages.",
        )


def _refused(check: Check, response: httpx.Response) -> Finding:
    status = response.status_code
    if status in (401, 403):
        return check.error(
            f"The API server refused the login (HTTP {status}).",
            "Correct user and password of the connection, or put a new access token into its password.",
        )
    if status == 404:
        return check.error(*_NO_GALLERY)
    return check.error(f"The API server answered HTTP {status}.", "Look at the log of the API server.")


def _address(found: Any) -> str:
    host, port = (found.host or "").rstrip("/"), f":{found.port}" if found.port else ""
    if "://" not in host:
        host = f"{found.schema or 'http'}://{host}"
    return f"{host}{port}"


def _access_token(client: httpx.Client, base: str, login: str | None, password: str | None) -> str:
    """An access token: by login, the password itself, or without a login where everybody is an administrator."""
    if password and not login:
        return password
    ask = {"json": {"username": login, "password": password}} if login else {}
    answer = client.request("POST" if login else "GET", f"{base}/auth/token", **ask)  # type: ignore[arg-type]
    answer.raise_for_status()
    return str(answer.json()["access_token"])
