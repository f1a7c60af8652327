"""The catalogue, figure by figure, against what the gateways' and Google's documents say."""

from __future__ import annotations

import dataclasses
import warnings
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from airflow_provider_geminiimg.core.catalog.lookup import (
    DEFAULT_MODELS,
    LIMITS,
    ROWS,
    SUCCESSORS,
    ModelSpec,
    default_model,
    known_ids,
    lookup,
    other_id,
    row_name,
    rows_for,
)
from airflow_provider_geminiimg.exceptions import BadRequestError

FLASH, PRO, FLASH_25 = "gemini-3.1-flash-image-preview", "gemini-3-pro-image-preview", "gemini-2.5-flash-image"
GA, LITE, BANANA = "gemini-3.1-flash-image", "gemini-3.1-flash-lite-image", "gemini-nano-banana-2.1"
TEN = "1:1 3:2 2:3 3:4 4:3 4:5 5:4 9:16 16:9 21:9"
FOURTEEN = "1:1 1:4 1:8 2:3 3:2 3:4 4:1 4:3 4:5 5:4 8:1 9:16 16:9 21:9"
FOUR, THREE = "512 1K 2K 4K", "1K 2K 4K"
SHAPE, LIST = "resolution aspect_ratio", "google_list"
SAMPLING, SEARCH, IMAGES = "temperature top_p", "google_search google_image_search", "image reference_images"
FLASH_LIST, PRO_LIST = "0.0448 0.0672 0.1008 0.1512", "0.134 0.134 0.24"
LITE_LIST, BANANA_LIST = "0.0336", "0.0336 0.0504 0.1134"
APIMASTER = "0.0672 0.0672 0.0896 0.1344"

# gateway, model, operation, wire id, fields, resolutions, ratios, references, prices, basis, verified
DOCUMENTED = [
    ("1min", FLASH, "generate", FLASH, f"{SHAPE} {SAMPLING}", FOUR, FOURTEEN, 0, FLASH_LIST, LIST, True),
    ("1min", FLASH, "edit", FLASH, f"{IMAGES} {SHAPE} {SAMPLING}", FOUR, FOURTEEN, 2, FLASH_LIST, LIST, True),
    ("1min", PRO, "generate", PRO, f"resolution {SAMPLING}", THREE, "", 0, PRO_LIST, LIST, True),
    ("1min", PRO, "edit", PRO, f"{IMAGES} resolution {SAMPLING}", THREE, "", 2, PRO_LIST, LIST, True),
    ("1min", FLASH_25, "generate", FLASH_25, "", "", "", 0, "0.039", LIST, True),
    ("1min", FLASH_25, "edit", f"{FLASH_25}-preview", IMAGES, "", "", 2, "0.039", LIST, True),
    ("1min", LITE, "generate", LITE, f"{SHAPE} {SAMPLING}", "1K", TEN, 0, LITE_LIST, LIST, False),
    ("1min", LITE, "edit", LITE, f"{IMAGES} {SHAPE} {SAMPLING}", "1K", TEN, 2, LITE_LIST, LIST, False),
    ("1min", BANANA, "generate", BANANA, f"{SHAPE} {SAMPLING}", THREE, FOURTEEN, 0, BANANA_LIST, LIST, False),
    ("1min", BANANA, "edit", BANANA, f"{IMAGES} {SHAPE} {SAMPLING}", THREE, FOURTEEN, 2, BANANA_LIST, LIST, False),
    ("apimaster", FLASH, "generate", FLASH, f"{SHAPE} {SEARCH}", FOUR, FOURTEEN, 0, APIMASTER, LIST, True),
    ("apimaster", FLASH, "edit", FLASH, f"{IMAGES} {SHAPE} {SEARCH}", FOUR, FOURTEEN, 13, APIMASTER, LIST, True),
    ("apimaster", PRO, "generate", PRO, SHAPE, THREE, TEN, 0, PRO_LIST, LIST, False),
    ("apimaster", PRO, "edit", PRO, f"{IMAGES} {SHAPE}", THREE, TEN, 13, PRO_LIST, LIST, False),
    ("apimaster", LITE, "generate", LITE, SHAPE, "1K", TEN, 0, LITE_LIST, LIST, False),
    ("apimaster", LITE, "edit", LITE, f"{IMAGES} {SHAPE}", "1K", TEN, 13, LITE_LIST, LIST, False),
    ("apimaster", BANANA, "generate", BANANA, f"{SHAPE} {SEARCH}", THREE, FOURTEEN, 0, BANANA_LIST, LIST, False),
    (
        "apimaster",
        BANANA,
        "edit",
        BANANA,
        f"{IMAGES} {SHAPE} {SEARCH}",
        THREE,
        FOURTEEN,
        13,
        BANANA_LIST,
        LIST,
        False,
    ),
]


def name(row: ModelSpec) -> str:
    return f"{row.gateway}-{row.model}-{row.operation}"


every_row = pytest.mark.parametrize("row", ROWS, ids=name)


@pytest.mark.parametrize("stated", DOCUMENTED, ids=lambda stated: "-".join(stated[:3]))
def test_each_row_says_what_the_documents_say(stated: tuple[Any, ...]) -> None:
    gateway, model, operation, wire, fields, resolutions, ratios, references, prices, basis, verified = stated
    row = lookup(gateway, model, operation)
    assert (row.gateway, row.model, row.operation, row.wire_model) == (gateway, model, operation, wire)
    assert row.fields == set(fields.split())
    assert row.resolutions == tuple(resolutions.split())
    assert row.default_resolution == ("1K" if resolutions else None)
    assert set(row.aspect_ratios) == set(ratios.split())
    assert row.max_reference_images == references
    keys = row.resolutions or ("",)
    assert row.prices == dict(zip(keys, map(Decimal, prices.split()), strict=True))
    assert (row.currency, row.price_basis, row.verified) == ("USD", basis, verified)


def test_there_is_no_row_that_the_documents_do_not_show() -> None:
    assert {(row.gateway, row.model, row.operation) for row in ROWS} == {stated[:3] for stated in DOCUMENTED}
    assert len(ROWS) == len(DOCUMENTED)


@every_row
def test_every_figure_names_its_source(row: ModelSpec) -> None:
    identity = {"gateway", "model", "operation", "wire_model", "fingerprint_model", "one_id"}
    identity |= {"default_resolution", "verified", "sources"}
    figures = {field.name for field in dataclasses.fields(row)} - identity - {"currency", "price_basis"}
    assert set(row.sources) == figures
    assert all(len(source) > 10 for source in row.sources.values())


@pytest.mark.parametrize("gateway", LIMITS)
def test_every_limit_names_its_source(gateway: str) -> None:
    limits = LIMITS[gateway]
    assert set(limits.sources) == {field.name for field in dataclasses.fields(limits)} - {"sources"}
    assert all(limits.sources.values())


@every_row
def test_rows_hold_data_only(row: ModelSpec) -> None:
    plain = (str, int, float, bool, Decimal, type(None))
    for field in dataclasses.fields(row):
        value = getattr(row, field.name)
        values = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        parts = values if isinstance(values, (list, tuple, frozenset)) else [values]
        assert all(isinstance(part, plain) for part in parts), field.name


@every_row
def test_a_field_stands_in_a_row_exactly_when_its_values_do(row: ModelSpec) -> None:
    assert ("resolution" in row.fields) == bool(row.resolutions)
    assert ("aspect_ratio" in row.fields) == bool(row.aspect_ratios)
    assert ("reference_images" in row.fields) == bool(row.max_reference_images)
    assert ("image" in row.fields) == (row.operation == "edit")


@every_row
def test_every_resolution_has_a_price_a_wait_and_a_read_timeout(row: ModelSpec) -> None:
    for resolution in row.resolutions or ("",):
        for figures in (row.prices, row.expected_seconds, row.read_timeouts):
            assert resolution in figures


@pytest.mark.parametrize("row", [row for row in ROWS if row.gateway == "apimaster"], ids=name)
def test_apimaster_is_waited_for_longer_than_it_waits_itself(row: ModelSpec) -> None:
    gives_up = {"512": 180, "1K": 180, "2K": 300, "4K": 900}
    for resolution in row.resolutions:
        assert row.read_timeout(resolution) == gives_up[resolution] + 30


@pytest.mark.parametrize("row", [row for row in ROWS if row.gateway == "1min"], ids=name)
def test_1min_is_waited_for_long_enough_for_a_late_synchronous_answer(row: ModelSpec) -> None:
    assert row.read_timeout(row.default_resolution) == 300


@every_row
def test_the_first_poll_comes_when_apimaster_asks_for_it_and_a_little_sooner_on_1min(row: ModelSpec) -> None:
    for resolution in row.resolutions or (None,):
        low, high = (20, 60) if resolution == "4K" else (10 if row.gateway == "apimaster" else 8, 20)
        assert low <= row.expected(resolution) <= high


@every_row
def test_input_images_are_limited_as_google_limits_them(row: ModelSpec) -> None:
    assert row.max_input_bytes == 7_000_000
    assert row.max_total_input_bytes == {"1min": 21_000_000, "apimaster": 15_000_000}[row.gateway]
    assert row.input_media_types == ("image/png", "image/jpeg", "image/webp")


def test_the_limits_are_those_of_the_gateways() -> None:
    onemin, apimaster = LIMITS["1min"], LIMITS["apimaster"]
    assert (onemin.requests_per_minute, onemin.uploads_per_minute, onemin.uploads_at_once) == (180, 100, 5)
    assert apimaster.poll_interval == onemin.poll_interval == (3.0, 5.0)


@pytest.mark.parametrize(("resolution", "tier"), [("512", 1), ("1K", 1), ("2K", Fraction(4, 3)), ("4K", 2)])
def test_apimasters_prices_are_its_base_times_its_tiers(resolution: str, tier: Fraction) -> None:
    price = lookup("apimaster", FLASH, "generate").price(resolution)
    assert price is not None
    assert Fraction(price) == Fraction("0.0672") * tier


def test_a_model_without_resolutions_has_one_price_one_wait_and_one_read_timeout() -> None:
    row = lookup("1min", FLASH_25, "edit")
    assert (row.price(None), row.expected(None), row.read_timeout(None)) == (Decimal("0.039"), 9.0, 300.0)


@pytest.mark.parametrize("operation", ["generate", "edit"])
@pytest.mark.parametrize("gateway", LIMITS)
@pytest.mark.parametrize(("preview", "successor"), [(FLASH, GA), (PRO, "gemini-3-pro-image")])
def test_old_and_new_ids_are_one_row_and_each_is_sent_as_it_is_written(
    preview: str, successor: str, gateway: str, operation: str
) -> None:
    row = lookup(gateway, preview, operation)
    assert lookup(gateway, successor, operation) == dataclasses.replace(row, wire_model=successor)
    assert (row.wire_model, row.model, row.fingerprint_model) == (preview, preview, preview)
    assert (other_id(preview), other_id(successor)) == (successor, preview)
    assert SUCCESSORS[preview] == successor
    assert row_name(preview) == row_name(successor) == preview
    assert {preview, successor} <= set(known_ids(gateway))


def test_each_gateway_has_its_own_default_and_the_connections_goes_before_it() -> None:
    assert {"1min": FLASH, "apimaster": GA} == DEFAULT_MODELS
    assert default_model("apimaster") == GA
    assert default_model("apimaster", PRO) == PRO


@pytest.mark.parametrize("row", [row for row in ROWS if not row.verified], ids=name)
def test_a_row_that_the_gateway_does_not_document_says_so_in_its_sources(row: ModelSpec) -> None:
    assert "not documented" in row.sources["fields"]


@pytest.mark.parametrize("gateway", LIMITS)
@pytest.mark.parametrize("model", [LITE, BANANA, FLASH_25, PRO])
def test_no_size_or_ratio_that_googles_model_refuses_is_taken_anywhere(gateway: str, model: str) -> None:
    sizes = {LITE: "1K", BANANA: THREE, FLASH_25: "", PRO: THREE}[model].split()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 2.5 is not known at APIMaster
        row = lookup(gateway, model, "generate")
    assert list(row.resolutions) == sizes
    assert ("resolution" in row.fields) == bool(sizes)
    assert set(row.aspect_ratios) <= set((FOURTEEN if model == BANANA else TEN).split())


@pytest.mark.parametrize("written", [FLASH_25, f"{FLASH_25}-preview"])
def test_1mins_2_5_editor_is_sent_its_own_id_however_the_user_writes_it(written: str) -> None:
    assert lookup("1min", written, "edit").wire_model == f"{FLASH_25}-preview"
    assert lookup("1min", written, "generate").wire_model == FLASH_25


@pytest.mark.parametrize("operation", ["generate", "edit"])
@pytest.mark.parametrize("gateway", LIMITS)
def test_an_unknown_model_passes_with_one_warning_and_the_widest_row(gateway: str, operation: str) -> None:
    with pytest.warns(UserWarning, match="gemini-9") as caught:
        row = lookup(gateway, "gemini-9", operation)
    widest = lookup(gateway, DEFAULT_MODELS[gateway], operation)
    assert len(caught) == 1
    assert (row.model, row.wire_model, row.verified) == ("gemini-9", "gemini-9", False)
    assert (row.prices, row.price_basis, row.price("1K")) == ({}, "unknown", None)
    assert (row.fields, row.resolutions, row.aspect_ratios) == (widest.fields, widest.resolutions, widest.aspect_ratios)
    others = [other for other in ROWS if (other.gateway, other.operation) == (gateway, operation)]
    assert all(row.fields >= other.fields for other in others)


def test_a_mistyped_model_is_told_what_it_may_have_meant() -> None:
    with pytest.warns(UserWarning, match="Did you mean 'gemini-3-pro-image-preview'"):
        lookup("1min", "gemini-3-pro-image-previw", "generate")


def test_a_known_model_passes_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lookup("1min", FLASH, "generate").verified


def test_an_unknown_gateway_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BadRequestError, match=r"gateway='2min' is not known. Allowed: 1min, apimaster."):
        lookup("2min", FLASH, "generate")


def test_the_rows_of_a_model_are_those_of_the_gateways_that_know_it() -> None:
    assert [row.gateway for row in rows_for(FLASH, "edit")] == ["1min", "apimaster"]
    assert [row.gateway for row in rows_for(FLASH_25, "generate")] == ["1min"]


def test_the_rows_of_a_model_that_nobody_knows_are_the_widest_and_come_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [row.wire_model for row in rows_for("gemini-9", "generate")] == ["gemini-9", "gemini-9"]


def test_the_rows_of_a_model_that_is_not_known_yet_are_all_of_the_operation() -> None:
    assert {row.model for row in rows_for(None, "generate")} == {FLASH, PRO, FLASH_25, LITE, BANANA}
