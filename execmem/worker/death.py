# SPDX-License-Identifier: GPL-2.0-or-later
"""How the death of a process is told: as a Fault, where a guest was executing."""

from __future__ import annotations

import re
import signal

from allocator.errors import ExecmemError
from emulator.culprit import find
from emulator.faults import LIMIT_HINTS, Fault, FaultKind
from emulator.process import CALLED, LOADED, NESTED, BlackBox
from execmem.worker.child import alone


def death(shared: BlackBox, number: int, *, late: bool = False) -> ExecmemError:
    """Return how a worker's death is told: a Fault, where a guest was executing.

    Parameters
    ----------
    number
        The signal that ended it.
    late
        It was ended because the guest did not stop at its time.
    """
    words = shared.last_words()
    name = signal.Signals(number).name
    parts = ["the emulator did not let it stop" if late else name]
    if number == signal.SIGKILL and not late:
        parts[0] += " (out of memory?)"
    parts += [] if late else _printed(shared)
    inside = words.get("inside")
    if inside:
        parts.append(f"in {inside}()")
    if not shared.deadline:
        _, module = shared.note(LOADED)
        during = f" while it worked on {module}" if module else ""
        return ExecmemError(f"the process died of {', '.join(parts)}{during}")
    at, called = shared.note(CALLED)
    pc, where = words.get("pc"), words.get("where", "")
    instruction = words.get("instruction", "")
    if pc is None:  # nobody knows where it was, but what was called
        nested, name = shared.note(NESTED)
        parts.append("somewhere in this call")
        pc, where = (nested, name) if name else (at, called)
    else:
        found = None
        if not (late or inside):
            found = _culprit(words.get("arch", ""), words.get("code", ""), pc)
        if found is not None:
            where = _further(where, found[0] - pc)
            pc, _, instruction = found
        elif not late:
            parts.append("at or behind the beginning of this block")
        if called and called.partition("+")[0] != where.partition("+")[0]:
            parts.append(f"called from {called}")
    kind = FaultKind.TIME_LIMIT if late else FaultKind.EMULATOR
    hint = LIMIT_HINTS.get(kind, "")
    return Fault(kind, pc, where or f"{pc:#x}", instruction, reason=", ".join(parts), hint=hint)


def _printed(shared: BlackBox) -> list[str]:
    """Return the last line that C code printed, without the folders of its builder."""
    lines = [line.strip() for line in shared.noise().splitlines() if line.strip()]
    # Looking for folders in a line takes time by its square.
    return [re.sub(r"\S*/(?=[\w.-]+:\d)", "", lines[-1][:1000])[:200]] if lines else []


def _further(where: str, by: int) -> str:
    """Return `symbol+0xoff [module]` for a place that lies further on."""
    return re.sub(r"\+0x([0-9a-f]+)", lambda m: f"+{int(m[1], 16) + by:#x}", where, count=1)


def _culprit(arch: str, code: str, pc: int) -> tuple[int, bytes, str] | None:
    """Return address, bytes and text of the instruction that by itself ends an emulator, or None."""
    try:
        return find(arch, bytes.fromhex(code), pc, alone)
    except (ExecmemError, OSError, ValueError):
        return None
