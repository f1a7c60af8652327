"""Reads and decompresses the body of a gateway's response.

What must stay true: neither the received nor the decompressed size passes the limit, because a few bytes can stand for
gigabytes; a large chunk does not block the event loop; a complete JSON object counts as the complete response even if
the connection breaks after it, because it may contain the id of a paid job.
"""

from __future__ import annotations

import asyncio
import io
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping

from airflow_provider_geminiimg.core.http.json_limits import AnswerShape, TooManyValuesError

_COMPRESSED = ("gzip", "x-gzip", "deflate")
_GZIP_OR_ZLIB = 47  # zlib's `wbits` for "detect gzip or zlib from the header"
_STEP = 16 * 1024  # bytes between two yields to the event loop; a millisecond at most
_FRAME = 64 * 1024  # bytes by which a compressed body may be larger than its content


class UnreadableBodyError(Exception):
    """The body cannot be used; the text says why."""


class TooLargeBodyError(UnreadableBodyError):
    """The body is larger than the limit."""


class ResponseBody:
    """Reads one response body.

    :param headers: the response headers.
    :param limit: maximum size in bytes, decompressed.
    :param hold: called with the size as it grows; waits until that much memory may be used. Default: no limit on
        memory.
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
        self._body = io.BytesIO()  # getvalue() makes no copy
        self._shape = AnswerShape()

    async def read(self, pieces: AsyncIterator[bytes], *, until_whole: bool) -> bytes:
        """Read the body.

        :param pieces: the chunks as they arrive.
        :param until_whole: stop after a complete JSON object, because the gateway may keep the connection open.
        :raises UnreadableBodyError: the body is too large, has too many values, or cannot be decompressed.
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
                raise UnreadableBodyError("The gateway's response contains too many JSON values.") from None

    def _too_large(self) -> TooLargeBodyError:
        return TooLargeBodyError(f"The gateway's response is larger than {self._limit:,} bytes.")

    def _begin(self, piece: bytes) -> None:
        self._begun = True
        if self._encoding in ("", "identity") or piece.lstrip()[:1] == b"{":  # a wrong header must not lose a response
            return
        if self._encoding not in _COMPRESSED:
            raise UnreadableBodyError("The gateway's response has an encoding that was not requested.")
        self._unpacker = zlib.decompressobj(_GZIP_OR_ZLIB)

    def _parts(self, piece: bytes) -> Iterator[bytes]:
        """The decompressed content of a chunk, in parts of `_STEP` bytes at most."""
        if self._unpacker is None:
            for at in range(0, len(piece), _STEP):
                yield piece[at : at + _STEP]
            return
        size = len(piece)  # bytes to decompress in one call
        part = b""
        while (piece or len(part) == _STEP) and not self._unpacker.eof:  # after a full part there may be more
            before = self._unpacker.copy()
            try:
                part = self._unpacker.decompress(piece[:size], _STEP)
            except zlib.error:
                # Retry with fewer bytes: the content before the error (such as a wrong checksum) is valid.
                self._unpacker, size = before, size // 2
                if not size:
                    raise UnreadableBodyError("The gateway's response cannot be decompressed.") from None
                continue
            piece = self._unpacker.unconsumed_tail + piece[size:]
            yield part
