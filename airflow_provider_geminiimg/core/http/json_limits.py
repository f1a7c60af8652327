"""Bounds the number of values and the depth of a JSON response while its bytes arrive.

What must stay true: the limits are checked before the JSON is parsed, because parsing blocks the interpreter and a few
bytes can stand for millions of values; no real response comes near a limit; the length of a text is not limited here,
because an image may be inline; the work is linear in the number of bytes.
"""

from __future__ import annotations

import codecs
import json
import re

MAX_ITEMS = 50_000  # values, and escapes in texts except escaped slashes; a list of models has a few thousand
MAX_DEPTH = 64  # no known shape nests deeper than 10
_BYTES_PER_ESCAPE = 16  # further escapes beyond `MAX_ITEMS` are allowed at this rate

_OUTSIDE = re.compile(rb'[",\[\]{}]')
# Escaped slashes do not count: base64 may contain many, and they cost no more than other bytes.
_IN_TEXT = re.compile(rb'"|\\(?!/)')
_CHANGE = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


class TooManyValuesError(Exception):
    """The response has more values or levels than any real response."""


class AnswerShape:
    """Counts the values and levels of one response.

    `ended` is true when a JSON object at the start of the response is complete. An empty object does not count: a
    gateway may send it to keep the connection open. A web page is not examined.
    """

    def __init__(self) -> None:
        self.ended = False
        self._start = b""
        self._decoder: codecs.IncrementalDecoder | None = None
        self._begun = self._is_page = self._is_object = self._has_text = False
        self._in_text = self._escaped = False
        self._depth = self._items = self._escapes = self._size = 0

    def add(self, piece: bytes) -> None:
        """Examine the next bytes.

        :raises TooManyValuesError: the response nests too deep or has too many values.
        """
        if not self._begun:
            piece = self._begin(piece)
        if self._is_page or not piece:
            return
        if self._decoder is not None:
            piece = self._decoder.decode(piece).encode("utf-8", "replace")
        self._follow(piece)

    def _begin(self, piece: bytes) -> bytes:
        """The bytes to examine, once there are enough to detect the encoding; until then ``b""``."""
        self._start += piece
        first = self._start.removeprefix(codecs.BOM_UTF8).replace(b"\0", b"").lstrip()[:1]
        if len(self._start) < 4 or not first:
            self._start = self._start[:4]  # blanks so far
            return b""
        self._begun = True
        encoding = json.detect_encoding(self._start)
        if not encoding.startswith("utf-8"):
            self._decoder = codecs.getincrementaldecoder(encoding)("replace")
        self._is_page, self._is_object = first == b"<", first == b"{" or self._decoder is not None
        return self._start

    def _follow(self, piece: bytes) -> None:
        self._size += len(piece)
        at = 0
        while at < len(piece):
            if self._escaped:
                self._escaped, at = False, at + 1
                continue
            mark = (_IN_TEXT if self._in_text else _OUTSIDE).search(piece, at)
            if mark is None:
                break
            at = mark.end()
            self._mark(piece[at - 1])
        if self._depth > MAX_DEPTH or self._items > MAX_ITEMS:
            raise TooManyValuesError
        if self._escapes > MAX_ITEMS + self._size // _BYTES_PER_ESCAPE:
            raise TooManyValuesError

    def _mark(self, byte: int) -> None:
        if byte == ord('"'):
            self._in_text, self._has_text = not self._in_text, True
        elif byte == ord("\\"):
            self._escaped = True
            self._escapes += 1
        else:
            change = _CHANGE.get(byte, 0)
            self._depth += change
            self._items += change >= 0
            if self._depth > MAX_DEPTH:
                raise TooManyValuesError
            if change < 0 and self._depth == 0 and self._is_object and self._has_text:
                self.ended = True
