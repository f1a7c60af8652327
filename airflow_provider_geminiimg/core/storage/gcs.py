"""Google Cloud Storage through Google's own client.

Invariant: a missing object is told from a missing bucket by the text of the answer, or by asking for the bucket.
"""

from __future__ import annotations

import email.utils
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

from airflow_provider_geminiimg.core.storage.base import Blob
from airflow_provider_geminiimg.core.storage.drivers import FULL, NO_OBJECT, Driver, PutMode
from airflow_provider_geminiimg.exceptions import GeminiImageError

_Result = TypeVar("_Result")
_SECONDS = 60.0  # for one request
_RETRY_SECONDS = 30.0  # for one request and its repetitions
_UNMET, _ABSENT = 412, 404
_NO_SUCH_OBJECT = ("No such object", "NoSuchKey")  # in an answer about an object; otherwise the bucket may be missing
_MAY_PASS = {408, 425, 429}  # and all from 500 on: https://cloud.google.com/storage/docs/retry-strategy
_HINTS = {
    400: "Correct the name of the bucket {bucket}.",
    401: "Give the worker Google credentials, or name an Airflow connection: gs://conn_id@{bucket}/key.",
    403: "Grant the worker's service account roles/storage.objectUser on {bucket}.",
    404: "Create the bucket {bucket}, or correct its name.",
    413: "An object is larger than the store permits.",
}


class GoogleDriver(Driver):
    """One bucket of Google Cloud Storage. The client is a `google.cloud.storage.Client`."""

    scheme = "gs"

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
        generation = None if condition is None else 0 if condition == NO_OBJECT else int(condition)

        def write(client: Any) -> str:
            blob = client.bucket(self.bucket).blob(key)
            blob.upload_from_string(
                data, content_type=media_type, checksum="crc32c", if_generation_match=generation, **_patience()
            )
            return str(int(blob.generation))

        return self._call("Writing", key, write, unless=(_UNMET, _ABSENT) if generation else (_UNMET,))

    def get(self, key: str, limit: int | None = None) -> Blob | None:
        def read(client: Any) -> Blob:
            # The client's own download hides the headers, and the JSON API does not say when the object was written.
            with _asked(client, f"/{quote(self.bucket, safe='')}/{quote(key)}") as answer:
                data = answer.raw.read(None if limit is None else limit + 1, decode_content=True)
                _refuse_short(answer, data, limit)
                age = _seconds(answer, "Date") - _seconds(answer, "Last-Modified")
                return Blob(data, str(int(answer.headers["X-Goog-Generation"])), max(0.0, age))

        return self._call("Reading", key, _repeated(read), unless=(_ABSENT,))

    def version(self, key: str) -> str | None:
        def look(client: Any) -> str:
            with _asked(client, f"{self._path(key)}?fields=generation") as answer:
                return str(answer.json()["generation"])

        return self._call("Looking for", key, _repeated(look), unless=(_ABSENT,))

    def keys(self, prefix: str, after: str = "") -> Iterator[str]:
        pages = self._pages(prefix=prefix, fields="items(name),nextPageToken", start_offset=after or None)
        return (blob.name for page in pages for blob in page if blob.name > after)

    def folders(self, prefix: str) -> list[str]:
        pages = self._pages(prefix=prefix, delimiter="/", fields="prefixes,nextPageToken")
        return [found[len(prefix) :].rstrip("/") for page in pages for found in page.prefixes]

    def delete(self, key: str, version: str | None = None) -> bool:
        def remove(client: Any) -> bool:
            generation = None if version is None else int(version)
            client.bucket(self.bucket).delete_blob(key, if_generation_match=generation, **_patience())
            return True

        return self._call("Removing", key, remove, unless=(_UNMET, _ABSENT)) is not None or version is None

    def now(self, prefix: str) -> float:
        def look(client: Any) -> float:
            with _asked(client, f"{self._path()}?maxResults=1&fields=kind&prefix={quote(prefix, safe='')}") as answer:
                answer.json()["kind"]  # fails if the answer is a proxy's
                return _seconds(answer, "Date")

        found = self._call("Listing", prefix, _repeated(look))
        assert found is not None
        return found

    def _pages(self, **wanted: Any) -> Iterator[Any]:
        """Iterate over the pages of a listing."""
        pages: Any = self._call(
            "Listing", wanted["prefix"], lambda client: client.list_blobs(self.bucket, **wanted, **_patience()).pages
        )
        while (page := self._call("Listing", wanted["prefix"], lambda _: next(pages, None))) is not None:
            yield page

    def _path(self, key: str | None = None) -> str:
        objects = f"/storage/v1/b/{quote(self.bucket, safe='')}/o"
        return objects if key is None else f"{objects}/{quote(key, safe='')}"

    def _call(
        self, doing: str, key: str, work: Callable[[Any], _Result], *, unless: Sequence[int] = ()
    ) -> _Result | None:
        """Call `work` with the client; return ``None`` if the answer has a status of `unless`."""
        client = self._client()  # says so if what is imported here is missing
        from google.api_core.exceptions import GoogleAPICallError, RetryError
        from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
        from requests import RequestException
        from urllib3.exceptions import HTTPError

        try:
            return work(client)
        except GoogleAPICallError as error:
            status = int(error.code or 0)
            if status in unless and (
                status != _ABSENT or any(text in str(error) for text in _NO_SUCH_OBJECT) or self._has_bucket()
            ):
                return None
            may_pass = status in _MAY_PASS or status >= 500
            hint = "" if may_pass else _HINTS.get(status, "")
            raise self._failed(doing, key, f"HTTP {status}", may_pass=may_pass, hint=hint) from error
        except RetryError as error:
            raise self._failed(doing, key, type(error.cause).__name__, may_pass=True, hint="") from error
        except GoogleAuthError as error:
            may_pass = not isinstance(error, DefaultCredentialsError)  # the others also if a server does not answer
            raise self._failed(doing, key, type(error).__name__, may_pass=may_pass, hint=_HINTS[401]) from error
        except (RequestException, HTTPError, OSError) as error:
            raise self._failed(doing, key, type(error).__name__, may_pass=True, hint="") from error
        except GeminiImageError:
            raise
        except Exception as error:
            raise self._strange(doing, key, error) from error

    def _has_bucket(self) -> bool:
        """Whether the bucket exists.

        :raises StorageError: it does not, or nothing is known.
        """
        self.now("")
        return True


def _asked(client: Any, path: str) -> Any:
    """The answer to a GET, a context manager.

    :raises GoogleAPICallError: it is an error.
    """
    from google.api_core.exceptions import from_http_response

    answer = client._http.get(client.api_endpoint + path, stream=True, timeout=_SECONDS)
    if answer.status_code >= 300:
        with answer:
            raise from_http_response(answer)  # type: ignore[no-untyped-call]
    return answer


def _refuse_short(answer: Any, data: bytes, limit: int | None) -> None:
    """Raise an error if a body ended early, which urllib3 before version 2 does not notice."""
    expected = answer.headers.get("Content-Length", "")
    if answer.headers.get("Content-Encoding", "identity") == "identity" and expected.isdigit():
        least = int(expected) if limit is None else min(int(expected), limit + 1)
        if len(data) < least:
            raise ConnectionError("The answer ended early.")


def _patience() -> dict[str, Any]:
    """Time-outs for calls of the client."""
    from google.cloud.storage.retry import DEFAULT_RETRY

    return {"timeout": _SECONDS, "retry": DEFAULT_RETRY.with_timeout(_RETRY_SECONDS)}


def _repeated(work: Callable[[Any], _Result]) -> Callable[[Any], _Result]:
    """`work`, repeated after failures that may pass."""

    def repeated(client: Any) -> _Result:
        from google.cloud.storage.retry import DEFAULT_RETRY

        return DEFAULT_RETRY.with_timeout(_RETRY_SECONDS)(work)(client)  # type: ignore[no-any-return]

    return repeated


def _seconds(answer: Any, header: str) -> float:
    return email.utils.parsedate_to_datetime(answer.headers[header]).timestamp()
