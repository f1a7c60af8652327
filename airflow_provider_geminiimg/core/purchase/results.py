"""What a step of an image's life comes to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from airflow_provider_geminiimg.core.gateways.base import JobStatus
from airflow_provider_geminiimg.core.ledger.records import Record


@dataclass(frozen=True, slots=True)
class LandedImage:
    """The image is there.

    :param record: as it is stored now.
    :param manifest: what landed, where this attempt wants it.
    """

    record: Record
    manifest: dict[str, Any]

    @classmethod
    def of(cls, record: Record) -> LandedImage:
        """What a ``landed`` record says."""
        return cls(record, dict(record.manifest or {}))


@dataclass(frozen=True, slots=True)
class JobInFlight:
    """The job of `record` was paid for, and has to be waited for."""

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
