# SPDX-License-Identifier: GPL-2.0-or-later
"""What was executed of modules and of the kernel, and the files that other tools read it from.

An instruction counts each time that it was executed to its end. A *block* is the longest run of
executed instructions that is only come to at its first: it begins where control came from
elsewhere, or behind an instruction that may send it elsewhere, and ends with such an instruction,
in front of the next block, or where nothing more was executed. So blocks do not depend on the
emulator's own, which end at pages and limits. An *edge* is an instruction that may send control
elsewhere, and where it went on.

Places are offsets in sections, so runs of a module add up wherever it lay.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from allocator.errors import ExecmemError
from allocator.files import write_file
from loader.elfview import SHF_EXECINSTR, STT_FUNC, ElfView
from loader.lines import Lines
from loader.loaded import LoadedSection

Place = tuple[int, int]  # index of a section, and offset in it
_MOST_OF_A_BLOCK = 0xFFFF  # bytes, in drcov
_MOST_OF_A_MODULE = 1 << 32


@attrs.define(auto_exc=True, str=False)
class NotCovered(ExecmemError):
    """Coverage that cannot be added up or written.

    Parameters
    ----------
    what, reason, hint
        Of which file, why, and what to do instead.
    """

    what: str
    reason: str
    hint: str = ""

    def __str__(self) -> str:
        hint = f"; hint: {self.hint}" if self.hint else ""
        return f"coverage of {self.what}: {self.reason}{hint}"


@attrs.frozen
class Block:
    """A block of a module or of the kernel that was executed.

    Parameters
    ----------
    section, offset, size
        Where it is: index of its section, and bytes.
    address
        Where it lay.
    count
        How often it was begun.
    instructions
        How many it has.
    """

    section: int
    offset: int
    size: int
    address: int
    count: int
    instructions: int


@attrs.frozen
class Part:
    """What was executed of a function.

    Parameters
    ----------
    name, section, offset, size
        The function: its symbol, and where it is.
    begun
        How often its first instruction was executed.
    blocks, executed
        How many blocks of it were, and how many bytes.
    """

    name: str
    section: int
    offset: int
    size: int
    begun: int
    blocks: int
    executed: int


@attrs.frozen
class Lined:
    """What is in a file of lines: how many, and what is not there (name -> why)."""

    lines: int
    without: Mapping[str, str]


@attrs.define(eq=False)
class Covered:
    """What was executed of one module, or of the kernel.

    Parameters
    ----------
    name, path
        The module's, or `vmlinux`, and its file's.
    digest
        Of the file; coverage of another does not add up with it.
    sections
        Index -> name, address, size.
    view
        The module's file; None for the kernel.
    executed
        Place of an instruction -> its size, and how often it was executed.
    begins
        Places at which blocks begin, because control came there from elsewhere.
    ends
        Places of instructions that may send control elsewhere.
    """

    name: str
    path: str
    digest: str
    sections: Mapping[int, LoadedSection]
    view: ElfView | None = attrs.field(default=None, repr=False)
    executed: dict[Place, tuple[int, int]] = attrs.field(factory=dict, repr=False)
    begins: set[Place] = attrs.field(factory=set, repr=False)
    ends: set[Place] = attrs.field(factory=set, repr=False)

    @classmethod
    def of_module(cls, name: str, view: ElfView, sections: Mapping[int, LoadedSection]) -> Covered:
        """Return a module of which nothing was executed yet."""
        digest = hashlib.sha256(view.data).hexdigest()
        return cls(name, view.name, digest, dict(sections), view)

    @property
    def code(self) -> Iterator[tuple[int, LoadedSection]]:
        """The sections that have code."""
        for index, section in self.sections.items():
            if self.view is None or self.view.sections[index].flags & SHF_EXECINSTR:
                yield index, section

    def place(self, address: int) -> Place | None:
        """Return the place of an address; None where it lies in none of the sections of code."""
        for index, section in self.code:
            if section.address <= address < section.address + section.size:
                return index, address - section.address
        return None

    def address(self, place: Place) -> int:
        """Return the address of a place."""
        return self.sections[place[0]].address + place[1]

    def count(self, place: Place, size: int, times: int) -> None:
        """Count an instruction that was executed."""
        before = self.executed.get(place)
        self.executed[place] = size, times + (0 if before is None else before[1])

    @property
    def blocks(self) -> list[Block]:
        """The blocks that were executed, by section and offset."""
        found: list[Block] = []
        start: Place | None = None
        end = count = instructions = 0
        ended = True
        for place in sorted(self.executed):
            size, times = self.executed[place]
            same = start is not None and place == (start[0], end)
            if not same or ended or place in self.begins:
                if start is not None:
                    found.append(self._block(start, end, count, instructions))
                start, count, instructions = place, times, 0
            instructions += 1
            end = place[1] + size
            ended = place in self.ends
        if start is not None:
            found.append(self._block(start, end, count, instructions))
        return found

    def _block(self, start: Place, end: int, count: int, instructions: int) -> Block:
        at = self.address(start)
        return Block(start[0], start[1], end - start[1], at, count, instructions)

    @property
    def functions(self) -> list[Part]:
        """The functions of a module of which something was executed; a kernel's have no names here."""
        view = self.view
        if view is None:
            return []
        table = view.symbols
        named = sorted(
            (int(table["shndx"][i]), int(table["value"][i]), int(table["size"][i]), i)
            for i in np.flatnonzero(table["info"] & 0xF == STT_FUNC).tolist()
            if int(table["shndx"][i]) in self.sections
        )
        blocks, places = self.blocks, sorted(self.executed)
        starts = [(block.section, block.offset) for block in blocks]
        found: list[Part] = []
        for section, offset, size, index in named:
            if found and (found[-1].section, found[-1].offset) == (section, offset):
                continue  # another name of the same
            first, last = (section, offset), (section, offset + size)
            inside = places[bisect_left(places, first) : bisect_left(places, last)]
            if not inside:
                continue
            found.append(
                Part(
                    view.symbol_name(index),
                    section,
                    offset,
                    size,
                    self.executed.get(first, (0, 0))[1],
                    bisect_left(starts, last) - bisect_left(starts, first),
                    sum(self.executed[place][0] for place in inside),
                )
            )
        return found

    def add(self, other: Covered) -> None:
        """Count what was executed in another run; NotCovered where it is of another file."""
        if other.digest != self.digest:
            raise NotCovered(self.name, "the runs are of two different files of this name")
        for place, (size, times) in other.executed.items():
            self.count(place, size, times)
        self.begins |= other.begins
        self.ends |= other.ends

    def named(self, place: Place) -> str:
        """Return `section+0xoffset` of a place."""
        return f"{self.sections[place[0]].name}+{place[1]:#x}"


Edge = tuple[str, Place, str, Place]  # owner and place of an instruction, and of where it went on


@attrs.define(eq=False)
class Findings:
    """What was executed in one run or in several.

    Parameters
    ----------
    covered
        By name: modules, and the kernel as `vmlinux`.
    edges
        Which way control went, and how often.
    elsewhere
        Instructions that were executed and belong to none of them.
    """

    covered: dict[str, Covered] = attrs.field(factory=dict)
    edges: dict[Edge, int] = attrs.field(factory=dict, repr=False)
    elsewhere: int = 0

    def merge(self, other: Findings) -> None:
        """Add what was executed in another run; NotCovered where a file is another."""
        for name, theirs in other.covered.items():
            mine = self.covered.get(name)
            if mine is not None and mine.digest != theirs.digest:
                raise NotCovered(name, "the runs are of two different files of this name")
        for name, theirs in other.covered.items():
            if name not in self.covered:
                self.covered[name] = Covered(
                    name, theirs.path, theirs.digest, theirs.sections, theirs.view
                )
            self.covered[name].add(theirs)
        for edge, times in other.edges.items():
            self.edges[edge] = self.edges.get(edge, 0) + times
        self.elsewhere += other.elsewhere

    # Files --------------------------------------------------------------------------------------

    def drcov(
        self, path: str | Path, *, like: str | Path | None = None, kernel: bool = True
    ) -> int:
        """Write a drcov file (version 2) of all blocks; return how many it has.

        Offsets count from a module's lowest section, as tools count that open what
        `execmem export --elf` writes; the kernel's from its text.

        Parameters
        ----------
        like
            An ELF file with addresses, whose layout one module's offsets are to follow: what was
            exported of it at another place, or for another kernel.
        kernel
            Whether the kernel's own blocks are among them.

        Raises
        ------
        NotCovered
            A module's sections lie further apart than the format can say, or `like` does not fit.
        """
        rows: list[str] = []
        blocks = bytearray()
        number = 0
        placed = None if like is None else _layout(like)
        for covered in self._shown(kernel):
            addresses = {i: s.address for i, s in covered.sections.items() if s.size}
            if placed is not None and covered.view is not None:
                addresses = _as_in(covered, placed, str(like))
            base = min(addresses.values())
            end = max(addresses[i] + covered.sections[i].size for i in addresses)
            if end - base >= _MOST_OF_A_MODULE:
                raise NotCovered(covered.name, "its sections lie more than 4 GiB apart")
            rows.append(
                f"{len(rows):3d}, {base:#018x}, {end:#018x}, {0:#018x}, {0:#010x}, {0:#010x}, "
                f"{covered.path}"
            )
            for block in covered.blocks:
                at, left = addresses[block.section] + block.offset - base, block.size
                while left > 0:
                    size = min(left, _MOST_OF_A_BLOCK)
                    blocks += struct.pack("<IHH", at, size, len(rows) - 1)
                    at, left, number = at + size, left - size, number + 1
        head = [
            "DRCOV VERSION: 2",
            "DRCOV FLAVOR: drcov",
            f"Module Table: version 2, count {len(rows)}",
            "Columns: id, base, end, entry, checksum, timestamp, path",
            *rows,
            f"BB Table: {number} bbs",
        ]
        write_file(path, "".join(f"{line}\n" for line in head).encode() + bytes(blocks))
        return number

    def _shown(self, kernel: bool = True) -> list[Covered]:
        return [c for c in self.covered.values() if c.executed and (kernel or c.view is not None)]

    def lcov(self, path: str | Path, **where: Any) -> Lined:
        """Write the lines of source that were executed, as lcov's `.info`.

        A line counts as often as the one of its instructions that was executed most.

        Parameters
        ----------
        where
            Where debugging information may be, as for `loader.lines.Lines.of_module`.

        Raises
        ------
        NotCovered
            Nothing that was executed has debugging information.
        """
        missing: dict[str, str] = {}
        files: dict[str, dict[int, int]] = defaultdict(dict)
        functions: dict[str, dict[tuple[int, str], int]] = defaultdict(dict)
        for covered in self._shown():
            if covered.view is None:
                missing[covered.name] = "lines of the kernel itself are not looked for"
                continue
            addresses = {index: s.address for index, s in covered.sections.items()}
            try:
                lines = Lines.of_module(covered.view, addresses, **where)
                _count_lines(covered, lines, files, functions)
            except ExecmemError as error:
                missing[covered.name] = str(error)
        if not files:
            why = "; ".join(missing.values()) or "nothing was executed"
            raise NotCovered(", ".join(missing) or "nothing", why, "build it with -g")
        write_file(path, "".join(_info(files, functions)).encode("utf-8", "surrogateescape"))
        return Lined(sum(map(len, files.values())), missing)

    def document(self) -> dict[str, Any]:
        """Return everything as plain data, for JSON."""
        return {
            "modules": [
                {
                    "name": covered.name,
                    "path": covered.path,
                    "sha256": covered.digest,
                    "sections": [
                        {
                            "index": index,
                            "name": s.name,
                            "address": f"{s.address:#x}",
                            "size": s.size,
                        }
                        for index, s in covered.code
                    ],
                    "functions": [
                        {
                            "name": part.name,
                            "section": part.section,
                            "offset": part.offset,
                            "size": part.size,
                            "begun": part.begun,
                            "blocks": part.blocks,
                            "executed": part.executed,
                        }
                        for part in covered.functions
                    ],
                    "blocks": [
                        {
                            "section": block.section,
                            "offset": block.offset,
                            "size": block.size,
                            "instructions": block.instructions,
                            "count": block.count,
                        }
                        for block in covered.blocks
                    ],
                }
                for covered in self._shown()
            ],
            "edges": [
                {
                    "from": {"module": owner, "section": place[0], "offset": place[1]},
                    "to": {"module": target, "section": there[0], "offset": there[1]},
                    "count": times,
                }
                for (owner, place, target, there), times in sorted(self.edges.items())
            ],
            "elsewhere": self.elsewhere,
        }

    def json(self, path: str | Path) -> None:
        """Write everything as JSON."""
        write_file(path, json.dumps(self.document(), indent=1).encode() + b"\n")


def _layout(path: str | Path) -> dict[str, int]:
    """Return the addresses of an ELF file's sections by name; NotCovered where it has none."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        file = ELFFile(io.BytesIO(Path(path).read_bytes()))
        found = {s.name: s["sh_addr"] for s in file.iter_sections() if s["sh_flags"] & 2}
    except (ELFError, OSError) as error:
        raise NotCovered(str(path), str(error)) from None
    if not any(found.values()):
        hint = "give what execmem export --elf wrote"
        raise NotCovered(str(path), "its sections have no addresses", hint)
    return found


def _as_in(covered: Covered, placed: Mapping[str, int], like: str) -> dict[int, int]:
    """Return where a file has a module's sections, by index; NotCovered where one is missing."""
    sections = {index: s for index, s in covered.sections.items() if s.size}
    missing = [s.name for index, s in covered.code if s.size and s.name not in placed]
    if missing:
        raise NotCovered(covered.name, f"{like} has no section {missing[0]}")
    return {index: placed[s.name] for index, s in sections.items() if s.name in placed}


def _count_lines(
    covered: Covered,
    lines: Lines,
    files: dict[str, dict[int, int]],
    functions: dict[str, dict[tuple[int, str], int]],
) -> None:
    """Count lines of code sections: those that were executed, and those that were not."""
    times = {covered.address(place): count for place, (_, count) in covered.executed.items()}
    starts = sorted(times)
    for _, section in covered.code:
        first, last = section.address, section.address + section.size
        for span in lines.spans(first, last):
            if not span.line.line:
                continue
            counts = files[span.line.file]
            most = counts.get(span.line.line, 0)
            at = bisect_right(starts, span.start - 1)
            while at < len(starts) and starts[at] < span.end:
                most = max(most, times[starts[at]])
                at += 1
            counts[span.line.line] = most
    for start, _, name, line in lines.functions():
        if line.line and covered.place(start) is not None:
            key = line.line, name
            found = functions[line.file]
            found[key] = found.get(key, 0) + times.get(start, 0)


def _info(
    files: Mapping[str, Mapping[int, int]],
    functions: Mapping[str, Mapping[tuple[int, str], int]],
) -> Iterator[str]:
    for file in sorted(files):
        counts, named = files[file], functions.get(file, {})
        yield f"TN:\nSF:{file}\n"
        for line, name in sorted(named):
            yield f"FN:{line},{name}\n"
        for (_, name), times in sorted(named.items()):
            yield f"FNDA:{times},{name}\n"
        yield f"FNF:{len(named)}\nFNH:{sum(bool(times) for times in named.values())}\n"
        for line in sorted(counts):
            yield f"DA:{line},{counts[line]}\n"
        yield f"LF:{len(counts)}\nLH:{sum(bool(times) for times in counts.values())}\n"
        yield "end_of_record\n"
