# SPDX-License-Identifier: GPL-2.0-or-later
"""The page of a relocation case: a view for each link that is made, with the case's own addresses."""

from __future__ import annotations

from pathlib import Path

import pytest

from execmem.check.case import BadCase
from execmem.check.running import Wanted
from execmem.cli import main
from execmem.explaining import explain, explain_case

CALL = """execmem case 1
arch arm64
section .text ax 00000094
label f = .text+0 func size=4
reloc .text+0 R_AARCH64_CALL26 far
place near
symbol far = f + 64
place through the PLT
symbol far = f + 1G
place refused
stubs none
symbol far = f + 1G
refuse R_AARCH64_CALL26 at f
"""


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """Return a case with two links that are made and one that is refused."""
    path = tmp_path / "call.case"
    path.write_text(CALL)
    return path


def test_each_link_that_is_made_is_shown(case: Path) -> None:
    """Near and through the PLT; what is refused has no bytes to show."""
    found = list(explain_case.views(case, Wanted()))
    assert [view.design for view in found] == ["near", "through the PLT"]
    near, far = explain.document(found)["views"]
    for view in (near, far):
        assert view["count"] == 1
        assert "R_AARCH64_CALL26" in str(view["rows"])
    plt = next(each["start"] for each in far["entries"] if each["name"] == ".plt")
    assert f"bl #{plt}" in far["texts"]
    assert f"bl #{plt}" not in near["texts"]
    starts = {view.loaded.sections[1].address for view in found}
    assert len(starts) == 1


def test_the_command(case: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A page is written; what makes no sense beside a case is refused in a line."""

    def status(*words: str) -> int:
        with pytest.raises(SystemExit) as caught:
            main(["explain", *words])
        return int(caught.value.code or 0)

    page = tmp_path / "page.html"
    assert status(str(case), "--html", str(page)) == 0
    assert "2 loads" in capsys.readouterr().out
    assert page.stat().st_size > 10_000
    assert status(str(case), "--html", str(page), "--also", "vmalloc") == 2
    assert status(str(case), "--html", str(page), "--arch", "riscv64") == 1
    assert "no architecture that is asked for" in capsys.readouterr().err
    assert status(str(tmp_path / "no.case"), "--html", str(page)) == 2


def test_a_case_of_which_nothing_is_made_is_told(tmp_path: Path) -> None:
    """The reason is that of the link."""
    path = tmp_path / "c.case"
    path.write_text(CALL.split("place near", maxsplit=1)[0] + "stubs none\nsymbol far = f + 1G\n")
    with pytest.raises(BadCase, match="R_AARCH64_CALL26"):
        list(explain_case.views(path, Wanted()))
