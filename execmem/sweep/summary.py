# SPDX-License-Identifier: GPL-2.0-or-later
"""What many rows come to: counts, sizes, the slowest, and errors of one kind together."""

from __future__ import annotations

import heapq
import re
from collections import Counter
from typing import Any

import attrs

from execmem.sweep.job import OUTCOMES, Row

SLOWEST = 10
_NUMBER = re.compile(r"0x[0-9a-f]+|\b\d+\b")
_WHERE = re.compile(r"^[^:]+: ")
_FIRST = re.compile(r"^stopped first: (.*?)(?:; then: .*)?$", re.DOTALL)


def kind_of(error: str) -> str:
    """Return what an error has in common with others: neither module nor numbers.

    Of an error that follows from another, it is that one.

    >>> kind_of("hello.ko: .text+0x14: 'printk' out of range: +0x10000000 is too far")
    ".text+N: 'printk' out of range: +N is too far"
    >>> kind_of("stopped first: snd: 'x' is not in the modelled kernel; then: panic: deadlock")
    "'x' is not in the modelled kernel"
    """
    first = _FIRST.match(error)
    return _NUMBER.sub("N", _WHERE.sub("", first[1] if first else error))


@attrs.define
class Summary:
    """What rows come to."""

    outcomes: Counter[str] = attrs.field(factory=Counter)
    archs: Counter[str] = attrs.field(factory=Counter)
    types: Counter[str] = attrs.field(factory=Counter)
    sizes: Counter[str] = attrs.field(factory=Counter)
    missing: Counter[str] = attrs.field(factory=Counter)
    notices: Counter[str] = attrs.field(factory=Counter)
    errors: dict[str, tuple[int, str]] = attrs.field(factory=dict)  # kind -> count, first file
    slowest: list[tuple[float, str]] = attrs.field(factory=list)
    plt_slots: int = 0

    def add(self, row: Row) -> None:
        """Count a row."""
        self.outcomes[row["outcome"]] += 1
        self.archs[row["arch"] or "unknown"] += 1
        self.types.update(row["relocation_types"])
        self.sizes.update(row["sizes"])
        self.missing.update(row["missing"])
        # Of whom they are matters less than of how many.
        self.notices.update({note.partition(": ")[2] for note in row.get("notices", ())})
        self.plt_slots += row["plt_slots"]
        if row["error"]:
            kind = kind_of(row["error"])
            count, first = self.errors.get(kind, (0, row["file"]))
            self.errors[kind] = (count + 1, first)
        push = heapq.heappush if len(self.slowest) < SLOWEST else heapq.heappushpop
        push(self.slowest, (row["seconds"], row["file"]))

    def document(self, seconds: float) -> dict[str, Any]:
        """Return the summary as the last line's document; most frequent first."""
        return {
            "notices": [f"{text} ({n})" for text, n in _frequent(self.notices).items()],
            "summary": {
                "modules": self.outcomes.total(),
                "outcomes": {name: self.outcomes[name] for name in OUTCOMES},
                "archs": dict(sorted(self.archs.items())),
                "relocations": self.types.total(),
                "relocation_types": _frequent(self.types),
                "plt_slots": self.plt_slots,
                "sizes": dict(sorted(self.sizes.items())),
                "missing": _frequent(self.missing),
                "errors": [
                    {"error": kind, "count": count, "first": first}
                    for kind, (count, first) in sorted(
                        self.errors.items(), key=lambda item: (-item[1][0], item[0])
                    )
                ],
                "slowest": [
                    {"file": file, "seconds": seconds}
                    for seconds, file in sorted(self.slowest, reverse=True)
                ],
                "seconds": round(seconds, 3),
            },
        }


def _frequent(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
