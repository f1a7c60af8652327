"""What a person is shown for approval, bound to its content.

What must stay true: where an image lies and what its bytes are is taken from the ledger's record, never from an XCom;
what a try shows is kept under the root, under the SHA-256 of what is kept, before anybody is asked; only what was kept
goes on, and only while its record and its bytes are what they were.
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
_AT_ONCE = 4  # images that are read at the same time
_AS_RETURNED = "Give it what the tasks returned, as it is: images=my_task.output."
_SHARE_THE_ROOT = "Set [geminiimg] root to storage that all workers share."
_ASK_AGAIN = "Nothing goes on. Clear this task, and it asks again; so does a retry."


@dataclass(frozen=True)
class Approval:
    """What one try of a task shows to a person, and what may go on of it.

    :param ledger: says where images lie, and keeps what was shown.
    :param files: reads images.
    :param item: the task instance.
    :param try_id: Airflow's id of this try, which no other try has.
    """

    ledger: Ledger
    files: Files
    item: Item
    try_id: str

    def vouched(self, manifests: Sequence[Mapping[str, Any]], name: str) -> list[dict[str, Any]]:
        """The manifests as their records say them, each image read and compared.

        :param name: of the argument, for the error.
        :raises BadRequestError: a record says something else, or an image is not the one that landed.
        :raises GeminiImageError: a record or an image can't be read.
        """
        numbered = [(f"{name}[{index}]", manifest) for index, manifest in enumerate(manifests)]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(lambda each: self._vouched(*each), numbered))

    def _vouched(self, name: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
        recorded = self._recorded(name, manifest)
        for image in recorded["images"]:
            self._check_bytes(name, str(image["uri"]), str(image["sha256"]))
        vouched = {**manifest, **recorded, "reused": bool(manifest.get("reused"))}
        try:
            return dict(json.loads(_canonical(vouched)))
        except (TypeError, ValueError, RecursionError):
            raise BadRequestError(f"{name}: holds values that are no plain JSON.", hint=_AS_RETURNED) from None

    def _recorded(self, name: str, manifest: Mapping[str, Any]) -> Mapping[str, Any]:
        """What its record says of the images of a manifest, at the place that the manifest names."""
        key = manifest.get("record")
        if not isinstance(key, str) or not is_record_key(key):
            raise BadRequestError(f"{name}: names no record, so nobody can say what its image is.", hint=_AS_RETURNED)
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
            f"{name}: names {said}, and its record {key} says that other images landed, or elsewhere.",
            hint=f"Somebody edited the XCom or the record, or it was made by hand. {_AS_RETURNED}",
        )

    def _check_bytes(self, name: str, uri: str, digest: str) -> None:
        try:
            data = self.files.read(uri, max_bytes=MAX_IMAGE_BYTES)
        except BadRequestError as error:
            raise BadRequestError(f"{name}: {error.message}", hint=error.hint) from None
        if hashlib.sha256(data).hexdigest() != digest:
            raise BadRequestError(
                f"{name}: {public_uri(uri)} is not the image that landed: somebody replaced the file.",
                hint="Put it back; or clear the task that made it.",
            )

    def keep(self, shown: Sequence[Mapping[str, Any]]) -> str:
        """Keep what is about to be shown, as `vouched` gave it. Returns the SHA-256 of what is kept.

        :raises GeminiImageError: it can't be kept, or something else is in its place.
        """
        data = _canonical({"version": VERSION, "try": self.try_id, "manifests": shown})
        digest = hashlib.sha256(data).hexdigest()
        key = f"{self._prefix}{digest}.json"
        if not create_or_read(self.ledger.store, key, data).ours:
            raise LedgerError(f"{key} under {self.ledger.store.uri} is somebody else's file.")
        return digest

    def recall(self, digest: str | None) -> list[dict[str, Any]]:
        """What this try has shown.

        :param digest: as `keep` gave it; ``None``: Airflow did not hand it on, as its ``dag.test()`` doesn't.
        :raises LedgerError: it is not there, or was edited.
        """
        keys = [key for key in self.ledger.store.keys(self._prefix) if digest in (None, self._digest(key))]
        blob = self.ledger.store.read(keys[0]) if len(keys) == 1 else None
        if blob is None:
            raise LedgerError(
                f"What this task showed is not under {self.ledger.store.uri}: it was removed or edited, an earlier "
                "version of this package showed it, or the root is not shared between workers.",
                hint=f"{_ASK_AGAIN} {_SHARE_THE_ROOT}",
            )
        if hashlib.sha256(blob.data).hexdigest() != self._digest(keys[0]):
            raise LedgerError(f"{keys[0]} under {self.ledger.store.uri} was edited since.", hint=_ASK_AGAIN)
        return list(json.loads(blob.data)["manifests"])

    def check(self, shown: Sequence[Mapping[str, Any]], told: Any, chosen: Sequence[Mapping[str, Any]]) -> None:
        """Refuse to go on with other images than those that were shown.

        :param shown: as `recall` gives it.
        :param told: what the XCom says was shown.
        :param chosen: what would go on.
        :raises GeminiImageError: the XCom, a record or an image is another than then, or can't be read.
        """
        try:
            edited = _canonical(told) != _canonical(shown)
        except (TypeError, ValueError, RecursionError):
            edited = True
        if edited:
            raise BadRequestError(
                "The XCom with what was shown was edited or removed while a person was asked.", hint=_ASK_AGAIN
            )
        try:
            now = self.vouched(chosen, "chosen")
        except BadRequestError as error:
            raise BadRequestError(f"Since it was shown: {error.message}", hint=_ASK_AGAIN) from None
        if [each["images"] for each in now] != [each["images"] for each in chosen]:
            raise BadRequestError("The record of an image was edited since it was shown.", hint=_ASK_AGAIN)

    @property
    def _prefix(self) -> str:
        return shown_prefix(self.item, self.try_id)

    def _digest(self, key: str) -> str:
        return key.removeprefix(self._prefix).removesuffix(".json")


def _names_the_same(given: Sequence[Mapping[str, Any]], recorded: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a manifest names the images of a record: all of them, in their order."""
    return len(given) == len(recorded) and all(
        image["uri"] == own["uri"] and image.get("sha256", own["sha256"]) == own["sha256"]
        for image, own in zip(given, recorded, strict=True)
    )


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
