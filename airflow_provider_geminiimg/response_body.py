"""Reads the body of a gateway's answer: bounded, unpacked, and kept where only its frame is broken.

What must stay true: a few bytes may stand for gigabytes, so nothing is unpacked further than it may be large; a JSON
object that is whole is the whole answer, whatever becomes of the connection after it: nothing that follows can change
it, and it may hold the id of a job that was paid for.
"""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import AsyncIterator, Mapping

_PACKED = ("gzip", "x-gzip", "deflate")
_BY_ITS_HEADER = 47  # zlib's word for "gzip or zlib"


class UnreadableBodyError(Exception):
    """A body that is no answer; the text says why."""


class ResponseBody:
    """One body, from its first piece to its last.

    :param headers: those of the answer.
    :param limit: bytes of it at most, unpacked.
    """

    def __init__(self, headers: Mapping[str, str], limit: int) -> None:
        self._encoding = headers.get("content-encoding", "").strip().lower()
        self._limit = limit
        self._unpacker: zlib._Decompress | None = None
        self._begun = False
        self._body = bytearray()

    async def read(self, pieces: AsyncIterator[bytes], *, until_whole: bool) -> bytes:
        """The body.

        :param pieces: as they come.
        :param until_whole: read no further than to the end of a JSON object, because what follows may keep one waiting.
        :raises UnreadableBodyError: it is too large, or packed in a way that can't be undone.
        """
        try:
            async for piece in pieces:
                self._add(piece)
                if until_whole and piece and self._is_whole():
                    break
        except Exception:
            if not self._is_whole():
                raise
        return bytes(self._body)

    def _add(self, piece: bytes) -> None:
        if not self._begun and piece:
            self._begin(piece)
        if self._unpacker is None:
            self._body += piece
        else:
            self._unpack(self._unpacker, piece)
        if len(self._body) > self._limit:
            raise UnreadableBodyError(f"The gateway's answer is larger than {self._limit:,} bytes.")

    def _begin(self, piece: bytes) -> None:
        self._begun = True
        if self._encoding in ("", "identity") or piece.lstrip()[:1] == b"{":  # a label that is wrong costs no answer
            return
        if self._encoding not in _PACKED:
            raise UnreadableBodyError("The gateway's answer is encoded in a way that was not asked for.")
        self._unpacker = zlib.decompressobj(_BY_ITS_HEADER)

    def _unpack(self, unpacker: zlib._Decompress, piece: bytes) -> None:
        before = unpacker.copy()
        try:
            self._body += unpacker.decompress(piece, self._limit + 1 - len(self._body))
        except zlib.error:
            # What stands before the fault, such as a checksum that is wrong, was unpacked well.
            with contextlib.suppress(zlib.error):
                for at in range(len(piece)):
                    self._body += before.decompress(piece[at : at + 1], self._limit + 1 - len(self._body))
            raise UnreadableBodyError("The gateway's answer can't be unpacked.") from None

    def _is_whole(self) -> bool:
        if len(self._body) > self._limit or self._body[-100:].rstrip()[-1:] != b"}":
            return False
        try:
            found = json.loads(self._body)
            return isinstance(found, dict) and bool(found)  # an empty one keeps the line open, and says nothing
        except (ValueError, RecursionError):
            return False
