"""What an Airflow connection may say, and that it never shows its key."""

from __future__ import annotations

import copy
import json
import pickle
from decimal import Decimal
from typing import Any

import pytest

from airflow_provider_geminiimg.core.catalog.lookup import (
    DEFAULT_MODELS,
    LIMITS,
    ROWS,
    SUCCESSORS,
    known_ids,
    knows,
    lookup,
)
from airflow_provider_geminiimg.core.gateways import GATEWAYS
from airflow_provider_geminiimg.core.gateways.connection import (
    CURRENCIES,
    GatewayConnection,
    is_loopback,
    parse_connection,
)
from airflow_provider_geminiimg.core.http.transport import DEFAULT_CONCURRENCY
from airflow_provider_geminiimg.exceptions import AuthenticationError, BadRequestError
from airflow_provider_geminiimg.provider import get_provider_info

KEY = "canary-key-9f3a"


def parse(extra: dict[str, Any] | None = None, **parts: Any) -> GatewayConnection:
    values = {"conn_id": "my_conn", "password": KEY, "extra": {"gateway": "1min", **(extra or {})}, **parts}
    return parse_connection(**values)


@pytest.mark.parametrize(
    ("gateway", "base_url"), [("1min", "https://api.1min.ai"), ("apimaster", "https://apimaster.ai/v1")]
)
def test_a_connection_of_key_and_gateway_goes_to_the_gateways_own_address(gateway: str, base_url: str) -> None:
    connection = parse({"gateway": gateway})
    assert (connection.gateway, connection.base_url) == (gateway, base_url)
    assert connection.adapter().name == gateway
    assert connection.adapter().base_url == base_url


@pytest.mark.parametrize(
    ("parts", "base_url"),
    [
        ({"host": "https://proxy.example.com/api/"}, "https://proxy.example.com/api"),
        ({"host": "proxy.example.com"}, "https://proxy.example.com"),
        ({"host": "proxy.example.com", "schema": "https", "port": 8443}, "https://proxy.example.com:8443"),
        ({"host": "proxy.example.com", "schema": "v2"}, "https://proxy.example.com/v2"),
        ({"host": "https://proxy.example.com:9000", "port": 8443}, "https://proxy.example.com:9000"),
        ({"host": "HTTPS://Proxy.Example.com"}, "https://proxy.example.com"),
        ({"host": "http://127.0.0.1:8099"}, "http://127.0.0.1:8099"),
        ({"host": "127.0.0.1", "port": 8099}, "http://127.0.0.1:8099"),
        ({"host": "localhost:8099"}, "http://localhost:8099"),
        ({"host": "http://[::1]:8099"}, "http://[::1]:8099"),
        ({"host": "127.0.0.1", "port": 8443, "schema": "https"}, "https://127.0.0.1:8443"),
        ({"host": "  ", "schema": "", "port": None}, "https://api.1min.ai"),
    ],
)
def test_the_host_is_taken_as_people_write_it(parts: dict[str, Any], base_url: str) -> None:
    assert parse(**parts).base_url == base_url


@pytest.mark.parametrize(
    ("host", "base_url"),
    [
        ("https://apimaster.ai", "https://apimaster.ai/v1"),
        ("http://127.0.0.1:8099", "http://127.0.0.1:8099/v1"),
        ("http://127.0.0.1:8099/other", "http://127.0.0.1:8099/other"),
    ],
)
def test_a_host_without_a_path_gets_the_path_of_the_gateways_api(host: str, base_url: str) -> None:
    assert parse({"gateway": "apimaster"}, host=host).base_url == base_url


def test_a_port_without_a_host_is_refused_unless_it_changes_nothing() -> None:
    for port in (None, 0, 443):
        assert parse(port=port) == parse()
    with pytest.raises(BadRequestError, match="the port has no host"):
        parse(port=8443)


@pytest.mark.parametrize(
    "host", ["http://api.example.com", "http://10.0.0.7:8099", "http://127.0.0.1.example.com", "http://[2001:db8::1]"]
)
def test_plain_http_to_another_machine_is_refused_unless_the_connection_allows_it(host: str) -> None:
    with pytest.raises(BadRequestError, match="allow_http"):
        parse(host=host)
    assert parse({"allow_http": True}, host=host).base_url == host
    assert parse({"allow_http": "true"}, host=host).base_url == host
    with pytest.raises(BadRequestError, match="allow_http"):
        parse({"allow_http": "false"}, host=host)


def test_http_in_the_schema_counts_as_plain_http_too() -> None:
    with pytest.raises(BadRequestError, match="allow_http"):
        parse(host="api.example.com", schema="http")


@pytest.mark.parametrize(
    "host",
    [
        "https://someone:hunter2@api.example.com",
        "https://api.example.com/?token=hunter2",
        "https://api.example.com/#hunter2",
        "https://api.example.com:hunter2/",
        "https://",
        "https://api example.com",
        "https://[::1",
    ],
)
def test_a_host_that_is_no_plain_address_is_refused_without_showing_it(host: str) -> None:
    with pytest.raises(BadRequestError, match="host") as caught:
        parse(host=host)
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in str(caught.value.__cause__)


def test_another_scheme_than_http_is_refused() -> None:
    with pytest.raises(BadRequestError, match="ftp"):
        parse(host="ftp://api.example.com")


@pytest.mark.parametrize("gateway", [None, "", "openai"])
def test_a_missing_or_unknown_gateway_is_refused_and_the_allowed_ones_are_named(gateway: str | None) -> None:
    with pytest.raises(BadRequestError, match="1min, apimaster") as caught:
        parse({"gateway": gateway})
    assert "my_conn" in str(caught.value)


@pytest.mark.parametrize("password", [None, "", "  ", "with\nnewline", "schlüssel"])
def test_a_missing_or_unsendable_key_is_an_authentication_error(password: str | None) -> None:
    with pytest.raises(AuthenticationError, match="password") as caught:
        parse(password=password)
    assert not password or not password.strip() or password not in str(caught.value)


def test_blanks_around_a_pasted_key_are_dropped() -> None:
    assert parse(password=f" {KEY}\n").api_key == KEY


def test_null_and_empty_extras_are_absent() -> None:
    names = (
        "model",
        "requests_per_minute",
        "max_concurrency",
        "price_base",
        "price_currency",
        "daily_budget",
        "run_budget",
        "allow_http",
    )
    for empty in (None, ""):
        connection = parse(dict.fromkeys(names, empty))
        assert connection == parse()


def test_numbers_may_come_as_text() -> None:
    connection = parse(
        {
            "model": " gemini-3-pro-image-preview ",
            "requests_per_minute": "90",
            "max_concurrency": 4.0,
            "price_base": "0.0672",
            "price_currency": "usd",
            "daily_budget": "12.50",
            "run_budget": " 0.30 ",
        }
    )
    assert connection.model == "gemini-3-pro-image-preview"
    assert (connection.requests_per_minute, connection.max_concurrency) == (90, 4)
    assert (connection.price_base, connection.price_currency) == (Decimal("0.0672"), "USD")
    assert (connection.daily_budget, connection.run_budget) == (Decimal("12.5"), Decimal("0.3"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("requests_per_minute", 0),
        ("requests_per_minute", "many"),
        ("requests_per_minute", 1.5),
        ("requests_per_minute", True),
        ("max_concurrency", -1),
        ("max_concurrency", [8]),
        ("price_base", "-0.1"),
        ("price_base", "NaN"),
        ("price_base", "Infinity"),
        ("price_currency", "EUR"),
        ("daily_budget", -1),
        ("daily_budget", "ten"),
        ("daily_budget", "1e999999999"),
        ("run_budget", -1),
        ("run_budget", "three images"),
        ("allow_http", "maybe"),
        ("model", 25),
    ],
)
def test_an_extra_out_of_range_is_refused_with_its_name_and_value(name: str, value: object) -> None:
    with pytest.raises(BadRequestError, match=name) as caught:
        parse({name: value})
    assert repr(value) in str(caught.value)
    assert "Allowed" in str(caught.value)


def test_an_unknown_extra_is_one_warning_that_names_it() -> None:
    with pytest.warns(UserWarning, match="gatway") as caught:
        parse({"gatway": "1min"})
    assert len(caught) == 1


def test_the_key_is_in_no_repr_no_message_and_no_pickle() -> None:
    connection = parse()
    assert KEY not in repr(connection)
    assert KEY not in repr(connection.adapter().__dict__)
    for serialize in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError) as caught:
            serialize(connection)
        assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "answer"),
    [("localhost", True), ("LOCALHOST.", True), ("127.9.9.9", True), ("::1", True), ("localhost.evil.com", False)],
)
def test_only_names_and_addresses_of_this_machine_are_loopback(host: str, answer: bool) -> None:
    assert is_loopback(host) is answer


# The form in Airflow's pages


def form() -> dict[str, Any]:
    [connection] = get_provider_info()["connection-types"]
    return dict(connection)


def test_the_form_offers_the_gateways_that_there_are_by_their_own_names() -> None:
    field = form()["conn-fields"]["gateway"]["schema"]
    assert field["enum"] == list(GATEWAYS)
    assert field["values_display"] == {name: gateway.label for name, gateway in GATEWAYS.items()}


def test_the_form_suggests_the_models_of_the_catalogue_and_says_which_one_gateway_alone_has() -> None:
    field = form()["conn-fields"]["model"]
    models = list(dict.fromkeys(row.model for row in ROWS))
    examples = field["schema"]["examples"]
    assert examples[: len(models)] == models
    assert set(examples) <= {*known_ids("1min"), *known_ids("apimaster")}
    for gateway, model in DEFAULT_MODELS.items():
        assert model in examples
        assert f"{model} on {GATEWAYS[gateway].label}" in field["description"]
    for model in models:
        names = [GATEWAYS[name].label for name in GATEWAYS if knows(name, model)]
        assert (f"{model} exists only on {names[0]}" in field["description"]) == (len(names) == 1)


def test_the_form_offers_the_currencies_that_there_are_or_none() -> None:
    assert form()["conn-fields"]["price_currency"]["schema"]["enum"] == [*CURRENCIES, None]


def test_the_form_says_what_an_empty_limit_means() -> None:
    fields = form()["conn-fields"]
    [usual] = {limits.requests_per_minute for limits in LIMITS.values()}
    assert f"Empty: {usual}." in fields["requests_per_minute"]["description"]
    assert f"Empty: {DEFAULT_CONCURRENCY} in each process." in fields["max_concurrency"]["description"]


def test_the_form_shows_the_parts_that_a_connection_uses_and_hides_the_others() -> None:
    behaviour = form()["ui-field-behaviour"]
    assert set(behaviour["hidden-fields"]) == {"login", "schema"}
    for gateway in GATEWAYS.values():
        assert gateway.default_base_url in behaviour["placeholders"]["host"]
    assert len({field["schema"]["section"] for field in form()["conn-fields"].values()}) == 1


def test_what_the_form_saves_when_nothing_but_the_gateway_was_chosen_is_a_connection() -> None:
    saved = dict.fromkeys(form()["conn-fields"]) | {"gateway": "1min"}
    assert parse(saved, host="", schema="", port=None) == parse()


def test_the_catalogue_knows_a_model_by_any_of_its_ids_where_the_gateway_has_it() -> None:
    for preview, successor in SUCCESSORS.items():
        assert knows("1min", preview)
        assert knows("1min", successor)
    assert knows("1min", "gemini-2.5-flash-image-preview")
    assert not knows("apimaster", "gemini-2.5-flash-image")
    assert not knows("1min", "gpt-image-1")


# Prices of the account's own


FLASH, GA, PRO = "gemini-3.1-flash-image-preview", "gemini-3.1-flash-image", "gemini-3-pro-image"


def own(extra: dict[str, Any], model: str, resolution: str | None = "1K", gateway: str = "apimaster") -> str | None:
    price = parse({"gateway": gateway, **extra}).own_price(lookup(gateway, model, "generate"), resolution)
    return None if price is None else f"{price:.6f}".rstrip("0").rstrip(".")


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize(
    ("prices", "model", "resolution", "price"),
    [
        ({GA: 0.03}, GA, "1K", "0.03"),
        ({GA: 0.03}, FLASH, "1K", "0.03"),
        ({FLASH: "0.03"}, GA, "2K", "0.04"),
        ({FLASH: 0.03}, GA, "512", "0.03"),
        ({GA: 0.03}, PRO, "1K", None),
        ({PRO: {"1K": 0.1, "4k": 0.3}}, PRO, "4K", "0.3"),
        ({PRO: {"1k": 0.1, "4K": 0.3}}, f"{PRO}-preview", "2K", "0.1"),
        ({PRO: {"4K": 0.3}}, PRO, "2K", None),
        ({GA: {"0.5K": 0.01}}, GA, "512", "0.01"),
        ({PRO: 0}, PRO, "4K", "0"),
    ],
)
def test_prices_are_by_model_whichever_of_its_ids_and_by_size_where_wanted(
    prices: dict[str, Any], model: str, resolution: str, price: str | None, as_text: bool
) -> None:
    assert own({"prices": json.dumps(prices) if as_text else prices}, model, resolution) == price


def test_a_model_without_sizes_has_one_price() -> None:
    for prices in ({"gemini-2.5-flash-image": 0.02}, {"gemini-2.5-flash-image-preview": {"1K": 0.02}}):
        assert own({"prices": prices}, "gemini-2.5-flash-image", None, "1min") == "0.02"


def test_the_base_price_is_the_default_models_alone_and_prices_by_model_go_before_it() -> None:
    assert own({"price_base": 0.05}, GA) == own({"price_base": 0.05}, FLASH) == "0.05"
    assert own({"price_base": 0.05}, GA, "4K") == "0.1"
    assert own({"price_base": 0.05}, PRO, "2K") is None
    assert own({"price_base": 0.05, "model": f"{PRO}-preview"}, PRO, "4K") == "0.089552"
    assert own({"price_base": 0.05, "model": PRO}, GA) is None
    assert own({"price_base": 0.05, "prices": {GA: 0.03}}, FLASH) == "0.03"


@pytest.mark.parametrize(
    ("prices", "said"),
    [
        ({GA: -0.01}, "is not a number of 0 or more"),
        ({GA: "NaN"}, "is not a number of 0 or more"),
        ({GA: float("nan")}, "is not a number of 0 or more"),
        ({GA: float("inf")}, "is not a number of 0 or more"),
        ({GA: True}, "is not a number of 0 or more"),
        ({GA: "0,05"}, "is not a number of 0 or more"),
        ({GA: None}, "is not a number of 0 or more"),
        ({GA: {"1K": -1}}, "'1K': is not a number of 0 or more"),
        ({GA: {"3K": 1}}, "is not a size"),
        ({GA: {"1K": 1, "1k": 2}}, "gives one size twice"),
        ({GA: {}}, "gives no price"),
        ({GA: 1, FLASH: 2}, "is given twice"),
        ([0.05], "it is not a JSON object"),
        (0.05, "it is not a JSON object"),
        ("0.05", "it is not a JSON object"),
        ('{"a": 1', "it is not a JSON object"),
        (f'{{"{GA}": 1, "{GA}": 2}}', "is given twice"),
        (f'{{"{GA}": {{"1K": 1, "1K": 1}}}}', "'1K': is given twice"),
        (f'{{"{GA}": NaN}}', "is not a number of 0 or more"),
    ],
    ids=str,
)
def test_a_price_that_can_not_be_one_is_refused_with_what_is_allowed(prices: Any, said: str) -> None:
    with pytest.raises(BadRequestError, match="prices") as caught:
        parse({"gateway": "apimaster", "prices": prices})
    assert said in str(caught.value)
    assert "Allowed" in str(caught.value)
    assert "1K, 2K, 4K" in str(caught.value)
    assert "No money was spent." in str(caught.value)


def test_a_price_of_a_model_that_nobody_knows_is_one_warning_and_counts_all_the_same() -> None:
    with pytest.warns(UserWarning, match=r"'gemini-3\.1-flash-imag'.*Did you mean 'gemini-3\.1-flash-image'") as caught:
        connection = parse({"gateway": "apimaster", "prices": {"gemini-3.1-flash-imag": 0.05}})
    assert len(caught) == 1
    assert connection.prices.by_model["gemini-3.1-flash-imag"][""] == Decimal("0.05")


@pytest.mark.parametrize("port", [-1, 65_536, 10**30])
def test_a_port_that_is_none_is_refused_with_the_host(port: int) -> None:
    with pytest.raises(BadRequestError, match="not an address"):
        parse_connection(conn_id="c", password="k" * 20, host="gateway.test", port=port, extra={"gateway": "1min"})
