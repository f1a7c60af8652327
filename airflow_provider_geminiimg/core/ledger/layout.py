"""Where everything lies under the root: each key is built here, and taken apart here.

    ledger/<task instance>/<item>/<n>.json        what has been paid for, one record a submission
    forgotten/<task instance>/<item>/<n>-<claim>.json   tombstones of records that a person removed
    names/<place>.json                            which image has a file's name
    index/<namespace>/<dag>/<fingerprint>.json    which record has the image of a request
    index/<namespace>/<dag>/tasks/<task>/<map index>.json   what a task asked for last
    jobs/<gateway>/<job>.json                     which record a job belongs to
    budgets/<namespace>/<connection>/<day>.json   what may still be spent today
    batches/<task instance>/<generation>.json     the plan of a batch
    returned/<task instance>/<generation>.json    what a decorated function asked for
    shown/<task instance>/<try>-<digest>.json     what a review showed
    spool/<task instance>/<item>/<n>.json.<claim>.<index>   image bytes that came inline, until they land
    thumbs/<task instance>/<item>/<n>/<index>.webp   thumbnails of landed images
    images/<dag>/<run>/<task>/<map index>/        images without an output path of their own

A task instance is ``<namespace>/<dag>/<run>/<task>/<map index>``, each part encoded by `encode_segment`. What must stay
true: no key changes its form, as later versions of the package read what earlier ones wrote.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from airflow_provider_geminiimg.core.storage import IMAGES, decode_segment, encode_segment, is_cut

LEDGER = "ledger"
PLANS = "batches"
RETURNED = "returned"
SHOWN = "shown"

_NUMBER = "[1-9][0-9]{0,8}"
_NUMBERED = re.compile(rf"({_NUMBER})\.json")
_SAVED = re.compile(r"(\d+)\.json", re.ASCII)
_PLAN_KEY = re.compile(rf"{PLANS}/(.+/(-?[0-9]{{1,18}}))/([0-9]{{1,18}})\.json")
_RECORD_KEY = re.compile(rf"ledger(?:/(?!\.{{1,2}}/)[\w.~+%:=-]+){{6}}/{_NUMBER}\.json", re.ASCII)


@dataclass(frozen=True)
class Item:
    """What a record belongs to: the parts of a task instance that no retry, clear or worker changes.

    :param item: ``"0"`` for a task that makes one image; in a batch, the beginning of the image's fingerprint.
    """

    namespace: str
    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    item: str = "0"

    @property
    def task_instance(self) -> str:
        """The task instance, as it stands in keys."""
        return _joined(self.namespace, self.dag_id, self.run_id, self.task_id, str(self.map_index))

    @property
    def path(self) -> str:
        """The folder of this item's records, relative to the root, without a trailing slash."""
        return f"{LEDGER}/{self.task_instance}/{encode_segment(self.item)}"

    @property
    def images(self) -> str:
        """The folder of this task instance's images, relative to the root."""
        return f"{IMAGES}/{_joined(self.dag_id, self.run_id, self.task_id, str(self.map_index))}"


# Records


def record_key(item: Item, n: int) -> str:
    """Where the record of `item`'s submission number `n` lies, relative to the root."""
    return f"{item.path}/{n}.json"


def is_record_key(key: str) -> bool:
    """Whether `key` is one that a record can have."""
    return _RECORD_KEY.fullmatch(key) is not None


def record_number(name: str) -> int | None:
    """Which submission a record is of, by the last part of its key; ``None``: it is no record's."""
    found = _NUMBERED.fullmatch(name)
    return None if found is None else int(found[1])


def folder_of(key: str) -> str:
    """The folder in which a record lies: its item's `path`; of such a path, that of its task instance."""
    return key.rpartition("/")[0]


def task_instance_of(key: str) -> str:
    """The task instance of a record, as it stands in keys."""
    return key.removeprefix(f"{LEDGER}/").rsplit("/", 2)[0]


def tombstone_key(key: str, claim: str) -> str:
    """Where it is noted that a person had a record removed. A later record may get the same key: hence its claim."""
    return f"forgotten/{_of_record(key)}-{encode_segment(claim)}.json"


def spool_key(key: str, claim: str, index: int) -> str:
    """Where the bytes of an image that came inline lie until it lands.

    :param key: of its record.
    :param index: its place in the answer, from 0.
    """
    return f"spool/{key.removeprefix(f'{LEDGER}/')}.{claim}.{index}"


def thumbnail_key(key: str, index: int) -> str:
    """Where the thumbnail of an image lies.

    :param key: of its record.
    :param index: the image's place in the manifest, from 0.
    """
    return f"thumbs/{_of_record(key)}/{index}.webp"


# What points to records


def name_key(place: str) -> str:
    """Where it is noted which image has a file's name.

    :param place: as `same_place` gives it.
    """
    return f"names/{place}.json"


def index_key(item_path: str, fingerprint: str) -> str:
    """Where it is noted who has the image of `fingerprint`.

    :param item_path: the path of any item, or the key of any record, of the DAG.
    """
    namespace, dag = item_path.split("/")[1:3]
    return f"index/{namespace}/{dag}/{encode_segment(fingerprint)}.json"


def task_key(item: Item) -> str:
    """Where it is noted what a task asked for last, in any of its DAG's runs."""
    return f"index/{_joined(item.namespace, item.dag_id, 'tasks', item.task_id, str(item.map_index))}.json"


def job_key(gateway: str, job_id: str) -> str:
    """Where it is noted whose job it is."""
    return f"jobs/{_joined(gateway, job_id)}.json"


def budget_key(namespace: str, conn_id: str, day: str) -> str:
    """Where a day's budget of a connection lies."""
    return f"budgets/{_joined(namespace, conn_id)}/{day}.json"


# What belongs to a task instance


def saved_key(folder: str, task_instance: str, generation: int) -> str:
    """Where it is noted what a task's first attempt asked for.

    :param folder: `PLANS` or `RETURNED`.
    """
    return f"{folder}/{task_instance}/{generation}.json"


def generation_of(name: str) -> int | None:
    """For which Clear something was saved, by the last part of its key; ``None``: nothing of ours."""
    found = _SAVED.fullmatch(name)
    return None if found is None else int(found[1])


def plan_of(key: str) -> tuple[str, int, int] | None:
    """The task instance, as it stands in keys, the map index and the generation of a plan; ``None``: it is none."""
    found = _PLAN_KEY.fullmatch(key)
    return None if found is None else (found[1], int(found[2]), int(found[3]))


def shown_prefix(item: Item, try_id: str) -> str:
    """What the keys of what one try of a review showed begin with; a digest and ``.json`` follow."""
    return f"{SHOWN}/{item.task_instance}/{encode_segment(try_id)}-"


def names_of(key: str) -> list[str]:
    """The DAG, the run, the task, the map index and the item of a record, by its key; one that was cut stays cut."""
    _, _, *parts, _ = key.split("/")
    return [part if (name := decode_segment(part)) is None or _has_surrogates(name) else name for part in parts]


def key_of_names(namespace: str, dag_id: str, names: Sequence[str], n: int) -> str:
    """Build a record's key from what `names_of` returns.

    :param names: run, task, map index and item.
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
