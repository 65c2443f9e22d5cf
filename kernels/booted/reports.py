# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel says when something is wrong: oopses, BUGs, warnings, sanitizers, panics.

Kernels tell it in their log, each architecture and each checker in words of its own. Here it is
taken apart: what happened, where, and who called it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

import attrs

from emulator.faults import FaultKind

_KASAN = r"BUG: KASAN: (?P<what>[\w-]*{}[\w-]*)(?: in (?P<where>\S+))?"
_KFENCE = r"BUG: KFENCE: (?P<what>{}[\w -]*?)(?: in (?P<where>\S+))?$"
_LOCKDEP = (
    r"WARNING: (?P<what>possible .*(?:locking|dependency).* detected|inconsistent lock state|held lock freed!"
    r"|bad (?:unlock balance|contention) detected!|Nested lock was not taken|chain_key collision"
    r"|lock held when returning to user space!|\S+/\d+ still has locks held!"
    r"|\S+-safe -> \S+-unsafe lock order detected|suspicious RCU usage)"
)


@attrs.frozen
class _Head:
    """How a report begins: groups `what`, `where` and `address` are those of the report."""

    kind: FaultKind
    checker: str
    pattern: re.Pattern[str]
    begins: bool = True  # whether it may not belong to a report that has begun


def _heads(*rows: tuple[FaultKind, str, str] | tuple[FaultKind, str, str, bool]) -> list[_Head]:
    return [_Head(row[0], row[1], re.compile(row[2]), *row[3:]) for row in rows]


# What begins a report, gravest first. Sources: mm/kasan/report.c, mm/kfence/report.c,
# kernel/cfi.c, arch/*/mm/fault.c, arch/*/kernel/traps.c, lib/bug.c, kernel/panic.c, lib/ubsan.c,
# kernel/locking/lockdep.c, kernel/sched/core.c, mm/slub.c, kernel/watchdog.c, 6.1 to 7.2.
_HEADS = _heads(
    (FaultKind.OUT_OF_BOUNDS, "KASAN", _KASAN.format("out-of-bounds")),
    (FaultKind.USE_AFTER_FREE, "KASAN", _KASAN.format("use-after-(?:free|return|scope)")),
    (FaultKind.DOUBLE_FREE, "KASAN", _KASAN.format("(?:double-free|invalid-free)")),
    (FaultKind.READ, "KASAN", _KASAN.format("")),
    (FaultKind.OUT_OF_BOUNDS, "KFENCE", _KFENCE.format("out-of-bounds")),
    (FaultKind.USE_AFTER_FREE, "KFENCE", _KFENCE.format("use-after-free")),
    (FaultKind.DOUBLE_FREE, "KFENCE", _KFENCE.format("invalid free")),
    (FaultKind.CHECK, "KFENCE", _KFENCE.format("")),
    (FaultKind.CFI, "CFI", r"CFI failure at (?P<where>\S+)"),
    (
        FaultKind.READ,
        "access",
        r"(?:Unable to handle kernel|BUG: kernel) .*?(?:virtual address|address:) ?(?P<address>[0-9a-f]{8,16})",
    ),
    (
        FaultKind.READ,
        "access",
        r"BUG: unable to handle page fault for address: (?P<address>[0-9a-f]{8,16})",
    ),
    (
        FaultKind.READ,
        "access",
        r"Unable to handle kernel access to user memory .*?virtual address (?P<address>[0-9a-f]{8,16})",
    ),
    (FaultKind.BUG, "BUG", r"kernel BUG at (?P<where>\S+)!"),
    (FaultKind.BUG, "BUG", r"kernel BUG \[#\d+\]"),
    (
        FaultKind.STACK_PROTECTOR,
        "stack protector",
        r"stack-protector: Kernel stack is corrupted in: (?P<where>\S+)",
    ),
    (
        FaultKind.INSTRUCTION,
        "instruction",
        r"(?:invalid opcode|undefined instruction|illegal instruction)",
        False,
    ),
    (FaultKind.TRAP, "trap", r"general protection fault", False),
    (FaultKind.TRAP, "trap", r"(?:Internal error: )?Oops(?: - [^:]*)?(?::|\s\[)", False),
    (FaultKind.CHECK, "lockdep", _LOCKDEP),
    (FaultKind.CHECK, "lockdep", r"\[ BUG: (?P<what>Invalid wait context) \]"),
    (FaultKind.CHECK, "lockdep", r"BUG: (?P<what>\w+ chain hlocks|MAX_LOCK\w+ too low!)"),
    (
        FaultKind.CHECK,
        "atomic sleep",
        r"BUG: (?P<what>sleeping function called from invalid context) at (?P<where>\S+)",
    ),
    (FaultKind.CHECK, "atomic sleep", r"BUG: (?P<what>scheduling while atomic)"),
    (FaultKind.CHECK, "UBSAN", r"UBSAN: (?P<what>[^:]+?) in (?P<where>\S+)"),
    (FaultKind.CHECK, "UBSAN", r"UBSAN: (?P<where>(?P<what>.+))"),
    (FaultKind.CHECK, "KCSAN", r"BUG: KCSAN: (?P<what>\S+) in (?P<where>\S+)"),
    (FaultKind.CHECK, "KMSAN", r"BUG: KMSAN: (?P<what>\S+) in (?P<where>\S+)"),
    (FaultKind.CHECK, "slab", r"BUG \S+ \([^)]*\): (?P<what>.+)"),
    (FaultKind.CHECK, "pages", r"BUG: (?P<what>Bad (?:page|rss-counter) \w+)"),
    (FaultKind.CHECK, "lockup", r"BUG: (?P<what>(?:soft|workqueue) lockup)"),
    (FaultKind.CHECK, "lockup", r"INFO: task (?P<what>\S+ blocked for more than \d+ seconds)"),
    (FaultKind.CHECK, "RCU", r"INFO: (?P<what>\S+ (?:self-)?detected stalls?.*)"),
    (FaultKind.PANIC, "panic", r"Kernel panic - not syncing: (?P<where>(?P<what>.+))"),
)
# kernel/panic.c, __warn(): until 6.17, and since.
_WARNING = re.compile(
    r"WARNING: (?:CPU: \d+ PID: \d+ at |(?=(?:\S+:\d+ )?at \S.*, CPU#\d+: ))(?P<where>.+)"
)
_WARN = _Head(FaultKind.CHECK, "WARN", _WARNING, False)
_CUT = re.compile(r"-{8,}\[ cut here \]-{8,}")
_RULE = re.compile(r"={20,}\s*")
_END = re.compile(r"---\[ end (?:trace|Kernel panic)")
# What a WARN() or BUG() of a checker says in front of its head (lib/list_debug.c, lib/refcount.c,
# lib/debugobjects.c, kernel/locking).
_SAYS = (
    ("list", re.compile(r"list_(?:add|del)(?:_rcu)? corruption.*")),
    ("refcount", re.compile(r"refcount_t: .*")),
    ("debug objects", re.compile(r"ODEBUG: .*")),
    ("lockdep", re.compile(r"DEBUG_LOCKS_WARN_ON\(.*")),
    ("RCU", re.compile(r"Voluntary context switch within RCU.*")),
)
_WRITES = re.compile(
    r"#PF: supervisor write access|WnR = 1|Store/AMO|cause: 0*f$|^Write of size|out-of-bounds write|free write"
)
_FETCHES = re.compile(
    r"#PF: supervisor instruction fetch|instruction page fault|IABT", re.IGNORECASE
)
_SYMBOL = (
    r"(?P<symbol>[A-Za-z_.$][\w.$]*\+0x[0-9a-f]+/0x[0-9a-f]+|0x[0-9a-f]{16})(?P<module> \[\w+\])?"
)
_PC = re.compile(rf"(?:^|\s)(?:pc :|RIP: \d+:|epc :) ?{_SYMBOL}")
_FRAME = re.compile(rf"^\s*(?P<unsure>\? )?(?:\[<[0-9a-f]+>\] )?{_SYMBOL}")
_LOCK = re.compile(rf"\}}, at: {_SYMBOL}")  # the first is what is asked for
_ADDRESS = re.compile(r"0x[0-9a-f]{16}")
# mm/kasan/report.c; mm/kfence/report.c, where frames follow at once.
_ACCESSED = re.compile(
    r"^(?:Read|Write) of size \d+ at addr (?P<address>[0-9a-f]{8,16})"
    r"|^(?:Out-of-bounds|Use-after-free|Corrupted memory|Invalid).* at 0x(?P<at>[0-9a-f]{8,16}) "
)
_PLACE = re.compile(_SYMBOL)
_CALLS = re.compile(
    r"Call [Tt]race:|^(?:Out-of-bounds|Use-after-free|Corrupted memory|Invalid).* at 0x[0-9a-f]{8,16} .*:$"
)
# Functions that report, not those that are reported.
_REPORTERS = (
    "panic list_add_ list_del_ refcount_warn dump_ show_stack print_ kasan_ asan_ hwasan_ ubsan_ kcsan_"
    " kfence_ kmsan_ might_resched might_sleep warn report_ handle_bug exc_ asm_exc_ lockdep_"
    " lock_acquire lock_release validate_chain mark_lock check_ do_error_trap die schedule_bug fault_"
    " el1_ el1h_ do_page_ do_translation_ do_mem_ bug_handler brk_handler do_trap handle_exception"
    " ret_from_exception walk_stackframe"
).split()


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
    checker
        Which check found it: `KASAN`, `UBSAN`, `lockdep`, `CFI`, `list`, `WARN` and the like.
    what
        What it found, in its words.
    lines
        All of it.
    sources
        The lines of source of `where` and of each of `backtrace`; see `emulator.faults.Fault`.
    """

    kind: FaultKind
    text: str
    where: str = ""
    address: int | None = None
    backtrace: tuple[str, ...] = ()
    checker: str = ""
    what: str = ""
    lines: tuple[str, ...] = attrs.field(default=(), repr=False)
    sources: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What it is called: `KASAN: slab-out-of-bounds`."""
        return f"{self.checker}: {self.what}" if self.what else self.checker

    def __str__(self) -> str:
        source = f", {self.sources[0]}" if self.sources and self.sources[0] else ""
        return f"{self.name} at {self.where}{source}" if self.where else self.name


def find(lines: Iterable[str]) -> Report | None:
    """Return what lines of a log report first of the gravest; None where nothing is wrong."""
    known = list(lines)
    found: tuple[int, int, re.Match[str]] | None = None
    for number, line in enumerate(known):
        for rank, head in enumerate(_HEADS):
            if found is not None and rank >= found[0]:
                break
            match = head.pattern.search(line)
            if match is not None:
                found = rank, number, match
    if found is None:
        return None
    rank, number, match = found
    report = _report(_HEADS[rank], match, known, number)[0]
    if not report.where:  # another report may stand in the middle of it
        places = filter(None, map(_PC.search, known[number:]))
        report = next(
            (attrs.evolve(report, where=at["symbol"] + (at["module"] or "")) for at in places),
            report,
        )
    return report


def warnings(lines: Iterable[str]) -> Iterator[Report]:
    """Yield the warnings (WARN) in lines of a log."""
    known = list(lines)
    for number, line in enumerate(known):
        match = _WARNING.search(line)
        if match is not None:
            yield _report(_WARN, match, known, number)[0]


def every(lines: Iterable[str]) -> Iterator[Report]:
    """Yield all that lines of a log report, in order; what belongs together once."""
    known = list(lines)
    number = 0
    while number < len(known):
        head = _head(known[number])
        if head is None:
            number += 1
            continue
        report, number = _report(*head, known, number)
        yield report


def named(report: Report, name_at: Callable[[int], str | None]) -> Report:
    """Return a report whose addresses are names: kernels without kallsyms print no others.

    Parameters
    ----------
    name_at
        Returns what is at an address, or None.
    """

    def name(text: str) -> str:
        return (name_at(int(text, 16)) or text) if _ADDRESS.fullmatch(text) else text

    frames = tuple(map(name, report.backtrace))
    return attrs.evolve(report, where=name(report.where), backtrace=frames)


def _head(line: str) -> tuple[_Head, re.Match[str]] | None:
    """Return what begins with a line."""
    for head in (*_HEADS, _WARN):
        match = head.pattern.search(line)
        if match is not None:
            return head, match
    return None


def _report(head: _Head, match: re.Match[str], lines: list[str], start: int) -> tuple[Report, int]:
    """Return the report that a line begins, and the number of the line behind it."""
    fields = match.groupdict()
    kind = head.kind
    address = int(fields["address"], 16) if fields.get("address") else None
    checker, what, first = _said_before(head, fields.get("what") or "", lines, start)
    where, calls = "", False
    frames: list[str] = []
    unsure: list[str] = []
    number = start
    for number in range(start, len(lines)):
        line = lines[number]
        if _CALLS.search(line):
            if calls:
                break
            calls = True
            accessed = _ACCESSED.search(line)
            if accessed is not None and address is None:
                address = int(accessed["at"], 16)
            continue
        if not calls:
            if number > start and _begins(line, number - start):
                break
            pc = _PC.search(line) or (head.checker == "lockdep" and _LOCK.search(line)) or None
            if pc is not None and not where:
                where = pc["symbol"] + (pc["module"] or "")
            if head.kind is FaultKind.READ and _WRITES.search(line):
                kind = FaultKind.WRITE
            elif head.kind is FaultKind.READ and _FETCHES.search(line):
                kind = FaultKind.FETCH
            accessed = _ACCESSED.search(line)
            if accessed is not None and address is None:
                address = int(accessed["address"] or accessed["at"], 16)
            continue
        frame = _FRAME.match(line)
        if frame is None:
            if line.strip().startswith(("<TASK>", "<IRQ>", "</IRQ>", "dump_backtrace")):
                continue
            break
        into = unsure if frame["unsure"] else frames
        into.append(frame["symbol"] + (frame["module"] or ""))
    else:
        number += 1
    if not what:
        what = _worded(head, match.string)
    told = fields.get("where") or ""
    if fields.get("where") and f"{told} [" in match.string:  # the module behind it
        told = match.string[match.string.index(told) :].split("]")[0] + "]"
    blamed = next((frame for frame in frames if not _reports(frame)), "")
    if _PLACE.fullmatch(told):
        where = told
    elif blamed and checker != head.checker:  # by a function of the check
        where = blamed
    report = Report(
        kind=kind,
        text=match.string.strip(),
        where=where or blamed or told,
        address=address,
        backtrace=tuple(frames or unsure),  # CONFIG_UNWINDER_GUESS only guesses
        checker=checker,
        what=what,
        lines=tuple(lines[first:number]),
    )
    return report, number


def _begins(line: str, distance: int) -> bool:
    """Return whether a line within a report begins another, so many lines behind its first."""
    if _CUT.search(line) or _END.search(line):
        return distance > 1 or bool(_END.search(line))
    if _RULE.fullmatch(line):
        return distance > 1
    head = _head(line)
    return head is not None and head[0].begins


def _said_before(head: _Head, what: str, lines: list[str], start: int) -> tuple[str, str, int]:
    """Return who found it, what, and the first line of it: some are told in front of a head."""
    first, checker = start, head.checker
    for back in range(1, 9):
        if start - back < 0 or _END.search(lines[start - back]):
            break
        if _CUT.search(lines[start - back]) or (back == 1 and _RULE.fullmatch(lines[start - 1])):
            first = start - back
            break
    before = lines[first:start]
    for line in before:
        for name, pattern in _SAYS:
            match = pattern.search(line)
            if match is not None and checker in ("WARN", "BUG"):
                return name, match[0].strip(), first
    if checker == "WARN" and not what:
        said = [line.strip() for line in before if line.strip() and not _CUT.search(line)]
        what = said[0] if said else ""
    return checker, what, first


def _reports(frame: str) -> bool:
    """Return whether a function reports, and is not what is reported."""
    return "[" not in frame and frame.lstrip("_").startswith(tuple(_REPORTERS))


def _worded(head: _Head, line: str) -> str:
    """Return what a head says, where it has no words of its own for it."""
    if head.checker in ("WARN", "BUG", "CFI", "stack protector"):
        return ""
    text = line.strip().removeprefix("BUG: ").removeprefix("Internal error: ")
    return text.split(",")[0].split(":")[0]
