# SPDX-License-Identifier: GPL-2.0-or-later
"""The pure middle: an ELF image, an address per section and per symbol -> the final bytes.

Neither allocator nor emulator is needed. All sections lie in one buffer, all relocations
of the module in one set of arrays; every failure is collected before anything is raised.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs
import numpy as np
from numpy.typing import NDArray

from archs import Arch, Checks
from archs.reloc import Failure, Op, Problem, Records, Reloc, apply, compute
from loader.elf import SHN_ABS, SHN_UNDEF, STT_FUNC, ElfView, RelocationTable, parse
from loader.errors import BadModule, RelocationError, RelocationFailure, UnresolvedSymbols
from loader.layout import Layout, file_bytes, plan
from loader.stubs import PltUse, redirect

MATERIALISED = 1000  # failures turned into objects; the error counts the rest
_GAP = 16  # bytes between sections in the buffer: room for the widest word past an end


@attrs.frozen(eq=False)
class Linked:
    """The result of a link.

    Parameters
    ----------
    sections
        Final bytes by section index, as views of one buffer.
    symbols
        Value of every symbol, by symbol index.
    counts
        Relocations applied, by type name, most frequent first.
    records
        The relocations as they were applied, for whoever asks how far they reach.
    plt
        Use of the PLT of core (False) and init (True) text.
    """

    sections: Mapping[int, memoryview]
    symbols: NDArray[np.uint64]
    counts: Mapping[str, int]
    records: Records
    plt: Mapping[bool, PltUse]


def link(
    image: bytes,
    addresses: Mapping[int, int],
    symbols: Mapping[str, int],
    *,
    arch: Arch | None = None,
    checks: str = "hardware",
    percpu: int | None = None,
) -> dict[int, bytes]:
    """Return the relocated bytes of every section that has an address.

    Parameters
    ----------
    image
        The ELF file's bytes.
    addresses
        Section index -> address, zero-size sections too.
    symbols
        Undefined name -> address.
    arch
        Refuse other architectures.
    checks
        "hardware": refuse what a field cannot hold; "kernel": the kernel's own checks.
    percpu
        Address of the per-cpu section, where the module has one.

    Raises
    ------
    LoadError
        With every unresolved name, or every relocation that fails.
    """
    view = parse(image, arch=arch)
    layout = plan(view)
    unknown = [name for name in view.undefined if name not in symbols]
    missing = tuple(name for name in unknown if name not in view.weak_undefined)
    if missing:
        hint = "give each an address in `symbols`"
        raise UnresolvedSymbols(view.name, missing, hint)
    linked = link_view(view, layout, addresses, symbols, checks=Checks(checks), percpu=percpu)
    return {index: bytes(contents) for index, contents in linked.sections.items()}


def link_view(
    view: ElfView,
    layout: Layout,
    addresses: Mapping[int, int],
    symbols: Mapping[str, int],
    *,
    checks: Checks = Checks.HARDWARE,
    percpu: int | None = None,
) -> Linked:
    """Return the linked sections of a parsed and planned module; see `link`."""
    offsets, image = _buffer(view, layout, addresses)
    values, defined = _symbol_values(view, addresses, symbols, percpu)
    tables = tuple(
        number
        for number, table in enumerate(view.tables)
        if table.target.index in offsets and table.records.size
    )
    records, starts, origin = _records(view, addresses, offsets, values, tables)
    failures = list(_misplaced(view, layout, records, origin, tables, defined))
    plt = {}
    if not failures:
        plt = redirect(view, layout, addresses, records, starts, tables)
        failures = list(
            apply(
                view.arch.relocations,
                image,
                records,
                checks=checks,
                clean_target=view.arch.clean_target,
            )
        )
    if failures:
        raise _explain(view, layout, records, origin, tables, failures)
    for use in plt.values():
        at = offsets[use.section]
        image[at : at + len(use.image)] = np.frombuffer(use.image, np.uint8)
    memory = image.data
    sections = {
        index: memory[at : at + layout.size_of(view.sections[index])]
        for index, at in offsets.items()
    }
    return Linked(sections, values, _counts(view, records), records, plt)


@attrs.frozen
class Extent:
    """How far the relocations of one type reach in a linked module.

    Parameters
    ----------
    row
        The type.
    count
        Relocations of the type.
    lo, hi
        Least and greatest X, in bytes, as signed numbers.
    """

    row: Reloc
    count: int
    lo: int
    hi: int

    @property
    def share(self) -> float:
        """Part of the type's reach that is used, 0..1; 0 where every value fits."""
        reach = self.row.reach
        if reach is None or self.row.op not in (Op.PC, Op.PAGE):
            return 0.0
        return max(self.lo / reach.lo if self.lo < 0 else 0, self.hi / (reach.hi - 1))


def extents(arch: Arch, records: Records) -> tuple[Extent, ...]:
    """Return the extent of every type that computes X from S, A and P, most frequent first."""
    found = []
    for number in np.unique(records.type).tolist():
        row = arch.relocations[number]
        if row.op not in (Op.ABS, Op.PC, Op.PAGE):
            continue
        index = np.flatnonzero(records.type == number)
        x = compute(row, records, index).view(np.int64)
        found.append(Extent(row, index.size, int(x.min()), int(x.max())))
    return tuple(sorted(found, key=lambda extent: -extent.count))


def _buffer(
    view: ElfView, layout: Layout, addresses: Mapping[int, int]
) -> tuple[dict[int, int], NDArray[np.uint8]]:
    """Return where each section lies in one buffer, and the buffer with the file's bytes."""
    offsets: dict[int, int] = {}
    size = 0
    for index in sorted(addresses):
        if not 0 < index < len(view.sections):
            raise BadModule(view.name, "addresses", f"there is no section {index}")
        offsets[index] = size
        size += (layout.size_of(view.sections[index]) + 2 * _GAP - 1) & -_GAP
    image = np.zeros(size + _GAP, np.uint8)
    memory = image.data
    for index, at in offsets.items():
        contents = file_bytes(view, view.sections[index])
        memory[at : at + len(contents)] = contents
    return offsets, image


def _symbol_values(
    view: ElfView,
    addresses: Mapping[int, int],
    symbols: Mapping[str, int],
    percpu: int | None,
) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Return S of every symbol, and which of them have one (kernel: simplify_symbols)."""
    bases = np.zeros(len(view.sections), np.uint64)
    known = np.zeros(len(view.sections), np.bool_)
    for index, address in addresses.items():
        bases[index], known[index] = address, True
    for section in view.sections:
        if section.name == ".data..percpu" and percpu is not None:
            bases[section.index], known[section.index] = percpu, True
    shndx = view.symbols["shndx"]
    inside = shndx < len(view.sections)
    where = np.where(inside, shndx, 0)
    values = view.symbols["value"] + bases[where]
    defined = known[where] | (shndx == SHN_ABS)
    defined[shndx == SHN_UNDEF] = False
    defined[0] = True
    values[shndx == SHN_ABS] = view.symbols["value"][shndx == SHN_ABS]
    for index in np.flatnonzero(shndx == SHN_UNDEF)[1:].tolist():
        name = view.symbol_name(index)
        address_of = symbols.get(name)
        weak = name in view.weak_undefined
        values[index] = (address_of or 0) & 0xFFFF_FFFF_FFFF_FFFF
        defined[index] = address_of is not None or weak
    return values, defined


def _records(
    view: ElfView,
    addresses: Mapping[int, int],
    offsets: Mapping[int, int],
    values: NDArray[np.uint64],
    tables: tuple[int, ...],
) -> tuple[Records, NDArray[np.intp], NDArray[np.void]]:
    """Return all relocations as arrays, the first of each table, and the file's records."""
    chosen = [view.tables[number] for number in tables]
    sizes = np.array([table.records.size for table in chosen], np.intp)
    starts = np.concatenate((np.zeros(1, np.intp), np.cumsum(sizes)))[: sizes.size]
    if not chosen:
        nothing = np.empty(0, np.uint64)
        none = np.empty(0, np.intp)
        kinds, groups = np.empty(0, np.uint32), np.empty(0, np.int32)
        records = Records(none, nothing, nothing, nothing, kinds, groups)
        return records, none, np.empty(0, view.symbols.dtype)
    origin = np.concatenate([table.records for table in chosen])
    base = np.array([addresses[table.target.index] for table in chosen], np.uint64)
    at = np.array([offsets[table.target.index] for table in chosen], np.intp)
    offset = origin["offset"]
    return (
        Records(
            offset=offset.astype(np.intp) + np.repeat(at, sizes),
            place=offset + np.repeat(base, sizes),
            value=values[origin["symbol"]],
            addend=origin["addend"].copy(),
            type=origin["type"].copy(),
            group=np.repeat(np.arange(len(chosen), dtype=np.int32), sizes),
        ),
        starts,
        origin,
    )


def _misplaced(
    view: ElfView,
    layout: Layout,
    records: Records,
    origin: NDArray[np.void],
    tables: tuple[int, ...],
    defined: NDArray[np.bool_],
) -> Iterable[Failure]:
    """Yield records whose place is outside its section or whose symbol has no value."""
    if not origin.size:
        return
    limits = np.array([layout.size_of(view.tables[number].target) for number in tables], np.uint64)
    room = limits[records.group]
    rows = view.arch.relocations
    widths = np.zeros(max(rows) + 2, np.uint64)
    for number, row in rows.items():
        widths[number] = row.size
    width = widths[np.minimum(records.type, max(rows) + 1)]
    outside = np.flatnonzero((origin["offset"] > room) | (width > room - origin["offset"]))
    nothing = np.zeros(outside.size, np.uint64)
    if outside.size:
        yield Failure(Problem.OUTSIDE, None, outside, nothing)
    # A record without a word (R_*_NONE, R_RISCV_RELAX) may name anything.
    homeless = np.flatnonzero(~defined[origin["symbol"]] & (width > 0))
    if homeless.size:
        yield Failure(Problem.HOMELESS, None, homeless, np.zeros(homeless.size, np.uint64))


def _counts(view: ElfView, records: Records) -> dict[str, int]:
    """Return how often each relocation type occurs, most frequent first."""
    if not records.type.size:
        return {}
    counts = np.bincount(records.type)
    numbers = np.flatnonzero(counts)
    by_name = {view.arch.relocations[int(n)].name: int(counts[n]) for n in numbers}
    return dict(sorted(by_name.items(), key=lambda item: (-item[1], item[0])))


def _explain(
    view: ElfView,
    layout: Layout,
    records: Records,
    origin: NDArray[np.void],
    tables: tuple[int, ...],
    failures: list[Failure],
) -> RelocationError:
    """Turn failing records into an error that says everything about each."""
    total = sum(failure.index.size for failure in failures)
    explained: list[RelocationFailure] = []
    functions = _Functions(view)
    for failure in failures:
        for index, x in zip(failure.index.tolist(), failure.x.tolist(), strict=True):
            if len(explained) >= MATERIALISED:
                break
            table = view.tables[tables[int(records.group[index])]]
            number, symbol = int(origin["type"][index]), int(origin["symbol"][index])
            row = view.arch.relocations.get(number)
            reach = row.reach if row and failure.problem in (Problem.RANGE, Problem.ALIGN) else None
            offset = int(origin["offset"][index])
            mask = (1 << 64) - 1
            explained.append(
                RelocationFailure(
                    section=table.target.name,
                    offset=offset,
                    reloc=row.name if row else f"type {number}",
                    symbol=view.symbol_name(symbol),
                    containing=functions.at(table, offset),
                    reason=_reason(failure, row.unsupported if row else ""),
                    place=int(records.place[index]),
                    target=(int(records.value[index]) + int(records.addend[index])) & mask,
                    value=x - (1 << 64) if x >> 63 else x,
                    reach=reach,
                    hint=_hint(view, layout, failure),
                )
            )
    explained.sort(key=lambda f: f.place)
    return RelocationError(view.name, tuple(explained), total)


def _reason(failure: Failure, unsupported: str) -> str:
    if failure.problem is Problem.ALIGN and failure.row and failure.row.reach:
        return f"is no multiple of {failure.row.reach.align}"
    return f"{failure.problem.value} ({unsupported})" if unsupported else failure.problem.value


def _hint(view: ElfView, layout: Layout, failure: Failure) -> str:
    """Name what would help."""
    if failure.problem is not Problem.RANGE or failure.row is None:
        return ""
    if failure.row.stub is not None:
        slots = sum(p.slots for p in layout.plt.values())
        if slots:
            return f"no PLT entry left or near enough ({slots} reserved); load closer to the kernel"
        return "the module has no .plt section for branches that do not reach; load it closer"
    return f"load it closer: {view.arch.title} code model {view.arch.code_model}"


class _Functions:
    """Which function contains an offset of a section; built when the first error is explained."""

    def __init__(self, view: ElfView) -> None:
        self._view = view
        chosen = np.flatnonzero((view.symbols["info"] & 0xF) == STT_FUNC)
        keys = view.symbols[chosen]
        self._order = chosen[np.lexsort((keys["value"], keys["shndx"]))]

    def at(self, table: RelocationTable, offset: int) -> str:
        """Return `name+0xoff`, or nothing outside every function."""
        symbols = self._view.symbols[self._order]
        mine = self._order[symbols["shndx"] == table.target.index]
        starts = self._view.symbols["value"][mine]
        nearest = int(np.searchsorted(starts, np.uint64(offset), side="right")) - 1
        if nearest < 0:
            return ""
        symbol = int(mine[nearest])
        inside = offset - int(self._view.symbols["value"][symbol])
        if inside >= max(int(self._view.symbols["size"][symbol]), 1):
            return ""
        return f"{self._view.symbol_name(symbol)}+{inside:#x}"
