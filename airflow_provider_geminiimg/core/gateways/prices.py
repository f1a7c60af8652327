"""The prices of an account, from its connection: by model and, optionally, by size.

What must stay true: a price is a finite number of 0 or more; all ids of one model have the same price; a model that is
not listed has no price.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any

import pydantic
import pydantic_core

from airflow_provider_geminiimg.core.catalog.google_models import SIZES
from airflow_provider_geminiimg.core.catalog.lookup import ModelSpec, row_name
from airflow_provider_geminiimg.core.validation.arguments import to_decimal
from airflow_provider_geminiimg.core.validation.request_values import normalized_resolution
from airflow_provider_geminiimg.core.validation.texts import as_text, shown

ALLOWED = (
    '{"<model>": <price of a 1K image>} or {"<model>": {"1K": <price>, "4K": <price>}}, prices of 0 or more, '
    f"sizes {', '.join(SIZES)}"
)


def _amount(value: Any) -> Decimal:
    number = to_decimal(value)
    if number is None or number < 0:
        raise pydantic_core.PydanticCustomError("amount", "is not a number of 0 or more")
    return number


def _size(value: Any) -> str:
    size = normalized_resolution(as_text(value) or "")
    if size not in SIZES:
        raise pydantic_core.PydanticCustomError("size", "is not a size")
    return size


def _by_size(value: Any) -> Any:
    """Prices by size; a single number is the price of a 1K image and gets the key ``""``."""
    if isinstance(value, Mapping):
        sizes = [_size(size) for size in value]
        if len(set(sizes)) < len(sizes):
            raise pydantic_core.PydanticCustomError("twice", "gives one size twice")
        if not sizes:
            raise pydantic_core.PydanticCustomError("empty", "gives no price")
        return dict(zip(sizes, value.values(), strict=True))
    return {"": value}


_Amount = Annotated[Decimal, pydantic.BeforeValidator(_amount)]
_Sizes = Annotated[dict[str, _Amount], pydantic.BeforeValidator(_by_size)]
_Models = pydantic.TypeAdapter(dict[str, _Sizes], config=pydantic.ConfigDict(hide_input_in_errors=True))


@dataclass(frozen=True)
class PriceList:
    """The prices of one account.

    :param by_model: prices by the model's name in the catalogue, then by size. The key ``""`` has the price of a 1K
        image; the prices of other sizes follow from it in the catalogue's proportions.
    """

    by_model: Mapping[str, Mapping[str, Decimal]]

    def price(self, row: ModelSpec, resolution: str | None) -> Decimal | None:
        """The price of one image; ``None`` if it is neither listed nor can be calculated.

        :param row: the catalogue's row of the model.
        :param resolution: ``512``, ``1K``, ``2K`` or ``4K``; ``None`` if the model takes no size.
        """
        listed = self.by_model.get(row.model)
        if listed is None:
            return None
        exact = listed.get(resolution or "1K")
        base = listed.get("", listed.get("1K"))
        return exact if exact is not None or base is None else scaled(base, row, resolution)


NO_PRICES = PriceList({})


def scaled(base: Decimal, row: ModelSpec, resolution: str | None) -> Decimal | None:
    """The price of one image, calculated from the price of a 1K image in the catalogue's proportions.

    ``None`` if the catalogue does not have both prices.
    """
    if resolution in (None, "1K"):
        return base
    listed, listed_1k = row.price(resolution), row.price("1K")
    return round(base * listed / listed_1k, 6) if listed is not None and listed_1k else None


def _from_text(text: str) -> Any:
    """Parse JSON. A duplicate key is refused, because the later price would hide the earlier one.

    :raises ValueError: the text is not valid; the message is one sentence.
    """
    twice: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice.extend(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        return dict(pairs)

    try:
        value = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        raise ValueError("it is not a JSON object") from None
    if twice:
        raise ValueError(f"{shown(twice[0])!r}: is given twice")
    return value


def parse_prices(value: Any) -> PriceList:
    """Parse the extra field ``prices``.

    :param value: a JSON object or its text.
    :raises ValueError: the value is not valid; the message is one sentence.
    """
    try:
        parsed = _Models.validate_python(_from_text(value) if isinstance(value, str) else value)
    except pydantic.ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = " ".join(repr(shown(str(part))) for part in problem["loc"] if part not in ("", "[key]"))
        raise ValueError(f"{where}: {problem['msg']}" if where else "it is not a JSON object") from None
    names = [row_name(model.strip()) for model in parsed]
    counts = Counter(names)
    twice = next((model for model, name in zip(parsed, names, strict=True) if counts[name] > 1), None)
    if twice is not None:
        raise ValueError(f"{shown(twice)!r}: is given twice, because another entry is the same model")
    return PriceList(dict(zip(names, parsed.values(), strict=True)))
