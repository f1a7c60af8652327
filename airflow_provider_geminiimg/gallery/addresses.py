"""The gallery's addresses: a record's key taken apart, and put together again.

What must stay true: an address holds names alone, each quoted; it leads to one record, and never says where an image
lies.
"""

from __future__ import annotations

from dataclasses import dataclass

from airflow_provider_geminiimg.core.ledger.layout import LEDGER, names_of
from airflow_provider_geminiimg.core.storage import encode_segment, is_cut
from airflow_provider_geminiimg.gallery.routes import IMAGE, THUMBNAIL


@dataclass(frozen=True)
class Address:
    """One submission, as an address of the gallery names it.

    A name that was too long for the ledger, and was cut there, stands for itself.

    :param n: number of the submission within its item, from 1.
    """

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    item: str
    n: int

    def key(self, namespace: str) -> str:
        """Where its record lies."""
        names = (self.run_id, self.task_id, str(self.map_index), self.item)
        parts = (encode_segment(namespace), encode_segment(self.dag_id), *map(segment, names))
        return "/".join((LEDGER, *parts, f"{self.n}.json"))

    def image(self, index: int) -> str:
        """Where the gallery serves one of its images."""
        return IMAGE.at(**vars(self), index=index)

    def thumbnail(self, index: int) -> str:
        """Where the gallery serves the thumbnail of one of its images."""
        return THUMBNAIL.at(**vars(self), index=index)


def segment(name: str) -> str:
    """A name as it stands in a key."""
    return name if is_cut(name) else encode_segment(name)


def address_of(key: str) -> Address:
    """What a record's key stands for."""
    dag_id, run_id, task_id, map_index, item = names_of(key)
    return Address(dag_id, run_id, task_id, int(map_index), item, int(key.rpartition("/")[2].removesuffix(".json")))
