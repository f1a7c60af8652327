"""``make release``: bills of materials and docs beside the wheel in ``dist``, and the licences of what it brings.

There are two environments: the wheel alone, and the wheel with all extras. `cyclonedx-py` lists their packages, with
the licence that each declares. Nothing is published.

Invariants: every package declares only licences of `FAMILIES`, or is one of `REVIEWED`. A bill holds no link and no
path of this machine.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from scripts.test_compat import ROOT, uv

BIN = ROOT / ".venv" / "bin"
DIST = ROOT / "dist"
HOME = ROOT / ".venvs" / "release"

# The extras that users install, and what the google provider needs in other versions than `constraints.txt` pins.
ENVIRONMENTS = {"": "", "-extras": "[amazon,azure,google,sandbox,thumbnails]"}
UNPINNED = {"": (), "-extras": ("protobuf", "tenacity", "websockets")}

OSI = "License :: OSI Approved ::"
FAMILIES = {
    "Apache-2.0": {"Apache-2.0", f"{OSI} Apache Software License"},
    "BSD": {"0BSD", "BSD-2-Clause", "BSD-3-Clause", f"{OSI} BSD License"},
    "ISC": {"ISC"},
    "MIT": {"MIT", "MIT-0", "MIT-CMU"},
    "MPL-2.0": {"MPL-2.0", f"{OSI} Mozilla Public License 2.0 (MPL 2.0)"},
    "Python": {"CNRI-Python", "PSF-2.0", "Python-2.0"},
    "public domain": {"CC0-1.0", "Unlicense"},
    "Zlib": {"Zlib"},
}
FAMILY_OF = {name: family for family, names in FAMILIES.items() for name in names}

# Packages that declare none or others, after a look at their licence files.
REVIEWED = {
    **dict.fromkeys(("google-ads", "google-cloud-aiplatform", "google-cloud-bigquery", "ray"), "Apache-2.0"),
    "protobuf": "BSD",
    "text-unidecode": "Artistic",  # its user may choose between this and the GPL
    "tiktoken": "MIT",
    "uritemplate": "Apache-2.0, BSD",
}

# What packages write of themselves. A link may be a path of this machine.
LEFT_OUT = {"description", "externalReferences"}


def declared(component: Mapping[str, Any]) -> Iterator[str]:
    """The names of all licences that a component declares; an expression names several."""
    for entry in component.get("licenses", ()):
        if "expression" in entry:
            yield from entry["expression"].replace("(", "").replace(")", "").replace(" OR ", " AND ").split(" AND ")
        else:
            yield entry["license"].get("id") or entry["license"].get("name", "")


def family(component: Mapping[str, Any]) -> str | None:
    """The families of a component's licences, as one text; `None` if one is not in the tables."""
    if component["name"] in REVIEWED:
        return REVIEWED[component["name"]]
    families = {FAMILY_OF.get(name) for name in declared(component)}
    return None if None in families or not families else ", ".join(sorted(map(str, families)))


def without_links(value: Any) -> Any:
    """A bill without `LEFT_OUT`."""
    if isinstance(value, dict):
        return {name: without_links(each) for name, each in value.items() if name not in LEFT_OUT}
    return [without_links(each) for each in value] if isinstance(value, list) else value


def install(python: Path, wheel: Path, name: str) -> None:
    """Bring one of `ENVIRONMENTS` into the environment of `python`."""
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    constraints = HOME / f"constraints{name}.txt"
    constraints.write_text("\n".join(pin for pin in pins if pin.partition("==")[0] not in UNPINNED[name]))
    target = f"{wheel}{ENVIRONMENTS[name]}"
    uv("pip", "install", "--quiet", "--python", str(python), "-c", str(constraints), target)


def bill_of_materials(python: Path) -> dict[str, Any]:
    """What CycloneDX says of an environment, without links.

    :raises ValueError: it names a path of this machine.
    """
    tool, project = str(BIN / "cyclonedx-py"), str(ROOT / "pyproject.toml")
    command = [tool, "environment", "--output-reproducible", "--pyproject", project, str(python)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    bill: dict[str, Any] = without_links(json.loads(done.stdout))
    text = json.dumps(bill)
    if found := [path for path in (str(ROOT), str(Path.home())) if f"{path}/" in text]:
        raise ValueError(f"the bill of materials names {found}")
    return bill


def main() -> int:
    [wheel] = DIST.glob("*.whl")
    stem = "-".join(wheel.name.split("-")[:2])
    shutil.make_archive(str(DIST / f"{stem}-docs"), "zip", ROOT / "docs" / "_build" / "html")
    uv("venv", "--quiet", "--clear", "--python", str(BIN / "python"), str(HOME))
    python = HOME / "bin" / "python"
    refused = False
    for name in ENVIRONMENTS:
        install(python, wheel, name)
        bill = bill_of_materials(python)
        path = DIST / f"{stem}{name}.cdx.json"
        path.write_text(json.dumps(bill, indent=1) + os.linesep)
        families = {each["name"]: family(each) for each in bill["components"]}
        print(f"{path.name}: {len(families)} packages")
        for licence, count in Counter(families.values()).most_common():
            print(f"  {count:>4} {licence}")
        for each in bill["components"]:
            if families[each["name"]] is None:
                refused = True
                print(f"  {each['name']}: licence not allowed, or none: {list(declared(each))}")
    return int(refused)


if __name__ == "__main__":
    sys.exit(main())
