"""Checks of the connections: key, models, price, and the gateway's clock. Free of charge."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import httpx

from airflow_provider_geminiimg.core.catalog.lookup import default_model, lookup, other_id
from airflow_provider_geminiimg.core.gateways.connection import GatewayConnection, is_loopback
from airflow_provider_geminiimg.core.ledger.caps import caps_set, currency_of
from airflow_provider_geminiimg.exceptions import GeminiImageError
from airflow_provider_geminiimg.hooks.geminiimg import GeminiImageHook, recorded_warnings
from airflow_provider_geminiimg.runtime.doctor.exchange import exchange
from airflow_provider_geminiimg.runtime.doctor.findings import Check, Finding
from airflow_provider_geminiimg.runtime.doctor.storage import skew


def connection(check: Check, conn_id: str) -> Iterator[Finding]:
    """The connection, with the free check of its gateway.

    :raises GeminiImageError: the connection is wrong, or the gateway refuses the key.
    """
    with recorded_warnings() as messages:
        found = GeminiImageHook(conn_id).connection()
    for message in messages:
        yield check.warning(message, f"Correct the connection {conn_id!r}.")
    yield from _price(check, found)
    base = httpx.URL(found.base_url)
    if base.scheme == "http" and not is_loopback(base.host):
        yield check.warning(
            f"Calls of {found.base_url} are not encrypted, and anybody between can read the API key.",
            "Use https for everything but a test network.",
        )
    yield from _models(check, found)
    yield from _gateway_clock(check, found)


def _price(check: Check, found: GatewayConnection) -> Iterator[Finding]:
    model, capped = default_model(found.gateway, found.model), caps_set(found, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # for a model that is not in the catalogue
        row = lookup(found.gateway, model, "generate")
    own, listed = (price(row.default_resolution) for price in (lambda size: found.own_price(row, size), row.price))
    currency = currency_of(found)
    known = own is not None or (listed is not None and currency == row.currency)
    if own is not None:
        yield check.ok(f"An image of {model} costs {own:f} {currency} by the connection's own prices.")
    elif known:
        yield check.ok(f"An image of {model} costs about {listed:f} {currency}: an estimate from Google's list price.")
    else:
        add = f"Add your price of one image of {model}, in {currency}, to the field `prices` of the connection."
        if capped:
            yield check.error(
                f"The price of {model} in {currency} is not known, so every task is refused: {' and '.join(capped)} "
                "is set.",
                add,
            )
        else:
            yield check.warning(f"The price of {model} in {currency} is not known, so costs are not counted.", add)


def _models(check: Check, found: GatewayConnection) -> Iterator[Finding]:
    hook = GeminiImageHook(found.conn_id)
    label, model = found.adapter().label, default_model(found.gateway, found.model)
    models = hook.check().models
    if not models:
        try:
            models = hook.models()
        except GeminiImageError as error:
            yield check.warning(
                f"{label} accepts the key, and its list of models could not be read: {error.message}",
                "Try again later.",
            )
            return
    if not models:
        yield check.ok(f"{label} accepts the key. It lists no models.")
    elif model in models:
        yield check.ok(f"{label} accepts the key, and has {model}.")
    else:
        other = other_id(model)
        yield check.warning(
            f"{label} accepts the key, and does not list the default model {model}.",
            f"Set the connection's model to {other}."
            if other in models
            else "Enable the model at the gateway, or set the connection's model to one that it lists: the connection "
            "test shows them.",
        )


def _gateway_clock(check: Check, found: GatewayConnection) -> Iterator[Finding]:
    """Compare clocks, with a request without the key."""
    unknown = check.skipped(f"{urlsplit(found.base_url).hostname} does not tell its time.")
    before = time.time()
    try:
        headers = exchange("HEAD", found.base_url).headers
        at = parsedate_to_datetime(headers["date"])
    except (httpx.HTTPError, TimeoutError, KeyError, ValueError, TypeError):
        yield unknown
        return
    if at.tzinfo is None or "age" in headers:  # of a cache, whose answer is old
        yield unknown
    else:
        yield skew(check, at.timestamp(), before, time.time(), f"the gateway of {found.conn_id}", signs=False)
