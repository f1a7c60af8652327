"""The process behind `attempts`: imports the operator once, then forks for each attempt, as an executor does.

What must stay true: it starts no thread before it forks; what an attempt prints goes to the log, never between the
words of the protocol: one line of JSON in for each attempt, its process id out, and then how that ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

TASK_ID = "pictures"


class StateStore:
    """What Airflow's task state store remembers, in files: no database, whose memory would be counted too.

    :param folder: where they lie, one for each key. No `Path` names them, because its parts are interned, which counts.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = str(folder)

    def get(self, key: str) -> Any:
        with contextlib.suppress(FileNotFoundError), open(self._path(key)) as file:  # noqa: PTH123
            return json.load(file)
        return None

    def set(self, key: str, value: Any, *, retention: Any = None) -> None:
        path = self._path(key)
        with open(f"{path}.new", "w") as file:  # noqa: PTH123
            json.dump(value, file)
        os.replace(f"{path}.new", path)  # noqa: PTH105

    def _path(self, key: str) -> str:
        return f"{self._folder}/{quote(key, safe='')}"


def attempt(spec: dict[str, Any]) -> dict[str, Any]:
    """One attempt by the operator: its value; or its error, and whether Airflow would try again."""
    from airflow.providers.common.compat.sdk import AirflowFailException
    from airflow.sdk import DAG

    from airflow_provider_geminiimg.operators import wide_batch

    task_id = spec.get("task_id", TASK_ID)
    with DAG(spec["dag_id"], schedule=None):
        operator = getattr(wide_batch, spec.get("operator", "GeminiImageBatchOperator"))(
            task_id=task_id, **spec["arguments"]
        )
    os.environ.update(spec["connections"])
    ti = SimpleNamespace(
        dag_id=spec["dag_id"],
        run_id="run",
        task_id=task_id,
        map_index=spec.get("map_index", -1),
        max_tries=spec["generation"],
        try_number=1,
    )
    if "dies_before" in spec:
        _die_before(spec["dies_before"])
    context: Any = {"ti": ti, "task_state_store": StateStore(Path(spec["result"]).with_suffix(".state"))}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    said: dict[str, Any] = {"value": None, "error": None, "again": None}
    try:
        said["value"] = operator.execute(context)
    except Exception as error:
        said |= {"error": str(error), "again": not isinstance(error, AirflowFailException)}
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {**said, "peak": used.ru_maxrss * 1024, "cpu": used.ru_utime - before}


def _die_before(path: str) -> None:
    """Kill this process when it is about to link or replace a file whose path holds `path`."""

    def hook(event: str, given: tuple[Any, ...]) -> None:
        if event in ("os.link", "os.rename") and any(path in str(each) for each in given):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def main() -> None:
    """Serve attempts until nobody asks for more."""
    answers = os.fdopen(os.dup(1), "w")
    with Path(sys.argv[1]).open("ab") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    import airflow_provider_geminiimg.runtime.batch_task  # noqa: F401 - before the fork, as it takes seconds

    for line in sys.stdin:
        spec = json.loads(line)
        pid = os.fork()
        if pid == 0:
            Path(spec["result"]).write_text(json.dumps(attempt(spec)))
            os._exit(0)
        print(pid, file=answers, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


if __name__ == "__main__":
    main()
