"""Reads the body of a gateway's answer: bounded, unpacked, and kept where only its frame is broken.

What must stay true: a few bytes may stand for gigabytes, so nothing is unpacked further than it may be large, and no
more arrives than that; nothing here holds up the event loop, whatever the size of a piece; a JSON object that is whole
is the whole answer, whatever becomes of the connection after it: nothing that follows can change it, and it may hold
the id of a job that was paid for.
"""

from __future__ import annotations

import asyncio
import io
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping

from airflow_provider_geminiimg.core.http.json_limits import AnswerShape, TooManyValuesError

_PACKED = ("gzip", "x-gzip", "deflate")
_BY_ITS_HEADER = 47  # zlib's word for "gzip or zlib"
_STEP = 16 * 1024  # bytes after which others have their turn in the event loop; a millisecond at most
_FRAME = 64 * 1024  # bytes that a packed body may be larger than what is in it


class UnreadableBodyError(Exception):
    """A body that is no answer; the text says why."""


class TooLargeBodyError(UnreadableBodyError):
    """A body that is larger than an answer may be."""


class ResponseBody:
    """One body, from its first piece to its last.

    :param headers: those of the answer.
    :param limit: bytes of it at most, unpacked.
    :param hold: told how large it is, as it grows; waits until so much may be held. Default: nobody is told.
    """

    def __init__(
        self, headers: Mapping[str, str], limit: int, hold: Callable[[int], Awaitable[None]] | None = None
    ) -> None:
        self._encoding = headers.get("content-encoding", "").strip().lower()
        self._limit = limit
        self._unpacker: zlib._Decompress | None = None
        self._begun = False
        self._hold = hold
        self._arrived = self._size = 0
        self._body = io.BytesIO()  # gives its bytes away without a copy of them
        self._shape = AnswerShape()

    async def read(self, pieces: AsyncIterator[bytes], *, until_whole: bool) -> bytes:
        """The body.

        :param pieces: as they come.
        :param until_whole: read no further than to the end of a JSON object, because what follows may keep one waiting.
        :raises UnreadableBodyError: it is too large, has more values than an answer, or is packed in a way that can't
            be undone.
        """
        try:
            async for piece in pieces:
                await self._add(piece)
                if until_whole and self._shape.ended:
                    break
        except Exception:
            if not self._shape.ended or self._size > self._limit:
                raise
        return self._body.getvalue()

    async def _add(self, piece: bytes) -> None:
        if not self._begun and piece:
            self._begin(piece)
        self._arrived += len(piece)
        if self._arrived > self._limit + _FRAME:
            raise self._too_large()
        for number, part in enumerate(self._parts(piece)):
            if number:
                await asyncio.sleep(0)
            self._size += len(part)
            if self._size > self._limit:
                raise self._too_large()
            if self._hold is not None:
                await self._hold(self._size)
            self._body.write(part)
            try:
                self._shape.add(part)
            except TooManyValuesError:
                raise UnreadableBodyError("The gateway's answer has more values in it than any answer has.") from None

    def _too_large(self) -> TooLargeBodyError:
        return TooLargeBodyError(f"The gateway's answer is larger than {self._limit:,} bytes.")

    def _begin(self, piece: bytes) -> None:
        self._begun = True
        if self._encoding in ("", "identity") or piece.lstrip()[:1] == b"{":  # a label that is wrong costs no answer
            return
        if self._encoding not in _PACKED:
            raise UnreadableBodyError("The gateway's answer is encoded in a way that was not asked for.")
        self._unpacker = zlib.decompressobj(_BY_ITS_HEADER)

    def _parts(self, piece: bytes) -> Iterator[bytes]:
        """What a piece stands for, part by part."""
        if self._unpacker is None:
            for at in range(0, len(piece), _STEP):
                yield piece[at : at + _STEP]
            return
        size = len(piece)  # of what is tried at once
        part = b""
        while (piece or len(part) == _STEP) and not self._unpacker.eof:  # a part that is full may not be all
            before = self._unpacker.copy()
            try:
                part = self._unpacker.decompress(piece[:size], _STEP)
            except zlib.error:
                # What stands before the fault, such as a checksum that is wrong, was unpacked well.
                self._unpacker, size = before, size // 2
                if not size:
                    raise UnreadableBodyError("The gateway's answer can't be unpacked.") from None
                continue
            piece = self._unpacker.unconsumed_tail + piece[size:]
            yield part
