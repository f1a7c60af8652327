"""Triggers that a user might write, which the trigger runner loads by their path."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
from airflow.triggers.base import BaseTrigger, TriggerEvent


class NaiveTrigger(BaseTrigger):
    """A client of its own, a poll every four seconds.

    :param url: where to ask.
    :param key: the API key, which nobody should put into a trigger.
    """

    def __init__(self, url: str, key: str) -> None:
        super().__init__()
        self.url = url
        self.key = key

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return "benchmarks.naive_triggers.NaiveTrigger", {"url": self.url, "key": self.key}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        async with httpx.AsyncClient(headers={"API-KEY": self.key}, timeout=60) as client:
            while (await client.get(self.url)).json()["aiRecord"]["status"] == "PROCESSING":  # noqa: ASYNC110
                await asyncio.sleep(4)
        yield TriggerEvent("done")


class SleepingTrigger(BaseTrigger):
    """Asks nobody: what is left is Airflow's own cost of a trigger."""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return "benchmarks.naive_triggers.SleepingTrigger", {}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        while True:  # noqa: ASYNC110
            await asyncio.sleep(4)
        yield TriggerEvent("never")
