"""What an Airflow connection of type `geminiimg` means, checked before anything is sent.

What must stay true: the API key stays out of every repr, message and pickle; a key is never sent in clear text to
another machine unless the connection says so; a null or empty part of the connection is the same as an absent one.
Nothing here knows Airflow: the hook passes the connection's parts in.
"""

from __future__ import annotations

import difflib
import hashlib
import ipaddress
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NoReturn
from urllib.parse import SplitResult, urlsplit

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
from airflow_provider_geminiimg.core.validation.texts import as_text, given, refuse_half_characters, shown
from airflow_provider_geminiimg.exceptions import AuthenticationError, BadRequestError

CURRENCIES = ("USD", "credits")
EXTRAS = (
    "gateway",
    "model",
    "requests_per_minute",
    "max_concurrency",
    "price_base",
    "prices",
    "price_currency",
    "daily_budget",
    "allow_http",
)
_SCHEMES = ("http", "https")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_NO_OTHER_PORT = (None, 0, 443)
_ACCOUNT = b"airflow-provider-geminiimg account\0"
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True)
class GatewayConnection:
    """One gateway account, as an Airflow connection describes it. It can't be pickled, because it holds the key.

    :param conn_id: the Airflow connection's id.
    :param gateway: ``1min`` or ``apimaster``.
    :param api_key: the API key, for the transport alone.
    :param base_url: the API's base URL, without a trailing slash.
    :param model: the model where a request names none; ``None``: the catalogue's default.
    :param requests_per_minute: calls a minute; ``None``: the catalogue's figure for the gateway.
    :param max_concurrency: calls at once; ``None``: the transport's default.
    :param price_base: the account's own price of a 1K image of the default model; ``None``: the catalogue's figure.
    :param price_currency: ``USD`` (also for ``None``) or ``credits``; what all prices here and the caps are in.
    :param daily_budget: what all workers together may spend in a UTC day; ``None``: no limit.
    :param prices: the account's own prices by model, and by size where it says so; they go before `price_base`.
    """

    conn_id: str
    gateway: str
    api_key: str = field(repr=False)
    base_url: str
    model: str | None = None
    requests_per_minute: int | None = None
    max_concurrency: int | None = None
    price_base: Decimal | None = None
    price_currency: str | None = None
    daily_budget: Decimal | None = None
    prices: PriceList = NO_PRICES

    def own_price(self, row: ModelSpec, resolution: str | None) -> Decimal | None:
        """What the account itself says that one image costs; ``None``: it does not say.

        :param row: the catalogue's row of the model.
        :param resolution: a neutral size; ``None`` where the model takes none.
        """
        listed = self.prices.price(row, resolution)
        is_default = row.model == row_name(default_model(self.gateway, self.model))
        if listed is not None or self.price_base is None or not is_default:
            return listed
        return scaled(self.price_base, row, resolution)

    @property
    def api_host(self) -> str:
        """The base URL's host, with its port where that is not the scheme's own."""
        url = urlsplit(self.base_url)
        name = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname or ""
        return name if url.port in (None, _DEFAULT_PORTS.get(url.scheme)) else f"{name}:{url.port}"

    @property
    def key_digest(self) -> str:
        """Tells one key from another, and is too short to find one by: 32 bits of a hash that nothing else uses."""
        return hashlib.sha256(_ACCOUNT + self.api_key.encode()).hexdigest()[:8]

    def adapter(self) -> Gateway:
        """The gateway's adapter, set to this connection's base URL."""
        return GATEWAYS[self.gateway](self.base_url)

    def __reduce__(self) -> NoReturn:
        raise TypeError("A GatewayConnection holds an API key and can't be pickled.")


def parse_connection(
    *,
    conn_id: str,
    password: str | None,
    host: str | None = None,
    schema: str | None = None,
    port: int | None = None,
    extra: Mapping[str, Any] | None = None,
) -> GatewayConnection:
    """The parts of an Airflow connection as a checked `GatewayConnection`.

    :param conn_id: the connection's id, named in every message.
    :param password: the API key.
    :param host: base URL, with or without scheme; without one it is https, and http for a loopback address. Without
        a path it gets the default one of the gateway's API. Default: the gateway's own address.
    :param schema: ``http`` or ``https``, or a path, as Airflow reads it from a connection URI.
    :param port: the port, where `host` holds none. Without a host it may be 443 alone, which changes nothing.
    :param extra: see `EXTRAS`; an unknown name in it is one warning.
    :raises BadRequestError: for a part that is missing or out of range.
    :raises AuthenticationError: for a missing API key, or one that no HTTP header can carry.
    """
    parts = _Extras(conn_id, extra or {})
    gateway = parts.choice("gateway", tuple(GATEWAYS))
    if gateway is None:
        raise parts.wrong("gateway", None, f"one of {', '.join(GATEWAYS)}", "the extra `gateway` is required.")
    usual, allow_http = GATEWAYS[gateway].default_base_url, parts.flag("allow_http")
    base_url = _base_url(parts, usual, _text(host), _text(schema), port, allow_http)
    return GatewayConnection(
        conn_id=conn_id,
        gateway=gateway,
        api_key=_api_key(conn_id, password),
        base_url=base_url,
        model=parts.text("model"),
        requests_per_minute=parts.whole("requests_per_minute"),
        max_concurrency=parts.whole("max_concurrency"),
        price_base=parts.amount("price_base"),
        price_currency=parts.choice("price_currency", CURRENCIES),
        daily_budget=parts.amount("daily_budget"),
        prices=_prices(parts, gateway),
    )


class _Extras:
    """The connection's extra fields, taken as people and forms write them: numbers as text, null as absent."""

    def __init__(self, conn_id: str, values: Mapping[str, Any]) -> None:
        self.conn_id = conn_id
        if not isinstance(values, Mapping):
            raise self.wrong("extra", values, "a JSON object", "its extra is no JSON object.")
        self._values = {name: value for name, value in values.items() if value is not None and value != ""}
        unknown = sorted(str(name) for name in self._values if name not in EXTRAS)
        if unknown:
            warnings.warn(
                f"Connection {conn_id!r} has extra fields that mean nothing here: {', '.join(map(_meant, unknown))}. "
                f"Known: {', '.join(EXTRAS)}.",
                UserWarning,
                stacklevel=3,
            )

    def wrong(self, name: str, value: object, allowed: str, said: str = "") -> BadRequestError:
        what = "nothing" if value is None else _written(value)
        said = said or f"the extra `{name}` is wrong."
        return BadRequestError(
            f"Connection {self.conn_id!r}: {said} Given: {what}. Allowed: {allowed}.",
            hint="Correct the connection, then clear the task.",
        )

    def text(self, name: str) -> str | None:
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self.wrong(name, value, "text")
        refuse_half_characters(f"Connection {self.conn_id!r}: the extra `{name}`", value)
        return _text(value)

    def choice(self, name: str, allowed: tuple[str, ...]) -> str | None:
        value = self._values.get(name)
        if value is None:
            return None
        by_lower = {word.lower(): word for word in allowed}
        found = by_lower.get((as_text(value) or "").strip().lower())
        if found is None:
            raise self.wrong(name, value, f"one of {', '.join(allowed)}")
        return found

    def flag(self, name: str) -> bool:
        value = self._values.get(name, False)
        found = value if isinstance(value, bool) else _BOOLEANS.get((as_text(value) or "").strip().lower())
        if found is None:
            raise self.wrong(name, value, "true or false")
        return found

    def amount(self, name: str) -> Decimal | None:
        value = self._values.get(name)
        if value is None:
            return None
        number = to_decimal(value)
        if number is None or number < 0:
            raise self.wrong(name, value, "a number of 0 or more")
        return number

    def prices(self) -> PriceList:
        value = self._values.get("prices")
        if value is None:
            return NO_PRICES
        try:
            return parse_prices(value)
        except ValueError as error:
            raise self.wrong("prices", value, ALLOWED, f"the extra `prices` is wrong: {error}.") from None

    def whole(self, name: str) -> int | None:
        value = self._values.get(name)
        if value is None:
            return None
        number = to_decimal(value)
        if number is None or number != number.to_integral_value() or not 1 <= number <= 1_000_000:
            raise self.wrong(name, value, "a whole number of 1 or more")
        return int(number)


def _written(value: object) -> str:
    try:
        if not isinstance(value, int):
            return shown(repr(value), 100)
    except (ValueError, RecursionError):  # digits without an end, or lists
        pass
    return given(value).removeprefix("=").strip(" ()").removeprefix("given: ")


def _meant(unknown: str) -> str:
    """The name of an extra that is not known, with the one that may be meant."""
    unknown = shown(unknown)
    plain = re.sub(r"[^a-z]+", "_", unknown.lower())
    close = difflib.get_close_matches(plain, EXTRAS, n=1)
    return f"{unknown} (did you mean {close[0]}?)" if close else unknown


def _prices(parts: _Extras, gateway: str) -> PriceList:
    prices = parts.prices()
    for model in prices.by_model:
        if not knows(gateway, model):
            warnings.warn(
                f"Connection {parts.conn_id!r}: the extra `prices` names the model {model!r}, which is not in the "
                f"catalogue for {gateway}.{did_you_mean(gateway, model)} Known: {', '.join(known_ids(gateway))}.",
                UserWarning,
                stacklevel=3,
            )
    return prices


def _text(value: str | None) -> str | None:
    return (value or "").strip() or None


def _api_key(conn_id: str, password: str | None) -> str:
    key = _text(password)
    if key is None:
        raise AuthenticationError(f"Connection {conn_id!r} has no API key: its password is empty. Nothing was sent.")
    if not (key.isascii() and key.isprintable()):
        raise AuthenticationError(
            f"Connection {conn_id!r}: its password holds characters that no API key has. Nothing was sent."
        )
    return key


def _base_url(
    parts: _Extras, default: str, host: str | None, schema: str | None, port: int | None, allow_http: bool
) -> str:
    if host is None:
        if port not in _NO_OTHER_PORT:
            raise parts.wrong("port", port, "443, or another one beside a host", "the port has no host.")
        return default.rstrip("/")
    scheme = (schema or "").lower() if (schema or "").lower() in _SCHEMES else None
    path = None if scheme else schema
    try:
        url = urlsplit(host if "://" in host else f"//{host}")
        name, own_port = url.hostname, url.port
    except ValueError:
        name, own_port, url = None, None, SplitResult("", "", "", "", "")
    if not name or "@" in url.netloc or url.query or url.fragment or any(char.isspace() for char in host):
        raise _no_address(parts.conn_id)
    scheme = url.scheme.lower() or scheme or ("http" if is_loopback(name) else "https")
    if scheme not in _SCHEMES:
        raise parts.wrong("host", scheme, "https (http to a loopback address)", "the host's scheme is wrong.")
    if scheme == "http" and not (allow_http or is_loopback(name)):
        raise parts.wrong(
            "host",
            f"http://{name}",
            "https; http to a loopback address, or anywhere with the extra `allow_http`: true",
            "plain http would show the API key to the network.",
        )
    own_port = port if own_port is None else own_port
    if own_port is not None and not 0 <= own_port <= 65_535:  # the port field takes any number
        raise _no_address(parts.conn_id)
    shown = f"[{name}]" if ":" in name else name
    where = f"{scheme}://{shown}" + (f":{own_port}" if own_port else "")
    path = (url.path.strip("/") or (path or "").strip("/")) or urlsplit(default).path.strip("/")
    base_url = f"{where}/{path}" if path else where
    if not is_usable(base_url):
        raise _no_address(parts.conn_id)
    return base_url


def _no_address(conn_id: str) -> BadRequestError:
    return BadRequestError(
        f"Connection {conn_id!r}: its host is not an address. Allowed: a host name or an http(s) URL, with port and "
        "path where needed, without user name, query or fragment.",
        hint="Correct the connection, then clear the task.",
    )


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine by its own name or address, without asking DNS."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
