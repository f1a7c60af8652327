"""Waiting for jobs that were paid for: what an answer to a poll may hold, and when it is looked into."""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING

from airflow_provider_geminiimg.core.execution.byte_semaphore import MEMORY_LIMIT
from airflow_provider_geminiimg.core.purchase.landing import ImageWriter
from airflow_provider_geminiimg.core.purchase.waiting import JobCollector
from tests.harness.attacks import image_bytes
from tests.harness.orphaned_records import OrphanedRecords

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox


async def test_an_image_inside_an_answer_to_a_poll_is_not_decoded_while_the_memory_for_images_is_used_up(
    sandbox: Sandbox, apimaster: str, local_root: str
) -> None:
    left = OrphanedRecords(sandbox, apimaster)
    record = await left.submitted()
    data = image_bytes() + bytes(1_000_000)
    inline = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    said = {"data": {"status": "succeeded", "result": {"images": [{"url": inline}]}}}
    sandbox.faults(route="apimaster.status", body=said, times=2)
    async with left.environment.purchase_context() as context:
        collector = JobCollector(ImageWriter(context))
        assert (await collector.poll(record)).images[0].data == data
        with context.memory.held(MEMORY_LIMIT + 1):
            polling = asyncio.create_task(collector.poll(record))
            done, _ = await asyncio.wait([polling], timeout=3.0)
            assert left.calls("status") == 2
            assert not done
        assert (await polling).images[0].data == data
