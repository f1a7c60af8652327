"""Azure Blob Storage through Azure's own client. A bucket is a container."""

from __future__ import annotations

import email.utils
from collections.abc import Callable, Collection, Iterator
from typing import Any, TypeVar

from airflow_provider_geminiimg.core.storage.base import Blob
from airflow_provider_geminiimg.core.storage.drivers import FULL, NO_OBJECT, Driver, PutMode
from airflow_provider_geminiimg.exceptions import GeminiImageError

_Result = TypeVar("_Result")
_TAKEN = {"BlobAlreadyExists", "ConditionNotMet"}
_ABSENT = {"BlobNotFound"}
_MAY_PASS = {408, 409, 425, 429}  # and all from 500 on
_GRANT = "Grant the worker's identity the role Storage Blob Data Contributor on the container {bucket}."
_HINTS = {
    400: "Correct the name of the container {bucket}.",
    401: _GRANT,
    403: _GRANT,
    404: "Create the container {bucket}, or correct its name.",
    413: "An object is larger than the store permits.",
}


class AzureDriver(Driver):
    """One container of Azure Blob Storage. The client is an `azure.storage.blob.BlobServiceClient`."""

    scheme = "abfs"

    def put(
        self,
        key: str,
        data: bytes,
        media_type: str,
        digest: str,
        *,
        condition: str | None = None,
        mode: PutMode = FULL,
    ) -> str | None:

        def write(container: Any) -> str:
            from azure.core import MatchConditions
            from azure.storage.blob import ContentSettings

            arguments: dict[str, Any] = {"overwrite": condition != NO_OBJECT}
            if condition not in (None, NO_OBJECT):
                arguments |= {"etag": condition, "match_condition": MatchConditions.IfNotModified}
            kind = ContentSettings(content_type=media_type)
            done = container.get_blob_client(key).upload_blob(
                data, length=len(data), content_settings=kind, validate_content=True, **arguments
            )
            return _version(done["etag"])

        return self._call("Writing", key, write, unless=_TAKEN if condition == NO_OBJECT else _TAKEN | _ABSENT)

    def get(self, key: str, limit: int | None = None) -> Blob | None:
        def read(container: Any) -> Blob:
            headers: dict[str, str] = {}
            found = container.get_blob_client(key).download_blob(raw_response_hook=_into(headers))
            data = found.readall() if limit is None else found.read(limit + 1)
            age = _seconds(headers["date"]) - found.properties.last_modified.timestamp()
            return Blob(bytes(data), _version(found.properties.etag), max(0.0, age))

        return self._call("Reading", key, read, unless=_ABSENT)

    def version(self, key: str) -> str | None:
        return self._call(
            "Looking for",
            key,
            lambda container: _version(container.get_blob_client(key).get_blob_properties().etag),
            unless=_ABSENT,
        )

    def keys(self, prefix: str, after: str = "") -> Iterator[str]:
        # With a hierarchical namespace, folders are listed too.
        found = self._listed(prefix, lambda container: container.list_blobs(
            name_starts_with=prefix, include=["metadata"], **({"start_from": after} if after else {})
        ))  # fmt: skip
        return (
            blob.name for blob in found if blob.name > after and (blob.metadata or {}).get("hdi_isfolder") != "true"
        )

    def folders(self, prefix: str) -> list[str]:
        found = self._listed(prefix, lambda container: container.walk_blobs(name_starts_with=prefix, delimiter="/"))
        return [each.name[len(prefix) :].rstrip("/") for each in found if each.name.endswith("/")]

    def delete(self, key: str, version: str | None = None) -> bool:

        def remove(container: Any) -> bool:
            from azure.core import MatchConditions

            arguments = {} if version is None else {"etag": version, "match_condition": MatchConditions.IfNotModified}
            container.delete_blob(key, **arguments)
            return True

        return self._call("Removing", key, remove, unless=_TAKEN | _ABSENT) is not None or version is None

    def now(self, prefix: str) -> float:
        headers: dict[str, str] = {}
        pages = self._listed(prefix, lambda container: container.list_blob_names(
            name_starts_with=prefix, results_per_page=1, raw_response_hook=_into(headers)
        ))  # fmt: skip
        next(pages, None)
        return _seconds(headers["date"])

    def _listed(self, prefix: str, listing: Callable[[Any], Any]) -> Iterator[Any]:
        """Iterate over a listing."""
        found: Any = self._call("Listing", prefix, lambda container: iter(listing(container)))
        while (each := self._call("Listing", prefix, lambda _: next(found, None))) is not None:
            yield each

    def _call(
        self, doing: str, key: str, work: Callable[[Any], _Result], *, unless: Collection[str] = ()
    ) -> _Result | None:
        """Call `work` with the container's client; return ``None`` if it fails with a code of `unless`."""
        client = self._client()  # says so if what is imported here is missing
        from azure.core.exceptions import AzureError, HttpResponseError

        try:
            return work(client.get_container_client(self.bucket))
        except HttpResponseError as error:
            code, status = _code_of(error), int(error.status_code or 0)
            if code in unless:
                return None
            if 200 <= status < 300:  # its body is not what the client expects
                raise self._strange(doing, key, error) from error
            # Some failures of credentials come without an answer, also if a server does not answer.
            may_pass = status in _MAY_PASS or status >= 500 or status == 0
            hint = _GRANT if status == 0 else "" if may_pass else _HINTS.get(status, "")
            raise self._failed(doing, key, f"{code} (HTTP {status})", may_pass=may_pass, hint=hint) from error
        except (AzureError, OSError) as error:
            raise self._failed(doing, key, type(error).__name__, may_pass=True, hint="") from error
        except GeminiImageError:
            raise
        except Exception as error:
            raise self._strange(doing, key, error) from error


def _code_of(error: Any) -> str:
    """The code of an error, which the client has as a text or as an enumeration."""
    code = getattr(error, "error_code", None)
    return str(getattr(code, "value", code) or "")


def _version(etag: Any) -> str:
    """The version that an answer names.

    :raises ValueError: it names none, so the store did not give it.
    """
    if not etag:
        raise ValueError("no ETag")
    return str(etag)


def _into(headers: dict[str, str]) -> Callable[[Any], None]:
    """A hook that saves the headers of an answer, by their names in lower case."""
    return lambda answer: headers.update({k.lower(): v for k, v in answer.http_response.headers.items()})


def _seconds(date: str) -> float:
    return email.utils.parsedate_to_datetime(date).timestamp()
