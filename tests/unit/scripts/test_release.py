"""The licences that a release accepts, and what stays in its bill of materials."""

from __future__ import annotations

import json
from typing import Any

import pytest

from scripts.release import family, without_links


def component(*licences: str, name: str = "fox") -> dict[str, Any]:
    return {"name": name, "licenses": [{"license": {"id": licence}} for licence in licences]}


def expression(text: str) -> dict[str, Any]:
    return {"name": "fox", "licenses": [{"expression": text}]}


@pytest.mark.parametrize(
    ("each", "expected"),
    [
        (component("MIT"), "MIT"),
        (component("BSD-3-Clause", "License :: OSI Approved :: BSD License"), "BSD"),
        (component("MIT", "License :: OSI Approved :: Apache Software License"), "Apache-2.0, MIT"),
        (expression("Apache-2.0 AND (MIT OR PSF-2.0)"), "Apache-2.0, MIT, Python"),
        (component(name="protobuf"), "BSD"),
    ],
)
def test_a_package_of_allowed_licences_has_their_families(each: dict[str, Any], expected: str) -> None:
    assert family(each) == expected


@pytest.mark.parametrize(
    "each",
    [component(), component("AGPL-3.0-only"), component("MIT", "GPL-2.0-only"), expression("MIT OR SSPL-1.0")],
    ids=["none", "another", "one of two", "one of an expression"],
)
def test_a_package_with_any_other_licence_or_none_is_refused(each: dict[str, Any]) -> None:
    assert family(each) is None


def test_a_bill_of_materials_holds_no_link_of_a_package_or_tool() -> None:
    links = [{"type": "distribution", "url": "file:///home/fox/dist/fox.whl"}]
    bill = {"components": [{"name": "fox", "externalReferences": links}], "tools": [{"externalReferences": links}]}
    assert json.loads(json.dumps(without_links(bill))) == {"components": [{"name": "fox"}], "tools": [{}]}
