# SPDX-License-Identifier: GPL-2.0-or-later
"""Repair an order in which modules are loaded and unloaded."""

from __future__ import annotations

from allocator.errors import ExecmemError
from archs import Arch
from emulator.faults import Fault
from loader.files import ModuleFile
from machine.machine import ModelledMachine
from samples.course.task import Answer, Check, Task, Verdict
from samples.modules import names, path

WANTED, FUNCTION, ARGUMENTS = "mathuser", "mathuser_lcm", (12, 18)


def _text(arch: Arch) -> str:
    return (
        "Somebody loads files with insmod, which looks for nothing by itself, and removes them\n"
        f"with rmmod. At the end of `load`, {FUNCTION}{ARGUMENTS} of {WANTED}.ko must answer; at\n"
        "the end of `unload` nothing is left. Repair both lists, and leave out what is not needed.\n"
        f"`execmem load {WANTED} --arch {arch.name}` says what needs what."
    )


def _grade(answer: Answer) -> Verdict:
    load, unload = answer.words("load", names()), answer.words("unload", names())
    machine = ModelledMachine(answer.arch)
    checks = []
    for name in load:
        said = "live"
        try:
            machine.load(ModuleFile.read(path(answer.arch.name, name)))
        except (ExecmemError, Fault) as error:
            said = str(error).splitlines()[0]
        checks.append(Check(f"insmod {name}.ko", said, "live", said == "live"))
    found, result = "not loaded", None
    if WANTED in machine.modules:
        try:
            result = machine.modules[WANTED].call(FUNCTION, *ARGUMENTS)
            found = str(result)
        except Fault as error:
            found = str(error).splitlines()[0]
    checks.append(Check(f"{FUNCTION}{ARGUMENTS}", found, "36", result == 36))
    for name in unload:
        said = "gone"
        module = machine.modules.get(name)
        try:
            if module is None:
                said = "not loaded"
            else:
                module.unload()
        except (ExecmemError, Fault) as error:
            said = str(error).splitlines()[0]
        checks.append(Check(f"rmmod {name}", said, "gone", said == "gone"))
    left = list(machine.modules)
    checks.append(Check("left", ", ".join(left) or "nothing", "nothing", not left))
    return Verdict(tuple(checks), len(load))


TASK = Task(
    name="load-order",
    title="Repair an order in which modules are loaded and unloaded.",
    text=_text,
    template=lambda _: (
        'load = ["mathuser", "sorting", "mathlib"]\nunload = ["mathlib", "mathuser", "sorting"]\n'
    ),
    hints=(
        "A module is refused when it uses a symbol that nobody exports yet.",
        "Who exports must be there before who uses, and may only go after it.",
        "mathuser uses mathlib; nobody uses sorting.",
    ),
    grade=_grade,
    unit="files loaded",
    best={"x86_64": 2, "arm64": 2, "riscv64": 2, "mips64el": 2},
)
