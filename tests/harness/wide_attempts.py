"""Attempts at the tasks of a wide batch, each in a process of its own that a test may kill."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.harness.attempts import Attempts

GROUP = "foxes"
SHARDS = f"{GROUP}.shards"


class WideAttempts(Attempts):
    """Runs the tasks of a wide batch, attempt by attempt. The test is the scheduler.

    :param conn_id: the connection.
    """

    def __init__(self, folder: Path, conn_id: str) -> None:
        super().__init__(folder)
        self._usual = {"geminiimg_conn_id": conn_id, "poll_interval": 0.05}
        self.planned: list[dict[str, int]] = []

    def __enter__(self) -> WideAttempts:
        return self

    def plan(self, dag_id: str, prompts: Sequence[str], shards: int, *, generation: int = 0, **arguments: Any) -> None:
        """Make the plan.

        :param generation: how often it was cleared.
        """
        given = {"resolution": "512", "images_task_id": SHARDS, "requests": list(prompts), "shards": shards}
        given |= {**self._usual, **arguments}
        self.start_task(dag_id, "Plan", f"{GROUP}.plan", -1, given, generation=generation)
        self.prompts = list(prompts)
        said = self.ended()
        assert said["value"], said
        self.planned = said["value"]

    def shard(self, number: int, **arguments: Any) -> None:
        """Begin an attempt at one shard."""
        given = {"shard": self.planned[number], **self._usual, **arguments}
        self.start_task(self.dag_id, "Shard", SHARDS, number, given)

    def merge(self, **more: Any) -> None:
        """Begin an attempt at the merge."""
        given = {"plan": self.planned, "images_task_id": SHARDS}
        self.start_task(self.dag_id, "Merge", f"{GROUP}.merge", -1, given, **more)

    def start_task(
        self, dag_id: str, kind: str, task_id: str, map_index: int, arguments: dict[str, Any], **more: Any
    ) -> None:
        """Begin an attempt at one of the tasks."""
        self.dag_id = dag_id
        self._result = self.folder / f"{dag_id}.{task_id}.{map_index}.result"
        task = {"operator": f"GeminiImage{kind}Operator", "task_id": task_id, "map_index": map_index, **more}
        connections = {name: value for name, value in os.environ.items() if name.startswith("AIRFLOW_CONN_")}
        given = {"dag_id": dag_id, "generation": 0, "connections": connections, "result": str(self._result)}
        self._spec = {**given, "arguments": arguments, **task}
        self._begin()
        if "dies_before" in more:
            assert self._over() == -signal.SIGKILL, self.said()

    def lines(self, manifest: str) -> list[dict[str, Any]]:
        """The rows of a manifest."""
        return [json.loads(line) for line in Path(manifest.removeprefix("file://")).read_text().splitlines()]
