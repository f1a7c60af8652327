"""``make mutation``: removes one protection at a time, and shows which tests fail.

A test that passes without the protection proves nothing. Each protection is removed in a copy of the tree. There, the
rows of the failure matrix run until enough of them fail; or the tests of an attack run, file by file.

Invariants: the working tree is never changed. A protection whose code has moved is an error. A run succeeds only if
every removed protection makes the matrix fail, and every test file that is named for it.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from scripts.mutation_attacks import ATTACKED
from scripts.mutation_promises import PROMISED
from scripts.protection import Protection

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "airflow_provider_geminiimg"
HERE = ["tests/matrix", "-n", "4", "--dist", "load"]  # rows wait more than they work
HERE += ["-o", "faulthandler_timeout=40", "-o", "faulthandler_exit_on_timeout=true"]  # a row takes up to 15 s
LIVE = ["tests/live/test_matrix.py", "-k"]
SECONDS = 600  # for one run of tests without a protection
SECONDS_IN_PLACE = 7_200  # for one with all of them, which none cuts short
ENOUGH = 3  # that are red, after which the others need not run
OPTIONS = ["-q", "-rfE", f"--maxfail={ENOUGH}", "-p", "no:cacheprovider"]


PROTECTIONS = (
    Protection(
        "The intent is on record before the request is sent",
        "core/purchase/submission.py",
        "        claimed = self.ledger.create(wanted)\n",
        '        claimed = StoredRecord(wanted, "", 0.0)\n',
    ),
    Protection(
        "A record is created exclusively",
        "core/ledger/records.py",
        "        stored = create_or_read(\n            self.store,\n            record.key,\n",
        "        bucket, data = getattr(self.store, '_s3', None), dump_record(record)\n"
        "        if bucket is not None:\n"
        "            done = bucket.put(self.store._key(record.key), data, 'application/json')\n"
        "            return StoredRecord(record, done['ETag'], 0.0)\n"
        "        stored = create_or_read(\n            self.store,\n            record.key,\n",
    ),
    Protection(
        "Who loses the race for a record reads again, and does not send",
        "core/purchase/submission.py",
        "                if claimed is None:\n",
        '                claimed = claimed or StoredRecord(wanted, "", 0.0)\n                if claimed is None:\n',
    ),
    Protection(
        "The gateway's answer is on record before anything else happens",
        "core/purchase/submission.py",
        "            await asyncio.to_thread(self._record_answer, record, answer, inline)\n        except",
        "            pass\n        except",
    ),
    Protection(
        "A paid request goes over a fresh connection",
        "core/http/transport.py",
        "            if not call.billable:\n                return await exchange.run(",
        "            if True:\n                return await exchange.run(",
    ),
    Protection(
        "A paid request that was written is never taken for unsent",
        "core/http/exchange.py",
        '            return OutcomeUnknownError(f"The request was sent, but the connection broke',
        '            return NotSentError(f"The request was sent, but the connection broke',
    ),
    Protection(
        "An attempt waits for another one's answer until that is overdue",
        "core/purchase/decision.py",
        "if found.record.outcome is None and found.age < found.record.answer_within:",
        "if False:",
    ),
    Protection(
        "What nobody knows is not bought again by itself",
        "core/purchase/decision.py",
        'if policy.on_unknown == "resubmit" and not spent:',
        "if not spent:",
    ),
    Protection(
        "Only a Clear compares what is asked for now",
        "core/purchase/decision.py",
        "    return policy.task_state_lost or policy.generation > record.generation\n",
        "    return True\n",
    ),
    Protection(
        "The trigger's first event is its last",
        "triggers/job.py",
        "        earliest = time.monotonic() + MIN_SECONDS\n",
        '        yield TriggerEvent({"status": "running", "job_id": self.job_id, "code": None})\n'
        "        earliest = time.monotonic() + MIN_SECONDS\n",
    ),
    Protection(
        "A job that the gateway does not know yet is given ten minutes",
        "core/gateways/polling.py",
        "VANISHED_GRACE = 600.0",
        "VANISHED_GRACE = 0.0",
    ),
    Protection(
        "A record that can't be read is never taken for no record",
        "core/ledger/records.py",
        "        blob = self.store.read(key, MAX_BYTES)\n"
        "        return None if blob is None else self._found(key, blob)\n",
        "        blob = self.store.read(key, MAX_BYTES)\n        try:\n            return self._found(key, blob)\n"
        "        except Exception:\n            return None\n",
    ),
    Protection(
        "A ledger that workers do not share is noticed",
        "core/purchase/task_state.py",
        "    if await asyncio.to_thread(ledger.has_tombstone, key, claim):\n        return\n",
        "    return\n",
    ),
    Protection(
        "Airflow remembers a job whose record could not be written",
        "core/purchase/task_state.py",
        '        job = {} if record.job_id is None else {"job_id": record.job_id}\n',
        "        job: dict[str, str] = {}\n",
    ),
    Protection(
        "A file name belongs to one item",
        "core/ledger/file_names.py",
        "    if found.released or not found.same_task(wanted):\n        return found.released\n",
        "    if found.released or not found.same_task(wanted):\n        return True\n",
    ),
    Protection(
        "Of the tasks that want one image, one claims it",
        "core/ledger/fingerprint_index.py",
        "    return stored is not None and (stored.ours or ",
        "    return True or (",
    ),
    Protection(
        "What is copied is, byte by byte, what landed",
        "core/purchase/copying.py",
        'if await asyncio.to_thread(sha256, data) != image["sha256"]:',
        "if False:",
    ),
    Protection(
        "What was downloaded is looked at before it counts as an image",
        "core/purchase/fetching.py",
        "        return data, *await asyncio.to_thread(inspected, data)\n",
        "        return data, ImageInfo('image/png', 'png', 1, 1), sha256(data)\n",
    ),
    Protection(
        "An error after the payment says that it was paid",
        "core/purchase/landing.py",
        "            raise error.evolve(billed=Billed.YES) from error.__cause__\n",
        "            pass\n",
    ),
    Protection(
        "An older record that asked for the same is asked before anything is bought",
        "core/purchase/history.py",
        "            found, step = await self._ask_older(latest, replace(step, n=record.n + 1), cleared, vanished)\n",
        "            found, step = latest, replace(step, n=record.n + 1)\n",
    ),
    Protection(
        "Airflow remembers each image of a batch",
        "core/batch/executor.py",
        "batch.guard, batch.marker(item.key), turn)",
        "batch.guard, None, turn)",
    ),
    Protection(
        "All shards of a batch write the records of one task",
        "runtime/wide_batch_task.py",
        "task_id=shards or self.item.task_id, map_index=-1)",
        "task_id=shards or self.item.task_id)",
    ),
    Protection(
        "A plan that Airflow was never told of is kept to",
        "core/purchase/saved_requests.py",
        "if self.marker is None or saved.told in (None, self.marker.token()):",
        "if self.marker is None or saved.told == self.marker.token():",
    ),
    Protection(
        "A record that Airflow was never told of is of this run",
        "core/purchase/task_state.py",
        "if marker is None or record.told is None or record.told == await asyncio.to_thread(marker.token):",
        "if marker is None or record.told == await asyncio.to_thread(marker.token):",
    ),
    Protection(
        "A DAG run that was made again is a new one",
        "core/purchase/task_state.py",
        "    if mark is None or _is_later(mark, record):",
        "    if mark is None:\n        return False\n    if _is_later(mark, record):",
    ),
    Protection(
        "Another Airflow in the same namespace is noticed",
        "core/purchase/task_state.py",
        '    if mark.get("claim") == record.claim:\n        return False\n    raise',
        "    return False\n    raise",
    ),
    Protection(
        "Another image of a task instance gets a name beside the first",
        "core/ledger/file_names.py",
        "        if wanted.place in own:\n            continue\n",
        "",
    ),
    Protection(
        "No image of a batch gets the name that another row requests, in whichever shard it is",
        "core/batch/shards.py",
        "        return super().numbers() if self.numbered is None else self.numbered\n",
        "        return super().numbers()\n",
    ),
    Protection(
        "Every intact place of an image counts",
        "core/purchase/copying.py",
        "    for place in image_places(record, asked):\n        states.append(",
        "    for place in image_places(record)[:1]:\n        states.append(",
    ),
    Protection(
        "A job that another account does not know is not lost",
        "core/purchase/context.py",
        "    return [said for said, then, now in pairs if then is not None and then != now]\n",
        "    return [said for said, then, now in pairs if False]\n",
    ),
    Protection(
        "An answer that names another job says nothing about this one",
        "core/gateways/responses.py",
        "    return bool(ids) and job_id.casefold() not in ids\n",
        "    return False\n",
    ),
    Protection(
        "A job belongs to one record",
        "core/reconcile/resolve.py",
        "    if resolution.job_id is not None:\n        _refuse_anothers_job(",
        "    if False:\n        _refuse_anothers_job(",
    ),
    Protection(
        "A whole answer counts, whatever becomes of its frame",
        "core/http/json_limits.py",
        "                self.ended = True\n",
        "                self.ended = False\n",
    ),
    Protection(
        "What has landed is copied to where a Clear asks for it",
        "core/purchase/decision.py",
        "    moved = asked.destination if cleared and asked and asked.destination != record.destination else None\n",
        "    moved = None\n",
    ),
    Protection(
        "A directory is written to before anything that shall land there is paid for",
        "core/storage/write_checks.py",
        "            left = self._write_samples(backend, directory, size, length)\n",
        "            left: list[Location] = []\n",
    ),
    Protection(
        "An answer is on record before it is noted whose job it is",
        "core/purchase/submission.py",
        "        try:\n            await asyncio.to_thread(self._record_answer, record, answer, inline)\n"
        "        except Exception as failure:",
        "        await self.own(answer)\n"
        "        try:\n            await asyncio.to_thread(self._record_answer, record, answer, inline)\n"
        "        except Exception as failure:",
        tests={"unit/core/purchase/test_submission.py": "the_next_attempt_finds_the_job"},
    ),
    Protection(
        "A note of whose job it is keeps no image from landing",
        "core/purchase/submission.py",
        "await asyncio.wait([owning], timeout=OWNING_SECONDS)",
        "await asyncio.wait([owning])",
        tests={"unit/core/purchase/test_submission.py": "slow_note"},
    ),
    Protection(
        "A later record is reported if another attempt may have claimed it meanwhile",
        "core/purchase/submission.py",
        "        if unchanged and self._since_claim() < record.answer_within:\n",
        "        if self._since_claim() < record.answer_within:\n",
        tests={"unit/core/purchase/test_lifecycle_intents.py": "comes_back_from_the_dead"},
    ),
    Protection(
        "A record that came after the listing of a batch is no lost one",
        "core/purchase/task_state.py",
        "    if mark is not None and (found is None or _is_later(mark, found.record)):  # created",
        "    if False:  # created",
        tests={
            "unit/core/purchase/test_task_state.py": "after_the_listing",
            "unit/core/purchase/test_lifecycle_listings.py": "found_by_the_task_state",
        },
    ),
    Protection(
        "A server copies only if it refuses to copy to an existing name",
        "core/storage/bucket_files.py",
        "self._modes.copies[directory] = not replaced\n",
        "self._modes.copies[directory] = True\n",
        tests={"unit/core/purchase/test_copying_by_server.py": "ignores_the_condition"},
    ),
    Protection(
        "A job that turns out to be another record's is taken out of the record again",
        "core/purchase/submission.py",
        "            raise await asyncio.to_thread(take_back, self.ledger, record, other, self.log)\n",
        "            raise answered_with_anothers(record, job_id, str(other))\n",
        tests={"unit/core/purchase/test_submission.py": "taken_out_of_the_record_again"},
    ),
    Protection(
        "Who collects a job notes whose it is",
        "core/purchase/lifecycle.py",
        "                await self.submission.own(record)  # the",
        "                pass  # the",
        tests={"unit/core/purchase/test_submission.py": "never_noted_is_noted"},
    ),
    Protection(
        "A line that can't be logged keeps no answer from its record",
        "core/purchase/context.py",
        'object.__setattr__(self, "log", SteadyLogs(self.log))',
        "pass",
        live="supervisor_sent_paid",
    ),
    Protection(
        "A task process whose supervisor is gone sends nothing",
        "core/execution/runner.py",
        "if os.getppid() != self._parent:",
        "if False:",
        live="disk_orphan_intent",
    ),
    Protection(
        "A task that was told to stop sends nothing",
        "core/execution/runner.py",
        '        """Start no further paid request. Takes no lock, because signal handlers call it."""\n'
        "        self._stopped = True\n",
        '        """Start no further paid request. Takes no lock, because signal handlers call it."""\n',
        live="term_intent",
    ),
)


def copy_tree(target: Path) -> None:
    """Everything that git knows of, as it is now."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True)
    for name in filter(None, listed.stdout.split("\0")):
        source = ROOT / name
        if source.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target / name)


def take_out(protection: Protection, tree: Path) -> None:
    """Remove a protection from a copy of the tree.

    :raises SystemExit: its code is not there, or not only there.
    """
    path = tree / PACKAGE / protection.file
    source = path.read_text()
    if source.count(protection.code) != 1:
        raise SystemExit(
            f"{protection.name}: its code stands {source.count(protection.code)} times in {protection.file}, not once."
        )
    path.write_text(source.replace(protection.code, protection.without))


def red(tree: Path, tests: Sequence[str], seconds: float = SECONDS) -> list[str]:
    """The tests that turn red, a row of the matrix by its id; one that never ends is as red as one that fails.

    :raises SystemExit: they could not be run.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", *OPTIONS, *tests, f"--basetemp={tree / 'tmp'}"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return [f"tests that had not ended after {seconds} s"]
    if process.returncode not in (0, 1, 2):  # 2: it had seen enough
        raise SystemExit(f"The tests could not be run:\n{output[-3000:]}")
    failed = re.findall(r"^(?:FAILED|ERROR) \S+?::(.+?)(?: - |$)", output, re.MULTILINE)
    return [re.sub(r"^test_row\[(.+)\]$", r"\1", name) for name in failed]


def of_attack(file: str, chosen: str) -> list[str]:
    """What runs the tests of an attack."""
    return [f"tests/{file}", "-k", chosen, "--maxfail=1"]


def runs(protection: Protection) -> list[list[str]]:
    """What is run without a protection. Each must turn red."""
    if protection.tests:
        return [of_attack(file, chosen) for file, chosen in protection.tests.items()]
    return [[*LIVE, protection.live] if protection.live else HERE]


def sound(chosen: Sequence[Protection]) -> list[list[str]]:
    """What must be green with every protection in place."""
    live, files = [protection.live for protection in chosen if protection.live], dict[str, list[str]]()
    for protection in chosen:
        for file, named in protection.tests.items():
            files.setdefault(file, []).append(named)
    rows = [HERE] if any(not (protection.live or protection.tests) for protection in chosen) else []
    rows += [[*LIVE, " or ".join(live)]] if live else []
    return [*rows, *(of_attack(file, " or ".join(named)) for file, named in files.items())]


def red_without(protection: Protection | None, tests: Sequence[str]) -> list[str]:
    """The tests that turn red without a protection; ``None``: with all of them."""
    with tempfile.TemporaryDirectory(prefix="geminiimg-mutation-") as folder:
        tree = Path(folder)
        copy_tree(tree)
        if protection is None:
            return red(tree, tests, SECONDS_IN_PLACE)
        take_out(protection, tree)
        return red(tree, tests)


def main() -> int:
    """Print the table; the exit status."""
    parser = argparse.ArgumentParser(description="Take out one protection at a time; see which tests turn red.")
    parser.add_argument("--only", default="", metavar="TEXT", help="only the protections whose name holds this")
    parser.add_argument("--attacks", action="store_true", help="only those that attacks try, and no rows of the matrix")
    given = parser.parse_args()
    attacks = (*ATTACKED, *PROMISED)
    protections = attacks if given.attacks else (*PROTECTIONS, *attacks)
    chosen = [protection for protection in protections if given.only.lower() in protection.name.lower()]
    for tests in sound(chosen):
        if (failed := red_without(None, tests)) and (failed := red_without(None, tests)):  # once may be a busy machine
            print(f"Red with every protection in place: {', '.join(failed)}")
            return 1
        print(f"Green with every protection in place: {tests[0]}.", flush=True)
    unnoticed = 0
    for protection in chosen:
        for tests in runs(protection):
            start = time.monotonic()
            failed = red_without(protection, tests)
            unnoticed += not failed
            print(
                f"\n{protection.name}: {len(failed)} of {tests[0]} turned red in {time.monotonic() - start:.0f} s",
                flush=True,
            )
            for name in failed:
                print(f"    {name}", flush=True)
    print(f"\n{len(chosen)} protections were taken out; {unnoticed} times all stayed green.")
    return int(unnoticed > 0)


if __name__ == "__main__":
    sys.exit(main())
