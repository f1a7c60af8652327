"""What `make teeth` takes out."""

from __future__ import annotations

import pytest

from scripts.teeth import PACKAGE, ROOT, TEETH
from scripts.teeth_attacks import ATTACKED
from scripts.tooth import Tooth


@pytest.mark.parametrize("tooth", [*TEETH, *ATTACKED], ids=lambda tooth: tooth.name)
def test_the_code_of_a_protection_is_there_once_and_is_python_without_it(tooth: Tooth) -> None:
    source = (ROOT / PACKAGE / tooth.file).read_text()
    assert source.count(tooth.code) == 1
    compile(source.replace(tooth.code, tooth.without), tooth.file, "exec")
