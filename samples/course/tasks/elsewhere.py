# SPDX-License-Identifier: GPL-2.0-or-later
"""Say at which places a loader leaves other bytes when a module lies elsewhere."""

from __future__ import annotations

from functools import cache

import attrs

from allocator.errors import printable
from allocator.types import MIB, MemType
from archs import Arch
from loader.link import link_view
from loader.listing import Listing
from machine.machine import ModelledMachine
from samples.course.task import Answer, AnswerError, Check, Task, Verdict
from samples.modules import root

MODULE, OTHER = "mathuser", "mathlib"
FAR = 2 * MIB


@attrs.frozen
class Places:
    """What a loader leaves at each place, at two boots.

    Parameters
    ----------
    up
        Whether text of modules lies higher at the second, and all else of theirs lower.
    left
        Place, as `execmem relocs` names it -> bytes at the first, and at the second.
    """

    up: bool
    left: dict[str, tuple[bytes, bytes]]

    @property
    def changed(self) -> set[str]:
        """Places that hold other bytes at the second boot."""
        return {place for place, (first, second) in self.left.items() if first != second}


@cache
def places(arch: str) -> Places:
    """Return what is left of the module where it lies, and where it would lie.

    Text and data move towards each other, where there is room.
    """
    machine = ModelledMachine(arch, root=root(arch))
    loaded = machine.load(MODULE, init=False).loaded
    regions = [
        each for module in machine.modules.values() for each in module.report.regions.items()
    ]
    up = loaded.regions[MemType.TEXT].address < loaded.regions[MemType.DATA].address

    def second(address: int) -> int:
        """Return where something of a module lies at the second boot; the kernel's stays."""
        for kind, region in regions:
            if region.address <= address < region.address + region.size:
                return address + (FAR if kind.is_text is up else -FAR)
        return address

    places = {index: section.address for index, section in loaded.sections.items()}
    names, indices = loaded.view.undefined_names, loaded.view.undefined_indices.tolist()
    symbols = {
        name: int(loaded.linked.symbols[index]) for index, name in zip(indices, names, strict=True)
    }
    found = []
    for lies in (int, second):
        at = {index: lies(address) for index, address in places.items()}
        there = {name: lies(address) for name, address in symbols.items()}
        linked = link_view(loaded.view, loaded.layout, at, there, percpu=loaded.percpu)
        rows = Listing(loaded.view, linked, at).select()
        found.append({f"{one.section.name}+{one.offset:#x}": one.after for one in rows})
    return Places(up, {place: (found[0][place], found[1][place]) for place in found[0]})


def _text(arch: Arch) -> str:
    there = places(arch.name)
    text, rest = ("higher", "lower") if there.up else ("lower", "higher")
    return (
        f"`execmem relocs {MODULE} --arch {arch.name}` shows each place of {MODULE}.ko that the\n"
        f"loader fills in, and by which formula. At another boot text of {MODULE}.ko and of\n"
        f"{OTHER}.ko, which it calls, lies {FAR:#x} bytes {text}, init text too, and all else of\n"
        f"theirs {FAR:#x} {rest}; the kernel lies where it did. At which of the {len(there.left)}\n"
        "places does the loader leave other bytes then? Name them as the command does."
    )


def _grade(answer: Answer) -> Verdict:
    there, named = places(answer.arch.name), set(answer.words("changed"))
    command = f"execmem relocs {MODULE} --arch {answer.arch.name}"
    for each in sorted(named - set(there.left)):
        reason = f"changed has {each!r}, which is no place; `{command}` has them"
        raise AnswerError(answer.file, printable(reason))
    same, missed = sorted(named - there.changed), there.changed - named
    told = f"{same[0]} holds {there.left[same[0]][1].hex(' ')} both times" if same else ""
    right = len(named) - len(same)
    return Verdict(
        (
            Check(
                "named places that stay the same",
                f"{len(same)}: {told}" if same else "0",
                "0",
                not same,
            ),
            Check("named places that change", f"{right}", f"{len(there.changed)}", not missed),
        ),
        len(same) + len(missed),
    )


TASK = Task(
    name="elsewhere",
    title="Say at which places the loader leaves other bytes when a module moves.",
    text=_text,
    template=lambda _: "changed = [\n]\n",
    hints=(
        "Which of S and P move, and which way, for each place? Who calls a neighbour moves with it.",
        (
            "S+A-P is the same where both move alike, and only there. S+A changes with S, wherever P "
            "is. Which symbols are the kernel's?"
        ),
        (
            "Look for S+A-P from text to data or to the kernel, and for S+A with something of a "
            "module's; there leave out the types that hold only the lowest bits, which stay."
        ),
    ),
    grade=_grade,
    unit="places wrong",
    best={"x86_64": 0, "arm64": 0, "riscv64": 0, "mips64el": 0},
)
