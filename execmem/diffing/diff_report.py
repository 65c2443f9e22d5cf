# SPDX-License-Identifier: GPL-2.0-or-later
"""What `execmem diff` prints: a table per boot, who decided which bytes, and what differs."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from textwrap import wrap
from typing import TYPE_CHECKING

import archs
from emulator.disassembly import Disassembler
from execmem.diffing.diff import Progression
from execmem.diffing.differences import KINDS, RunDiff
from execmem.diffing.placement import Placed
from execmem.report import table
from execmem.terminal import Meter

if TYPE_CHECKING:
    from rich.console import Console

TOTALS = ("boot", "mod.", "sect.", "bytes", "relocs")
DIFFERING = ("reloc", *KINDS, "other")
LEGEND = (
    "mod., sect., bytes, relocs: compared. reloc: bytes that differ after relocation; the others "
    "differ after finalisation, other being those that no mechanism decides."
)


@contextmanager
def progress_bar(what: str = "modules") -> Iterator[Progression]:
    """Show progress on stderr, where that is a terminal."""
    with Meter() as meter:
        yield lambda done, total: meter.show(what, done, total)


def show(out: Console, runs: Sequence[RunDiff], *, limit: int = 0) -> None:
    """Print totals of every boot, then bytes by mechanism, then the differences asked for.

    Parameters
    ----------
    limit
        Differing ranges to show, of all boots; 0: every one.
    """
    rows = [
        (
            run.title,
            len(run.compared),
            run.total("sections"),
            run.total("size"),
            run.total("relocations"),
            run.total("relocated"),
            *(run.differing(kind) for kind in KINDS),
            run.unexplained,
        )
        for run in runs
    ]
    columns = (*TOTALS, *DIFFERING)
    out.print(table(columns, rows, right=",".join(columns[1:])))
    out.print()
    for line in wrap(LEGEND, out.width):
        out.print(line, soft_wrap=True)
    for run in runs:
        _mechanisms(out, run)
    left = limit or sys.maxsize
    for run in runs:
        _remarks(out, run)
        left -= _ranges(out, run, left)
    total = sum(len(module.ranges) for run in runs for module in run.compared)
    if limit and total > limit:
        out.print()
        out.print(f"and {total - limit:,} differing ranges more: --limit 0 shows all")


def _mechanisms(out: Console, run: RunDiff) -> None:
    changed, differing = run.counts("changed"), run.counts("differing")
    names = sorted({name for _, name in (*changed, *differing)}, key=lambda name: (not name, name))
    columns = ("mechanism", *KINDS)
    rows = [
        (name or "unexplained", *(_cell(changed[k, name], differing[k, name]) for k in KINDS))
        for name in names
    ]
    out.print()
    out.print(f"{run.title}: bytes changed by finalisation (and that differ)")
    out.print()
    out.print(table(columns, rows, right=",".join(KINDS)))


def _cell(changed: int, differing: int) -> str:
    return " ".join([str(changed)] * bool(changed) + [f"({differing})"] * bool(differing))


def _remarks(out: Console, run: RunDiff) -> None:
    hashed = sum(len(m.hashed) for m in run.compared)
    if hashed:
        out.print(
            f"{run.title}: of {hashed} sections that differ only the hash is recorded; "
            "each counts with its whole size.",
            soft_wrap=True,
        )
    for module in run.compared:
        for name in module.laid_out:
            where = f"{run.title} {module.name}"
            out.print(f"{where}: {name} has another size or place")
    for module in run.modules:
        if module.skipped:
            out.print(f"{run.title} {module.name} skipped: {module.skipped}")
    for refusal in run.refusals:
        what = "its init ended" if refusal.at == "init" else "the kernel refused it"
        number = f"-{refusal.errno} " if refusal.errno else ""
        said = f": {refusal.said}" if refusal.said else ""
        out.print(
            f"{run.title} {refusal.module}: {what}: {number}({refusal.error}){said}",
            soft_wrap=True,
        )


def show_placement(out: Console, placed: Placed) -> None:
    """Print how many regions were predicted, and where the kernel differs and why."""
    recorded, files, unknown = placed.loads
    out.print()
    out.print(
        f"{placed.arch} {placed.run}: {placed.equal} of {placed.regions} regions of {recorded} "
        f"modules predicted, among {files} more modules and {unknown} of which only the text's "
        "address and the size are known.",
        soft_wrap=True,
    )
    if placed.slide is not None:
        out.print(f"  KASLR moved the range by {placed.slide:#x}: so says the first module")
    reasons = Counter(deviation.reason for deviation in placed.deviations)
    for reason, count in reasons.most_common():
        first = next(d for d in placed.deviations if d.reason == reason)
        out.print(
            f"  {count} elsewhere: {reason} (first {first.module} {first.type.name}: predicted "
            f"{first.predicted[0]:#x}, recorded {first.recorded[0]:#x})",
            soft_wrap=True,
        )


def _ranges(out: Console, run: RunDiff, most: int) -> int:
    """Print the first ranges that differ; return how many these are."""
    disassembler = Disassembler(archs.arch(run.arch))
    shown = 0
    for module in run.compared:
        for found in module.ranges:
            if shown == most:
                return shown
            shown += 1
            ours, kernels = found.texts(disassembler)
            inside = f" ({found.symbol})" if found.symbol else ""
            out.print()
            out.print(
                f"{run.run} {module.name}: {found.section}+{found.offset:#x}{inside}, "
                f"{len(found.ours)} bytes, {found.point}, {found.mechanism or 'unexplained'}",
                soft_wrap=True,
            )
            theirs = "only a hash" if found.kernels is None else _hex(found.kernels)
            for who, code, text in (("ours", _hex(found.ours), ours), ("kernel", theirs, kernels)):
                out.print(f"  {who:6} {code}  {text}".rstrip(), soft_wrap=True)
    return shown


def _hex(code: bytes) -> str:
    return code[:32].hex(" ") + (" ..." if len(code) > 32 else "")
