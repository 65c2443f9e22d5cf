# SPDX-License-Identifier: GPL-2.0-or-later
"""Which line of source an address was made of, and which functions were inlined there.

DWARF 2 to 5, read by pyelftools, unit by unit as they are asked for: a kernel has thousands. What
the line program says is taken as it is: a row holds until the next one, line 0 is code of no line,
and of several rows at an address the last counts. Names of files are those that the compiler was
given, with its folder in front; `..` in them stays, because folders may be links.

    >>> Lines.of_file(b"")
    Traceback (most recent call last):
      ...
    loader.debugfile.NoDebug: <bytes>: debugging information: Magic number does not match
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, wraps
from pathlib import Path
from posixpath import join
from typing import Any, ParamSpec, TypeVar

import attrs

from loader.debugfile import NoDebug, find, relocated
from loader.elfview import ElfView
from loader.errors import LoadError
from loader.loaded import LoadedModule

P = ParamSpec("P")
R = TypeVar("R")
DEPTH = 64  # blocks in blocks, and names that refer to names
_SUBPROGRAM, _INLINED = "DW_TAG_subprogram", "DW_TAG_inlined_subroutine"
_SCOPES = {"DW_TAG_namespace", "DW_TAG_module"}
_BLOCKS = {"DW_TAG_lexical_block", "DW_TAG_try_block", "DW_TAG_catch_block"}


@attrs.frozen
class Line:
    """A line of source; `str()` is `file:line`.

    Parameters
    ----------
    file
        As the compiler was given it, with its folder in front where that is known.
    line, column
        From 1; 0: none.
    function
        In which it stands; empty where nothing says that.
    folder
        The folder that the compiler ran in; empty: not known.
    """

    file: str
    line: int
    column: int = 0
    function: str = ""
    folder: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line or '?'}"

    @property
    def short(self) -> str:
        """The file without the folder that the compiler ran in, and the line."""
        inside = self.folder and self.file.startswith(f"{self.folder}/")
        file = self.file[len(self.folder) + 1 :] if inside else self.file
        return f"{file}:{self.line or '?'}"


@attrs.frozen
class Span:
    """Addresses of one line: from `start` to before `end`."""

    start: int
    end: int
    line: Line


def told(lines: Sequence[Line]) -> str:
    """Return what `Lines.at` says in a sentence: `a.h:3 (twice), inlined in a.c:17 (use)`."""
    return ", inlined in ".join(
        f"{line.short} ({line.function})" if line.function else line.short for line in lines
    )


def _said(function: Callable[P, R]) -> Callable[P, R]:
    """Let what pyelftools raises of damaged DWARF be a NoDebug of `self`."""

    @wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except NoDebug:
            raise
        # pyelftools promises none: of damaged DWARF come its own errors, those of construct,
        # KeyError, IndexError, AttributeError, RecursionError, by where the damage is.
        except Exception as error:  # noqa: BLE001
            lines = args[0]
            assert isinstance(lines, Lines)
            raise NoDebug(lines.name, f"DWARF is damaged: {_reason(error)}") from None

    return guarded


def _reason(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


class Lines:
    """The lines of a module or kernel, by address; made by `of_module` or `of_file`.

    Parameters
    ----------
    name
        The file that has the DWARF.
    dwarf
        As pyelftools has it.
    bias
        Bytes from the addresses in it to those that are asked for.
    """

    def __init__(self, name: str, dwarf: Any, bias: int = 0) -> None:
        self.name, self.bias = name, bias
        self._dwarf = dwarf
        self._rows: dict[int, tuple[list[int], list[Span]]] = {}
        self._functions: dict[int, tuple[list[tuple[int, int]], list[Any]]] = {}

    @classmethod
    def of_module(
        cls,
        view: ElfView,
        addresses: Mapping[int, int],
        *,
        debug: str | Path | None = None,
        beside: str | Path | None = None,
        folders: Iterable[Path] | None = None,
    ) -> Lines:
        """Return the lines of a module whose sections lie at addresses; see `debugfile.find`.

        Parameters
        ----------
        addresses
            Of sections by index; others have no lines.
        debug, beside, folders
            Where its DWARF may be.

        Raises
        ------
        NoDebug
            There is none, it is damaged, or its relocations cannot be applied.
        """
        found = find(view, given=debug, beside=beside, folders=folders)
        try:
            data = relocated(found, view, addresses)
        except LoadError as error:
            raise NoDebug(view.name, f"debugging information: {error}") from None
        return cls.of_file(data, found.name)

    @classmethod
    def of_loaded(cls, module: LoadedModule, **where: Any) -> Lines:
        """Return the lines of a loaded module; parameters and errors as `of_module`."""
        addresses = {index: section.address for index, section in module.sections.items()}
        return cls.of_module(module.view, addresses, **where)

    @classmethod
    def of_file(cls, data: bytes, name: str = "<bytes>", *, bias: int = 0) -> Lines:
        """Return the lines of a linked file, such as a kernel's vmlinux; NoDebug as `of_module`."""
        from elftools.elf.elffile import ELFFile

        try:
            file = ELFFile(io.BytesIO(data))
            dwarf = file.get_dwarf_info(relocate_dwarf_sections=False)
            there = file.has_dwarf_info(strict=True) and dwarf.debug_line_sec is not None
        except Exception as error:  # noqa: BLE001 -- as in `_said`
            raise NoDebug(name, f"debugging information: {_reason(error)}") from None
        if not there:
            raise NoDebug(name, "no debugging information (.debug_info, .debug_line)")
        return cls(name, dwarf, bias)

    # Lines -------------------------------------------------------------------------------------

    @_said
    def at(self, address: int) -> tuple[Line, ...]:
        """Return the line of an address, and below it who called what is inlined there.

        The innermost comes first, and the last one's function is that which the symbol table has;
        empty where nothing is known.
        """
        address -= self.bias
        unit = self._unit(address)
        span = None if unit is None else self._span(unit, address)
        if unit is None or span is None:
            return ()
        chain = self._chain(unit, address)
        if not chain:
            return (span.line,)
        found = []
        line = span.line
        for die in reversed(chain):
            found.append(attrs.evolve(line, function=self._name(die)))
            if die.tag == _INLINED:
                line = self._call(unit, die, span.line.folder)
        return tuple(found)

    @_said
    def spans(self, start: int, end: int) -> tuple[Span, ...]:
        """Return what is known of the addresses from `start` to before `end`, in order."""
        start, end = start - self.bias, end - self.bias
        found = []
        for unit_start, unit_end, unit in self._units:
            if unit_start < end and start < unit_end:
                keys, spans = self._program(unit)
                at = max(bisect_right(keys, start) - 1, 0)
                for span in spans[at:]:
                    if span.start >= end:
                        break
                    if span.end > start:
                        found.append(span)
        return tuple(self._moved(span) for span in sorted(set(found), key=lambda s: s.start))

    @_said
    def all(self) -> tuple[Span, ...]:
        """Return every span that the file has, by address."""
        found = {span for _, _, unit in self._units for span in self._program(unit)[1]}
        return tuple(self._moved(span) for span in sorted(found, key=lambda s: (s.start, s.end)))

    @_said
    def functions(self) -> tuple[tuple[int, int, str, Line], ...]:
        """Return start, end, name and line of every function that is there, inlined ones not."""
        found = []
        for _, _, unit in self._units:
            for (start, end), die in zip(*self._subprograms(unit), strict=True):
                line = self._declared(unit, die)
                found.append((start + self.bias, end + self.bias, self._name(die), line))
        return tuple(sorted(set(found), key=lambda each: each[:2]))

    def _moved(self, span: Span) -> Span:
        if not self.bias:
            return span
        return Span(span.start + self.bias, span.end + self.bias, span.line)

    # Units -------------------------------------------------------------------------------------

    @cached_property
    def _units(self) -> list[tuple[int, int, Any]]:
        """Every unit with code, once for each of its ranges, by address."""
        found = []
        for unit in self._dwarf.iter_CUs():
            top = unit.get_top_DIE()
            if "DW_AT_stmt_list" not in top.attributes:
                continue
            ranges = list(self._ranges(unit, top))
            if not ranges:  # as of some link-time optimisation: its rows say where it is
                ranges = [(span.start, span.end) for span in self._program(unit)[1]]
            found += [(start, end, unit) for start, end in ranges if start < end]
        return sorted(found, key=lambda each: each[:2])

    @cached_property
    def _starts(self) -> list[int]:
        return [start for start, _, _ in self._units]

    @cached_property
    def _index(self) -> Any:
        """What the compiler wrote about where units are, which spares asking each; or None.

        Clang writes none, and assemblers not always.
        """
        found = self._dwarf.get_aranges()
        return found if found is not None and found.keys else None

    def _unit(self, address: int) -> Any:
        offset = None if self._index is None else self._index.cu_offset_at_addr(address)
        if offset is not None:
            unit = self._dwarf.get_CU_at(offset)
            if any(a <= address < b for a, b in self._ranges(unit, unit.get_top_DIE())):
                return unit
        at = bisect_right(self._starts, address) - 1
        # Ranges of units do not overlap but for sections at one address, which are empty.
        while at >= 0:
            start, end, unit = self._units[at]
            if start <= address < end:
                return unit
            if start < address and end <= address:
                return None
            at -= 1
        return None

    def _ranges(self, unit: Any, die: Any) -> Iterator[tuple[int, int]]:
        """Yield where a unit, function or block is."""
        low, high = (die.attributes.get(f"DW_AT_{name}_pc") for name in ("low", "high"))
        if low is not None and high is not None:
            absolute = high.form.startswith("DW_FORM_addr")
            yield low.value, high.value if absolute else low.value + high.value
        ranges = die.attributes.get("DW_AT_ranges")
        if ranges is None:
            return
        from elftools.dwarf.ranges import BaseAddressEntry

        base = unit.get_top_DIE().attributes.get("DW_AT_low_pc")
        start = 0 if base is None else base.value
        lists = self._dwarf.range_lists()
        for entry in lists.get_range_list_at_offset(ranges.value, unit):
            if isinstance(entry, BaseAddressEntry):
                start = entry.base_address
            else:
                add = 0 if entry.is_absolute else start
                yield entry.begin_offset + add, entry.end_offset + add

    # Rows --------------------------------------------------------------------------------------

    def _span(self, unit: Any, address: int) -> Span | None:
        keys, spans = self._program(unit)
        at = bisect_right(keys, address) - 1
        return spans[at] if at >= 0 and address < spans[at].end else None

    def _program(self, unit: Any) -> tuple[list[int], list[Span]]:
        """Return the spans of a unit's line program by their starts; empty ones are left out."""
        kept = self._rows.get(unit.cu_offset)
        if kept is not None:
            return kept
        program = self._dwarf.line_program_for_CU(unit)
        files: dict[int, str] = {}
        folder = _folder(unit)
        found: list[Span] = []
        last = None
        for entry in () if program is None else program.get_entries():
            state = entry.state
            if state is None:
                continue
            if last is not None and last.address < state.address:
                if last.file not in files:
                    files[last.file] = _file(program.header, last.file, folder)
                line = Line(files[last.file], last.line, last.column, folder=folder)
                found.append(Span(last.address, state.address, line))
            last = None if state.end_sequence else state
        found.sort(key=lambda span: span.start)
        self._rows[unit.cu_offset] = [span.start for span in found], found
        return self._rows[unit.cu_offset]

    # Functions ---------------------------------------------------------------------------------

    def _subprograms(self, unit: Any) -> tuple[list[tuple[int, int]], list[Any]]:
        """Return the functions of a unit by address, once for each of their ranges."""
        kept = self._functions.get(unit.cu_offset)
        if kept is None:
            found = []
            todo = [(unit.get_top_DIE(), 0)]
            while todo:
                die, depth = todo.pop()
                for child in _children(unit, die):
                    if child.tag == _SUBPROGRAM:
                        found += [(r, child) for r in self._ranges(unit, child) if r[0] < r[1]]
                    elif child.tag in _SCOPES and depth < DEPTH:
                        todo.append((child, depth + 1))
            found.sort(key=lambda each: each[0])
            kept = [each for each, _ in found], [die for _, die in found]
            self._functions[unit.cu_offset] = kept
        return kept

    def _chain(self, unit: Any, address: int) -> list[Any]:
        """Return the function around an address, and what is inlined there, outermost first."""
        ranges, dies = self._subprograms(unit)
        at = bisect_right(ranges, (address, 1 << 64)) - 1
        if at < 0 or not ranges[at][0] <= address < ranges[at][1]:
            return []
        chain = [dies[at]]
        die = chain[0]
        for _ in range(DEPTH):
            inner = self._inner(unit, die, address)
            if inner is None:
                break
            die = inner
            if die.tag == _INLINED:
                chain.append(die)
        return chain

    def _inner(self, unit: Any, die: Any, address: int, depth: int = 0) -> Any:
        """Return the block or inlined function in another that has an address; None: none."""
        for child in _children(unit, die):
            if child.tag == _INLINED or child.tag in _BLOCKS:
                ranges = list(self._ranges(unit, child))
                if any(start <= address < end for start, end in ranges):
                    return child
                if not ranges and depth < DEPTH:  # a block that says not where it is
                    found = self._inner(unit, child, address, depth + 1)
                    if found is not None:
                        return found
        return None

    def _name(self, die: Any) -> str:
        for _ in range(DEPTH):
            name = die.attributes.get("DW_AT_name")
            if name is not None:
                return str(name.value.decode("utf-8", "backslashreplace"))
            origin = next(
                (
                    a
                    for a in ("DW_AT_abstract_origin", "DW_AT_specification")
                    if a in die.attributes
                ),
                None,
            )
            if origin is None:
                break
            die = die.get_DIE_from_attribute(origin)
        return ""

    def _call(self, unit: Any, die: Any, folder: str) -> Line:
        """Return where an inlined function is called."""
        return self._line(unit, die, "call", folder)

    def _declared(self, unit: Any, die: Any) -> Line:
        for _ in range(DEPTH):
            if "DW_AT_decl_line" in die.attributes or "DW_AT_abstract_origin" not in die.attributes:
                break
            die = die.get_DIE_from_attribute("DW_AT_abstract_origin")
        return self._line(die.cu, die, "decl", _folder(unit))

    def _line(self, unit: Any, die: Any, kind: str, folder: str) -> Line:
        number, line, column = (
            attribute.value
            if (attribute := die.attributes.get(f"DW_AT_{kind}_{what}")) is not None
            else 0
            for what in ("file", "line", "column")
        )
        program = self._dwarf.line_program_for_CU(unit)
        file = "" if program is None else _file(program.header, number, folder)
        return Line(file, line, column, folder=folder)


def _children(unit: Any, die: Any) -> Iterator[Any]:
    """Yield what stands right below an entry; each behind the one before, or it is damaged.

    pyelftools would follow siblings in a circle.
    """
    at = die.offset + die.size
    while die.has_children:
        child = unit.get_DIE_from_refaddr(at)
        if child.is_null():
            return
        yield child
        at = _behind(unit, child)


def _behind(unit: Any, die: Any) -> int:
    """Return where the entry behind another and all that is below it begins."""
    at = int(die.offset + die.size)
    if not die.has_children:
        return at
    sibling = die.attributes.get("DW_AT_sibling")
    if sibling is not None:
        base = 0 if sibling.form == "DW_FORM_ref_addr" else unit.cu_offset
        if sibling.value + base < at:
            raise ValueError("an entry's sibling stands before it")
        return int(sibling.value + base)
    depth = 1
    while depth:
        below = unit.get_DIE_from_refaddr(at)
        if below.is_null():
            depth -= 1
        elif below.has_children:
            depth += 1
        at += below.size
    return at


def _folder(unit: Any) -> str:
    folder = unit.get_top_DIE().attributes.get("DW_AT_comp_dir")
    return "" if folder is None else folder.value.decode("utf-8", "surrogateescape")


def _file(header: Any, number: int, folder: str) -> str:
    """Return a file of a line program by its number: from 0 since DWARF 5, from 1 before."""
    newer = header.version >= 5
    number -= not newer
    if not 0 <= number < len(header.file_entry):
        return "?"
    entry = header.file_entry[number]
    inside = entry.dir_index - (not newer)
    folders = header.include_directory
    where = folders[inside] if 0 <= inside < len(folders) else b""
    parts = [each.decode("utf-8", "surrogateescape") for each in (where, entry.name)]
    path = join(folder, *parts)
    return "/".join(
        part for n, part in enumerate(path.split("/")) if part not in (".", "") or not n
    )
