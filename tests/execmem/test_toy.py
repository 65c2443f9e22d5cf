# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables and pictures have room for an architecture that is unlike the others (tests/archs/toy.py)."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

import archs
from allocator import KernelMemory, PhysicalMemory
from allocator.errors import AllocationError
from allocator.types import GIB
from archs.arch import LevelMissing
from execmem import documents, figure, reference, report, tables
from execmem.check.elfwriter import A, Form, Rela, Sec, Sym, X, write
from execmem.cli import main
from execmem.relocs import Code
from execmem.schema import complaints
from loader.elf import parse
from loader.layout import plan
from loader.link import link_view
from loader.listing import Listing
from machine.face import Machine
from tests.archs.toy import LINKS_ONLY, MACHINE, TOY
from tests.loader.test_toy import module


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the registry know the toy."""
    monkeypatch.setattr(archs, "ALL", (*archs.ALL, TOY))


def test_every_table_has_a_column_for_it() -> None:
    """The page of architectures, that of relocations, the command's table and the picture."""
    out = io.StringIO()
    report.print_archs(Console(file=out, width=200), archs.archs())
    assert "0x80100000" in out.getvalue()
    assert "| ELF machine | 62 | 183 | 243 | 8 | 65261 |" in reference.architectures()
    assert "| 3 | R_TOY_HI16 | `S+A` | X[31:16] -> word32[15:0] of X+0x8000 |" in tables.document()
    assert "window 64 MiB; JAL reaches its region of 256 MiB" in figure.address_spaces()
    assert report.arch_json(TOY)["text_poke"] is None


def test_one_that_only_links_has_a_column_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has no answer without the level load is left open, and what has one is there."""
    monkeypatch.setattr(archs, "ALL", (*archs.ALL[:-1], LINKS_ONLY))
    out = io.StringIO()
    report.print_archs(Console(file=out, width=200), archs.archs())
    cells = {line.split("  ")[0].strip(): line.split() for line in out.getvalue().splitlines()}
    assert [cells[name][-1] for name in ("kernel image", "vmalloc from", "trap")] == ["-"] * 3
    assert "| window for module text |" in (text := reference.architectures())
    assert all(line.endswith("| - |") for line in text.splitlines() if "window" in line)
    assert "Toy" not in figure.address_spaces()
    found = report.arch_json(LINKS_ONLY)
    assert (found["image"], found["ranges"], found["trap"]) == (None, {}, None)
    assert [*complaints("archs", json.loads(documents.text({"archs": [found]})))] == []


def test_words_are_shown_where_no_disassembler_is_known() -> None:
    """Numbers are as the processor reads them, whatever byte comes first in the file."""
    relas = [Rela(0, 1, "x"), Rela(4, 2, "x")]
    code = bytes.fromhex("000000100c000000")
    form = Form(bits=32, order="big", rel=True)
    image = write(MACHINE, [Sec(".text", code, A | X, relas=relas)], [Sym("x")], form)
    view = parse(image)
    linked = link_view(view, plan(view), {1: 0xC000_0000}, {"x": 0xC000_1234})
    listing = Listing(view, linked, {1: 0xC000_0000})
    texts = [Code(listing).texts(one) for one in listing.select()]
    assert [after for _, (_, after) in texts] == ["0xc0001244", "0x0c00048d"]
    assert texts[0][0] == (bytes.fromhex("00000010"), "0x00000010")


@pytest.mark.parametrize("by_name", [False, True])
def test_its_relocations_are_shown_without_a_cpu(
    by_name: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Loading needs no CPU, so the command shows what the loader made, by file and by name."""
    file = tmp_path / "toys.ko"
    file.write_bytes(module())
    words = ["toys", "--root", str(tmp_path)] if by_name else [str(file)]
    with pytest.raises(SystemExit) as ended:
        main(["relocs", *words, "--with-plt", "--section", ".text", "--json"])
    assert ended.value.code in (0, None)
    found = json.loads(capsys.readouterr().out)
    assert (found["module"], found["arch"]) == ("toys", "toy")
    first, second, *_ = found["relocations"]
    assert (first["type"], first["symbol"], first["via"]["section"]) == (
        "R_TOY_26",
        "_printk",
        ".plt",
    )
    assert int(first["target"], 16) in TOY.loads.address_map().image
    # The jump behind it leads to `work`, four bytes into this text.
    place = int(second["place"], 16)
    assert (
        second["after"] == (0x0C00_0000 | (place - 4 + 4) % (1 << 28) // 4).to_bytes(4, "big").hex()
    )


def test_running_it_is_refused_by_name() -> None:
    """There is no CPU to run it on, and that is what the error says."""
    with pytest.raises(LevelMissing, match="toy has no level 'run'"):
        Machine(TOY)


def test_memory_beyond_its_address_space_is_refused() -> None:
    """Addresses of 32 bits have room for so much of a direct map, and the error says so."""
    there = TOY.loads.address_map()
    with pytest.raises(AllocationError, match="the direct map") as caught:
        KernelMemory(PhysicalMemory(4 * GIB), there)
    assert "[0x40000000, 0x100000000)" in str(caught.value)
    assert KernelMemory(PhysicalMemory(GIB), there).direct_map.start == 0x4000_0000
