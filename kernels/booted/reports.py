# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel says when something is wrong: oopses, BUGs, warnings, sanitizers, panics.

Kernels tell it in their log, each architecture and each checker in words of its own. Here it is
taken apart: what happened, where, and who called it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import attrs

from emulator.faults import FaultKind

# What begins a report, in this order of preference; a group "address" is what was accessed.
_HEADS: tuple[tuple[FaultKind, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        (
            FaultKind.OUT_OF_BOUNDS,
            r"BUG: KASAN: (?:slab-|global-|stack-|vmalloc-)?out-of-bounds in (?P<where>\S+)",
        ),
        (FaultKind.USE_AFTER_FREE, r"BUG: KASAN: (?:slab-)?use-after-free in (?P<where>\S+)"),
        (FaultKind.DOUBLE_FREE, r"BUG: KASAN: (?:double-free|invalid-free)"),
        (FaultKind.CFI, r"CFI failure at (?P<where>\S+)"),
        (
            FaultKind.READ,
            r"(?:Unable to handle kernel|BUG: kernel) .*?(?:virtual address|address:) ?(?P<address>[0-9a-f]{8,16})",
        ),
        (
            FaultKind.READ,
            r"BUG: unable to handle page fault for address: (?P<address>[0-9a-f]{8,16})",
        ),
        (
            FaultKind.READ,
            r"Unable to handle kernel access to user memory .*?virtual address (?P<address>[0-9a-f]{8,16})",
        ),
        (FaultKind.BUG, r"kernel BUG at (?P<where>\S+)!"),
        (FaultKind.BUG, r"kernel BUG \[#\d+\]"),
        (
            FaultKind.STACK_PROTECTOR,
            r"stack-protector: Kernel stack is corrupted in: (?P<where>\S+)",
        ),
        (FaultKind.INSTRUCTION, r"(?:invalid opcode|undefined instruction|illegal instruction)"),
        (FaultKind.TRAP, r"general protection fault"),
        (FaultKind.TRAP, r"(?:Internal error: )?Oops(?: - [^:]*)?(?::|\s\[)"),
        (
            FaultKind.CHECK,
            r"(?:possible (?:circular|recursive) locking|inconsistent lock state|BUG: sleeping function)",
        ),
        (FaultKind.CHECK, r"UBSAN: (?P<where>.+)"),
        (FaultKind.PANIC, r"Kernel panic - not syncing: (?P<where>.+)"),
    )
)
# kernel/panic.c, __warn(): until 6.17, and since.
_WARNING = re.compile(
    r"WARNING: (?:CPU: \d+ PID: \d+ at |(?=(?:\S+:\d+ )?at \S.*, CPU#\d+: ))(?P<where>.+)"
)
_WRITES = re.compile(r"#PF: supervisor write access|WnR = 1|Store/AMO")
_FETCHES = re.compile(
    r"#PF: supervisor instruction fetch|instruction page fault|IABT", re.IGNORECASE
)
_PC = re.compile(
    r"(?:^|\s)(?:pc :|RIP: \d+:|epc :) ?(?P<symbol>[A-Za-z_.$][\w.$]*\+0x[0-9a-f]+/0x[0-9a-f]+)(?P<module> \[\w+\])?"
)
_FRAME = re.compile(
    r"^\s*(?P<unsure>\? )?(?:\[<[0-9a-f]+>\] )?(?P<symbol>[A-Za-z_.$][\w.$]*\+0x[0-9a-f]+/0x[0-9a-f]+)(?P<module> \[\w+\])?"
)
_CALLS = re.compile(r"Call [Tt]race:")


@attrs.frozen(kw_only=True)
class Report:
    """Something that a kernel found wrong.

    Parameters
    ----------
    kind
        What.
    text
        The line that says so.
    where
        `symbol+0xoff/0xsize [module]` of the instruction; empty where it is not told.
    address
        What was accessed; None where that is not it.
    backtrace
        Who called it, innermost first.
    """

    kind: FaultKind
    text: str
    where: str = ""
    address: int | None = None
    backtrace: tuple[str, ...] = ()


def find(lines: Iterable[str]) -> Report | None:
    """Return what lines of a log report first of the gravest; None where nothing is wrong."""
    known = list(lines)
    found: tuple[int, int, re.Match[str]] | None = None
    for number, line in enumerate(known):
        for rank, (_, pattern) in enumerate(_HEADS):
            match = pattern.search(line)
            if match is not None and (found is None or rank < found[0]):
                found = rank, number, match
    if found is None:
        return None
    rank, number, match = found
    return _report(_HEADS[rank][0], match, known[number:])


def warnings(lines: Iterable[str]) -> Iterator[Report]:
    """Yield the warnings (WARN) in lines of a log."""
    known = list(lines)
    for number, line in enumerate(known):
        match = _WARNING.search(line)
        if match is not None:
            yield _report(FaultKind.CHECK, match, known[number:])


def _report(kind: FaultKind, match: re.Match[str], lines: list[str]) -> Report:
    fields = match.groupdict()
    address = int(fields["address"], 16) if fields.get("address") else None
    where, frames, calls = "", [], False
    for line in lines:
        if _CALLS.search(line):
            if calls:
                break
            calls = True
            continue
        if not calls:
            pc = _PC.search(line)
            if pc is not None and not where:
                where = pc["symbol"] + (pc["module"] or "")
            if address is not None and _WRITES.search(line):
                kind = FaultKind.WRITE
            elif address is not None and _FETCHES.search(line):
                kind = FaultKind.FETCH
            continue
        frame = _FRAME.match(line)
        if frame is None:
            if line.strip().startswith(("<TASK>", "<IRQ>", "</IRQ>", "dump_backtrace")):
                continue
            break
        if not frame["unsure"]:
            frames.append(frame["symbol"] + (frame["module"] or ""))
    return Report(
        kind=kind,
        text=match.string.strip(),
        where=where or fields.get("where") or "",
        address=address,
        backtrace=tuple(frames),
    )
