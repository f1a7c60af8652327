"""Input images: when they are read."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_provider_geminiimg.core.execution.byte_semaphore import MEMORY_LIMIT, ByteSemaphore
from airflow_provider_geminiimg.core.purchase.inputs import input_digests
from tests.harness.attacks import image_bytes
from tests.harness.shop import Shop

if TYPE_CHECKING:
    from airflow_provider_geminiimg.sandbox import Sandbox


async def test_an_input_is_not_read_while_the_memory_for_images_is_used_up(
    sandbox: Sandbox, local_root: str, tmp_path: Path
) -> None:
    (tmp_path / "in.png").write_bytes(image_bytes())
    shop, memory = Shop(local_root, sandbox), ByteSemaphore()
    request = shop.order(operation="edit", image=str(tmp_path / "in.png")).checked()
    async with memory.acquire(empty=True) as other:
        await other.hold(MEMORY_LIMIT)
        reading = asyncio.create_task(input_digests(request, shop.files, memory))
        done, _ = await asyncio.wait([reading], timeout=3.0)
        assert not done
    assert await reading == (hashlib.sha256(image_bytes()).hexdigest(),)
