"""Values that bytes decide: one draw of hypothesis for a whole document, which would take it a hundred and as long.

What must stay true: zeros, and no more bytes, decide for the plainest of what there is, so that hypothesis still finds
a plain example of what fails.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from hypothesis import strategies as st

T = TypeVar("T")


class Decider:
    """Bytes that are used up, one for each decision, and what hypothesis drew itself beside them."""

    def __init__(self, data: bytes, text: str = "", number: float = 0) -> None:
        self._data = data
        self._at = 0
        self.text = text
        self.number = number
        self.said: list[Any] = []

    def bytes(self, count: int) -> bytes:
        self._at += count
        return self._data[self._at - count : self._at]

    def below(self, bound: int) -> int:
        """A number from 0, of at most 256 that there are."""
        self._at += 1
        return self._data[self._at - 1] % bound if self._at <= len(self._data) else 0

    def one(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]


Make = Callable[[Decider], Any]


def decided(make: Make, size: int = 192) -> st.SearchStrategy[Any]:
    """What `make` makes of so many bytes; hypothesis likes texts and numbers that the code looks for: one of each."""
    return st.builds(
        lambda data, text, number: make(Decider(data, text, number)),
        st.binary(min_size=size, max_size=size),
        st.text(max_size=12),
        st.integers() | st.floats(),
    )


def just(value: Any) -> Make:
    return lambda by: value


def sampled(options: Sequence[Any]) -> Make:
    return lambda by: by.one(options)


def one_of(*makes: Make) -> Make:
    return lambda by: by.one(makes)(by)


def lists(make: Make, most: int) -> Make:
    return lambda by: [make(by) for _ in range(by.below(most + 1))]


def tuples(*makes: Make) -> Make:
    return lambda by: tuple(make(by) for make in makes)


def mappings(names: Make, make: Make, most: int) -> Make:
    return lambda by: {names(by): make(by) for _ in range(by.below(most + 1))}


def some_of(fields: Mapping[str, Make]) -> Make:
    """A mapping with any of these fields."""
    return lambda by: {name: make(by) for name, make in fields.items() if by.below(2)}


_ALPHABETS = [
    *(range(0x61, 0x7B), range(0x20, 0x7F), range(0x80, 0x100), range(0x2000, 0x2070), range(0x4E00, 0x4F00)),
    *(range(0x20), range(0xD7F0, 0xE010), range(0xFF00, 0x10010), range(0x1F300, 0x1F500), range(0x10FF00, 0x110000)),
]
_FLOATS = [0.0, -0.0, 0.5, -1.0, 1e16, 5e-324, 1.7976931348623157e308, math.inf, -math.inf, math.nan]


def _character(by: Decider) -> str:
    alphabet = by.one(_ALPHABETS)
    return chr(alphabet[int.from_bytes(by.bytes(2), "little") % len(alphabet)])


def texts(most: int) -> Make:
    """Texts of up to `most` characters, halves of surrogate pairs among them."""
    made = one_of(just(""), lambda by: by.text, *[lambda by: "".join(lists(_character, most)(by))] * 2)
    return lambda by: str(made(by))


def _integer(by: Decider) -> int:
    return int.from_bytes(by.bytes(by.one([1, 1, 2, 4, 8, 16])), "little", signed=True)


def _float(by: Decider) -> float:
    return float(struct.unpack("<d", by.bytes(8).ljust(8, b"\0"))[0])


NUMBERS = one_of(_integer, sampled(_FLOATS), _float, lambda by: by.number)


def scalars(words: Sequence[str], most: int = 12) -> Make:
    """What JSON has but lists and objects: any of it, these words more often, and now and then what was said before."""
    fresh = one_of(just(None), sampled([False, True]), NUMBERS, texts(most), sampled(words), sampled(words))

    def scalar(by: Decider) -> Any:
        if by.said and by.below(8) == 7:
            return by.one(by.said)
        by.said.append(fresh(by))
        return by.said[-1]

    return scalar


def documents(scalar: Make, names: Make, depth: int = 7) -> Make:
    """Whatever JSON can hold, lists and objects in each other."""
    made = scalar
    for _ in range(depth):
        made = one_of(*[scalar] * 5, lists(made, 3), *[mappings(names, made, 5)] * 2)
    return made
