# SPDX-License-Identifier: GPL-2.0-or-later
"""The pure middle: an ELF image, an address per section and per symbol -> the final bytes.

Neither allocator nor emulator is needed. All sections lie in one buffer, all relocations
of the module in one set of arrays; every failure is collected before anything is raised.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import attrs
import numpy as np
from numpy.typing import NDArray

from archs import Arch, Checks
from archs.engine import (
    Failure,
    Problem,
    Records,
    apply,
    by_number,
    compute,
    having,
    numbers_in,
)
from archs.op import OpKind
from archs.reloc import Reloc
from loader.elf import parse
from loader.elfview import SHT_NOBITS, STT_FUNC, ElfView, RelocationTable
from loader.errors import BadModule, RelocationError, RelocationFailure, UnresolvedSymbols
from loader.finalize import Environment, finalise
from loader.layout import Layout, empty_sections, plan, with_stub_sections
from loader.linked import Linked
from loader.stubs import Stubs, redirect, reserved
from loader.work import SymbolValues, Work

MATERIALISED = 1000  # failures turned into objects; the error counts the rest
SMALL = 1 << 16  # bytes that cost less than a call for each gap between sections
_MEASURED = (OpKind.ADDRESS, OpKind.DISPLACEMENT, OpKind.REGION)
_GAP = 16  # bytes between sections in the buffer: room for the widest word past an end


def link(
    image: bytes,
    addresses: Mapping[int, int],
    symbols: Mapping[str, int],
    *,
    arch: Arch | None = None,
    checks: str = "hardware",
    percpu: int | None = None,
    errata: Iterable[str] = (),
    stubs: bool = False,
    environment: Environment | None = None,
) -> dict[int, bytes]:
    """Return the relocated bytes of every section that has an address.

    Parameters
    ----------
    image
        The ELF file's bytes.
    addresses
        Section index -> address, zero-size sections too.
    symbols
        Undefined name -> address (a livepatch's by their whole names, `.klp.sym.vmlinux.x,0`).
    arch
        Refuse other architectures.
    checks
        "hardware": refuse what a field cannot hold; "kernel": the kernel's own checks.
    percpu
        Address of the per-cpu section, where the module has one.
    errata
        CPU errata to work around, by number ("843419").
    stubs
        Add the PLT and GOT sections that the architecture knows, where the object has none;
        their indices follow the object's own (see `loader.layout.with_stub_sections`).
    environment
        Finalise too, as a kernel does that was booted so.

    Raises
    ------
    LoadError
        With every unresolved name, or every relocation that fails.
    """
    view = parse(image, arch=arch)
    if stubs:
        view = with_stub_sections(view)
    errata = tuple(errata)
    layout = plan(view, errata=errata)
    wanted = (*view.undefined, *view.livepatch_symbols(view.tables))
    unknown = [name for name in wanted if name not in symbols]
    missing = tuple(name for name in unknown if name not in view.weak_undefined)
    if missing:
        hint = "give each an address in `symbols`"
        raise UnresolvedSymbols(view.name, missing, hint)
    linked = link_view(
        view, layout, addresses, symbols, checks=Checks(checks), percpu=percpu, errata=errata
    )
    if environment is not None:
        finalise(view, layout, addresses, linked, environment)
    return {index: bytes(contents) for index, contents in linked.sections.items()}


def link_view(
    view: ElfView,
    layout: Layout,
    addresses: Mapping[int, int],
    symbols: Mapping[str, int],
    *,
    checks: Checks = Checks.HARDWARE,
    percpu: int | None = None,
    errata: Iterable[str] = (),
) -> Linked:
    """Return the linked sections of a parsed and planned module; see `link`."""
    offsets, image = _buffer(view, layout, addresses)
    values = SymbolValues.of_module(view, addresses, symbols, percpu)
    work = Work.of_module(view, layout, addresses, offsets, values)
    errata = [number for number in errata if number in view.arch.errata]
    if not errata and _link_plainly(layout, work, image, checks):
        stubs = reserved(layout, addresses)
    else:
        del image  # some of it may be relocated
        _, image = _buffer(view, layout, addresses)
        stubs = _link_thoroughly(layout, addresses, work, image, checks, errata)
    _store_stubs(stubs, offsets, image)
    memory = image.data
    sections = {
        index: memory[at : at + layout.resized.get(index, view.sections[index].size)]
        for index, at in offsets.items()
    }
    return Linked(view.arch, sections, values, work, stubs, image, offsets)


def link_late(
    view: ElfView,
    layout: Layout,
    addresses: Mapping[int, int],
    linked: Linked,
    symbols: Mapping[str, int],
    *,
    objects: Iterable[str],
    checks: Checks = Checks.HARDWARE,
    errata: Iterable[str] = (),
) -> NDArray[np.uint8]:
    """Return a linked module's buffer with a livepatch's relocations for `objects` applied too.

    PLT entries and GOT slots are dealt out behind those that are used. Nothing that was given
    is changed; RelocationError as `link`.
    """
    chosen = tuple(table for table in view.late if table.object in set(objects))
    view = attrs.evolve(view, tables=chosen, joint=None)
    image, stubs = linked.image.copy(), copy.deepcopy(linked.stubs)
    stubs.patches.clear()
    values = SymbolValues.of_module(view, addresses, symbols, None)
    work = Work.of_module(view, layout, addresses, linked.offsets, values)
    if work.tables:
        errata = [number for number in errata if number in view.arch.errata]
        stubs = _link_thoroughly(layout, addresses, work, image, checks, errata, stubs)
        _store_stubs(stubs, linked.offsets, image)
    return image


def _store_stubs(stubs: Stubs, offsets: Mapping[int, int], image: NDArray[np.uint8]) -> None:
    for at, code in stubs.patches.items():
        image[at : at + len(code)] = np.frombuffer(code, np.uint8)
    for use in stubs.contents():
        at = offsets[use.section]
        image[at : at + len(use.image)] = np.frombuffer(use.image, np.uint8)


def _link_plainly(layout: Layout, work: Work, image: NDArray[np.uint8], checks: Checks) -> bool:
    """Apply every record as it is, piece by piece; return False at anything out of the ordinary.

    Branches that need PLT entries, GOT slots and errors are out of the ordinary. The kernel's
    checks let some branches pass that no PLT entry may be left out for.
    """
    arch = work.view.arch
    rows, through_got = arch.link.relocations, arch.link.relocations.through_got
    if checks is Checks.KERNEL and layout.plt:
        return False
    return all(
        piece.complete
        and not piece.outside(rows).size
        and through_got.isdisjoint(piece.numbers)
        and not apply(
            rows,
            image,
            piece.records,
            checks=checks,
            clean_target=arch.link.clean_target,
            numbers=piece.numbers,
        )
        for piece in work.pieces()
    )


def _link_thoroughly(
    layout: Layout,
    addresses: Mapping[int, int],
    work: Work,
    image: NDArray[np.uint8],
    checks: Checks,
    errata: Iterable[str],
    stubs: Stubs | None = None,
) -> Stubs:
    """Apply the records with everything that may stand between a place and its target.

    Raises
    ------
    RelocationError
        With every record that fails.
    """
    view, failures = work.view, list(_misplaced(work))
    if failures:
        raise _explain(view, layout, work, failures)
    stubs = redirect(layout, addresses, work, image, errata, stubs)
    failures = stubs.failures + _others(
        stubs.failures,
        apply(
            view.arch.link.relocations,
            image,
            work.records,
            checks=checks,
            clean_target=view.arch.link.clean_target,
            numbers=work.whole.numbers,
        ),
    )
    if failures:
        raise _explain(view, layout, work, failures)
    return stubs


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
        if reach is None or not self.row.op.relative:
            return 0.0
        return max(self.lo / reach.lo if self.lo < 0 else 0, self.hi / (reach.hi - 1))


def extents(arch: Arch, records: Records) -> tuple[Extent, ...]:
    """Return the extent of every type whose X is an address or a distance, most frequent first."""
    found = []
    for number in numbers_in(records.type):
        row = arch.link.relocations[number]
        if row.op.kind not in _MEASURED:
            continue
        index = having(records.type, [number])
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
        width = layout.resized.get(index, view.sections[index].size)
        size += (width + 2 * _GAP - 1) & -_GAP
    size += _GAP
    # Pages of a large .bss that nobody touches cost nothing; few bytes are zeroed at once.
    sparse = size > 2 * len(view.data) or size < SMALL
    image = np.zeros(size, np.uint8) if sparse else np.empty(size, np.uint8)
    memory, source, end, empty = image.data, memoryview(view.data), 0, empty_sections(view)
    for index, at in offsets.items():
        section = view.sections[index]
        if section.type == SHT_NOBITS or section.name in empty or not section.size:
            continue
        if not sparse:
            memory[end:at] = bytes(at - end)
        end = at + section.size
        memory[at:end] = source[section.offset : section.offset + section.size]
    if not sparse:
        memory[end:] = bytes(size - end)
    return offsets, image


def _misplaced(work: Work) -> Iterable[Failure]:
    """Yield records whose place is outside its section or whose symbol has no value."""
    rows, whole = work.view.arch.link.relocations, work.whole
    outside = whole.outside(rows)
    if outside.size:
        yield Failure(Problem.OUTSIDE, None, outside, np.zeros(outside.size, np.uint64))
    if whole.complete:
        return
    homeless = np.flatnonzero(~work.values.all[1][whole.symbol])
    # A record without a word (R_*_NONE, R_RISCV_RELAX) may name anything.
    homeless = homeless[by_number(rows.widths, whole.records.type[homeless]) > 0]
    if homeless.size:
        yield Failure(Problem.HOMELESS, None, homeless, np.zeros(homeless.size, np.uint64))


def _others(known: list[Failure], failures: Iterable[Failure]) -> list[Failure]:
    """Return `failures` without the records that failed already, for want of a slot."""
    if not known:
        return list(failures)
    seen = np.concatenate([failure.index for failure in known])
    rest = []
    for failure in failures:
        new = ~np.isin(failure.index, seen)
        if new.any():
            rest.append(attrs.evolve(failure, index=failure.index[new], x=failure.x[new]))
    return rest


def _explain(
    view: ElfView,
    layout: Layout,
    work: Work,
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
            records = work.records
            number = int(np.searchsorted(work.starts, index, side="right")) - 1
            table = view.tables[work.tables[number]]
            number, symbol = int(records.type[index]), int(work.whole.symbol[index])
            row = view.arch.link.relocations.get(number)
            reach = row.reach if row and failure.problem in (Problem.RANGE, Problem.ALIGN) else None
            offset = int(work.whole.offset[index])
            explained.append(
                RelocationFailure(
                    section=table.target.name,
                    offset=offset,
                    reloc=view.arch.link.type_name(number),
                    symbol=view.symbol_name(symbol),
                    containing=functions.at(table, offset),
                    reason=_reason(failure, row),
                    place=int(records.place[index]),
                    target=int(records.target[index]),
                    value=x - (1 << 64) if x >> 63 else x,
                    reach=reach,
                    hint=_hint(view, layout, failure, row, table),
                )
            )
    explained.sort(key=lambda f: f.place)
    return RelocationError(view.name, tuple(explained), total)


def _reason(failure: Failure, row: Reloc | None) -> str:
    if failure.problem is Problem.ALIGN and failure.row and failure.row.reach:
        return f"is no multiple of {failure.row.reach.align}"
    if failure.problem is Problem.UNSUPPORTED and row is not None:
        why = row.unsupported or "the kernel's module loader does not know it"
        return f"{failure.problem.value} ({why})"
    return failure.problem.value


def _hint(
    view: ElfView, layout: Layout, failure: Failure, row: Reloc | None, table: RelocationTable
) -> str:
    """Name what would help."""
    if failure.problem is Problem.NO_GOT:
        return "--with-plt adds one (stub_sections=True); or build without -fPIC and -fPIE"
    if failure.problem is Problem.UNSUPPORTED and row is not None and "thread" in row.unsupported:
        return "build without __thread and _Thread_local; modules have per-cpu variables"
    if failure.problem is Problem.UNSUPPORTED and row is not None and row.got is not None:
        return "build without -fPIC and -fPIE"
    if failure.problem is not Problem.RANGE or failure.row is None:
        return ""
    if failure.row.stub is not None:
        slots = sum(p.slots for p in layout.plt.values())
        if slots:
            return f"no PLT entry left or near enough ({slots} reserved); load closer to the kernel"
        return "the module has no .plt section for branches that do not reach; load it closer"
    if (
        failure.row.op.kind is OpKind.ADDRESS
        and failure.row.number not in view.arch.link.code_model_absolute
    ):
        if table.target.executable:
            return f"wherever it is loaded: build it with {view.arch.link.code_model_option}"
        return "wherever it is loaded: addresses of the kernel need eight bytes"
    hint = f"load it closer: {view.arch.title} code model {view.arch.link.code_model}"
    if failure.row.unless:
        hint += f"; or build it with {view.arch.link.code_model_wide}"
    return hint


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
