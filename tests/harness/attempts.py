"""Attempts at a batch, each in a process of its own that a test may kill, and what they leave behind.

    with Attempts(folder) as attempts:
        attempts.start("many", prompts, geminiimg_conn_id=...)
        ...                      # an event at the sandbox
        attempts.kill()
        attempts.deadlines_pass()
        attempts.again()
        attempts.ended()

What must stay true: a moment is an event, never a time; nothing is left running.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from airflow_provider_geminiimg.core.ledger.records import Ledger, StoredRecord
from airflow_provider_geminiimg.core.request import prompt_sha256
from airflow_provider_geminiimg.core.storage import LocalStore
from airflow_provider_geminiimg.sandbox import read_submission
from tests.harness import REPOSITORY
from tests.harness.attempt_process import TASK_ID

LONG_AGO = 3600.0  # seconds; longer than any answer is waited for


class Attempts:
    """Runs batches, attempt by attempt.

    :param folder: where their root, their rows and their log lie.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "root"
        self.log = folder / "attempts.log"
        self.ledger = Ledger(LocalStore(str(self.root)))
        self.prompts: list[str] = []
        self._pid = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.harness.attempt_process", str(self.log)],
            env={**os.environ, "AIRFLOW__GEMINIIMG__ROOT": self.root.as_uri(), "PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Attempts:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
        self._process.communicate(timeout=60)

    # What a test does

    def start(self, dag_id: str, prompts: Sequence[str], **arguments: Any) -> None:
        """Begin the first attempt at a batch."""
        self.dag_id, self.prompts = dag_id, list(prompts)
        rows = self.folder / f"{dag_id}.jsonl"
        rows.write_text("".join(f"{json.dumps({'prompt': prompt})}\n" for prompt in prompts))
        self._result = self.folder / f"{dag_id}.result"
        given = {"requests": str(rows), "resolution": "512", "poll_interval": 0.05, **arguments}
        self._spec: dict[str, Any] = {
            "dag_id": dag_id,
            "result": str(self._result),
            "arguments": given,
            "generation": 0,
        }
        self._spec["connections"] = {k: v for k, v in os.environ.items() if k.startswith("AIRFLOW_CONN_")}
        self._begin()

    def again(self, *, cleared: bool = False) -> None:
        """Begin a further attempt: a retry, or what follows a Clear."""
        self._spec["generation"] += cleared
        self._begin()

    def kill(self) -> None:
        """End the attempt as a power cut would."""
        os.kill(self._pid, signal.SIGKILL)
        assert self._over() == -signal.SIGKILL, self.said()

    def ended(self) -> dict[str, Any]:
        """Wait until the attempt has come to its end. See `attempt_process.attempt` for what it says."""
        assert self._over() == 0, self.said()
        return dict(json.loads(self._result.read_text()))

    def deadlines_pass(self) -> None:
        """As if what the dead attempt was sending had been sent long ago."""
        for found in self.records():
            if found.record.state == "intent":
                path = self.root / found.record.key
                written = path.stat().st_mtime
                os.utime(path, (written - LONG_AGO, written - LONG_AGO))

    # What a test looks at

    def said(self) -> str:
        """The last of what the attempts have logged."""
        return self.log.read_text(errors="replace")[-6000:] if self.log.exists() else ""

    def records(self) -> list[StoredRecord]:
        """Every record of the batch."""
        keys = self.ledger.store.keys(f"ledger/default/{self.dag_id}/")
        return [found for key in keys if (found := self.ledger.read(key)) is not None]

    def unanswered(self) -> set[str]:
        """The prompts of requests of which nobody has written down an answer."""
        by_hash = {prompt_sha256(prompt): prompt for prompt in self.prompts}
        return {by_hash[found.record.prompt_sha256] for found in self.records() if found.record.state == "intent"}

    def manifest(self) -> list[dict[str, Any]]:
        """The rows of the manifest, after it was made sure that they are all there and in order."""
        path = self.root / "images" / self.dag_id / "run" / TASK_ID / "-1" / "manifest.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert [line["row"] for line in lines] == list(range(len(self.prompts)))
        return lines

    def by_status(self) -> dict[str, set[str]]:
        """The prompts by what became of them, by the manifest."""
        found: dict[str, set[str]] = {}
        for line in self.manifest():
            found.setdefault(line["status"], set()).add(self.prompts[line["row"]])
        return found

    def counts(self) -> dict[str, int]:
        """How many prompts ended how, by the manifest."""
        return {status: len(prompts) for status, prompts in self.by_status().items()}

    def submissions(self) -> dict[str, int]:
        """The number of the submission whose image is in storage, by prompt: read from the images' own bytes."""
        return {
            self.prompts[line["row"]]: read_submission(Path(image["uri"].removeprefix("file://")).read_bytes())
            for line in self.manifest()
            for image in line.get("images", ())
        }

    # The protocol

    def _begin(self) -> None:
        assert self._process.stdin is not None
        self._result.unlink(missing_ok=True)
        self._process.stdin.write(f"{json.dumps(self._spec)}\n")
        self._process.stdin.flush()
        self._pid = int(self._heard())

    def _heard(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, self.said()
        return line

    def _over(self) -> int:
        status = int(self._heard())
        self._pid = 0
        return status
