# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels out of dumps: what was in a computer's memory, in one that can call its functions.

A dump has memory and no CPU that goes on. Where the kernel lies in it its banner tells; where its
page tables are its symbols do, and that they are those is seen by their leading to the banner again.
The CPU stands in none of its functions, with interrupts off, on a stack and in memory that are added
behind the dump's, by page tables of our own; nothing in the dump is written before something is called.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs
import numpy as np
from numpy.typing import NDArray

from allocator.types import GIB, MIB, size_text
from emulator.boards import board_of
from emulator.boards.board import Board
from emulator.paging import Lacking, Own, Run, Tables
from kernels.booted.opening import Standing
from kernels.booted.starting import Parameters, Place, Started, trap_of
from kernels.booted.symbols import Symbols
from loader import vmcore
from loader.errors import BadCore
from loader.kernel.image import KernelImage
from loader.kernel.segments import address_of
from loader.vmcore import Vmcore, facts, symbols_told

MOST = 64 * GIB  # of physical addresses from the first page to the last
HIGHEST = 1 << 40  # physical address, as the CPUs that are emulated have them
PAGE = 4096
ARENA, GAP, STACK_TOP, HEAP = 16 * MIB, 0x2_0000, 0x2_4000, 0x3_0000
_STEP = 2 * MIB
_MIDDLE = 1 << 63
_PIECE = 1 << 24  # bytes that are copied at once
_OFF = ("emergency_restart", "machine_restart", "machine_halt", "machine_power_off")
_STEXT = "_stext"
_OWN_TABLES = 4 * MIB  # and one in 128 of the memory


@attrs.frozen(kw_only=True)
class Dumped:
    """A kernel that stands in a dump.

    Parameters
    ----------
    standing
        As of one that was booted.
    core
        The dump.
    facts
        What the kernel tells of itself (VMCOREINFO); empty where it does not.
    tables
        Its own page tables.
    ranges
        Physical addresses that the dump has: pairs of start and end.
    arena
        Address of the memory that was added.
    """

    standing: Standing
    core: Vmcore = attrs.field(repr=False)
    facts: Mapping[str, str] = attrs.field(repr=False)
    tables: Tables
    ranges: tuple[tuple[int, int], ...]
    arena: int


@attrs.frozen(kw_only=True)
class _Found:
    """Where a kernel is: its page tables, how far it is from where it is linked to."""

    tables: Tables
    slide: int


def open_dump(path: str | Path, image: KernelImage, *, cpu: str = "") -> Dumped:
    """Return the kernel in a dump.

    Parameters
    ----------
    path
        An ELF core of it.
    image
        Its image.
    cpu
        The CPU's model; "": the one that has most.

    Raises
    ------
    BadCore
        It cannot be read, or is of another kernel; or where its page tables are is not known.
    LevelMissing
        Kernels of its architecture cannot be called.
    """
    core = vmcore.read(path)
    if (core.machine, core.order) != (image.arch.machine, image.arch.link.dialect.order):
        reason = f"e_machine {core.machine}, and {image.name} is for {image.arch.name}"
        raise BadCore(core.name, "ELF header", reason)
    extents = core.physical()
    start = extents[0].physical & -_STEP
    end = max(each.physical + each.size for each in extents)
    if end > HIGHEST:
        raise BadCore(core.name, "memory", f"lies up to {end:#x}: at most {HIGHEST:#x} is known")
    if end - start > MOST:
        reason = f"lies within {size_text(end - start)}: at most {size_text(MOST)} are taken"
        raise BadCore(core.name, "memory", reason)
    span = end - start + -(end - start) % _STEP
    tables_size = _OWN_TABLES + span // 128 & -_STEP
    try:
        board = board_of(image.arch, span + tables_size + ARENA, cpu, start)
    except OSError as error:
        raise BadCore(core.name, "memory", f"no memory of the host: {error.strerror}") from None
    there = np.zeros(span // PAGE, bool)
    for each in extents:
        _fill(board, core, each.physical, each.offset, each.size)
        first, last = (
            -(-(each.physical - start) // PAGE),
            (each.physical + each.size - start) // PAGE,
        )
        there[first:last] = True
    info = core.told(image.release)
    told = facts("" if info is None else info.decode("utf-8", "backslashreplace"))
    found = _locate(core, image, board, told)
    added = start + span
    try:
        own = Own(found.tables, board.ram.words, there, start, (added, added + tables_size))
        arena = own.add(added + tables_size, ARENA, GAP)
    except LookupError as error:
        raise BadCore(core.name, "page tables", str(error)) from None
    symbols = _symbols(image, found.slide, told)
    kernel = Dumped(
        standing=_standing(core, image, board, found, symbols),
        core=core,
        facts=told,
        tables=found.tables,
        ranges=tuple(_ranges(there, start)),
        arena=arena,
    )
    _stand(board, own, symbols)
    board.lacking = _Lacks(kernel, there, start)
    board.sp = arena + STACK_TOP
    board.pc = kernel.standing.started.place.trap
    return kernel


def _fill(board: Board, core: Vmcore, physical: int, offset: int, size: int) -> None:
    """Copy memory; pages of zeros are none, so that the host has none of them."""
    for at in range(0, size, _PIECE):
        length = min(_PIECE, size - at)
        data = core.data[offset + at : offset + at + length]
        whole = length // PAGE * PAGE
        to = physical + at - board.ram.start
        used = np.frombuffer(data, np.uint64, whole // 8).reshape(-1, PAGE // 8).any(axis=1)
        edges = np.flatnonzero(np.diff(used, prepend=False, append=False)).reshape(-1, 2) * PAGE
        for first, last in edges.tolist():
            board.ram.view[to + first : to + last] = data[first:last]
        if whole < length:
            board.ram.view[to + whole : to + length] = data[whole:]


def _ranges(there: NDArray[np.bool_], start: int) -> Iterator[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(there, prepend=False, append=False)).reshape(-1, 2)
    for first, last in edges.tolist():
        yield start + first * PAGE, start + last * PAGE


def _locate(core: Vmcore, image: KernelImage, board: Board, info: Mapping[str, str]) -> _Found:
    """Return where the kernel is."""
    release = info.get("OSRELEASE", image.release)
    if release != image.release:
        raise BadCore(core.name, "kernel", f"is Linux {release}, and {image.name} {image.release}")
    theirs = info.get("BUILD-ID", image.build_id)
    if image.build_id and theirs != image.build_id:
        reason = f"has the build id {theirs}, and {image.name} {image.build_id}"
        raise BadCore(core.name, "kernel", reason)
    text = image.banner.encode()
    at = image.data.find(text)
    banner = address_of(image.segments, at) if text and at >= 0 else 0
    if not banner:
        raise BadCore(image.name, "image", "has no banner that would be found in a dump")
    places = list(_places(core, text, banner))
    if not places:
        reason = f"Linux {image.release} does not say its name anywhere: a dump of another kernel?"
        raise BadCore(core.name, "memory", reason)
    slide, told = None, symbols_told(info)
    if _STEXT in told:
        slide = told[_STEXT] - image.symbols["_stext"]
    root = _root(image, told, slide)
    if root is None:
        roots = " or ".join(image.arch.boots.tables.roots)
        reason = (
            f"are not known to lie anywhere: {roots} is not among the symbols of {image.name}"
            " (CONFIG_KALLSYMS_ALL), and the dump has no VMCOREINFO"
        )
        raise BadCore(core.name, "page tables", reason)
    for place in places:
        for bits, granule in image.arch.boots.tables.sizes:
            tables = Tables(
                format=image.arch.boots.tables,
                root=place + root - banner,
                bits=bits,
                granule=granule,
            )
            moved = _slide(tables.runs(board.ram.words), place, banner, slide)
            if moved is not None:
                return _Found(tables=tables, slide=moved)
    raise BadCore(core.name, "page tables", "are of no form that is known, or are not in the dump")


def _root(image: KernelImage, told: Mapping[str, int], slide: int | None) -> int | None:
    """Return where the first page table is linked to."""
    for name in image.arch.boots.tables.roots:
        if name in image.symbols:
            return image.symbols[name]
        if name in image.exports:
            return image.exports[name].address
        if name in told and slide is not None:
            return told[name] - slide
    return None


def _places(core: Vmcore, text: bytes, banner: int) -> Iterator[int]:
    """Yield physical addresses at which the banner may be."""
    for each in core.physical():
        end = each.offset + each.size
        at = core.data.find(text, each.offset, end)
        while at >= 0:
            physical = each.physical + at - each.offset
            if (physical - banner) % PAGE == 0:
                yield physical
            at = core.data.find(text, at + 1, end)


def _slide(runs: list[Run], place: int, banner: int, wanted: int | None) -> int | None:
    """Return how far a kernel has moved, if page tables lead to its banner.

    They do twice: the other one is the direct map, which most of the memory is in.
    """
    if not runs:
        return None
    found = {
        run.address + place - run.physical - banner: run.size
        for run in runs
        if run.physical <= place < run.physical + run.size
    }
    if wanted is not None:
        return wanted if wanted in found else None
    if 0 in found:
        return 0
    weights: dict[int, int] = {}
    for run in runs:
        delta = run.address - run.physical
        weights[delta] = weights.get(delta, 0) + run.size
    direct = max(weights, key=weights.__getitem__)
    others = [slide for slide in found if slide + banner - place != direct]
    return others[0] if len(others) == 1 else None


def _symbols(image: KernelImage, slide: int, info: Mapping[str, str]) -> Symbols:
    """Return the kernel's symbols where they are, and what else it tells of."""
    names, addresses = image.symbols.names, image.symbols.addresses.copy()
    addresses[addresses >= np.uint64(_MIDDLE)] += np.uint64(slide & (1 << 64) - 1)
    own = set(names)
    more = {
        name: export.address + (slide if export.address >= _MIDDLE else 0)
        for name, export in image.exports.items()
    }
    for name, address in symbols_told(info).items():
        more.setdefault(name, address)
    further = {name: at for name, at in more.items() if name not in own}
    return Symbols.of(
        (*names, *further), np.concatenate((addresses, np.array(list(further.values()), np.uint64)))
    )


def _standing(
    core: Vmcore, image: KernelImage, board: Board, found: _Found, symbols: Symbols
) -> Standing:
    place = Place(
        trap=trap_of(image) + found.slide,
        jiffies=None,
        idle=(),
        off=tuple(symbols[name] for name in _OFF if name in symbols),
    )
    place.watch(board)
    told = {
        "name": image.name,
        "release": image.release,
        "version": list(image.version or ()),
        "build_id": image.build_id,
        "arch": image.arch.name,
        "cpu": board.cpu,
        "memory": board.ram.size,
        "command_line": "",
        "kaslr": None,
        "slide": found.slide,
        "image": "",
        "dump": core.name,
    }
    started = Started(board=board, place=place, slide=found.slide)
    blob = image.btf_blob() or b""
    return Standing(started, told, symbols, blob, lambda: image, Parameters())


def _stand(board: Board, own: Own, symbols: Symbols) -> None:
    """Let the CPU be in the kernel."""

    def named(name: str) -> int:
        return symbols.get(name, 0)

    board.stand(own.tables(), named, 0)
    offsets = symbols.get("__per_cpu_offset")
    if offsets is not None:
        board.stand(own.tables(), named, int.from_bytes(board.read(offsets, 8), "little"))
    board.forget_addresses()


class _Lacks:
    """Tells of addresses that lead to memory which a dump does not have."""

    def __init__(self, kernel: Dumped, there: NDArray[np.bool_], start: int) -> None:
        self._kernel, self._there, self._start = kernel, there, start

    def __call__(self, address: int) -> None:
        """Raise `Lacking` where an address leads to such memory."""
        physical = self._walk(address)
        if physical is None:
            return
        number = (physical - self._start) // PAGE
        if 0 <= number < len(self._there) and not self._there[number]:
            raise Lacking(
                f"the page at {address & -PAGE:#x} (physical {physical & -PAGE:#x}) is not in the dump"
            )

    def _walk(self, address: int) -> int | None:
        """Return the physical address that the kernel's own tables give, or of a missing table."""
        tables = self._kernel.tables
        words = self._kernel.standing.board.ram.words
        return tables.walk(address, words, self._has)

    def _has(self, physical: int) -> bool:
        number = (physical - self._start) // PAGE
        return not 0 <= number < len(self._there) or bool(self._there[number])
