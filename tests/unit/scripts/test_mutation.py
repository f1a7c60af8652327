"""What `make mutation` takes out."""

from __future__ import annotations

import pytest

from scripts.mutation import PACKAGE, PROTECTIONS, ROOT
from scripts.mutation_attacks import ATTACKED
from scripts.mutation_promises import PROMISED
from scripts.protection import Protection


@pytest.mark.parametrize("protection", [*PROTECTIONS, *ATTACKED, *PROMISED], ids=lambda protection: protection.name)
def test_the_code_of_a_protection_is_there_once_and_is_python_without_it(protection: Protection) -> None:
    source = (ROOT / PACKAGE / protection.file).read_text()
    assert source.count(protection.code) == 1
    compile(source.replace(protection.code, protection.without), protection.file, "exec")
