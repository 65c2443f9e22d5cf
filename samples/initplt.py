# SPDX-License-Identifier: GPL-2.0-or-later
"""initplt: why init text has PLT entries of its own.

A PLT entry lives as long as the region it lies in. Init text and its entries are freed when
init has returned; a core function that called through one of them would jump into what
comes next. The lesson does that, with a hand that the linker never lends.
"""

from __future__ import annotations

from allocator.types import Hex, MemType
from archs import arch as arch_by_name
from archs.arm64 import plt_entry
from emulator.faults import Fault
from machine.machine import ModelledMachine
from samples.bench import fill, listing, put, row
from samples.story import Grid, Lines, Story, Text

RETURN_7 = bytes.fromhex("e0008052c0035fd6")  # mov w0, #7 ; ret
B = bytes.fromhex("00000014")


def main() -> Story:
    """Call through an entry of init text before and after init text is freed."""
    arch = arch_by_name("arm64")
    machine = ModelledMachine(arch)
    target = put(machine, RETURN_7)
    pending = machine.execmem.alloc(MemType.INIT_TEXT, 12, align=4)
    entry = plt_entry(pending.address, target)
    pending.write(0, entry)
    init = pending.finish()
    branch = row(arch, "R_AARCH64_JUMP26")
    caller = put(machine, bytes(4))
    machine.execmem.poke(caller, fill(branch, B, place=caller, target=init.address))
    before = machine.call(caller)
    machine.execmem.free(init.address)
    fault = ""
    try:
        machine.call(caller)
    except Fault as error:
        fault = str(error).splitlines()[0]
    there = machine.read(init.address, 12)
    story = Story("initplt", "arm64: init text's PLT entries die with init")
    story.facts = {
        "before": Hex(before),
        "fault": fault,
        "there": there.hex(),
        "trap": arch.loads.trap.hex(),
    }
    story.parts = [
        Text(
            f"A core function at {caller:#x} branches to an entry in init text at "
            f"{init.address:#x}, which leads to a function that returns 7."
        ),
        Lines(tuple(listing(arch, entry, init.address))),
        Grid(
            ("when", "result"),
            (("while init text lives", str(before)), ("after it was freed", "a fault")),
        ),
        Lines((fault, "", *listing(arch, there, init.address))),
        Text(
            "Freed text is filled with traps before anyone else gets it, so the mistake stops at "
            "once. The linker cannot make it: branches of .init.text use .init.plt, all others "
            ".plt."
        ),
    ]
    return story
