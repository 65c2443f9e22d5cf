# SPDX-License-Identifier: GPL-2.0-or-later
"""Lines of source, beside GNU addr2line and llvm-symbolizer on what GNU ld links of the same file."""

from __future__ import annotations

import io
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from archs import Arch
from loader.debugfile import NoDebug, build_id, find
from loader.elf import parse
from loader.errors import LoadError
from loader.lines import Lines
from tests.support.debugged import built, linked
from tests.support.tools import cross, llvm, run

# A function with two levels of inlined ones, one of a header, and one in a section of its own.
HEADER = """
static inline __attribute__((always_inline)) int twice(int x)
{
	if (x > 100)
		return x - 7;
	return x * 2;
}
"""
SOURCE = """
#include "deep/twice.h"
extern int far(int);
static int counter = 3;

static __attribute__((always_inline)) inline int both(int a, int b)
{
	int first = twice(a);

	return first + twice(b + 1);
}

int use(int n)
{
	int total = 0;

	for (int i = 0; i < n; i++) {
		total += both(i, far(total));
		counter += total;
	}
	return total;
}

__attribute__((section(".init.text"))) int start(void)
{
	return use(5) + counter;
}
"""


def places(view, addresses: dict[int, int]) -> list[int]:
    """Return the addresses of instructions: where symbols of functions say that there is code."""
    found = []
    for symbol in view.symbols:
        at = addresses.get(int(symbol["shndx"]))
        if at is not None and symbol["info"] & 0xF == 2:
            start = at + int(symbol["value"])
            found += range(start, start + int(symbol["size"]))
    return found


def asked(tool: list[str], file: Path, where: list[int]) -> list[list[tuple[str, str]]]:
    """Return what addr2line, or what speaks as it does, says of addresses: function and place."""
    out = run(*tool, "-afi", "-e", file, *map(hex, where)).splitlines()
    found: list[list[tuple[str, str]]] = []
    words = iter(line for line in out if line)
    for line in words:
        if line.startswith("0x"):
            found.append([])
            continue
        file_and_line = next(words).partition(" (discriminator")[0]
        name, _, number = file_and_line.rpartition(":")
        parts = [p for n, p in enumerate(name.split("/")) if p not in (".", "") or not n]
        found[-1].append((line.partition(".")[0], f"{'/'.join(parts)}:{number.replace('?', '0')}"))
    return found


def ours(lines: Lines, address: int) -> list[tuple[str, str]]:
    """Return what we say of an address, spelt as `asked` does."""
    return [(line.function, f"{line.file}:{line.line}") for line in lines.at(address)]


def check(view, addresses: dict[int, int], lines: Lines, tool: list[str], file: Path) -> None:
    """Hold every instruction's chain to a tool's."""
    where = places(view, addresses)
    assert len(where) > 50
    for address, expected in zip(where, asked(tool, file, where), strict=True):
        assert ours(lines, address) == expected, hex(address)


@pytest.mark.parametrize(
    "flags",
    [
        "-gdwarf-2",
        "-gdwarf-3",
        "-gdwarf-4",
        "-gdwarf-5",
        "-gdwarf-5 -gz",
        "-gdwarf-4 -fdebug-types-section",
    ],
)
def test_lines_are_addr2lines(arch: Arch, flags: str, tmp_path: Path) -> None:
    """Of every byte of every function, inlined ones and their callers included."""
    module = built(arch, "mathuser", tmp_path, "-g", *flags.split())
    view = parse(module.read_bytes(), arch=arch)
    program, addresses = linked(arch, module)
    lines = Lines.of_module(view, addresses)
    check(view, addresses, lines, [cross(arch.machine, "addr2line")], program)


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("triple", ["x86_64", "aarch64", "riscv64"])
def test_lines_of_clang_are_llvms(triple: str, version: int, tmp_path: Path) -> None:
    """With the forms that only clang writes: .debug_addr, .debug_str_offsets, .debug_rnglists."""
    if shutil.which("clang") is None:
        pytest.skip("clang is not installed")
    symbolizer = llvm("llvm-symbolizer")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "twice.h").write_text(HEADER)
    (tmp_path / "a.c").write_text(SOURCE)
    words = f"clang --target={triple}-linux-gnu -O2 -ffunction-sections -g -gdwarf-{version} -c a.c"
    subprocess.run(
        [*words.split(), "-mno-relax"] if "riscv" in triple else words.split(),
        cwd=tmp_path,
        check=True,
    )
    module = tmp_path / "a.o"
    view = parse(module.read_bytes())
    program, addresses = linked(view.arch, module)
    lines = Lines.of_module(view, addresses)
    check(view, addresses, lines, [symbolizer, "--output-style=GNU", "--no-demangle"], program)
    assert max(len(lines.at(place)) for place in places(view, addresses)) >= 3


def test_spans_and_functions_agree_with_readelf(arch: Arch, tmp_path: Path) -> None:
    """The rows that end where the next begins, and the functions of the symbol table."""
    module = built(arch, "mathuser", tmp_path)
    view = parse(module.read_bytes(), arch=arch)
    program, addresses = linked(arch, module)
    lines = Lines.of_module(view, addresses)
    everything = lines.all()
    assert all(span.start < span.end for span in everything)
    for span in random.Random(3).sample(everything, min(50, len(everything))):
        assert span in lines.spans(span.start, span.start + 1)
        assert lines.at(span.start)[0].line == span.line.line
    found = {(start, end) for start, end, _, _ in lines.functions()}
    for row in run(cross(arch.machine, "nm"), "-S", program).splitlines():
        words = row.split()
        if len(words) == 4 and words[2] in "tT":
            start, size = int(words[0], 16), int(words[1], 16)
            assert (start, start + size) in found, row
    named = {name: line for _, _, name, line in lines.functions()}
    text = (module.parent / "mathuser.c").read_text().splitlines()
    assert "mathuser_lcm" in text[named["mathuser_lcm"].line - 1]


def test_a_linked_file_may_have_been_moved(arch: Arch, tmp_path: Path) -> None:
    """As a kernel's is by KASLR."""
    module = built(arch, "mathuser", tmp_path)
    program, addresses = linked(arch, module)
    view = parse(module.read_bytes(), arch=arch)
    plain = Lines.of_file(program.read_bytes())
    moved = Lines.of_file(program.read_bytes(), bias=0x1234_5000)
    for place in places(view, addresses)[::7]:
        assert moved.at(place + 0x1234_5000) == plain.at(place)
    assert moved.all()[0].start == plain.all()[0].start + 0x1234_5000
    assert plain.at(0x10) == ()


def stripped(arch: Arch, module: Path, *, link: bool = False) -> tuple[Path, Path]:
    """Return a module without DWARF, and the file that has it, as distributions make them."""
    debug, plain = module.with_suffix(".debug"), module.with_suffix(".stripped.ko")
    objcopy = cross(arch.machine, "objcopy")
    run(objcopy, "--only-keep-debug", module, debug)
    more = [f"--add-gnu-debuglink={debug}"] if link else []
    run(objcopy, "--strip-debug", *more, module, plain)
    return plain, debug


def test_what_was_stripped_is_found(arch: Arch, tmp_path: Path) -> None:
    """By build id, by the link in it, by name; each time with the same lines."""
    module = built(arch, "mathuser", tmp_path)
    plain, debug = stripped(arch, module, link=True)
    view = parse(plain.read_bytes(), plain.name, arch=arch)
    _, addresses = linked(arch, module)
    expected = Lines.of_module(parse(module.read_bytes(), arch=arch), addresses)
    name = build_id(view)
    assert name
    assert name in run(cross(arch.machine, "readelf"), "-n", module)
    tree = tmp_path / "debug"
    place = tree / ".build-id" / name[:2] / f"{name[2:]}.debug"
    place.parent.mkdir(parents=True)
    shutil.copy(debug, place)
    for where in (
        {"folders": (tree,)},
        {"debug": tree},
        {"debug": debug},
        {"debug": module},
        {"beside": plain, "folders": ()},
    ):
        found = Lines.of_module(view, addresses, **where)
        assert found.all() == expected.all(), where
    (plain.parent / ".debug").mkdir()
    debug.rename(plain.parent / ".debug" / debug.name)
    found = find(view, beside=plain, folders=())
    assert found.name.endswith(f".debug/{debug.name}")


def test_what_is_not_known_is_said(arch: Arch, tmp_path: Path) -> None:
    """None, another build's, no module, nothing: each with what is wrong."""
    module = built(arch, "mathuser", tmp_path)
    plain, _ = stripped(arch, module)
    view = parse(plain.read_bytes(), plain.name, arch=arch)
    with pytest.raises(NoDebug, match=r"no debugging information.*build id.*; hint: .*--debug"):
        find(view, folders=(tmp_path,))
    with pytest.raises(NoDebug, match=r"of another build: its build id is"):
        find(view, given=built(arch, "mathlib", tmp_path / "other"))
    with pytest.raises(NoDebug, match=r"has no \.debug_line"):
        find(view, given=plain)
    with pytest.raises(NoDebug, match="not an ELF file"):
        find(view, given=Path(__file__))
    with pytest.raises(NoDebug, match="No such file"):
        find(view, given=tmp_path / "none")
    with pytest.raises(NoDebug, match="no debugging information"):
        Lines.of_file(plain.read_bytes())


def test_damage_is_told_as_that(arch: Arch, tmp_path: Path) -> None:
    """Whatever bytes of the DWARF are changed: lines, or an error with a sentence."""
    module = built(arch, "mathuser", tmp_path)
    data = module.read_bytes()
    view = parse(data, arch=arch)
    addresses = {s.index: s.index << 20 for s in view.sections[1:] if s.allocated}
    spots = [s for s in view.sections[1:] if s.name.startswith((".debug", ".rela.debug"))]
    chance = random.Random(20)  # places, not secrets
    for _ in range(60):
        broken = bytearray(data)
        section = chance.choice(spots)
        for _ in range(chance.randrange(1, 6)):
            at = section.offset + chance.randrange(section.size)
            broken[at] = chance.randrange(256)
        try:
            lines = Lines.of_module(parse(bytes(broken), arch=arch), addresses)
            lines.at(places(view, addresses)[10])
            lines.all()
            lines.functions()
        except (NoDebug, LoadError) as error:
            assert "\n" not in str(error)  # noqa: PT017 -- either is right


def test_entries_that_lead_back_are_damage(arch: Arch, tmp_path: Path) -> None:
    """A sibling that stands before its entry is no circle for us."""
    module = built(arch, "mathlib", tmp_path)
    data = bytearray(module.read_bytes())
    view = parse(bytes(data), arch=arch)
    section = view.section(".debug_info")
    unit = next(ELFFile(io.BytesIO(data)).get_dwarf_info(relocate_dwarf_sections=False).iter_CUs())
    entry = next(
        die for die in unit.get_top_DIE().iter_children() if "DW_AT_sibling" in die.attributes
    )
    place = section.offset + entry.attributes["DW_AT_sibling"].offset
    data[place : place + 4] = (entry.offset - unit.cu_offset).to_bytes(4, "little")
    view = parse(bytes(data), arch=arch)
    addresses = {s.index: s.index << 20 for s in view.sections[1:] if s.allocated}
    lines = Lines.of_module(view, addresses)
    with pytest.raises(NoDebug, match="DWARF is damaged: an entry's sibling stands before it"):
        lines.functions()
    assert lines.all()
