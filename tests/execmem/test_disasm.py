# SPDX-License-Identifier: GPL-2.0-or-later
"""`execmem disasm`, beside GNU objdump on the same file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from archs import Arch
from execmem import disasm
from execmem.cli import main
from execmem.commands.common import loaded_to_read
from loader.elfview import STT_FUNC
from loader.lines import Line
from samples.modules import path
from tests.support.debugged import built
from tests.support.tools import cross, run

_LINE = re.compile(r"^\s*([0-9a-f]+):\t")
OPTIONS = {
    "root": None,
    "kernel": None,
    "design": "default",
    "kaslr": None,
    "seed": 0,
    "heap_limit": None,
    "no_text_poke": False,
    "params": (),
    "stubs": (),
    "checks": "hardware",
    "errata": (),
    "kasan": False,
    "with_plt": False,
    "force": False,
    "constructors": False,
    "instructions": None,
    "seconds": None,
    "unknown": "fault",
    "as_json": False,
}


def output(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Return the exit code, and what a command line prints."""
    with pytest.raises(SystemExit) as caught:
        main(list(words))
    printed = capsys.readouterr()
    return int(caught.value.code or 0), printed.out, printed.err


@pytest.mark.parametrize("name", ["mathuser", "logbook", "mathlib"])
def test_instructions_begin_where_objdump_has_them(arch: Arch, name: str) -> None:
    """Every function of a sample, to the last instruction."""
    if arch.run is None:
        pytest.skip(f"{arch.name} has no level run")
    module, _ = loaded_to_read(name, {**OPTIONS, "arch": arch.name})
    listed = run(
        cross(arch.machine, "objdump"),
        "-d",
        "--insn-width=16",
        "-j",
        ".text",
        path(arch.name, name),
    )
    theirs = {int(m[1], 16) for m in map(_LINE.match, listed.splitlines()) if m}
    symbols = module.view.symbols
    names = {
        module.view.symbol_name(index)
        for index, info in enumerate(symbols["info"].tolist())
        if info & 0xF == STT_FUNC
    }
    compared = 0
    for each in sorted(names & set(module.symbols)):
        found = disasm.function(module, each)
        if found.section != ".text":
            continue
        base = module.sections[module.view.section(".text").index].address
        ours = {i.address - base for i in found.instructions}
        span = range(found.address - base, found.address - base + found.size)
        assert ours == {at for at in theirs if at in span}, each
        compared += len(ours)
    assert compared > 10


def test_the_command(arch: Arch, capsys: pytest.CaptureFixture[str]) -> None:
    """Lines and JSON say the same; a function that is not there is told with one that is near."""
    if arch.run is None:
        pytest.skip(f"{arch.name} has no level run")
    words = ("disasm", "mathuser", "mathuser_lcm", "--arch", arch.name)
    code, out, _ = output(capsys, *words)
    assert code == 0
    assert re.search(r"^0x[0-9a-f]+ <mathuser_lcm> in \.text, 0x", out, re.MULTILINE)
    assert "mathlib_gcd" in out
    code, text, _ = output(capsys, *words, "--json")
    (found,) = json.loads(text)["functions"]
    assert len(found["instructions"]) == len(
        re.findall(r"^  [0-9a-f]+:  [0-9a-f]{2} ", out, re.MULTILINE)
    )
    assert "mathlib_gcd" in {r["symbol"] for i in found["instructions"] for r in i["relocations"]}
    code, _, err = output(capsys, "disasm", "mathuser", "mathuser_lc", "--arch", arch.name)
    assert code == 1
    assert "did you mean mathuser_lcm" in err


def test_lines_of_source(arch: Arch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of addr2line, with the text of the file; one notice where there are none."""
    if arch.run is None:
        pytest.skip(f"{arch.name} has no level run")
    module = built(arch, "mathlib", tmp_path)
    words = ("disasm", str(module), "mathlib_gcd")
    code, out, err = output(capsys, *words, "--source", str(tmp_path))
    assert code == 0, err
    _, text, _ = output(capsys, *words, "--json")
    document = json.loads(text)
    assert document["debug"] == "mathlib.ko"
    (found,) = document["functions"]
    start = int(found["address"], 16)
    (symbol,) = (s for s in run("nm", module).splitlines() if s.endswith(" T mathlib_gcd"))
    source = (module.parent / "mathlib.c").read_text().splitlines()
    places = [
        int(i["address"], 16) - start + int(symbol.split()[0], 16) for i in found["instructions"]
    ]
    theirs = run(cross(arch.machine, "addr2line"), "-j", ".text", "-e", module, *map(hex, places))
    for instruction, line in zip(found["instructions"], theirs.splitlines(), strict=True):
        file, _, number = line.partition(" ")[0].rpartition(":")
        mine = instruction["lines"][0]
        assert (mine["file"], mine["line"]) == (file, int(number))
        assert f"mathlib.c:{number} (" in out
        assert source[int(number) - 1].strip() in out
    run(cross(arch.machine, "strip"), "--strip-debug", module)
    code, out, _ = output(capsys, *words)
    assert code == 0
    assert out.startswith("No lines of source: no debugging information in it (.debug_line), and ")
    code, _, err = output(capsys, *words, "--source", str(tmp_path))
    assert code == 1
    assert "hint: " in err


def test_source_is_read_below_its_folder_only(tmp_path: Path) -> None:
    """By the longest end of the path that is there; a path that leads out of it leads nowhere."""
    tree = tmp_path / "tree"
    (tree / "lib" / "deep").mkdir(parents=True)
    (tree / "lib" / "a.c").write_text("one\ntwo\n")
    (tree / "a.c").write_text("another\n")
    (tmp_path / "secret.c").write_text("secret\n")
    sources = disasm.Sources(tree)
    assert sources.text(Line("/build/linux/lib/a.c", 2)) == "two"
    assert sources.text(Line("/build/linux/lib/deep/../a.c", 1)) == "one"
    assert sources.text(Line("other/a.c", 1)) == "another"
    for line in (0, 2):
        assert sources.text(Line("other/a.c", line)) is None
    for file in ("../secret.c", "lib/../../secret.c", "lib/deep/../../../secret.c", "none.c", "\0"):
        assert sources.text(Line(file, 1)) is None, file
    (tree / "link.c").symlink_to(tmp_path / "secret.c")
    assert sources.text(Line("link.c", 1)) is None
