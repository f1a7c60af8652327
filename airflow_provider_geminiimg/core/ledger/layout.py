"""Layout of the root: every key is built and parsed here.

    root.json                                     the identity of the root
    ledger/<task instance>/<item>/<n>.json        one record for each submission that may have cost money
    open/entries/<namespace>/<run>-<hash>.json    names an open record, or items of a batch with open records
    open/complete/<namespace>.json                says that the entries and summaries of a namespace are complete
    summaries/<namespace>/<dag>/<run>/<part>.json  counts and costs of a run's records
    forgotten/<task instance>/<item>/<n>-<claim>.json   tombstones of records that a person removed
    names/<place>.json                            the owner of a file name
    index/<namespace>/<dag>/<fingerprint>.json    the record that has the image of a request
    index/<namespace>/<dag>/tasks/<task>/<index>.json   the last request of a task
    jobs/<gateway>/<job>.json                     the record that owns a job
    budgets/<namespace>/<connection>/<day>.json   the daily budget of a connection
    budgets/<namespace>/<connection>/runs/<dag>/<run>.json   the budget of a connection for a DAG run
    limits/<namespace>/<connection>/<limit>.json  what processes have leased of a connection's limits
    batches/<task instance>/<generation>.json     the plan of a batch; of a wide batch, one part for each shard
    returned/<task instance>/<generation>.json    the request that a decorated function returned
    shown/<task instance>/<try>-<digest>.json     the content of a review
    spool/<task instance>/<item>/<n>.json.<claim>.<index>   image bytes from an inline answer, until they are stored
    thumbs/<task instance>/<item>/<n>/<index>.webp   thumbnails of stored images
    images/<dag>/<run>/<task>/<index>/            images without an output path of their own
    probe/<name>                                  tests of the root, and tokens of the doctor; removed at once

A task instance is ``<namespace>/<dag>/<run>/<task>/<index>``, each part encoded by `encode_segment`. The index is the
map index, ``-1`` for a task that is not mapped. In a loop (Airflow 3.4) the iteration, counted from 0, stands before
it: ``2.-1``. The iteration identifies a task instance, and not Airflow's region, which is another one after Airflow has
created the iteration again.

The records of all shards of a wide batch (`image_batch`) belong to the index ``-1`` of their task, their parts of the
plan to their own indexes.

Invariant: the form of a key never changes, because later versions of the package read the files of earlier ones.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from airflow_provider_geminiimg.core.storage import IMAGES, decode_segment, encode_segment, is_cut

ROOT_KEY = "root.json"
LEDGER = "ledger"
PLANS = "batches"
RETURNED = "returned"
SHOWN = "shown"
SPOOL = "spool"
SUMMARIES = "summaries"
TESTS = "probe/"
_OPEN = "open"

_NUMBER = "[1-9][0-9]{0,8}"
_NUMBERED = re.compile(rf"({_NUMBER})\.json")
_SAVED = re.compile(r"(\d+)\.json", re.ASCII)
_INDEX = re.compile(r"(?:(0|[1-9][0-9]{0,8})\.)?(-?[0-9]{1,18})")  # longer numbers may exceed Python's limit
_PLAN_KEY = re.compile(rf"{PLANS}/(.+/([^/]+))/([0-9]{{1,18}})\.json")
_RECORD_KEY = re.compile(rf"ledger(?:/(?!\.{{1,2}}/)[\w.~+%:=-]+){{6}}/{_NUMBER}\.json", re.ASCII)


@dataclass(frozen=True)
class TaskIndex:
    """The position of a task instance among those of its task in one run; its text is a part of keys and addresses.

    :param map_index: ``-1`` for a task that is not mapped.
    :param iteration: iteration of the loop, from 0; ``None`` outside loops.
    """

    map_index: int
    iteration: int | None = None

    def __str__(self) -> str:
        return str(self.map_index) if self.iteration is None else f"{self.iteration}.{self.map_index}"

    @classmethod
    def parse(cls, text: str) -> TaskIndex | None:
        """Parse the text of a position; ``None`` for any other text, also for another spelling of the same numbers."""
        found = _INDEX.fullmatch(text)
        index = None if found is None else cls(int(found[2]), None if found[1] is None else int(found[1]))
        return index if str(index) == text else None


@dataclass(frozen=True)
class Item:
    """Identifies the records of one image: the parts of a task instance that no retry, Clear or worker changes.

    :param item: ``"0"`` for a task that makes one image; in a batch, the beginning of the image's fingerprint.
    :param iteration: iteration of the loop, from 0; ``None`` outside loops. A retry and a Clear have the same one.
    """

    namespace: str
    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    item: str = "0"
    iteration: int | None = None

    @property
    def index(self) -> TaskIndex:
        """The position among the task instances of the task."""
        return TaskIndex(self.map_index, self.iteration)

    @property
    def task_instance(self) -> str:
        """The task instance as a part of keys."""
        return _joined(self.namespace, self.dag_id, self.run_id, self.task_id, str(self.index))

    @property
    def path(self) -> str:
        """The folder of this item's records, relative to the root, without a trailing slash."""
        return f"{LEDGER}/{self.task_instance}/{encode_segment(self.item)}"

    @property
    def images(self) -> str:
        """The folder of this task instance's images, relative to the root."""
        return f"{IMAGES}/{_joined(self.dag_id, self.run_id, self.task_id, str(self.index))}"


# Records


def record_key(item: Item, n: int) -> str:
    """Return the key of `item`'s record for submission number `n`, relative to the root."""
    return f"{item.path}/{n}.json"


def is_record_key(key: str) -> bool:
    """Return whether `key` has the form of a record's key."""
    return _RECORD_KEY.fullmatch(key) is not None


def record_number(name: str) -> int | None:
    """Return the submission number from the last part of a record's key; ``None`` for any other name."""
    found = _NUMBERED.fullmatch(name)
    return None if found is None else int(found[1])


def folder_of(key: str) -> str:
    """Return the folder of a record (its item's `path`) or of an item (its task instance's folder)."""
    return key.rpartition("/")[0]


def task_instance_of(key: str) -> str:
    """Return the task instance of a record, as a part of keys."""
    return key.removeprefix(f"{LEDGER}/").rsplit("/", 2)[0]


def tombstone_key(key: str, claim: str) -> str:
    """Return the key of a record's tombstone. It contains the claim, because a later record may have the same key."""
    return f"forgotten/{_of_record(key)}-{encode_segment(claim)}.json"


def run_of(key: str) -> str:
    """Return namespace, DAG and run of a record, as a part of keys."""
    return "/".join(key.split("/")[1:4])


def summary_key(run: str, part: int) -> str:
    """Return the key of one part of a run's summary.

    :param run: namespace, DAG and run, as a part of keys.
    """
    return f"{SUMMARIES}/{run}/{part}.json"


def open_prefix(namespace: str) -> str:
    """What the keys of all entries for open records of a namespace begin with."""
    return f"{_OPEN}/entries/{encode_segment(namespace)}/"


def open_prefix_of_run(run: str) -> str:
    """What the keys of all entries for open records of a run begin with. Those of another run may begin so, too.

    :param run: namespace, DAG and run, as a part of keys.
    """
    return f"{_OPEN}/entries/{run.split('/')[0]}/{_short_hash(run)[:16]}-"


def open_key(key: str, tag: str) -> str:
    """Return the key of an entry for an open record.

    It is flat, because on disk the empty folders of removed entries would remain, and short, because a long one might
    be refused when the record becomes open again.

    :param key: the record's key.
    :param tag: the record's claim, or another text that distinguishes the record's entries.
    """
    return _open_key(run_of(key), f"{key}\n{tag}")


def open_chunk_key(task_instance: str, tag: str) -> str:
    """Return the key of an entry for some items of a batch.

    :param task_instance: as a part of keys.
    :param tag: distinguishes it from all other entries.
    """
    run = "/".join(task_instance.split("/")[:3])
    return _open_key(run, f"{task_instance}\n{tag}")


def _open_key(run: str, text: str) -> str:
    return f"{open_prefix_of_run(run)}{_short_hash(text)}.json"


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def complete_key(namespace: str) -> str:
    """Return the key of the marker that says that the entries and summaries of a namespace are complete."""
    return f"{_OPEN}/complete/{encode_segment(namespace)}.json"


def spool_key(key: str, claim: str, index: int) -> str:
    """Return the key under which the bytes of an inline image are kept until the image is stored.

    :param key: the record's key.
    :param index: position of the image in the answer, from 0.
    """
    return f"{spool_prefix(key)}{claim}.{index}"


def spool_prefix(key: str) -> str:
    """What the keys of all image bytes begin with that came inline for a record."""
    return f"{SPOOL}/{key.removeprefix(f'{LEDGER}/')}."


def thumbnail_key(key: str, index: int) -> str:
    """Return the key of an image's thumbnail.

    :param key: the record's key.
    :param index: position of the image in the manifest, from 0.
    """
    return f"thumbs/{_of_record(key)}/{index}.webp"


# Entries that point to records


def name_key(place: str) -> str:
    """Return the key of the claim for a file name.

    :param place: from `same_place`.
    """
    return f"names/{place}.json"


def index_key(item_path: str, fingerprint: str) -> str:
    """Return the key of the index entry for `fingerprint`.

    :param item_path: the path of any item, or the key of any record, of the DAG.
    """
    namespace, dag = item_path.split("/")[1:3]
    return f"index/{namespace}/{dag}/{encode_segment(fingerprint)}.json"


def task_key(item: Item) -> str:
    """Return the key of a task's last request, over all runs of its DAG."""
    return f"index/{_joined(item.namespace, item.dag_id, 'tasks', item.task_id, str(item.index))}.json"


def job_key(gateway: str, job_id: str) -> str:
    """Return the key of the entry that names the owner of a job."""
    return f"jobs/{_joined(gateway, job_id)}.json"


def budget_key(namespace: str, conn_id: str, day: str) -> str:
    """Return the key of a connection's budget for one day."""
    return f"budgets/{_joined(namespace, conn_id)}/{day}.json"


def run_budget_key(item: Item, conn_id: str) -> str:
    """Return the key of a connection's budget for the DAG run of `item`."""
    return f"budgets/{_joined(item.namespace, conn_id, 'runs', item.dag_id, item.run_id)}.json"


def limit_key(namespace: str, conn_id: str, name: str) -> str:
    """Return the key of the leases of one limit of a connection: ``rate``, ``submit`` or ``poll``."""
    return f"limits/{_joined(namespace, conn_id)}/{name}.json"


# Documents of a task instance


def token_key(token: str) -> str:
    """Key of a token of the doctor."""
    return f"{TESTS}{token}.json"


def saved_key(folder: str, task_instance: str, generation: int) -> str:
    """Return the key of a task's saved request.

    :param folder: `PLANS` or `RETURNED`.
    """
    return f"{folder}/{task_instance}/{generation}.json"


def generation_of(name: str) -> int | None:
    """Return the generation from the last part of a saved request's key; ``None`` for any other name."""
    found = _SAVED.fullmatch(name)
    return None if found is None else int(found[1])


def plans_below(folder: str, task_instance: str) -> str:
    """Return the prefix of the saved requests of all instances of a task in one run."""
    return f"{folder}/{folder_of(task_instance)}/"


def of_all_shards(task_instance: str, index: TaskIndex) -> str:
    """Return the task instance that the records of a wide batch belong to.

    :param task_instance: that of a shard.
    :param index: its index.
    """
    return f"{folder_of(task_instance)}/{TaskIndex(-1, index.iteration)}"


def plan_of(key: str) -> tuple[str, TaskIndex, int] | None:
    """Parse a plan's key into task instance, its index and generation; ``None`` for any other key."""
    found = _PLAN_KEY.fullmatch(key)
    index = None if found is None else TaskIndex.parse(found[2])
    return None if found is None or index is None else (found[1], index, int(found[3]))


def shown_prefix(item: Item, try_id: str) -> str:
    """Return the prefix of the keys for one try of a review; a digest and ``.json`` follow."""
    return f"{SHOWN}/{item.task_instance}/{encode_segment(try_id)}-"


def index_of(key: str) -> TaskIndex | None:
    """Return the task instance's index from a record's key; ``None`` if this package did not write the key."""
    return TaskIndex.parse(key.split("/")[5])


def names_of(key: str) -> list[str]:
    """Return DAG, run, task, index and item of a record's key. A name that was cut stays encoded."""
    _, _, *parts, _ = key.split("/")
    return [name_of(part) for part in parts]


def name_of(part: str) -> str:
    """Return the name that a part of a key stands for. A name that was cut stays encoded."""
    name = decode_segment(part)
    return part if name is None or _has_surrogates(name) else name


def key_of_names(namespace: str, dag_id: str, names: Sequence[str], n: int) -> str:
    """Build a record's key from what `names_of` returns.

    :param names: run, task, index and item.
    :param n: number of the submission within its item, from 1.
    """
    parts = (encode_segment(namespace), encode_segment(dag_id), *map(encode_once, names))
    return "/".join((LEDGER, *parts, f"{n}.json"))


def encode_once(name: str) -> str:
    """Encode a name from `names_of` as a key segment; a cut name is already encoded and is returned unchanged."""
    return name if is_cut(name) else encode_segment(name)


def _has_surrogates(name: str) -> bool:
    """Whether a decoded name cannot be written as UTF-8."""
    return any("\ud800" <= char <= "\udfff" for char in name)


def _of_record(key: str) -> str:
    return key.removeprefix(f"{LEDGER}/").removesuffix(".json")


def _joined(*parts: str) -> str:
    return "/".join(map(encode_segment, parts))
