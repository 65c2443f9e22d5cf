# SPDX-License-Identifier: GPL-2.0-or-later
"""Give calls that do not reach PLT entries that live as long as the calls do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from allocator.types import MemType
from archs import Arch
from archs.arm64 import plt_entry
from emulator.faults import Fault
from machine.machine import ModelledMachine
from samples.bench import fill, row
from samples.course.task import Answer, Check, Task, Verdict

WORD, ENTRY = 4, 12  # bytes of a branch, and of an entry
B = bytes.fromhex("00000014")
# Who calls, from which section, whom.
CALLS = (
    ("probe", ".text", "_printk"),
    ("setup", ".init.text", "_printk"),
    ("setup", ".init.text", "platform_register"),
    ("helper", ".text", "vendor_alloc"),
    ("setup", ".init.text", "vendor_alloc"),
    ("remove", ".exit.text", "platform_unregister"),
    ("remove", ".exit.text", "_printk"),
)
CALLEES = tuple(dict.fromkeys(callee for _, _, callee in CALLS))
INIT = ".init.text"


@attrs.define
class Loaded:
    """A module of which nothing is there but its calls and entries.

    Parameters
    ----------
    entries
        Whom entries lead to: those of core, and those of init.
    calls
        Addresses of the branches; None where no entry leads to whom they call.
    init
        Where init text begins.
    """

    entries: Mapping[MemType, Sequence[str]]
    machine: ModelledMachine
    calls: list[int | None] = attrs.field(init=False, factory=list)
    init: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        machine, branch = self.machine, row(self.machine.arch, "R_AARCH64_JUMP26")
        for number, callee in enumerate(CALLEES, 1):
            machine.stub(callee, number)
        size = WORD * len(CALLS)
        pending = {
            kind: machine.execmem.alloc(kind, size + ENTRY * len(names), align=WORD)
            for kind, names in self.entries.items()
        }
        stubs: dict[MemType, dict[str, int]] = {kind: {} for kind in pending}
        for kind, names in self.entries.items():
            for number, callee in enumerate(names):
                offset = size + ENTRY * number
                at = pending[kind].address + offset
                pending[kind].write(offset, plt_entry(at, machine.kernel.symbols[callee]))
                stubs[kind].setdefault(callee, at)
        for number, (_, section, callee) in enumerate(CALLS):
            own, other = MemType.TEXT, MemType.INIT_TEXT
            if section == INIT:
                own, other = other, own
            entry = stubs[own].get(callee, stubs[other].get(callee))
            at = pending[own].address + WORD * number
            if entry is not None:
                code = fill(branch, B, place=at, target=entry)
                pending[own].write(WORD * number, code)
            self.calls.append(None if entry is None else at)
        for each in pending.values():
            each.finish()
        self.init = pending[MemType.INIT_TEXT].address

    def called(self, number: int) -> str:
        """Return what becomes of a call."""
        at, wanted = self.calls[number], CALLEES.index(CALLS[number][2]) + 1
        if at is None:
            return "does not reach"
        try:
            found = self.machine.call(at)
        except Fault as error:
            return str(error).splitlines()[0]
        return "arrives" if found == wanted else f"arrives elsewhere ({found})"


def _text(arch: Arch) -> str:
    del arch
    width = max(len(name) for name, _, _ in CALLS)
    calls = "".join(
        f"  {name:<{width}}  in {section:<10}  calls {callee}\n" for name, section, callee in CALLS
    )
    return (
        "The kernel lies where no branch of a module gets, so each of these calls goes to a PLT\n"
        f"entry, which any branch of the module reaches:\n{calls}"
        "setup, and only it, calls helper, too. An entry leads to one function; calls may share it.\n"
        "A call takes the entry of its own PLT where there is one, else the other's, which the\n"
        "kernel's loader never does. Entries in `init` are freed with init text; those in `core` stay, and are counted. Say whom the\n"
        "entries of each lead to, so that every call arrives as long as its section lives."
    )


def _grade(answer: Answer) -> Verdict:
    core, init = answer.words("core", CALLEES), answer.words("init", CALLEES)
    entries = {MemType.TEXT: core, MemType.INIT_TEXT: init}
    loaded = Loaded(entries, ModelledMachine(answer.arch))
    first = [loaded.called(number) for number in range(len(CALLS))]
    loaded.machine.execmem.free(loaded.init)
    checks = []
    for number, (name, section, callee) in enumerate(CALLS):
        found, when = first[number], "while init text lives"
        if section != INIT and found == "arrives":
            found, when = loaded.called(number), "its entry was freed"
        passed = found == "arrives"
        said = found if passed else f"{when}: {found}"
        checks.append(Check(f"{name} ({section}) calls {callee}", said, "arrives", passed))
    return Verdict(tuple(checks), len(core))


def _template(_: Arch) -> str:
    lines = "".join(f'  "{callee}",\n' for callee in CALLEES)
    return f"core = []\ninit = [\n{lines}]\n"


TASK = Task(
    name="own-entries",
    title="Give far calls PLT entries that live as long as the calls do.",
    text=_text,
    template=_template,
    hints=(
        (
            "Which of the three sections are freed when init has returned? Not who calls counts, but "
            "where the call lies."
        ),
        "Exit text runs when the module goes: until then it, and what it calls through, must stay.",
        (
            "Core needs an entry for each function that .text or .exit.text calls, once for all of them; "
            "whom only .init.text calls needs none that stays."
        ),
    ),
    grade=_grade,
    unit="entries that stay",
    best={"arm64": 3},
)
