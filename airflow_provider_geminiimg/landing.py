"""From a job that was paid for to a picture in storage: poll, download, verify, write, record.

What must stay true: nothing here costs money; bytes that are a picture are always written, exactly as they came, and
recorded, and only then may anything about them fail a task; no file of another record is replaced; whatever fails, the
record still says enough for the next attempt to try again.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from airflow_provider_geminiimg._logs import Logs, SteadyLogs
from airflow_provider_geminiimg.budget import Budgets
from airflow_provider_geminiimg.catalog import LIMITS
from airflow_provider_geminiimg.download import download
from airflow_provider_geminiimg.exceptions import (
    BadRequestError,
    Billed,
    GeminiImageError,
    InvalidImageError,
    LinkExpiredError,
    LostContactError,
    MismatchError,
    OutcomeUnknownError,
    StorageError,
    TimedOutError,
    UpstreamFailedError,
)
from airflow_provider_geminiimg.gateways.base import JobState, JobStatus, Picture
from airflow_provider_geminiimg.images import ImageInfo, inspect_image, mismatch
from airflow_provider_geminiimg.index import index_key, point_to
from airflow_provider_geminiimg.ledger import Destination, Ledger, Record, with_error
from airflow_provider_geminiimg.manifest import StoredImage, build, sidecar
from airflow_provider_geminiimg.names import reserve_name
from airflow_provider_geminiimg.polling import VANISHED_GRACE, End, PollPlan, follow
from airflow_provider_geminiimg.room import Room
from airflow_provider_geminiimg.runner import Guard
from airflow_provider_geminiimg.storage import Files, join_uri
from airflow_provider_geminiimg.thumbnails import Kept, make_thumbnails, thumbnail_keys
from airflow_provider_geminiimg.transport import Transport

T = TypeVar("T")

MAX_PICTURE_BYTES = 64 * 1024 * 1024  # a 4K PNG of noise is about 50 MB
DOWNLOAD_SECONDS = 300.0
_UNFETCHED = (InvalidImageError, UpstreamFailedError)

Intact = Literal["there", "changed", "gone", "unknown"]
"""Whether a picture is still the one that landed."""


@dataclass(frozen=True)
class Workshop:
    """What the life of a picture needs from outside.

    :param ledger: the records under the root.
    :param files: pictures, anywhere.
    :param connect: gives the transport of a connection id, opened once.
    :param log: where to say what happens; a line that can't be written is lost, and stops nothing.
    :param room: memory for the pictures that are being landed.
    :param budgets: what may be spent. Whoever opens a workshop closes them.
    """

    ledger: Ledger
    files: Files
    connect: Callable[[str], Awaitable[Transport]]
    log: Logs
    room: Room = field(default_factory=Room)
    budgets: Budgets = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "log", SteadyLogs(self.log))
        object.__setattr__(self, "budgets", Budgets(self.ledger.store, self.log))


async def in_thread(function: Callable[..., T], *args: Any) -> T:
    """Blocking storage work, off the event loop."""
    return await asyncio.to_thread(function, *args)


class Collector:
    """Collects what was paid for.

    :param workshop: the surroundings.
    :param generation: ``ti.max_tries`` of this attempt, noted on what it lands.
    :param prompt: the prompt that was sent, where it is known here: lets a gateway's message through without it.
    :param guard: whether the task was told to stop: then no thumbnail is waited for. Default: it never is.
    """

    def __init__(
        self,
        workshop: Workshop,
        *,
        generation: int = 0,
        prompt: str | None = None,
        guard: Guard | None = None,
    ) -> None:
        self.workshop = workshop
        self.generation = generation
        self.prompt = prompt
        self.guard = guard or Guard()
        self.log = workshop.log

    async def poll(self, record: Record) -> JobStatus:
        """Ask once what became of the recorded job."""
        with _paid():
            transport = await self._transport(record)
            call = transport.gateway.status(str(record.job_id), model=record.wire_model)
            return await transport.send(call, prompt=self.prompt or record.prompt)

    async def peek(self, record: Record) -> Record | None:
        """Ask once, and land the picture if it is ready.

        :returns: the record, ``landed`` or ``failed``; ``None`` while the job runs, or can't be asked about.
        :raises GeminiImageError: asking again can't help (connection, key), the gateway does not know the job, or the
            result could not be landed.
        """
        try:
            status = await self.poll(record)
        except GeminiImageError as error:
            if not error.retryable:
                raise
            self.log.warning("Polling job %s failed (%s); that says nothing about the job.", record.job_id, error.kind)
            return None
        return await self.conclude(record, status)

    async def conclude(self, record: Record, status: JobStatus) -> Record | None:
        """Do what one look at the job calls for.

        :param status: what the gateway said of the record's job just now.
        :returns: the record, ``landed`` or ``failed``; ``None`` while the job runs.
        :raises VanishedError: the gateway does not know the job, and has had time to.
        :raises GeminiImageError: the result could not be landed.
        """
        if status.state is JobState.VANISHED and _seconds_since_submit(record) < VANISHED_GRACE:
            return None
        if status.state is JobState.RUNNING:
            return None
        if status.state is JobState.FAILED:
            return await self._record_failure(record, status)
        return await self._end(record, End(status.state.value), status)

    async def wait(
        self, record: Record, *, timeout: float, poll_interval: float | None, at_once: bool = False
    ) -> Record:
        """Poll until the job ends, then land it.

        :param timeout: seconds from the submit, over all attempts.
        :param poll_interval: seconds between polls; ``None``: the catalogue's schedule.
        :param at_once: poll now, because something says that the job has ended.
        """
        plan = PollPlan(
            submitted_at=record.submitted_at or record.claimed_at,
            deadline=(record.submitted_at or record.claimed_at) + timeout,
            expected_seconds=record.expected_seconds,
            poll_interval=poll_interval,
            spread=LIMITS[record.gateway].poll_interval,
        )
        end, result = await follow(plan, lambda: self.poll(record), at_once=at_once)
        return await self._end(record, end, result)

    async def fetch(self, record: Record) -> Record:
        """Land the results of an ``answered`` record: they came without a job id."""
        with _paid():
            spooled = [await in_thread(self.workshop.ledger.store.read, key) for key in record.spooled]
        if any(blob is None for blob in spooled):
            raise StorageError(f"A spooled result of record {record.key} is gone.", billed=Billed.YES)
        pictures = [Picture(data=blob.data) for blob in spooled if blob is not None]
        return await self._land_or_note(record, [*pictures, *(Picture(url=link) for link in record.links)])

    async def land_answer(self, record: Record, status: JobStatus) -> Record:
        """Land the results that came with the answer to the submit."""
        if record.job_id is not None:
            return await self._land_job(record, status)
        return await self._land_or_note(record, status.pictures, status.cost)

    async def refetch(self, record: Record) -> Record:
        """What had landed is gone from storage: ask once for a fresh link, and land it again."""
        self.log.warning("The picture of record %s is gone from storage; asking the gateway for it.", record.key)
        status = await self.poll(record) if record.job_id else None
        if status is not None and status.state is JobState.DONE:
            return await self._land_or_note(record, status.pictures, status.cost)
        gone = LinkExpiredError(f"The picture of record {record.key} is gone from storage and from the gateway.")
        await self.note(record, gone)
        raise gone

    async def copy(self, record: Record, destination: Destination) -> dict[str, Any]:
        """The manifest of a copy of what landed, at another destination; made unless it is there."""
        asked = dataclasses.asdict(destination)
        known = next((dict(copy["manifest"]) for copy in record.copies if copy["destination"] == asked), None)
        if known is not None and await self._where(known) == "there":
            return known
        ledger, files = self.workshop.ledger, self.workshop.files
        suffix = ""
        if known is None:
            item_path = record.key.rsplit("/", 1)[0]
            digest = (record.manifest or {})["images"][0]["sha256"]
            suffix = await in_thread(reserve_name, ledger, files, item_path, destination, record.n, digest)
        manifest = dict(record.manifest or {})
        intact, pictures = await self.read_back(record)
        if intact != "there":
            raise StorageError(f"The picture of record {record.key} is not the one that landed.", billed=Billed.YES)
        images, kept = await self._store_all(replace(record, destination=destination, suffix=suffix), pictures)
        manifest["images"] = [dataclasses.asdict(image) for image in images]
        await self._write_sidecar(images[0], sidecar(manifest, record))
        copied = {"destination": asked, "manifest": manifest}
        await in_thread(
            self.workshop.ledger.change, record.key, lambda stored: replace(stored, copies=[*stored.copies, copied])
        )
        await self._make_thumbnails(record, kept)
        return manifest

    async def read_back(self, record: Record) -> tuple[Intact, list[bytes]]:
        """The pictures of a record that has landed, and whether they still are what landed; none where not."""
        files, pictures = self.workshop.files, []
        for image in (record.manifest or {})["images"]:
            state = await in_thread(files.state, image["uri"])
            if state != "there":
                return state, []
            try:
                data = await in_thread(lambda uri=image["uri"]: files.read(uri, max_bytes=MAX_PICTURE_BYTES))
            except StorageError:
                return "unknown", []
            except BadRequestError:  # larger than any picture, or gone this very moment
                return "changed", []
            if hashlib.sha256(data).hexdigest() != image["sha256"]:
                return "changed", []
            pictures.append(data)
        return "there", pictures

    async def land_copy(self, record: Record, source: Record, pictures: Sequence[bytes]) -> Record:
        """Land what another task has landed.

        :param record: of the copy, `copy_of` in `reuse`.
        :param source: whose pictures they are.
        :param pictures: their bytes, as `read_back` gives them.
        :returns: the record as it is stored now, ``landed``.
        :raises StorageError: the bucket or the disk failed.
        """
        images, kept = await self._store_all(record, pictures)
        manifest = build(record, images, mismatch=(source.manifest or {}).get("mismatch"), cost=record.cost)
        await self._write_sidecar(images[0], sidecar(manifest, record))
        return await self._landed(record, manifest, kept)

    async def land(self, record: Record, pictures: Sequence[Picture], reported_cost: float | None = None) -> Record:
        """Download, verify and write the results, then the sidecar, then the record.

        :returns: the record as it is stored now, ``landed``.
        :raises LinkExpiredError: the link no longer answers.
        :raises InvalidImageError: what it brought is not a picture.
        :raises StorageError: the bucket or the disk failed.
        """
        if not pictures:
            raise LinkExpiredError(f"Record {record.key} has no result to fetch.")
        async with self.workshop.room.share() as settle:
            return await self._land(record, pictures, reported_cost, settle)

    async def _land(
        self,
        record: Record,
        pictures: Sequence[Picture],
        reported_cost: float | None,
        settle: Callable[[int], None],
    ) -> Record:
        stored: list[StoredImage] = []
        kept = Kept()
        with _paid():
            for picture in pictures:
                try:
                    data = await self._bytes(record, picture)
                    settle(len(data))
                    stored.append(await self._store(record, len(stored), data))
                    kept.add(stored[-1].sha256, data)
                except (LinkExpiredError, *_UNFETCHED) as error:
                    if not stored:
                        raise
                    # One was asked for, and is stored: it must not wait for what else the gateway names.
                    self.log.warning("A further picture of record %s is left: %s", record.key, error.message)
            difference = self._mismatch(record, stored[0])
            manifest = build(record, stored, mismatch=difference, cost=_cost(record, reported_cost))
            await self._write_sidecar(stored[0], sidecar(manifest, record))
        await self._drop_thumbnails(record, stored)
        return await self._landed(record, manifest, kept)

    async def picture_state(self, record: Record) -> Literal["there", "gone", "unknown"]:
        """Whether what has landed is still where it landed."""
        return await self._where(record.manifest or {})

    async def _where(self, manifest: Mapping[str, Any]) -> Literal["there", "gone", "unknown"]:
        states = [await in_thread(self.workshop.files.state, image["uri"]) for image in manifest["images"]]
        return "gone" if "gone" in states else "unknown" if "unknown" in states else "there"

    async def note(self, record: Record, error: GeminiImageError) -> None:
        """Write what went wrong onto the record, without changing its state; failing to is logged, not raised."""

        def noted(stored: Record) -> Record | None:
            overtaken = stored.state == "landed" and record.state != "landed"  # another attempt fetched it
            return None if overtaken else with_error(stored, error)

        try:
            await in_thread(self.workshop.ledger.change, record.key, noted)
        except GeminiImageError as failure:
            self.log.warning("Could not note %r on record %s (%s).", error.kind, record.key, failure.kind)

    async def _end(self, record: Record, end: End, result: JobStatus | GeminiImageError) -> Record:
        job = f"Job {record.job_id}"
        if end.status == "done" and isinstance(result, JobStatus):
            return await self._land_job(record, result)
        if end.status == "failed" and isinstance(result, JobStatus):
            await self._record_failure(record, result)
            raise _failure(record, result)
        if end.status == "vanished":
            raise VanishedError(f"{job} is not known to the gateway any more. Record {record.key}.")
        if end.status == "timeout":
            raise TimedOutError(f"{job} was still running at its deadline. It is left alone. Record {record.key}.")
        cause = result if isinstance(result, GeminiImageError) else None
        said = f"; the last failure was {cause.kind}" if cause else ""
        raise LostContactError(
            f"{job} could not be asked about{said}. It is left alone. Record {record.key}."
        ) from cause

    async def _record_failure(self, record: Record, status: JobStatus) -> Record:
        error = _failure(record, status)
        return await in_thread(self.workshop.ledger.change, record.key, lambda stored: _failed(stored, error))

    async def _land_job(self, record: Record, status: JobStatus) -> Record:
        try:
            return await self.land(record, status.pictures, status.cost)
        except LinkExpiredError:
            self.log.warning("The link of job %s no longer answers; asking for a fresh one.", record.job_id)
        except _UNFETCHED as error:
            await self.note(record, error)
            raise
        fresh = await self.poll(record)
        return await self._land_or_note(record, fresh.pictures, fresh.cost)

    async def _land_or_note(self, record: Record, pictures: Sequence[Picture], cost: float | None = None) -> Record:
        try:
            return await self.land(record, pictures, cost)
        except (LinkExpiredError, *_UNFETCHED) as error:
            await self.note(record, error)
            raise

    async def _bytes(self, record: Record, picture: Picture) -> bytes:
        if picture.data is not None:
            return picture.data
        transport = await self._transport(record)

        async def fetched() -> bytes:
            data = await download(
                str(picture.url),
                max_bytes=MAX_PICTURE_BYTES,
                timeout=DOWNLOAD_SECONDS,
                exempt=transport.gateway.base_url,
            )
            inspect_image(data)
            return data

        return await _patiently(fetched)

    async def _store(self, record: Record, index: int, data: bytes) -> StoredImage:
        info = inspect_image(data)
        digest = hashlib.sha256(data).hexdigest()
        files = self.workshop.files

        async def written(stem: str) -> str | None:
            uri = join_uri(record.destination.directory, f"{stem}.{info.extension}")
            await in_thread(files.check, uri, "output_path")
            fits = await in_thread(lambda: files.write(uri, data, media_type=info.media_type, sha256=digest))
            return uri if fits else None

        stem = f"{record.destination.stem}{record.suffix}{f'+{index}' if index else ''}"
        uri = await written(stem)
        if uri is None:
            self.log.warning("%s is taken by another picture; writing beside it.", stem)
            uri = await written(f"{stem}-{digest[:12]}")
        if uri is None:
            raise StorageError(f"No free name for the picture of record {record.key}.", billed=Billed.YES)
        return _stored(uri, info, data, digest)

    async def _store_all(self, record: Record, pictures: Sequence[bytes]) -> tuple[list[StoredImage], Kept]:
        images, kept = [], Kept()
        for index, data in enumerate(pictures):
            images.append(await self._store(record, index, data))
            kept.add(images[-1].sha256, data)
        return images, kept

    async def _write_sidecar(self, image: StoredImage, content: Mapping[str, Any]) -> None:
        uri = f"{image.uri.rpartition('.')[0]}.json"
        body = json.dumps(content, indent=2, ensure_ascii=False).encode()
        await in_thread(lambda: self.workshop.files.put(uri, body, media_type="application/json"))

    async def _landed(self, record: Record, manifest: dict[str, Any], kept: Kept) -> Record:
        landed, recorded = await self._record_landing(record, manifest)
        self._report(landed)
        if recorded:
            await self._after_landing(record, landed)
            await self._make_thumbnails(landed, kept)
        return landed

    async def _record_landing(self, record: Record, manifest: dict[str, Any]) -> tuple[Record, bool]:
        """The record as it is now, and whether that is written down."""

        def landed(stored: Record) -> Record | None:
            if stored.state == "landed" and stored.job_id != record.job_id:
                return None  # the picture of another job was first; this job stays an extra one, to be collected
            jobs = dict.fromkeys(job for job in (*stored.extra_jobs, stored.job_id) if job)
            return replace(
                stored,
                state="landed",
                job_id=record.job_id or stored.job_id,
                extra_jobs=[job for job in jobs if job != (record.job_id or stored.job_id)],
                submitted_at=stored.submitted_at or record.submitted_at,
                landed_at=time.time(),
                generation=max(stored.generation, self.generation),
                links=[],
                spooled=[],
                outcome=None,
                manifest=manifest,
            )

        ledger = self.workshop.ledger
        try:
            kept = await _patiently(lambda: in_thread(ledger.change, record.key, landed))
        except GeminiImageError as error:
            # The picture is safe in storage; failing the task now would only hide it.
            self.log.error(
                "The picture of job %s landed, but its record %s could not be written (%s): %s",
                record.job_id, record.key, error.kind, error.message,
            )  # fmt: skip
            return landed(record) or record, False
        return kept, True

    async def _after_landing(self, record: Record, landed: Record) -> None:
        store = self.workshop.ledger.store
        try:
            # What was bought is the newest. A copy stands in for what it was made from, which goes first.
            key, older = index_key(landed.key, landed.fingerprint), landed.reused_from
            await in_thread(lambda: point_to(store, key, landed, instead_of=older))
            for spooled in record.spooled:
                await in_thread(store.delete, spooled)
        except GeminiImageError as error:
            self.log.warning("Could not tidy up after record %s (%s).", landed.key, error.kind)

    async def _drop_thumbnails(self, record: Record, stored: Sequence[StoredImage]) -> None:
        """Those of an earlier landing, unless the same pictures have come again."""
        earlier = (record.manifest or {}).get("images", ())
        if [image["sha256"] for image in earlier] == [image.sha256 for image in stored]:
            return
        with contextlib.suppress(GeminiImageError):
            for key in thumbnail_keys(record):
                await in_thread(self.workshop.ledger.store.delete, key)

    async def _make_thumbnails(self, record: Record, kept: Kept) -> None:
        store = self.workshop.ledger.store
        await make_thumbnails(store, record, kept, log=self.log, guard=self.guard)

    def _mismatch(self, record: Record, image: StoredImage) -> str | None:
        info = ImageInfo(image.media_type, "", image.width, image.height)
        asked = record.request_fields
        return mismatch(info, resolution=asked.get("resolution"), aspect_ratio=asked.get("aspect_ratio"))

    def _report(self, record: Record) -> None:
        for image in (record.manifest or {})["images"]:
            self.log.info(
                "Landed %s (%s x %s, %s bytes).", image["uri"], image["width"], image["height"], image["size"]
            )
        if (record.manifest or {}).get("mismatch"):
            self.log.warning("Not what was asked for: %s", (record.manifest or {})["mismatch"])

    async def _transport(self, record: Record) -> Transport:
        transport = await self.workshop.connect(record.conn_id)
        if transport.gateway.name != record.gateway:
            raise BadRequestError(
                f"Connection {record.conn_id!r} now leads to {transport.gateway.name}, but record {record.key} was "
                f"submitted through {record.gateway}.",
                billed=Billed.YES,
                hint="Point the connection back until what was paid for has landed.",
            )
        return transport


async def _patiently(step: Callable[[], Awaitable[T]]) -> T:
    """What `step` brings, tried three times while its failure may pass."""
    retrying = AsyncRetrying(
        stop=stop_after_attempt(3),
        wait=wait_random_exponential(multiplier=0.5, max=5),
        retry=retry_if_exception(lambda e: isinstance(e, GeminiImageError) and e.retryable),
        reraise=True,
    )
    async for attempt in retrying:
        with attempt:
            result = await step()
    return result


def mismatch_error(manifest: Mapping[str, Any]) -> MismatchError | None:
    """What to raise for a picture that has landed and is not what was asked for, if it is not."""
    if not manifest.get("mismatch"):
        return None
    return MismatchError(f"{manifest['mismatch']} It is stored at {manifest['images'][0]['uri']}.")


class VanishedError(OutcomeUnknownError):
    """The gateway has not known the job for long enough to believe it; `on_unknown` decides."""


@contextlib.contextmanager
def _paid() -> Iterator[None]:
    """What fails here fails after the payment, and says so."""
    try:
        yield
    except GeminiImageError as error:
        if error.billed is Billed.NO:
            error.billed = Billed.YES
        raise


def _failure(record: Record, status: JobStatus) -> GeminiImageError:
    return status.error or UpstreamFailedError(f"Job {record.job_id} failed; the gateway gave no reason.")


def _failed(stored: Record, error: GeminiImageError) -> Record | None:
    return None if stored.state in ("landed", "failed") else with_error(stored, error, "failed")


def _seconds_since_submit(record: Record) -> float:
    return time.time() - (record.submitted_at or record.claimed_at)


def _cost(record: Record, reported: float | None) -> dict[str, Any]:
    # Gateways report in USD, or not at all; a connection's own prices may be in credits.
    return (
        record.cost
        if reported is None or record.reused_from is not None
        else {"amount": reported, "currency": "USD", "basis": "gateway"}
    )


def _stored(uri: str, info: ImageInfo, data: bytes, digest: str) -> StoredImage:
    return StoredImage(uri, info.media_type, info.width, info.height, len(data), digest)
