"""The images shown to a person for approval, bound to their bytes by hashes.

Invariants: address and hash of an image come from the ledger's record, never from an XCom. The list of shown images is
saved under the root, named by its SHA-256, before the person is asked. Only images of the saved list are returned, and
only if their records and bytes are unchanged.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from airflow_provider_geminiimg.core.images.inspection import MAX_IMAGE_BYTES
from airflow_provider_geminiimg.core.ledger.layout import Item, is_record_key, shown_prefix
from airflow_provider_geminiimg.core.ledger.records import Ledger
from airflow_provider_geminiimg.core.purchase.copying import image_places
from airflow_provider_geminiimg.core.purchase.inputs import public_uri
from airflow_provider_geminiimg.core.storage import Files, create_or_read
from airflow_provider_geminiimg.exceptions import BadRequestError, LedgerError

VERSION = 1
_CONCURRENCY = 4  # images that are read concurrently
_AS_RETURNED = "Pass the return values of the tasks unchanged: images=my_task.output."
_SHARE_THE_ROOT = "Set [geminiimg] root to storage that all workers share."
_ASK_AGAIN = "No image is returned. To ask again, clear this task or let it retry."


@dataclass(frozen=True)
class Approval:
    """The images that one try of a task shows to a person.

    :param ledger: the records, and the store for the list of shown images.
    :param files: reads images.
    :param item: the task instance.
    :param try_id: Airflow's unique id of this try.
    """

    ledger: Ledger
    files: Files
    item: Item
    try_id: str

    def vouched(self, manifests: Sequence[Mapping[str, Any]], name: str) -> list[dict[str, Any]]:
        """The manifests with the values of their records, after each image was read and its hash compared.

        :param manifests: as the tasks returned them.
        :param name: of the argument, for errors.
        :raises BadRequestError: a manifest differs from its record, or an image has changed since it landed.
        :raises GeminiImageError: a record or an image can't be read.
        """
        numbered = [(f"{name}[{index}]", manifest) for index, manifest in enumerate(manifests)]
        with ThreadPoolExecutor(_CONCURRENCY) as pool:
            return list(pool.map(lambda each: self._vouched(*each), numbered))

    def _vouched(self, name: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
        recorded = self._recorded(name, manifest)
        for image in recorded["images"]:
            self._check_bytes(name, str(image["uri"]), str(image["sha256"]))
        vouched = {**manifest, **recorded, "reused": bool(manifest.get("reused"))}
        try:
            return dict(json.loads(_canonical(vouched)))
        except (TypeError, ValueError, RecursionError):
            raise BadRequestError(f"{name}: has values that are not plain JSON.", hint=_AS_RETURNED) from None

    def _recorded(self, name: str, manifest: Mapping[str, Any]) -> Mapping[str, Any]:
        """The recorded manifest for the place that the manifest names."""
        key = manifest.get("record")
        if not isinstance(key, str) or not is_record_key(key):
            raise BadRequestError(f"{name}: names no record, so its image can't be verified.", hint=_AS_RETURNED)
        found = self.ledger.read(key)
        if found is None:
            raise BadRequestError(
                f"{name}: its record {key} is not under {self.ledger.store.uri}.",
                hint=f"{_AS_RETURNED} {_SHARE_THE_ROOT}",
            )
        if found.record.state != "landed":
            raise BadRequestError(f"{name}: its record {key} has not landed.", hint=_AS_RETURNED)
        for place in image_places(found.record):
            if _names_the_same(manifest["images"], place.manifest["images"]):
                return {**place.manifest, "record": key}
        said = ", ".join(public_uri(str(image["uri"])) for image in manifest["images"])
        raise BadRequestError(
            f"{name}: names {said}, but its record {key} has other images or other addresses.",
            hint=f"The XCom or the record was edited, or the manifest was made by hand. {_AS_RETURNED}",
        )

    def _check_bytes(self, name: str, uri: str, digest: str) -> None:
        try:
            data = self.files.read(uri, max_bytes=MAX_IMAGE_BYTES)
        except BadRequestError as error:
            raise BadRequestError(f"{name}: {error.message}", hint=error.hint) from None
        if hashlib.sha256(data).hexdigest() != digest:
            raise BadRequestError(
                f"{name}: {public_uri(uri)} has changed since it landed: the file was replaced.",
                hint="Restore the file, or clear the task that made the image.",
            )

    def keep(self, shown: Sequence[Mapping[str, Any]]) -> str:
        """Save the list of images to show. Returns its SHA-256.

        :param shown: the result of `vouched`.
        :raises GeminiImageError: it can't be saved, or another file has its name.
        """
        data = _canonical({"version": VERSION, "try": self.try_id, "manifests": shown})
        digest = hashlib.sha256(data).hexdigest()
        key = f"{self._prefix}{digest}.json"
        if not create_or_read(self.ledger.store, key, data).ours:
            raise LedgerError(f"{key} under {self.ledger.store.uri} already exists with other content.")
        return digest

    def recall(self, digest: str | None) -> list[dict[str, Any]]:
        """The saved list of the images that this try has shown.

        :param digest: the result of `keep`; ``None`` if Airflow did not pass it on, as in ``dag.test()``.
        :raises LedgerError: the list is missing, or was edited.
        """
        keys = [key for key in self.ledger.store.keys(self._prefix) if digest in (None, self._digest(key))]
        blob = self.ledger.store.read(keys[0]) if len(keys) == 1 else None
        if blob is None:
            raise LedgerError(
                f"The list of the images that this task showed is not under {self.ledger.store.uri}: it was removed or "
                "edited, an earlier version of this package showed it, or workers do not share the root.",
                hint=f"{_ASK_AGAIN} {_SHARE_THE_ROOT}",
            )
        if hashlib.sha256(blob.data).hexdigest() != self._digest(keys[0]):
            raise LedgerError(f"{keys[0]} under {self.ledger.store.uri} was edited.", hint=_ASK_AGAIN)
        return list(json.loads(blob.data)["manifests"])

    def check(self, shown: Sequence[Mapping[str, Any]], xcom: Any, chosen: Sequence[Mapping[str, Any]]) -> None:
        """Refuse to return images if anything has changed since they were shown.

        :param shown: the result of `recall`.
        :param xcom: the XCom with the shown images.
        :param chosen: the images to return.
        :raises GeminiImageError: the XCom, a record or an image has changed, or can't be read.
        """
        try:
            edited = _canonical(xcom) != _canonical(shown)
        except (TypeError, ValueError, RecursionError):
            edited = True
        if edited:
            raise BadRequestError(
                "The XCom with the shown images was edited or removed while the task waited for the answer.",
                hint=_ASK_AGAIN,
            )
        try:
            now = self.vouched(chosen, "chosen")
        except BadRequestError as error:
            raise BadRequestError(f"Changed since it was shown: {error.message}", hint=_ASK_AGAIN) from None
        if [each["images"] for each in now] != [each["images"] for each in chosen]:
            raise BadRequestError("The record of an image has changed since it was shown.", hint=_ASK_AGAIN)

    @property
    def _prefix(self) -> str:
        return shown_prefix(self.item, self.try_id)

    def _digest(self, key: str) -> str:
        return key.removeprefix(self._prefix).removesuffix(".json")


def _names_the_same(given: Sequence[Mapping[str, Any]], recorded: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a manifest names all images of a record, in the same order."""
    return len(given) == len(recorded) and all(
        image["uri"] == own["uri"] and image.get("sha256", own["sha256"]) == own["sha256"]
        for image, own in zip(given, recorded, strict=True)
    )


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
