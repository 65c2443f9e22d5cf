# SPDX-License-Identifier: GPL-2.0-or-later
"""Call sites of the function tracer: sorted, and made to do nothing until tracing begins.

The compiler leaves a call (or room for one) at the entry of every function and its
address in a table. The kernel sorts the table and writes the architecture's "not traced"
instructions at each site (kernel/trace/ftrace.c: ftrace_process_locs, ftrace_update_code;
arch: ftrace_init_nop).

Which room was left depends on the kernel that the module was built for, so it is told by
what stands at each site and by where the function begins. A site that has none of the known
forms is left as it is, and named: an instruction of the module's is never overwritten.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs
import numpy as np
from numpy.typing import NDArray

from archs.passes.subject import U8, U64, Subject

ADDRESS = np.dtype([("address", "<u8")])
SHOWN = 5


@attrs.frozen(kw_only=True)
class PatchableEntry:
    """One form of the room that a compiler leaves for the function tracer.

    Parameters
    ----------
    code
        What may stand from an address of the table on: bytes, and which of their bits count.
    function
        Where the function may begin, counted from that address; empty: anywhere.
    align
        What the address must be a multiple of.
    calls
        The kernel's symbol that the branch at the address must lead to; empty: none.
    idle
        Returns what is written while nothing is traced, given the addresses and the kernel's
        symbols: bytes from the address on, and code (a row for each address).
    """

    code: tuple[tuple[bytes, bytes], ...]
    function: tuple[int, ...] = ()
    align: int = 1
    calls: str = ""
    idle: Callable[[U64, Mapping[str, int]], tuple[tuple[int, U8], ...]]


def exactly(*codes: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """Return codes of which every bit counts."""
    return tuple((code, b"\xff" * len(code)) for code in codes)


def same(at: int, code: bytes) -> Callable[[U64, Mapping[str, int]], tuple[tuple[int, U8], ...]]:
    """Return what writes the same code at every address, so many bytes behind it."""
    row = np.frombuffer(code, np.uint8)
    return lambda sites, _symbols: ((at, np.broadcast_to(row, (sites.size, row.size))),)


def prepare(subject: Subject, *, section: str, entries: tuple[PatchableEntry, ...]) -> None:
    """Sort the table of call sites and write what stands at a site that is not traced.

    Parameters
    ----------
    section
        Table of the sites' addresses.
    entries
        The forms that a site may have. Where the function's symbol does not tell one from
        another, the first of those that most sites of a module have is taken.
    """
    table = subject.table(section, ADDRESS)
    if table is None:
        return
    sites = np.sort(table.entries["address"])
    table.entries["address"] = sites
    subject.claim(table)
    sites = sites[sites != 0]  # of functions that the linker dropped
    subject.offsets(sites)
    starts = subject.functions
    fits = np.array([_fits(subject, entry, sites) for entry in entries])
    begins = np.array([_begins(entry, sites, starts) for entry in entries])
    told = fits & begins
    # Elsewhere the symbol is missing: it will be as at most of the others.
    order = np.argsort(-told.sum(axis=1), kind="stable")
    chosen = np.full(sites.size, -1)
    for form in (told, fits & ~begins.any(axis=0)):
        for number in order[::-1]:
            chosen[form[number]] = number
    for number, entry in enumerate(entries):
        mine = sites[chosen == number]
        if mine.size:
            for at, code in entry.idle(mine, subject.environment.symbols):
                subject.write(subject.offsets(mine + np.uint64(at), code.shape[-1]), code)
    _report(subject, sites[chosen < 0], starts)


def _fits(subject: Subject, entry: PatchableEntry, sites: U64) -> NDArray[np.bool_]:
    """Return which sites have one of the codes of a form."""
    found = np.zeros(sites.size, np.bool_)
    aligned = sites % np.uint64(entry.align) == 0
    for value, mask in entry.code:
        near = np.flatnonzero(aligned & subject.room(sites, len(value)))
        code = subject.bytes_at(subject.offsets(sites[near], len(value)), len(value))
        bits = np.frombuffer(mask, np.uint8)
        same = ((code & bits) == (np.frombuffer(value, np.uint8) & bits)).all(axis=1)
        if entry.calls:
            same &= _calls(code, sites[near], subject.imported.get(entry.calls, 0))
        found[near] |= same
    return found


def _calls(code: NDArray[np.uint8], sites: U64, target: int) -> NDArray[np.bool_]:
    """Return which calls (an opcode and a displacement of four bytes) lead to a target."""
    away = np.ascontiguousarray(code[:, 1:5]).view("<i4")[:, 0].astype(np.int64)
    return np.asarray(sites + away.view(np.uint64) + np.uint64(5) == np.uint64(target))


def _begins(entry: PatchableEntry, sites: U64, starts: U64) -> NDArray[np.bool_]:
    """Return which sites have a function where a form has one."""
    if not entry.function:
        return np.ones(sites.size, np.bool_)
    places = [sites + np.array(away, np.int64).view(np.uint64) for away in entry.function]
    return np.asarray(np.logical_or.reduce([np.isin(each, starts) for each in places]))


def _report(subject: Subject, left: U64, starts: U64) -> None:
    """Name the functions whose sites were left alone."""
    if not left.size:
        return
    shown = []
    for site in left[:SHOWN].tolist():
        at = int(np.searchsorted(starts, np.uint64(site), side="right")) - 1
        start = int(starts[at]) if at >= 0 else site
        name = subject.name_at(start) or f"{start:#x}"
        shown.append(f"{name}+{site - start:#x}")
    more = f" and {left.size - SHOWN} more" if left.size > SHOWN else ""
    subject.report(
        f"ftrace: no room for the tracer is known at {', '.join(shown)}{more}: left as compiled"
    )
