"""Checks whether the API server and the triggerer see the same root, by a token that this process leaves there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import httpx
import pydantic
from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook

from airflow_provider_geminiimg import __version__, settings
from airflow_provider_geminiimg.core.gateways.connection import is_loopback
from airflow_provider_geminiimg.core.ledger.root_token import RootView, leave_token, remove_token
from airflow_provider_geminiimg.exceptions import BadRequestError
from airflow_provider_geminiimg.gallery.routes import PREFIX, ROOT
from airflow_provider_geminiimg.runtime.doctor.exchange import Answer, exchange
from airflow_provider_geminiimg.runtime.doctor.findings import Check, Finding
from airflow_provider_geminiimg.runtime.doctor.storage import open_root

_NO_GALLERY = (
    "The API server does not have the gallery: the package is not installed there, or an older version is.",
    "Install this version of the package for the API server, and restart it.",
)


class _SeenView(pydantic.BaseModel):
    """A `RootView` that another process sent."""

    model_config = pydantic.ConfigDict(strict=True)

    found: bool
    same_namespace: bool
    version: Annotated[str, pydantic.Field(pattern=r"^[0-9][0-9A-Za-z.+-]{0,30}$")]
    problem: Annotated[str, pydantic.Field(pattern="^[a-z_]{1,30}$")] | None = None


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
        yield from _asked(check, conn_id, token)
    finally:
        remove_token(store, token)


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
        yield seen(check, _SeenView.model_validate(dict(event)), "triggerer")


def seen(check: Check, view: RootView | _SeenView, who: str) -> Finding:
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


def _asked(check: Check, conn_id: str, token: str) -> Iterator[Finding]:
    try:
        found = BaseHook.get_connection(conn_id)
    except AirflowNotFoundException:
        raise BadRequestError(
            f"There is no Airflow connection {conn_id!r}.",
            hint="Create it, of type http, with the address of the API server as host.",
        ) from None
    base = address(conn_id, found)
    if base.scheme == "http" and not is_loopback(base.host):
        yield check.warning(
            f"The connection {conn_id!r} names an address without encryption: anybody between can read the password or "
            "the token.",
            "Use https, except inside a private network.",
        )
    try:
        access = _access_token(base, found.login, found.password)
        if isinstance(access, Answer):
            yield _refused(check, conn_id, access, "login")
            return
        url = f"{str(base).rstrip('/')}{PREFIX}/{ROOT.at(token=token)}"
        answer = exchange("GET", url, headers={"Authorization": f"Bearer {access}"})
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
        yield check.error(
            f"The API server was not reached, or gave no answer in time ({type(error).__name__}).",
            f"Correct the host of the connection {conn_id!r}: the address of Airflow's pages.",
        )
        return
    yield _viewed(check, conn_id, answer)


def _viewed(check: Check, conn_id: str, answer: Answer) -> Finding:
    if answer.status != 200:
        return _refused(check, conn_id, answer, "gallery")
    try:
        return seen(check, _SeenView.model_validate(answer.json()), "API server")
    except pydantic.ValidationError:  # Airflow's own page, for an address that it does not know
        return check.error(*_NO_GALLERY)


def _refused(check: Check, conn_id: str, answer: Answer, asked: Literal["login", "gallery"]) -> Finding:
    if answer.status in (400, 401, 403, 422):
        return check.error(
            f"The API server refused the login (HTTP {answer.status}).",
            f"Correct user and password of the connection {conn_id!r}, or put only a new access token into its "
            "password.",
        )
    if answer.status == 404 and asked == "gallery":
        return check.error(*_NO_GALLERY)
    if 300 <= answer.status < 400 or answer.status == 404:
        return check.error(
            f"The address of the connection {conn_id!r} is not that of Airflow's API server (HTTP {answer.status}).",
            "Correct its host: the address of Airflow's pages, with its path.",
        )
    return check.error(f"The API server answered HTTP {answer.status}.", "Look at the log of the API server.")


def address(conn_id: str, found: Any) -> httpx.URL:
    """The address of Airflow's pages, without a slash at its end. Without a scheme it is https, or http for a loopback
    address.

    :raises BadRequestError: the connection is of another type, or has no valid address.
    """
    if found.conn_type not in ("http", "https", "", None):
        raise BadRequestError(
            f"Connection {conn_id!r} has type {found.conn_type!r}. Allowed: http.", hint="Name another connection."
        )
    host = (found.host or "").strip().rstrip("/")
    if host.count(":") > 1 and not {"/", "["} & set(host):
        host = f"[{host}]"  # an IPv6 address
    scheme = "https" if "https" in (found.schema, found.conn_type) else found.schema
    try:
        url = httpx.URL(host if "://" in host else f"{scheme}://{host}" if scheme else f"//{host}")
        if not url.scheme:
            url = url.copy_with(scheme="http" if is_loopback(url.host) else "https")
        if found.port and url.port is None:
            url = url.copy_with(port=int(found.port))
    except (httpx.InvalidURL, TypeError, ValueError):
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host or url.userinfo or url.query or url.fragment:
        raise BadRequestError(
            f"The host of the connection {conn_id!r} is not an address.",
            hint="Set it to the address of Airflow's pages, such as https://airflow.example.com, and user and password "
            "to their own fields.",
        )
    return url


def _access_token(base: httpx.URL, login: str | None, password: str | None) -> str | Answer:
    """An access token: by login, the password itself, or without a login where everybody is an administrator.

    :returns: the answer if it has no token.
    """
    if password and not login:
        return password if password.isascii() and password.isprintable() else Answer(401, {}, b"")
    asked = f"{str(base).rstrip('/')}/auth/token"
    answer = (
        exchange("POST", asked, body={"username": login, "password": password}) if login else exchange("GET", asked)
    )
    values = answer.json()
    token = values.get("access_token") if isinstance(values, dict) and 200 <= answer.status < 300 else None
    return token if isinstance(token, str) and token.isascii() and token.isprintable() else answer
