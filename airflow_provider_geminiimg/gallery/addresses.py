"""Addresses of records in the gallery, converted from and to record keys.

Invariants: an address contains only names, each quoted. It identifies one record, and never the location of an image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from airflow_provider_geminiimg.core.ledger.layout import TaskIndex, key_of_names, names_of
from airflow_provider_geminiimg.gallery.routes import IMAGE, THUMBNAIL

_VERSION = 32  # hex digits of the image's hash


@dataclass(frozen=True)
class Address:
    """The address of one submission in the gallery.

    A name that was too long for the ledger stays in its cut, encoded form.

    :param index: of the task instance.
    :param n: number of the submission within its item, from 1.
    """

    dag_id: str
    run_id: str
    task_id: str
    index: TaskIndex
    item: str
    n: int

    def key(self, namespace: str) -> str:
        """Return the key of this submission's record.

        :param namespace: the ledger's namespace, from ``[geminiimg] namespace``.
        """
        names = (self.run_id, self.task_id, str(self.index), self.item)
        return key_of_names(namespace, self.dag_id, names, self.n)

    def image(self, index: int) -> str:
        """Return the gallery's address of one of its images."""
        return IMAGE.at(**vars(self), image=index)

    def thumbnail(self, index: int, version: str | None = None) -> str:
        """Return the gallery's address of the thumbnail of one of its images.

        :param version: from `version_of`: browsers may keep what is at such an address for ever.
        """
        address = THUMBNAIL.at(**vars(self), image=index)
        return address if version is None else f"{address}?v={version}"


def version_of(image: Mapping[str, Any]) -> str | None:
    """Return what distinguishes an image from any other one at its address; ``None`` if that is not known.

    :param image: an image of a record's manifest.
    """
    digest = image.get("sha256")
    return digest[:_VERSION] if isinstance(digest, str) and len(digest) >= _VERSION else None


def address_of(key: str) -> Address:
    """Return the address of a record, from its key.

    :raises ValueError: this package did not write the key.
    """
    dag_id, run_id, task_id, text, item = names_of(key)
    index = TaskIndex.parse(text)
    if index is None:
        raise ValueError(f"{text!r} is not the index of a task instance.")
    return Address(dag_id, run_id, task_id, index, item, int(key.rpartition("/")[2].removesuffix(".json")))
