# SPDX-License-Identifier: GPL-2.0-or-later
"""Other linkers as second opinions: the same object, the same addresses, bytes per section.

GNU ld and lld get a linker script that puts every section at its address and gives every undefined
name its value, so they have nothing left to decide, and their bytes can be compared with ours. mold
reads no such script, but takes an address for each section. LLVM's JITLink lays one section where it
is told, and shows what it made by its own checks. What a linker makes itself (a table, a veneer, a
thunk) lies where it likes, so where one of those is needed, it is not asked.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from allocator.types import ADDRESS_MASK, PAGE_SIZE, align_down
from archs import Arch
from execmem.check import elfwriter
from execmem.check.subject import Planned
from execmem.check.toolchain import TIMEOUT, gnu, llvm, version_of
from loader.elfview import SHT_NOBITS, Section

SHF_MERGE_STRINGS = 0x30
SHT_PROGBITS, SHT_NOTE, SHT_LOPROC = 1, 7, 0x7000_0000
OPTIONS = ("--no-relax", "-e", "0", "--nmagic", "--no-gc-sections", "--build-id=none", "-static")

_REFUSALS = "reloc|out of range|truncated|align|exceeds|fixup"
# Words of a linker that does not know a type, the architecture at all, or an option of ours.
_UNKNOWN = (
    "unknown relocation|unrecognized relocation|[Uu]nsupported|-m option is missing"
    "|Unknown command line argument"
)
JITLINK_MOST = 1 << 10  # bytes that JITLink is asked for, one in a check
_JITLINK_GRID = 16  # bytes
_RESERVED = (0, 1, 3)  # words in front of the first slot
_ASIDE = 1 << 16  # bytes from a table to what a linker makes besides
MOLD_SPAN = 1 << 28  # bytes


@attrs.frozen
class Linker:
    """A linker that is here: its short name, its path, and what it calls itself."""

    name: str
    path: str
    version: str


@attrs.frozen
class Said:
    """What a linker made: the sections' bytes by index, or why it refuses.

    Parameters
    ----------
    sections
        None where it refuses.
    refused
        The line of its words that says most.
    places
        Where it was asked to go on: section and offset of each relocation that it refuses, and why.
    got, got_start
        Where it was told where to put one: bytes of its global offset table by address, and the
        address that it counts from.
    """

    sections: Mapping[int, bytes] | None
    refused: str = ""
    places: Mapping[tuple[str, int], str] = attrs.field(factory=dict, kw_only=True)
    got: Mapping[int, bytes] = attrs.field(factory=dict, kw_only=True)
    got_start: int | None = attrs.field(default=None, kw_only=True)

    @property
    def about_relocation(self) -> bool:
        """Whether a relocation is what it refuses."""
        return re.search(_REFUSALS, self.refused) is not None


def linkers(arch: Arch) -> Mapping[str, Linker]:
    """Return the linkers for an architecture that are here, by their short names."""
    found = {
        "ld": gnu(arch, "ld"),
        "lld": llvm("ld.lld"),
        "mold": shutil.which("mold"),
        "jitlink": llvm("llvm-jitlink"),
    }
    return {
        name: Linker(name, path, version_of(path))
        for name, path in found.items()
        if path is not None
    }


NAMES = ("ld", "lld", "mold", "jitlink")
LETTERS = {"ld": "g", "lld": "l", "mold": "m", "jitlink": "j"}  # in the matrix


def link(
    linker: Linker,
    planned: Planned,
    addresses: Mapping[int, int],
    symbols: Mapping[str, int],
    slots: Mapping[int, int] | None = None,
) -> Said:
    """Return what a linker makes of an object at addresses.

    ValueError where it cannot be asked: the names of allocated sections must differ, mold wants
    them in its own order, JITLink wants one, and an older linker may not know a type.

    Parameters
    ----------
    slots
        Of a global offset table: the addresses of slots, by what they hold. The linker's own is
        put where these have the same addresses; ValueError where that does not succeed.
    """
    view = planned.view
    own = planned.own(addresses)
    names = {index: view.sections[index].name for index in own}
    if len(set(names.values())) != len(names):
        raise ValueError("two sections of one name, which linkers join")
    with tempfile.TemporaryDirectory(prefix="execmem-check-") as name:
        folder = Path(name)
        (folder / "in.o").write_bytes(without_merging(planned, own))
        if slots:
            if linker.name in _WAYS:
                raise ValueError(f"nobody has told {linker.name} where its table lies")
            made = _with_table(linker, planned, own, symbols, folder, slots)
        else:
            made = _WAYS.get(linker.name, _by_script)(linker, planned, own, symbols, folder)
    if made.sections is None and re.search(_UNKNOWN, made.refused):
        raise ValueError(f"version {linker.version} says {made.refused}")
    return made


def without_merging(planned: Planned, own: Mapping[int, int]) -> bytes:
    """Return an object whose equal strings linkers do not share, which a module loader does not."""
    image = planned.image
    for index in own:
        flags = planned.view.sections[index].flags & ~SHF_MERGE_STRINGS
        if flags != planned.view.sections[index].flags:
            image = elfwriter.section(image, index, flags=flags)
    return image


def run(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str] | None:
    """Return what a linker said; None where it takes too long."""
    try:
        return subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        return None


def _linked(planned: Planned, own: Mapping[int, int], command: Sequence[str], folder: Path) -> Said:
    """Run a linker that writes an ELF file, and return the sections that stand in it."""
    done = run(command, folder)
    if done is None:
        return Said(None, f"takes over {TIMEOUT} s")
    out, view = folder / "out.elf", planned.view
    if done.returncode or not out.is_file():
        return Said(None, reason(done.stderr) or f"exit status {done.returncode}")
    try:
        linked = ELFFile(io.BytesIO(out.read_bytes()))
        by_name = {section.name: section for section in linked.iter_sections()}
    except ELFError as error:
        return Said(None, f"writes no ELF file: {error}")
    found = {}
    for index, at in own.items():
        section = view.sections[index]
        made = by_name.get(section.name)
        if made is None or not compared(planned, section):
            continue
        if made["sh_addr"] != at:
            raise ValueError(f"it puts {section.name} at {made['sh_addr']:#x}, not {at:#x}")
        found[index] = made.data()[: section.size]
    return Said(found)


def _with_table(
    linker: Linker,
    planned: Planned,
    own: Mapping[int, int],
    symbols: Mapping[str, int],
    folder: Path,
    slots: Mapping[int, int],
) -> Said:
    """Link with the linker's table where its slots are those of ours, whatever it keeps in front."""
    dialect, first = planned.view.dialect, min(slots.values())
    if first % dialect.word or first > ADDRESS_MASK - 2 * _ASIDE:
        raise ValueError(f"a slot at {first:#x}, where linkers put none")
    refused = Said(None)
    for kept_back in _RESERVED:
        table = first - kept_back * dialect.word
        made = _by_script(linker, planned, own, symbols, folder, table)
        if made.sections is None:
            refused = refused if refused.refused else made
            continue
        linked = ELFFile(io.BytesIO((folder / "out.elf").read_bytes()))
        got = linked.get_section_by_name(".got")
        if got is None or got["sh_addr"] != table:
            raise ValueError("it makes no table, or elsewhere")
        held = got.data()
        theirs: dict[int, int] = {}
        for at in range(0, len(held), dialect.word):
            content = int.from_bytes(held[at : at + dialect.word], dialect.order)
            theirs.setdefault(content, table + at)
        if all(theirs.get(content) == at for content, at in slots.items()):
            return made
    if refused.refused and re.search(_UNKNOWN, refused.refused):
        return refused
    raise ValueError(f"its table has another order{refused.refused and ', or it is refused'}")


def _by_script(
    linker: Linker,
    planned: Planned,
    own: Mapping[int, int],
    symbols: Mapping[str, int],
    folder: Path,
    table: int | None = None,
) -> Said:
    view = planned.view
    lines = [f"{quoted(name)} = {value:#x};" for name, value in symbols.items()]
    lines.append("SECTIONS {")
    placed = [(at, quoted(view.sections[index].name)) for index, at in own.items()]
    if table is not None:
        placed += [(table, ".got"), (table + _ASIDE, ".got.plt")]
    for at, name in sorted(placed):
        lines.append(f"  {name} {at:#x} : {{ KEEP(*({name})) }}")
    lines += [*discarded(planned), "}"]
    (folder / "script.ld").write_text("\n".join(lines) + "\n", "utf-8")
    command = [linker.path, *OPTIONS, "-T", "script.ld", "in.o", "-o", "out.elf"]
    return _linked(planned, own, command, folder)


def _by_mold(
    linker: Linker,
    planned: Planned,
    own: Mapping[int, int],
    symbols: Mapping[str, int],
    folder: Path,
) -> Said:
    """Mold has no scripts: each section's address is an option, and so is the image's below it."""
    lowest = min(own.values())
    if lowest < 2 * PAGE_SIZE or max(own.values()) - lowest > MOLD_SPAN:
        raise ValueError("mold writes a file as long as its sections lie apart")
    base = align_down(lowest, PAGE_SIZE) - PAGE_SIZE
    options = [f"--image-base={base:#x}", "-z", f"max-page-size={PAGE_SIZE}"]
    for index, at in sorted(own.items(), key=lambda item: item[1]):
        options.append(f"--section-start={planned.view.sections[index].name}={at:#x}")
    options += [f"--defsym={name}={value:#x}" for name, value in symbols.items()]
    fixed = [option for option in OPTIONS if option != "--nmagic"]
    return _linked(planned, own, [linker.path, *fixed, *options, "in.o", "-o", "out.elf"], folder)


def _by_jitlink(
    linker: Linker,
    planned: Planned,
    own: Mapping[int, int],
    symbols: Mapping[str, int],
    folder: Path,
) -> Said:
    """Ask for each byte whether it is what none is: a check that fails shows what it found."""
    view = planned.view
    if len(own) != 1:
        raise ValueError("JITLink puts one section where it is told, the others where it likes")
    ((index, at),) = own.items()
    section = view.sections[index]
    size = section.size
    if not 0 < size <= JITLINK_MOST:
        raise ValueError(f"JITLink is asked for 1 to {JITLINK_MOST} bytes")
    grid = at & -at if at else PAGE_SIZE
    if grid < section.align or grid < _JITLINK_GRID:
        raise ValueError(f"JITLink lays nothing on a grid below {_JITLINK_GRID} bytes")
    start_of = f"section_addr(in.o, {section.name})"
    checks = [f"# jitlink-check: {start_of} = {at:#x}"]
    checks += [f"# jitlink-check: *{{1}}({start_of} + {n}) = 0x100" for n in range(size)]
    (folder / "checks.txt").write_text("\n".join(checks) + "\n", "utf-8")
    entry = next((name for name in view.global_symbols), "")
    command = [
        *(linker.path, "-noexec", "-slab-allocate=1Mb", f"-slab-address={at:#x}"),
        *(f"-slab-page-size={min(grid, PAGE_SIZE)}", f"-entry={entry}", "-check=checks.txt"),
        *(word for name, value in symbols.items() for word in ("-abs", f"{name}={value:#x}")),
        "in.o",
    ]
    if not entry:
        raise ValueError("JITLink links what an entry needs, and the case has no global symbol")
    done = run(command, folder)
    if done is None:
        return Said(None, f"takes over {TIMEOUT} s")
    found = re.findall(r"\+ (\d+)\) = 0x100' is false: (0x[0-9a-f]+) !=", done.stderr)
    data = {int(where): int(number, 16) for where, number in found}
    if sorted(data) != list(range(size)):
        said = reason(done.stderr)
        if "is false" in said:
            raise ValueError(f"it puts {section.name} elsewhere")
        return Said(None, said or f"exit status {done.returncode}")
    return Said({index: bytes(data[n] for n in range(size))} if compared(planned, section) else {})


_WAYS = {"mold": _by_mold, "jitlink": _by_jitlink}


def reason(said: str) -> str:
    """Return the line of a linker's words that says most: a relocation's, or else the first."""
    lines = [line.strip() for line in said.splitlines() if "warning" not in line.lower()]
    return next(iter([*filter(re.compile(_REFUSALS).search, lines), *lines]), "")


def compared(planned: Planned, section: Section) -> bool:
    """Return whether a section's bytes are the object's own, and not the linker's business."""
    own = section.type < SHT_LOPROC or any(
        table.target.index == section.index for table in planned.view.tables
    )
    return own and section.size > 0 and section.type != SHT_NOBITS


def kept(section: Section) -> bool:
    """Return whether a linker must see a section: it takes memory, or is about others."""
    return section.allocated or section.type not in (SHT_PROGBITS, SHT_NOTE, SHT_NOBITS)


def discarded(planned: Planned) -> Sequence[str]:
    """Return the lines of a script that leave out what a linker must not see."""
    others = {section.name for section in planned.own_sections[1:] if not kept(section)}
    return [f"  /DISCARD/ : {{ *({quoted(name)}) }}" for name in sorted(others)]


def quoted(name: str) -> str:
    """Return a name for a linker script; lld before 19 keeps the quotes of an output section."""
    return name if re.fullmatch(r"[A-Za-z_.$][\w.$]*", name) else f'"{name}"'
