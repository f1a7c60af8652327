"""The images of a plan that is being made, and the shards that are made of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal

import pytest

from airflow_provider_geminiimg.core.batch.drafts import CHUNK, Alias, Draft, Drafts
from airflow_provider_geminiimg.core.batch.image_specs import RowDefaults, image_specs
from airflow_provider_geminiimg.core.batch.merge import MergedResults
from airflow_provider_geminiimg.core.batch.plan import PlannedImage
from airflow_provider_geminiimg.core.batch.planner import PlanHeader, plan_of
from airflow_provider_geminiimg.core.batch.shards import Shard, Shards
from airflow_provider_geminiimg.core.request import prompt_sha256

COUNT = 2 * CHUNK + 44
HEADER = PlanHeader(0, "file:///images", "fox")


@contextmanager
def drafts(prompts: list[str]) -> Iterator[Drafts]:
    """Drafts of images with these prompts; equal prompts have equal fingerprints."""
    rows = [{"prompt": prompt, "sku": f"{prompt}-{number}"} for number, prompt in enumerate(prompts)]
    specs = list(image_specs(rows, RowDefaults({}, "apimaster", file_name="{sku}")))
    made = [Draft.of(spec).with_fingerprint(prompt_sha256(spec.request.prompt), (), "fox") for spec in specs]
    with Drafts() as found:
        for start in range(0, len(made), CHUNK):
            found.add(made[start : start + CHUNK])
        yield found


def prompts_of(images: Iterator[Draft]) -> list[str]:
    return [str(draft.item.values["prompt"]) for draft in images]


def shards(found: Drafts, count: int, max_cost: Decimal | None = None) -> list[Shard]:
    planned = plan_of(HEADER, found, logging.getLogger("drafts"))
    divided = Shards(planned, count, {}, max_cost, first_attempt=True, told=None)
    return [divided.shard(number) for number in range(len(divided))]


@pytest.mark.parametrize(("start", "end"), [(0, COUNT), (0, 0), (1, 2), (CHUNK - 1, CHUNK + 1), (CHUNK, COUNT)])
def test_any_part_of_the_drafts_is_read_as_it_was_written(start: int, end: int) -> None:
    names = [f"fox {number}" for number in range(COUNT)]
    with drafts(names) as found:
        assert len(found) == COUNT
        assert prompts_of(found.part(start, end)) == names[start:end]
        assert prompts_of(iter(found)) == names


def test_two_iterations_at_once_do_not_disturb_each_other() -> None:
    with drafts([f"fox {number}" for number in range(COUNT)]) as found:
        assert all(one.item == other.item for one, other in zip(found, found, strict=True))


def test_an_image_with_an_earlier_fingerprint_has_it_each_time_it_is_read() -> None:
    with drafts([f"fox {number}" for number in range(COUNT)]) as found:
        found.rename({CHUNK: Alias("1", "earlier.invalid", "e" * 64)})
        item = next(found.part(CHUNK, CHUNK + 1)).item
        assert (item.fingerprint, item.host, item.values["variant"]) == ("e" * 64, "earlier.invalid", "1")
        assert item.stem == f"fox-{CHUNK}-{CHUNK}"
        assert sum(each.host is not None for each in found.items()) == 1


def test_each_image_is_made_by_the_first_shard_that_has_it() -> None:
    with drafts([f"fox {number % 7}" for number in range(COUNT)]) as found:
        first, *others = shards(found, 3, Decimal(3))
        assert [len(each.items) for each in (first, *others)] == [186, 185, 185]
        assert (len({item.key for item in first.own}), [len(each.own) for each in others]) == (7, [0, 0])
        assert sum(each.max_cost or 0 for each in (first, *others)) <= 3
        assert {*(first.repeated or ())} == {item.fingerprint for item in first.items}


@pytest.mark.parametrize("earlier", [False, True])
def test_a_merge_counts_each_row_and_pays_each_image_once_also_with_the_plan_of_an_earlier_version(
    earlier: bool,
) -> None:
    with drafts(["fox", "wolf", "fox", "hare", "wolf", "fox"]) as found:
        parts = shards(found, 3)
    if earlier:
        for_all = {"repeated", "numbered"}
        parts = [Shard.model_validate_json(each.model_dump_json(exclude=for_all)) for each in parts]
        assert parts[0].repeated is None
    cost = {"amount": 0.5, "currency": "USD", "basis": "gateway", "estimate": False}
    merged = MergedResults(3, lambda item: pytest.fail("every image has a result"))

    def results(items: tuple[PlannedImage, ...]) -> dict[str, dict[str, object]]:
        return {item.fingerprint: {"status": "landed", "cost": cost} for item in items}

    lines = [line for each in parts for line in merged.lines(each, results(each.own))]
    assert len(lines) == 6
    assert merged.totals["counts"]["landed"] == 6
    assert merged.totals["cost"] == {"USD (gateway)": 1.5}
