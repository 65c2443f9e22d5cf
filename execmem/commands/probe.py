# SPDX-License-Identifier: GPL-2.0-or-later
"""`execmem probe`: the registers at an instruction, through a breakpoint in its place."""

from __future__ import annotations

from typing import Any

import click

from allocator.types import Hex
from execmem.commands.common import boots, examples
from execmem.commands.patching import call_options, split_target, target_of
from execmem.streams import say


@click.command()
@click.argument("target", metavar="MODULE:FUNCTION[+OFFSET]")
@call_options
@click.option("--registers", metavar="NAME,...", help="show these only")
@click.option("--hits", default=10, show_default=True, metavar="N", help="show the first N hits")
@examples(
    "execmem probe patchable:patchable_divide -- patchable_digits 321",
    "execmem probe crc16:crc16 --root TREE --arch arm64 -- crc16 0 str:12345 5",
    "execmem probe strlen --kernel VMLINUZ -- kstrdup str:abc 0xcc0",
)
def probe(
    target: str,
    function: str,
    args: tuple[str, ...],
    registers: str | None,
    hits: int,
    **options: Any,
) -> None:
    """Show the registers whenever an instruction is reached while a function is called.

    A breakpoint takes the instruction's place, and the instruction is executed out of line
    or imitated, so that the result is the same. Afterwards every byte is as before. An ARG
    is what `execmem run` takes.

    In a booted kernel (--kernel) the instruction is watched from outside; FUNCTION[+OFFSET]
    without a module is in one of the kernel's own functions.
    """
    from execmem import report

    module, place = split_target(target)
    if not place and not boots(options):
        raise click.UsageError(f"{target!r}: expected MODULE:FUNCTION[+OFFSET]")
    session = target_of(target, module, args, options)
    known = session.machine.arch.patching.kprobes.registers if session.machine.arch.patching else ()
    chosen = tuple(registers.split(",")) if registers is not None else known
    if not set(chosen) <= set(known):
        raise click.UsageError(f"--registers: this architecture has {', '.join(known)}")
    with session.text_unchanged(), session.machine.probe(session.pattern(place)) as found:
        session.call(function)
    instruction = session.machine.disassemble(found.address)
    if options["as_json"]:
        report.print_json(
            session.outcome(function)
            | {
                "address": Hex(found.address),
                "where": found.where,
                "instruction": instruction,
                "hits": [{name: Hex(hit.registers[name]) for name in chosen} for hit in found.hits],
                "restored": True,
            }
        )
        if session.fault is not None:
            raise session.fault
        return
    count = found.count
    times = "once" if count == 1 else f"{count} times"
    say(f"{found.where}: {instruction}: reached {times}")
    for number, hit in enumerate(found.hits[:hits], 1):
        say(f"hit {number}")
        cells = [f"{name:>8} {hit.registers[name]:016x}" for name in chosen]
        for at in range(0, len(cells), 3):
            say("".join(cells[at : at + 3]).rstrip())
    if count > hits:
        say(f"and {count - hits} hits more (--hits)")
    session.show(function)
