"""Checks an Airflow connection of type `geminiimg` and turns it into a `GatewayConnection`.

What must stay true: no repr, message or pickle contains the API key; the key is not sent over plain http to another
machine unless the connection sets `allow_http`; a null or empty field counts as absent. Nothing here imports Airflow:
the hook passes the fields of the connection.
"""

from __future__ import annotations

import difflib
import hashlib
import ipaddress
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NoReturn
from urllib.parse import urlsplit

from airflow_provider_geminiimg.core.catalog.lookup import (
    ModelSpec,
    default_model,
    did_you_mean,
    known_ids,
    knows,
    row_name,
)
from airflow_provider_geminiimg.core.gateways import GATEWAYS
from airflow_provider_geminiimg.core.gateways.base import Gateway
from airflow_provider_geminiimg.core.gateways.prices import ALLOWED, NO_PRICES, PriceList, parse_prices, scaled
from airflow_provider_geminiimg.core.validation.arguments import to_decimal
from airflow_provider_geminiimg.core.validation.hosts import is_usable
from airflow_provider_geminiimg.core.validation.texts import as_text, given, refuse_lone_surrogates, shown
from airflow_provider_geminiimg.exceptions import AuthenticationError, BadRequestError

CURRENCIES = ("USD", "credits")
_SCHEMES = ("http", "https")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_PORTS_WITHOUT_HOST = (None, 0, 443)
_MAX_WHOLE = 1_000_000
_DIGEST_SALT = b"airflow-provider-geminiimg account\0"
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True)
class _Extra:
    """One extra field of the connection.

    :param parse: reads the value as forms and people write it (numbers may be text). Returns ``None``, or raises
        ``ValueError`` with a reason, if the value is not allowed.
    :param allowed: the allowed values, for the error message.
    :param default: the value of an absent field.
    :param required: whether the field must be given.
    """

    parse: Callable[[Any], Any]
    allowed: str
    default: Any = None
    required: bool = False


def _choice(words: tuple[str, ...], *, required: bool = False) -> _Extra:
    by_lower = {word.lower(): word for word in words}
    return _Extra(lambda value: by_lower.get(_lower(value)), f"one of {', '.join(words)}", required=required)


def _text(value: Any) -> str | None:
    return value.strip() if isinstance(value, str) else None


def _lower(value: Any) -> str:
    return (as_text(value) or "").strip().lower()


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else _BOOLEANS.get(_lower(value))


def _amount(value: Any) -> Decimal | None:
    number = to_decimal(value)
    return None if number is None or number < 0 else number


def _whole(value: Any) -> int | None:
    number = to_decimal(value)
    is_whole = number is not None and number == number.to_integral_value() and 1 <= number <= _MAX_WHOLE
    return int(number) if is_whole else None  # type: ignore[arg-type]


_AMOUNT = _Extra(_amount, "a number of 0 or more")
_WHOLE = _Extra(_whole, f"a whole number from 1 to {_MAX_WHOLE:,}")
_EXTRAS: Mapping[str, _Extra] = {
    "gateway": _choice(tuple(GATEWAYS), required=True),
    "model": _Extra(_text, "text"),
    "requests_per_minute": _WHOLE,
    "max_concurrency": _WHOLE,
    "shared_limits": _Extra(_flag, "true or false", default=True),
    "price_base": _AMOUNT,
    "prices": _Extra(parse_prices, ALLOWED, NO_PRICES),
    "price_currency": _choice(CURRENCIES),
    "daily_budget": _AMOUNT,
    "run_budget": _AMOUNT,
    "allow_http": _Extra(_flag, "true or false", default=False),
}
EXTRAS = tuple(_EXTRAS)
"""The names of the extra fields, in the order of the connection form."""


@dataclass(frozen=True)
class GatewayConnection:
    """The settings of one gateway account. It cannot be pickled, because it contains the API key.

    :param conn_id: id of the Airflow connection.
    :param gateway: ``1min`` or ``apimaster``.
    :param api_key: the API key, for the transport alone.
    :param base_url: base URL of the API, without a trailing slash.
    :param model: the model of requests that name none; ``None``: the catalogue's default.
    :param requests_per_minute: maximum number of calls per minute; ``None``: the catalogue's limit of the gateway.
    :param max_concurrency: maximum number of simultaneous calls; ``None``: the transport's default.
    :param shared_limits: whether the two limits hold over all processes that use the same root, or for each process.
    :param price_base: price of a 1K image of the default model in this account; ``None``: the catalogue's price.
    :param price_currency: ``USD`` (also for ``None``) or ``credits``: the currency of all prices and budgets.
    :param daily_budget: maximum that all workers together may spend in one UTC day; ``None``: no limit.
    :param run_budget: maximum that one DAG run may spend, in all its tasks and attempts; ``None``: no limit.
    :param prices: prices of this account by model and, optionally, by size; they override `price_base`.
    """

    conn_id: str
    gateway: str
    api_key: str = field(repr=False)
    base_url: str
    model: str | None = None
    requests_per_minute: int | None = None
    max_concurrency: int | None = None
    shared_limits: bool = True
    price_base: Decimal | None = None
    price_currency: str | None = None
    daily_budget: Decimal | None = None
    run_budget: Decimal | None = None
    prices: PriceList = NO_PRICES

    def own_price(self, row: ModelSpec, resolution: str | None) -> Decimal | None:
        """The price of one image by the connection's own prices; ``None`` if the connection gives none.

        :param row: the catalogue's row of the model.
        :param resolution: ``512``, ``1K``, ``2K`` or ``4K``; ``None`` if the model takes no size.
        """
        listed = self.prices.price(row, resolution)
        is_default = row.model == row_name(default_model(self.gateway, self.model))
        if listed is not None or self.price_base is None or not is_default:
            return listed
        return scaled(self.price_base, row, resolution)

    @property
    def api_host(self) -> str:
        """Host of the base URL, with its port unless it is the scheme's default port."""
        url = urlsplit(self.base_url)
        name = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname or ""
        return name if url.port in (None, _DEFAULT_PORTS.get(url.scheme)) else f"{name}:{url.port}"

    @property
    def key_digest(self) -> str:
        """32 bits of a salted hash of the key: enough to notice another key, too short to reveal it."""
        return hashlib.sha256(_DIGEST_SALT + self.api_key.encode()).hexdigest()[:8]

    def adapter(self) -> Gateway:
        """The gateway's adapter for this connection's base URL."""
        return GATEWAYS[self.gateway](self.base_url)

    def __reduce__(self) -> NoReturn:
        raise TypeError("A GatewayConnection contains an API key and cannot be pickled.")


def parse_connection(
    *,
    conn_id: str,
    password: str | None,
    host: str | None = None,
    schema: str | None = None,
    port: int | None = None,
    extra: Mapping[str, Any] | None = None,
) -> GatewayConnection:
    """Check the fields of an Airflow connection.

    :param conn_id: id of the connection, named in every message.
    :param password: the API key.
    :param host: base URL. Without a scheme it is https, or http for a loopback address. Without a path it gets the
        default path of the gateway's API. Default: the gateway's own base URL.
    :param schema: ``http`` or ``https``, or a path, as Airflow reads it from a connection URI.
    :param port: the port, if `host` has none. Without a host only 443 is allowed.
    :param extra: the extra fields, see `EXTRAS`. An unknown name gives one warning.
    :raises BadRequestError: a field is missing or has a wrong value.
    :raises AuthenticationError: the API key is missing or contains characters that no HTTP header can have.
    """
    values = _parse_extra(conn_id, extra or {})
    gateway, allow_http = values["gateway"], values.pop("allow_http")
    _warn_of_unknown_models(conn_id, gateway, values["prices"])
    base_url = _base_url(conn_id, GATEWAYS[gateway].default_base_url, host, schema, port, allow_http=allow_http)
    values["model"] = values["model"] or None
    return GatewayConnection(conn_id=conn_id, api_key=_api_key(conn_id, password), base_url=base_url, **values)


def _parse_extra(conn_id: str, extra: Mapping[str, Any]) -> dict[str, Any]:
    """The value of each field of `EXTRAS`; its default if it is null, empty or absent."""
    if not isinstance(extra, Mapping):
        raise _wrong(conn_id, extra, "a JSON object", "its extra is no JSON object.")
    given = {name: value for name, value in extra.items() if value is not None and value != ""}
    unknown = sorted(str(name) for name in given if name not in _EXTRAS)
    if unknown:
        warnings.warn(
            f"Connection {conn_id!r} has unknown extra fields, which have no effect: "
            f"{', '.join(map(_with_suggestion, unknown))}. Known: {', '.join(EXTRAS)}.",
            UserWarning,
            stacklevel=3,
        )
    return {name: _parse_field(conn_id, name, field, given.get(name)) for name, field in _EXTRAS.items()}


def _parse_field(conn_id: str, name: str, extra: _Extra, value: Any) -> Any:
    if value is None:
        if extra.required:
            raise _wrong(conn_id, None, extra.allowed, f"the extra `{name}` is required.")
        return extra.default
    if isinstance(value, str):
        refuse_lone_surrogates(f"Connection {conn_id!r}: the extra `{name}`", value)
    reason = ""
    try:
        parsed = extra.parse(value)
    except ValueError as error:
        parsed, reason = None, f": {error}"
    if parsed is None:
        raise _wrong(conn_id, value, extra.allowed, f"the extra `{name}` is wrong{reason}.")
    return parsed


def _wrong(conn_id: str, value: object, allowed: str, problem: str) -> BadRequestError:
    shown_value = "nothing" if value is None else _written(value)
    return BadRequestError(
        f"Connection {conn_id!r}: {problem} Given: {shown_value}. Allowed: {allowed}.",
        hint="Correct the connection, then clear the task.",
    )


def _written(value: object) -> str:
    try:
        if not isinstance(value, int):
            return shown(repr(value), 100)
    except (ValueError, RecursionError):  # an integer with too many digits, or a list that nests too deep
        pass
    return given(value).removeprefix("=").strip(" ()").removeprefix("given: ")


def _with_suggestion(unknown: str) -> str:
    """The name of an unknown field, with the most similar known name."""
    unknown = shown(unknown)
    plain = re.sub(r"[^a-z]+", "_", unknown.lower())
    close = difflib.get_close_matches(plain, EXTRAS, n=1)
    return f"{unknown} (did you mean {close[0]}?)" if close else unknown


def _warn_of_unknown_models(conn_id: str, gateway: str, prices: PriceList) -> None:
    for model in prices.by_model:
        if not knows(gateway, model):
            warnings.warn(
                f"Connection {conn_id!r}: the extra `prices` names the model {model!r}, which is not in the "
                f"catalogue for {gateway}.{did_you_mean(gateway, model)} Known: {', '.join(known_ids(gateway))}.",
                UserWarning,
                stacklevel=3,
            )


def _api_key(conn_id: str, password: str | None) -> str:
    key = (password or "").strip()
    if not key:
        raise AuthenticationError(f"Connection {conn_id!r} has no API key: its password is empty. Nothing was sent.")
    if not (key.isascii() and key.isprintable()):
        raise AuthenticationError(
            f"Connection {conn_id!r}: its password contains characters that no API key has. Nothing was sent."
        )
    return key


def _base_url(
    conn_id: str, default: str, host: str | None, schema: str | None, port: int | None, *, allow_http: bool
) -> str:
    """The base URL from a connection's host, schema and port."""
    host, schema = (host or "").strip(), (schema or "").strip()
    if not host:
        if port not in _PORTS_WITHOUT_HOST:
            raise _wrong(conn_id, port, "443, or another port together with a host", "the port has no host.")
        return default.rstrip("/")
    try:
        url = urlsplit(host if "://" in host else f"//{host}")
        name, own_port = url.hostname, url.port
    except ValueError:
        raise _no_address(conn_id) from None
    if not name or "@" in url.netloc or url.query or url.fragment or any(char.isspace() for char in host):
        raise _no_address(conn_id)
    schema_is_scheme = schema.lower() in _SCHEMES
    scheme = _scheme(conn_id, name, url.scheme or (schema if schema_is_scheme else ""), allow_http=allow_http)
    own_port = port if own_port is None else own_port
    if own_port is not None and not 0 <= own_port <= 65_535:  # Airflow's port field takes any number
        raise _no_address(conn_id)
    paths = (url.path, "" if schema_is_scheme else schema, urlsplit(default).path)
    path = next((path.strip("/") for path in paths if path.strip("/")), "")
    netloc = (f"[{name}]" if ":" in name else name) + (f":{own_port}" if own_port else "")
    base_url = f"{scheme}://{netloc}" + (f"/{path}" if path else "")
    if not is_usable(base_url):
        raise _no_address(conn_id)
    return base_url


def _scheme(conn_id: str, name: str, written: str, *, allow_http: bool) -> str:
    """The scheme of the base URL: the written one, else the default for the host `name`."""
    scheme = written.lower() or ("http" if is_loopback(name) else "https")
    if scheme not in _SCHEMES:
        raise _wrong(conn_id, scheme, "https (http to a loopback address)", "the host's scheme is wrong.")
    if scheme == "http" and not (allow_http or is_loopback(name)):
        raise _wrong(
            conn_id,
            f"http://{name}",
            "https; http to a loopback address, or to any address with the extra `allow_http`: true",
            "plain http would send the API key unencrypted.",
        )
    return scheme


def _no_address(conn_id: str) -> BadRequestError:
    return BadRequestError(
        f"Connection {conn_id!r}: its host is not an address. Allowed: a host name or an http(s) URL, optionally with "
        "port and path, without user name, query and fragment.",
        hint="Correct the connection, then clear the task.",
    )


def is_loopback(host: str) -> bool:
    """Whether `host` is ``localhost`` or a loopback address. Makes no DNS request."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
