"""Results of the steps of a purchase."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from airflow_provider_geminiimg.core.gateways.base import JobStatus
from airflow_provider_geminiimg.core.ledger.record import Record


@dataclass(frozen=True, slots=True)
class LandedImage:
    """The image is in storage.

    :param record: as it is stored now.
    :param manifest: of the image at the destination of this attempt.
    """

    record: Record
    manifest: dict[str, Any]

    @classmethod
    def of(cls, record: Record) -> LandedImage:
        """The result for a ``landed`` record."""
        return cls(record, dict(record.manifest or {}))


@dataclass(frozen=True, slots=True)
class JobInFlight:
    """The job of `record` is paid for and still running."""

    record: Record


@dataclass(frozen=True, slots=True)
class Answered:
    """The gateway answered the paid request.

    :param record: with the answer, which is stored, or is being stored in the background.
    :param status: the job, or the finished images.
    """

    record: Record
    status: JobStatus


@dataclass(frozen=True, slots=True)
class LookAgain:
    """Nothing was sent, or nothing was paid for: read the records and decide again."""
