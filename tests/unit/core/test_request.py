"""What a request takes, what it refuses and how it says so, and which requests are the same."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from airflow_provider_geminiimg.core.catalog.lookup import lookup
from airflow_provider_geminiimg.core.request import CheckedRequest, ImageRequest, check_literals, prompt_sha256
from airflow_provider_geminiimg.exceptions import BadRequestError, Billed


def shown(value: object) -> str:
    """A test's id, the same in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


FLASH, PRO, FLASH_25 = "gemini-3.1-flash-image-preview", "gemini-3-pro-image-preview", "gemini-2.5-flash-image"
CANARY = "canary prompt nobody may read in a log"


def build(**values: Any) -> ImageRequest:
    return ImageRequest.build(**{"operation": "generate", "prompt": CANARY, **values})


def edit(**values: Any) -> ImageRequest:
    return build(**{"operation": "edit", "image": "s3://in/cat.png", **values})


def refused(request: Any, *parts: str) -> BadRequestError:
    """The refusal of a call, which must be one sentence for the user with these parts in it, and no prompt."""
    with pytest.raises(BadRequestError) as caught:
        request()
    text = str(caught.value)
    assert all(part in text for part in parts), text
    assert CANARY not in text
    assert (caught.value.billed, caught.value.retryable) == (Billed.NO, False)
    return caught.value


def manifest(*uris: str) -> dict[str, Any]:
    return {"gateway": "1min", "images": [{"uri": uri, "sha256": "0" * 64} for uri in uris]}


class Lazy(Sequence[Any]):
    """What a mapped task's output looks like: a sequence that is no list."""

    def __init__(self, *items: Any) -> None:
        self._items = items

    def __getitem__(self, index: Any) -> Any:
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)


class TestValuesAsPeopleWriteThem:
    @pytest.mark.parametrize(
        ("written", "meant"),
        [
            ("512", "512"),
            (512, "512"),
            (512.0, "512"),
            ("0.5K", "512"),
            ("0.5k", "512"),
            ("1k", "1K"),
            (" 2K ", "2K"),
            ("4K", "4K"),
            ("", None),
            (None, None),
        ],
    )
    def test_a_resolution_is_taken_in_every_spelling(self, written: Any, meant: str | None) -> None:
        assert build(resolution=written).resolution == meant

    @pytest.mark.parametrize("field", ["temperature", "top_p"])
    @pytest.mark.parametrize(("written", "meant"), [("0.7", 0.7), (1, 1.0), (" 0 ", 0.0), ("", None), (None, None)])
    def test_a_numeric_text_becomes_a_number(self, field: str, written: Any, meant: float | None) -> None:
        value = getattr(build(**{field: written}), field)
        assert value == meant
        assert type(value) is type(meant)

    @pytest.mark.parametrize("written", ["warm", "nan", "inf", True, [1], {}, b"1x"])
    def test_what_is_no_number_is_refused_with_the_bounds(self, written: Any) -> None:
        refused(lambda: build(temperature=written), "temperature", "a number from 0.0 to 2.0")

    @pytest.mark.parametrize("field", ["google_search", "google_image_search"])
    @pytest.mark.parametrize(
        ("written", "meant"),
        [(True, True), ("true", True), ("True", True), (" FALSE ", False), (False, False), ("", None), (None, None)],
    )
    def test_true_and_false_are_taken_as_text(self, field: str, written: Any, meant: bool | None) -> None:
        assert getattr(build(**{field: written}), field) is meant

    @pytest.mark.parametrize("written", ["yes", 1, 0, [True]])
    def test_what_is_neither_true_nor_false_is_refused(self, written: Any) -> None:
        refused(lambda: build(google_search=written), "google_search", "must be true or false")

    @pytest.mark.parametrize(("written", "text"), [(123, "123"), (1.5, "1.5"), ("  a cat ", "  a cat ")])
    def test_a_number_where_the_prompt_should_be_becomes_its_text(self, written: Any, text: str) -> None:
        assert build(prompt=written).prompt == text

    @pytest.mark.parametrize("written", ["", "  \n\t", None])
    def test_an_empty_prompt_is_refused(self, written: Any) -> None:
        refused(lambda: build(prompt=written), "prompt: is empty")

    def test_a_missing_prompt_is_refused(self) -> None:
        refused(lambda: ImageRequest.build(operation="generate"), "prompt", "required")

    @pytest.mark.parametrize("written", [["a"], {"text": "a"}, True, b"a"])
    def test_a_prompt_that_is_no_text_is_refused_without_showing_it(self, written: Any) -> None:
        refused(lambda: build(prompt=written), "prompt: must be text, not")

    def test_a_prompt_that_utf8_cannot_hold_is_refused(self) -> None:
        refused(lambda: build(prompt="half \ud83d"), "prompt", "UTF-8")

    @pytest.mark.parametrize("field", ["model", "aspect_ratio", "resolution", "variant"])
    @pytest.mark.parametrize("written", [["16:9"], ("16:9",), {"a": 1}, True])
    def test_a_list_where_a_text_is_meant_is_refused(self, field: str, written: Any) -> None:
        refused(lambda: build(**{field: written}), field, "must be text")

    @pytest.mark.parametrize(("written", "text"), [(1, "1"), (" b ", "b"), ("", None)])
    def test_a_variant_may_be_a_number(self, written: Any, text: str | None) -> None:
        assert build(variant=written).variant == text

    @pytest.mark.parametrize("field", ["model", "image", "aspect_ratio", "variant"])
    def test_an_empty_text_in_an_optional_field_means_unset(self, field: str) -> None:
        assert getattr(build(**{field: "  "}), field) is None

    @pytest.mark.parametrize("image", [None, "", "  "])
    def test_a_request_without_an_operation_generates_without_an_image(self, image: str | None) -> None:
        for request in (ImageRequest(prompt="a"), ImageRequest.build(prompt="a", image=image)):
            assert request.operation == "generate"
            assert request == ImageRequest(operation="generate", prompt="a")
            assert request.check("1min").operation == "generate"

    @pytest.mark.parametrize("image", ["s3://in/cat.png", {"images": [{"uri": "s3://in/cat.png"}]}])
    def test_a_request_without_an_operation_edits_its_image(self, image: Any) -> None:
        request = ImageRequest.build(prompt="a", image=image)
        assert request.operation == "edit"
        assert request == edit(prompt="a")
        assert ImageRequest.model_validate_json(request.model_dump_json()).operation == "edit"
        assert "operation" not in request.model_fields_set

    def test_an_operation_that_contradicts_the_image_is_refused(self) -> None:
        contradiction = ImageRequest(operation="generate", prompt="a", image="s3://in/cat.png")
        assert contradiction.operation == "generate"
        refused(lambda: contradiction.check("1min"), "image=", "is not accepted by", '"edit"')
        refused(lambda: ImageRequest(operation="edit", prompt="a").check("1min"), "image: not given")

    def test_reference_images_alone_are_no_edit(self) -> None:
        refused(
            lambda: ImageRequest.build(prompt="a", reference_images=["s3://in/cat.png"]).check("1min"),
            "reference_images (1 given): is not accepted by", '"edit"',
        )  # fmt: skip

    def test_an_operation_that_does_not_exist_is_refused(self) -> None:
        refused(lambda: build(operation="paint"), "operation='paint'", "'generate' or 'edit'")

    def test_a_field_that_does_not_exist_is_refused_with_the_one_that_was_meant(self) -> None:
        refused(lambda: build(aspect_ration="1:1"), "aspect_ration", "no such field", "Did you mean 'aspect_ratio'")

    def test_direct_construction_takes_and_refuses_the_same_values(self) -> None:
        assert ImageRequest(operation="generate", prompt="a", resolution="4k").resolution == "4K"
        refused(lambda: ImageRequest(operation="generate", prompt=" "), "prompt: is empty")

    def test_prompt_and_images_stay_out_of_the_repr(self) -> None:
        request = edit(reference_images=["s3://in/ref.png"])
        for text in (repr(request), str(request), repr(request.check("1min"))):
            assert CANARY not in text
            assert "s3://" not in text


class TestImages:
    @pytest.mark.parametrize(
        "written",
        [
            ["s3://a", "s3://b"],
            ("s3://a", "s3://b"),
            '["s3://a", "s3://b"]',
            ' ["s3://a", "s3://b"] ',
            manifest("s3://a", "s3://b"),
            json.dumps(manifest("s3://a", "s3://b")),
            [manifest("s3://a"), manifest("s3://b")],
            json.dumps([manifest("s3://a"), manifest("s3://b")]),
            [manifest("s3://a"), "s3://b"],
            Lazy(manifest("s3://a"), manifest("s3://b")),
            Lazy("s3://a", "s3://b"),
            Lazy(manifest("s3://a", "s3://b")),
            manifest("s3://a", "s3://b")["images"],
            (uri for uri in ("s3://a", "s3://b")),
        ],
        ids=shown,
    )
    def test_references_are_taken_in_every_form_and_flattened_in_order(self, written: Any) -> None:
        assert edit(reference_images=written).reference_images == ("s3://a", "s3://b")

    @pytest.mark.parametrize("written", [None, "", " ", [], (), "[]"])
    def test_no_references_at_all_mean_unset(self, written: Any) -> None:
        assert edit(reference_images=written).reference_images == ()

    def test_one_text_is_one_reference(self) -> None:
        assert edit(reference_images=" s3://a ").reference_images == ("s3://a",)

    @pytest.mark.parametrize("field", ["image", "reference_images"])
    @pytest.mark.parametrize(
        "written",
        [
            "['s3://a', 's3://b']",
            "('s3://a', 's3://b')",
            "{'images': [{'uri': 's3://a'}]}",
            "LazyXComSequence([2 items])",
            '["s3://a",',
        ],
    )
    def test_the_text_of_a_python_object_is_refused_with_a_pointer_to_tojson(self, field: str, written: str) -> None:
        refused(lambda: edit(**{field: written}), field, "| tojson")

    @pytest.mark.parametrize("written", [5, True, b"s3://a", {"s3://a"}, {}, {"images": []}, {"images": "s3://a"}])
    def test_references_that_are_no_images_are_refused(self, written: Any) -> None:
        refused(lambda: edit(reference_images=written), "reference_images")

    @pytest.mark.parametrize("item", [None, "", 5, {"uri": 5}, {"images": [{}]}, {"images": [{"uri": " "}]}])
    def test_a_bad_reference_among_good_ones_is_named_by_its_place(self, item: Any) -> None:
        refused(lambda: edit(reference_images=["s3://a", item]), "reference_images[1]")

    @pytest.mark.parametrize(
        "written",
        ["s3://a", " s3://a ", manifest("s3://a"), json.dumps(manifest("s3://a")), {"uri": "s3://a"}],
        ids=shown,
    )
    def test_an_image_is_a_uri_or_a_manifest_with_one_image(self, written: Any) -> None:
        assert edit(image=written).image == "s3://a"

    def test_a_manifest_with_two_images_is_no_image(self) -> None:
        refused(lambda: edit(image=manifest("s3://a", "s3://b")), "image", "exactly one image; this manifest has 2")

    @pytest.mark.parametrize("written", [["s3://a"], Lazy("s3://a"), '["s3://a"]', 5, [manifest("s3://a")]], ids=shown)
    def test_a_list_is_no_image(self, written: Any) -> None:
        refused(lambda: edit(image=written), "image", "must be one image")

    def test_a_refusal_shows_no_query_of_a_link(self) -> None:
        error = refused(lambda: build(image="https://bucket/cat.png?X-Amz-Signature=s3cr3t").check("1min"), "cat.png")
        assert "s3cr3t" not in str(error)

    def test_a_refusal_shows_no_image_bytes(self) -> None:
        error = refused(lambda: build(image="data:image/png;base64,iVBORw0KGgo").check("1min"), "image")
        assert "iVBORw0KGgo" not in str(error)

    def test_the_input_images_are_the_image_and_then_the_references(self) -> None:
        checked = edit(reference_images=["s3://a", "s3://b"]).check("1min")
        assert checked.input_images == ("s3://in/cat.png", "s3://a", "s3://b")
        assert build().check("1min").input_images == ()


FIELD_VALUES: dict[str, Any] = {
    "image": "s3://in/cat.png",
    "reference_images": ["s3://in/ref.png"],
    "resolution": "1K",
    "aspect_ratio": "16:9",
    "temperature": 0.5,
    "top_p": 0.5,
    "google_search": False,
    "google_image_search": False,
}
PLACES = [
    (gateway, model, operation)
    for gateway, models in (("1min", (FLASH, PRO, FLASH_25)), ("apimaster", (FLASH, PRO)))
    for model in models
    for operation in ("generate", "edit")
]


class TestWhatAGatewayTakes:
    @pytest.mark.parametrize("place", PLACES, ids="-".join)
    @pytest.mark.parametrize("field", FIELD_VALUES)
    def test_a_field_is_taken_or_refused_but_never_dropped(self, place: tuple[str, str, str], field: str) -> None:
        gateway, model, operation = place
        needed = {"image": "s3://in/cat.png"} if operation == "edit" else {}
        request = build(operation=operation, model=model, **{**needed, field: FIELD_VALUES[field]})
        if field in lookup(*place).fields:
            checked = getattr(request.check(gateway), field)
            assert checked == getattr(request, field)
        else:
            refused(
                lambda: request.check(gateway), field, f"{model} ({operation} on {gateway})", "which accepts: prompt"
            )

    def test_a_refused_field_is_shown_with_its_value_and_what_is_taken_instead(self) -> None:
        error = refused(lambda: build(model=PRO, aspect_ratio="16:9").check("1min"))
        assert error.message == (
            "aspect_ratio='16:9': is not accepted by gemini-3-pro-image-preview (generate on 1min), "
            "which accepts: prompt, resolution, temperature, top_p."
        )

    @pytest.mark.parametrize("gateway", ["1min", "apimaster"])
    @pytest.mark.parametrize("field", ["image", "reference_images"])
    def test_images_for_generate_are_refused_with_a_pointer_to_edit(self, gateway: str, field: str) -> None:
        refused(lambda: build(**{field: FIELD_VALUES[field]}).check(gateway), field, "GeminiImageEditOperator")

    @pytest.mark.parametrize("gateway", ["1min", "apimaster"])
    def test_edit_needs_an_image(self, gateway: str) -> None:
        refused(lambda: build(operation="edit").check(gateway), "image: not given", "edit")
        refused(lambda: edit(image="", reference_images="s3://a").check(gateway), "image: not given")

    @pytest.mark.parametrize(
        ("ratio", "meant"), [("16x9", "16:9"), ("16/9", "16:9"), ("1:11", "1:1"), ("21:90", "21:9"), ("wide", None)]
    )
    def test_an_unknown_ratio_is_refused_with_the_allowed_ones_and_a_guess(self, ratio: str, meant: str | None) -> None:
        error = refused(lambda: build(aspect_ratio=ratio).check("apimaster"), f"aspect_ratio='{ratio}'", "1:8", "21:9")
        assert error.hint == (f"Did you mean {meant!r}?" if meant else "")

    def test_an_extreme_ratio_is_refused_where_the_model_does_not_take_it(self) -> None:
        assert build(aspect_ratio="8:1").check("apimaster").aspect_ratio == "8:1"
        refused(lambda: build(model=PRO, aspect_ratio="8:1").check("apimaster"), "aspect_ratio='8:1'", "21:9")

    @pytest.mark.parametrize("resolution", ["8K", "1024", 1024, "HD"])
    def test_an_unknown_resolution_is_refused_with_the_allowed_ones(self, resolution: Any) -> None:
        refused(lambda: build(resolution=resolution).check("1min"), "resolution=", "Allowed: 512, 1K, 2K, 4K.")

    @pytest.mark.parametrize("gateway", ["1min", "apimaster"])
    def test_512_is_refused_where_the_model_does_not_take_it(self, gateway: str) -> None:
        request = build(model=PRO, resolution="0.5K")
        refused(lambda: request.check(gateway), "resolution='512'", "Allowed: 1K, 2K, 4K.")

    @pytest.mark.parametrize(
        ("field", "value"), [("temperature", -0.01), ("temperature", "2.01"), ("top_p", -1), ("top_p", 1.001)]
    )
    def test_temperature_and_top_p_out_of_bounds_are_refused(self, field: str, value: Any) -> None:
        refused(lambda: build(**{field: value}).check("1min"), field, "Allowed: 0.0 to")

    @pytest.mark.parametrize(("field", "value"), [("temperature", 0), ("temperature", 2), ("top_p", 0), ("top_p", 1)])
    def test_the_bounds_themselves_are_taken(self, field: str, value: int) -> None:
        assert getattr(build(**{field: value}).check("1min"), field) == value

    @pytest.mark.parametrize("search", [{}, {"google_search": None}, {"google_search": False}])
    def test_image_search_needs_search(self, search: dict[str, Any]) -> None:
        request = build(google_image_search=True, **search)
        refused(lambda: request.check("apimaster"), "google_image_search=True", "needs google_search=True")

    def test_image_search_with_search_is_taken_and_without_it_may_be_off(self) -> None:
        assert build(google_image_search=True, google_search=True).check("apimaster").google_image_search is True
        assert build(google_image_search=False).check("apimaster").google_image_search is False

    @pytest.mark.parametrize(("gateway", "most"), [("1min", 2), ("apimaster", 13)])
    def test_more_references_than_allowed_are_refused(self, gateway: str, most: int) -> None:
        references = [f"s3://in/{index}.png" for index in range(most + 1)]
        assert len(edit(reference_images=references[:most]).check(gateway).reference_images) == most
        refused(
            lambda: edit(reference_images=references).check(gateway), f"reference_images: {most + 1} given", f"{most}"
        )

    @pytest.mark.parametrize(("model", "resolution"), [(FLASH, "1K"), (PRO, "1K"), (FLASH_25, None)])
    def test_the_default_resolution_is_filled_in_where_the_model_takes_one(
        self, model: str, resolution: str | None
    ) -> None:
        assert build(model=model).check("1min").resolution == resolution
        assert build(model=model).check("1min").fields() == ({"resolution": resolution} if resolution else {})

    def test_the_model_is_the_requests_own_then_the_connections_then_the_default(self) -> None:
        assert build(model=PRO).check("1min", connection_model=FLASH_25).model == PRO
        assert build().check("1min", connection_model=FLASH_25).model == FLASH_25
        assert build().check("1min").model == FLASH

    def test_an_unknown_model_is_checked_by_the_widest_row_and_warned_about_once(self) -> None:
        with pytest.warns(UserWarning, match="gemini-9") as caught:
            checked = build(model="gemini-9", aspect_ratio="8:1").check("1min")
        assert len(caught) == 1
        assert checked.row.wire_model == "gemini-9"
        with pytest.warns(UserWarning, match="gemini-9"):
            refused(lambda: build(model="gemini-9", google_search=True).check("1min"), "google_search=True")

    def test_an_unknown_gateway_is_refused(self) -> None:
        refused(lambda: build().check("2min"), "gateway='2min'", "1min, apimaster")

    def test_a_variant_is_taken_everywhere(self) -> None:
        assert build(model=FLASH_25, variant=2).check("1min").fields() == {"variant": "2"}

    def test_the_settings_for_records_hold_neither_prompt_nor_images_nor_what_is_unset(self) -> None:
        checked = edit(resolution="2k", temperature="0.3", variant="b", reference_images="s3://a").check("1min")
        assert checked.fields() == {"resolution": "2K", "temperature": 0.3, "variant": "b"}
        assert json.loads(json.dumps(checked.fields())) == checked.fields()


class TestLiteralsOfADag:
    @pytest.mark.parametrize("model", [FLASH, None, "{{ params.model }}", object()])
    def test_a_setting_that_one_gateway_takes_passes(self, model: Any) -> None:
        check_literals("generate", model, prompt="a", temperature=0.5, google_search=True, aspect_ratio="8:1")

    @pytest.mark.parametrize("field", ["resolution", "aspect_ratio", "temperature", "google_search"])
    def test_a_setting_that_no_gateway_takes_for_the_model_is_refused(self, field: str) -> None:
        refused(
            lambda: check_literals("generate", FLASH_25, prompt="a", **{field: FIELD_VALUES[field]}),
            f"{field}=",
            f"{FLASH_25} (generate on any gateway)",
        )

    @pytest.mark.parametrize(
        ("model", "values", "part"),
        [
            (FLASH, {"aspect_ratio": "16x9"}, "Did you mean '16:9'"),
            (PRO, {"aspect_ratio": "8:1"}, "aspect_ratio='8:1'"),
            (PRO, {"resolution": "512"}, "Allowed: 1K, 2K, 4K."),
            (None, {"resolution": "8K"}, "Allowed: 512, 1K, 2K, 4K."),
            (FLASH, {"temperature": 2.5}, "Allowed: 0.0 to 2.0"),
            (FLASH, {"temperature": "warm"}, "a number from"),
            (FLASH, {"google_image_search": True, "google_search": None}, "needs google_search=True"),
            (FLASH, {"prompt": "  "}, "prompt: is empty"),
            (FLASH, {"prompt": ["a"]}, "prompt: must be text"),
            (FLASH, {"image": "s3://a"}, "GeminiImageEditOperator"),
            (["x"], {}, "model"),
        ],
    )
    def test_a_literal_that_no_gateway_takes_is_refused(self, model: Any, values: dict[str, Any], part: str) -> None:
        refused(lambda: check_literals("generate", model, **values), part)

    def test_more_references_than_any_gateway_takes_are_refused(self) -> None:
        check_literals("edit", FLASH, image="s3://a", reference_images=["s3://b"] * 13)
        refused(lambda: check_literals("edit", FLASH, image="s3://a", reference_images=["s3://b"] * 14), "14 given")

    def test_edit_without_its_image_is_refused_only_when_the_image_is_given_as_none(self) -> None:
        check_literals("edit", FLASH, prompt="a")
        refused(lambda: check_literals("edit", FLASH, prompt="a", image=None), "image: not given")

    @pytest.mark.parametrize(
        "value",
        [
            "{{ params.x }}",
            "{% if a %}x{% endif %}",
            "{# c #}",
            object(),
            ["s3://a", "{{ x }}"],
            ["a", object()],
            Lazy("a"),
            ({"uri": "{{ x }}"},),
            (uri for uri in "ab"),
        ],
        ids=shown,
    )
    @pytest.mark.parametrize("field", ["prompt", "temperature", "aspect_ratio", "google_search", "reference_images"])
    def test_what_is_not_a_plain_literal_is_left_for_run_time(self, field: str, value: Any) -> None:
        check_literals("generate", FLASH_25, **{field: value})

    def test_image_search_passes_while_search_is_not_known_yet(self) -> None:
        check_literals("generate", FLASH, google_image_search=True, google_search="{{ params.search }}")
        check_literals("generate", FLASH, google_image_search=True)

    def test_airflows_own_placeholders_are_left_for_run_time(self) -> None:
        from airflow.sdk import literal, task

        @task
        def upstream() -> str:
            return "1K"

        check_literals("generate", FLASH, aspect_ratio=literal("nonsense"), resolution=upstream)

    def test_an_unknown_model_is_checked_by_the_widest_rows_without_a_warning(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_literals("generate", "gemini-9", temperature=1, google_search=True, aspect_ratio="8:1")
            refused(lambda: check_literals("generate", "gemini-9", aspect_ratio="7:1"), "aspect_ratio='7:1'")


def checked(gateway: str = "1min", **values: Any) -> CheckedRequest:
    return build(**{"prompt": "a red fox", **values}).check(gateway)


def fingerprint(request: CheckedRequest, **values: Any) -> str:
    digests = [hashlib.sha256(uri.encode()).hexdigest() for uri in request.input_images]
    place = {"input_sha256": digests, "base_url_host": "api.1min.ai", "conn_id": "geminiimg_default"}
    return request.fingerprint(**{**place, **values})


EDIT = {"operation": "edit", "image": "s3://in/cat.png"}
PINNED: list[tuple[str, dict[str, Any], str]] = [
    ("1min", {}, "718ee76d6c42797b24b4362e0d0f75700eb9dab7a90dc3170d3451aa7b670ef0"),
    ("1min", {"prompt": "ein Fuchs, größer 🦊"}, "3ca7d10e54771b71ee170bf76d3f51d75e1db4291a84f6bb502bac7f87805005"),
    (
        "1min",
        {"resolution": "4K", "aspect_ratio": "16:9", "temperature": 0.7, "top_p": 0.9},
        "ecdf923f3c501be0cddefcce57d50d12f9719e6bc5794b011c9d344a5f5f34e6",
    ),
    ("1min", {"variant": "2"}, "1e67d0bd30ea5f218d6cdf81812d3df8022e62321f2b13d4c1e3d45172b76c36"),
    ("1min", {"model": FLASH_25}, "b995a74eef984d6eaa91b31941ca26bc34079b2c750cac747929edd4cc1cf862"),
    (
        "1min",
        {"model": "gemini-3-pro-image", "resolution": "2K"},
        "239df042b27db010e09df4cc058ddc7f9f0501c70ef2718a7d436a1af4ca9d9e",
    ),
    (
        "1min",
        {**EDIT, "reference_images": ["s3://in/a.png", "s3://in/b.png"]},
        "3551477ea14b17724e59f84ab77210d5b845a1335ec6fa38db21fa2a0848d94c",
    ),
    ("1min", {**EDIT, "model": FLASH_25}, "ad872d630ac85659e21dd668c8192ce2ab6f73714d64decf3d185a7008be9791"),
    (
        "apimaster",
        {"aspect_ratio": "8:1", "google_search": True, "google_image_search": True},
        "a6463a7df4678f51e2755425fddfa4dfacd314307522dac287f3e0726763933e",
    ),
    (
        "apimaster",
        {**EDIT, "aspect_ratio": "1:1", "google_search": False},
        "d82a03ff80ea7cb758b018ce1b842504c2ceb16ae5b18e5729c937f7b72a2b92",
    ),
]


class TestFingerprint:
    @pytest.mark.parametrize(("gateway", "values", "digits"), PINNED)
    def test_a_pinned_fingerprint_stays_as_it_is(self, gateway: str, values: dict[str, Any], digits: str) -> None:
        assert fingerprint(checked(gateway, **values)) == digits

    def test_all_ids_of_a_model_have_one_fingerprint_and_those_that_0_1_gave_them_are_known(self) -> None:
        written = [checked("1min", model=model, resolution="2K") for model in (PRO, "gemini-3-pro-image")]
        assert fingerprint(written[0]) == fingerprint(written[1]) == PINNED[5][2]
        earlier = "d426a1738df66247194725e266d14f193af4f183271c2e8e1f56beb54e88dbaa"  # of the successor's own id
        for request in written:
            place = {"input_sha256": (), "base_url_host": "api.1min.ai", "conn_id": "geminiimg_default"}
            assert request.fingerprints(**place) == (PINNED[5][2], earlier)
        assert len(checked("1min", model=FLASH_25).fingerprints(**place)) == 1

    @pytest.mark.parametrize("gateway", ["1min", "apimaster"])
    @pytest.mark.parametrize("edit", [{}, {"operation": "edit", "image": "s3://in/cat.png"}])
    def test_no_id_and_every_id_of_the_default_model_are_one_request(self, gateway: str, edit: dict[str, Any]) -> None:
        models: tuple[dict[str, str], ...] = ({}, {"model": FLASH}, {"model": "gemini-3.1-flash-image"})
        assert len({fingerprint(checked(gateway, **edit, **model)) for model in models}) == 1

    def test_ten_fingerprints_are_pinned_and_all_differ(self) -> None:
        assert len({digits for _, _, digits in PINNED}) == len(PINNED) == 10

    def test_a_fingerprint_is_the_sha256_of_this_canonical_json(self) -> None:
        canonical = (
            '{"base_url_host":"api.1min.ai","conn_id":"geminiimg_default","fields":{"resolution":"1K","temperature":0.5},'
            '"gateway":"1min","input_sha256":["%s"],"model":"gemini-3.1-flash-image-preview","operation":"edit",'
            '"prompt":"F\\u00fcchse","version":1}' % ("0" * 64)
        )
        request = checked(**EDIT, prompt="Füchse", temperature=0.5)
        assert fingerprint(request, input_sha256=["0" * 64]) == hashlib.sha256(canonical.encode()).hexdigest()

    @pytest.mark.parametrize(
        ("written", "same"),
        [
            ({"resolution": "0.5k"}, {"resolution": 512}),
            ({}, {"resolution": "1K"}),
            ({}, {"model": FLASH, "aspect_ratio": ""}),
            ({"temperature": 1}, {"temperature": "1.0"}),
            ({"temperature": -0.0}, {"temperature": 0}),
            ({"variant": 3}, {"variant": "3"}),
            ({**EDIT, "model": FLASH_25}, {**EDIT, "model": f"{FLASH_25}-preview"}),
        ],
        ids=shown,
    )
    def test_the_same_request_written_in_two_ways_has_one_fingerprint(
        self, written: dict[str, Any], same: dict[str, Any]
    ) -> None:
        assert fingerprint(checked(**written)) == fingerprint(checked(**same))

    def test_every_part_of_a_request_and_of_its_place_changes_the_fingerprint(self) -> None:
        base = checked(**EDIT, reference_images=["s3://r"], temperature=0.5)
        changes: list[dict[str, Any]] = [
            {"prompt": "a red fox "},
            {"temperature": 0.6},
            {"resolution": "2K"},
            {"variant": "2"},
            {"model": PRO},
            {"reference_images": ["s3://r", "s3://r"]},
        ]
        others = [
            checked(**{**EDIT, "reference_images": ["s3://r"], "temperature": 0.5, **change}) for change in changes
        ]
        places = [{"base_url_host": "localhost"}, {"conn_id": "other"}, {"input_sha256": ["0" * 64, "1" * 64]}]
        digits = [fingerprint(base), *map(fingerprint, others), *(fingerprint(base, **place) for place in places)]
        digits += [fingerprint(checked()), fingerprint(checked("apimaster"))]
        assert len(set(digits)) == len(digits) == 12

    def test_the_order_of_input_images_counts_and_their_place_does_not(self) -> None:
        here = checked(**EDIT, reference_images=["s3://r"])
        there = dataclasses.replace(here, image="file:///cat.png", reference_images=("file:///r.png",))
        one, two = "0" * 64, "1" * 64
        assert fingerprint(here, input_sha256=[one, two]) == fingerprint(there, input_sha256=[one, two])
        assert fingerprint(here, input_sha256=[one, two]) != fingerprint(here, input_sha256=[two, one])

    def test_the_hosts_case_does_not_count(self) -> None:
        assert fingerprint(checked(), base_url_host="API.1min.ai") == fingerprint(checked())

    def test_as_many_digests_as_input_images_are_needed(self) -> None:
        with pytest.raises(ValueError, match="1 input images need as many digests, got 0"):
            fingerprint(checked(**EDIT), input_sha256=[])

    def test_the_prompts_hash_is_that_of_its_utf8_bytes(self) -> None:
        assert prompt_sha256("füchse") == hashlib.sha256("füchse".encode()).hexdigest()


@pytest.mark.parametrize("written", [1.0, "1.0", " 1.00 ", 1, "1"])
def test_a_whole_variant_is_one_variant_however_it_is_written(written: Any) -> None:
    assert checked(variant=written).variant == "1"
    assert checked(variant=written).fields() == checked(variant=1).fields()


@pytest.mark.parametrize("written", ["1.5", "v1.0", "01", "1.", "1e3", 0.5, "1.0.0", "-"])
def test_a_variant_that_is_no_whole_number_stays_as_it_is(written: Any) -> None:
    assert checked(variant=written).variant == str(written)


def test_a_whole_variant_is_also_known_as_earlier_versions_knew_it() -> None:
    place = {"input_sha256": (), "base_url_host": "h", "conn_id": "c"}
    now = checked(variant=1)
    earlier = dataclasses.replace(now, variant="1.0").fingerprint(**place)
    assert now.fingerprints(**place)[0] == now.fingerprint(**place) != earlier
    assert earlier in now.fingerprints(**place)
    other = checked(variant="a")
    assert len(other.fingerprints(**place)) == len(now.fingerprints(**place)) / 2


@pytest.mark.parametrize("blank", ["", "  ", "\n"])
def test_an_image_that_is_empty_text_does_not_make_a_generation_of_a_request(blank: str) -> None:
    with pytest.raises(BadRequestError, match="image is empty text"):
        ImageRequest(prompt="make it blue", image=blank)
    assert ImageRequest(prompt="a fox", image=None).operation == "generate"
    assert ImageRequest.build(prompt="a fox", image=blank).operation == "generate"  # an empty cell of a row
