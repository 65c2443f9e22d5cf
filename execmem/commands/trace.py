# SPDX-License-Identifier: GPL-2.0-or-later
"""`execmem trace`: the tree of calls, through call sites patched at functions' entries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from allocator.types import Hex
from execmem.commands.common import boots, examples
from execmem.commands.patching import Target, call_options, split_target, target_of
from execmem.streams import say

if TYPE_CHECKING:
    from kernels.tracing import TracedCall
    from machine.memorytrace import MemoryTrace
    from machine.typedcalls import Call

SHOWN = 4  # argument registers, where nobody knows how many a function takes


@click.command()
@click.argument("target", metavar="MODULE[:GLOB]")
@call_options
@click.option("--also", multiple=True, metavar="MODULE[:GLOB]", help="trace these functions too")
@click.option(
    "--args",
    "with_args",
    is_flag=True,
    help=f"show arguments: by name where types say them, else {SHOWN} registers",
)
@click.option("--memory", is_flag=True, help="show loads and stores of the call, too")
@click.option(
    "--limit",
    default=1000,
    show_default=True,
    metavar="N",
    help="calls to keep (and accesses); count the rest",
)
@examples(
    "execmem trace patchable -- patchable_digits 321",
    'execmem trace "patchable:*_d*" --arch arm64 --args -- patchable_digits 321',
    "execmem trace patchable --memory -- patchable_digits 321",
    'execmem trace "*kmalloc*" --kernel VMLINUZ --args -- kstrdup str:abc 0xcc0',
)
def trace(
    target: str,
    function: str,
    args: tuple[str, ...],
    also: tuple[str, ...],
    with_args: bool,
    memory: bool,
    limit: int,
    **options: Any,
) -> None:
    """Trace a module's functions while one of them is called.

    Every function that matches GLOB gets its call site at the entry pointed at a
    trampoline; the tree shows instructions from there to the return, callees included.
    Afterwards every byte is as before. An ARG is what `execmem run` takes.

    In a booted kernel (--kernel) functions are watched from outside, and nobody counts
    instructions; a GLOB without a module is one of the kernel's own functions.
    """
    from execmem import report
    from execmem.terminal import console

    module, glob = split_target(target)
    session = target_of(target, module, args, options)
    patterns = [session.pattern(glob or "*"), *also]
    with session.text_unchanged():
        typed: dict[int, Call] = {}
        watching: dict[str, Any] = {}
        if with_args:  # text that arguments point at is there now, and perhaps not later

            def began(call: TracedCall) -> None:
                typed[id(call)] = session.machine.typed(call, strings=True)

            watching = {"on_entry": began}
        with session.machine.trace(*patterns, limit=limit, **watching) as found:
            if memory:
                with session.machine.trace_memory(limit=limit) as touched:
                    session.call(function)
            else:
                session.call(function)
        sites = len(found.sites)
    if options["as_json"]:
        calls = [_json(session, depth, call) for depth, call in found.walk()]
        report.print_json(
            session.outcome(function)
            | {"sites": sites, "calls": calls, "dropped": found.dropped, "restored": True}
            | _accesses(touched if memory else None)
        )
        if session.fault is not None:
            raise session.fault
        return
    rows = []
    for depth, call in found.walk():
        seen = typed.get(id(call))
        registers = _registers(session, call) if with_args else ""
        result = "did not return" if call.result is None else f"= {call.result:#x}"
        text = f"{'  ' * depth}{call.function}({registers}) {result}"
        if seen is not None and seen.function.prototype is not None:
            text = f"{'  ' * depth}{seen}" + ("" if seen.returned else " did not return")
        rows.append(("-" if call.instructions is None else call.instructions, text))
    if any(count != "-" for count, _ in rows) or not boots(options):
        table = report.table(("instructions", "call"), rows, right="instructions")
    else:  # nobody counts in a booted kernel
        table = report.table(("call",), [(text,) for _, text in rows])
    console().print(table, soft_wrap=True)
    if found.dropped:
        say(f"and {found.dropped} calls more (--limit)")
    if memory:
        say()
        for access in touched.accesses:
            say(str(access))
        if touched.dropped:
            say(f"and {touched.dropped} accesses more (--limit)")
    say(session.sites(sites))
    session.show(function)


def _accesses(touched: MemoryTrace | None) -> dict[str, Any]:
    """Return what memory was accessed; nothing where nobody looked."""
    if touched is None:
        return {"accesses": [], "accesses_dropped": 0}
    rows = [
        {
            "pc": Hex(each.pc),
            "where": each.where,
            "kind": each.kind,
            "address": Hex(each.address),
            "named": each.named,
            "size": each.size,
            "value": Hex(each.value),
        }
        for each in touched.accesses
    ]
    return {"accesses": rows, "accesses_dropped": touched.dropped}


def _registers(session: Target, call: TracedCall) -> str:
    """Return the argument registers that count, where nobody knows what they mean."""
    known = session.parameters(call.site.module, call.function)
    count = SHOWN if known is None else known
    return ", ".join(f"{value:#x}" for value in call.arguments[:count])


def _json(session: Target, depth: int, call: TracedCall) -> dict[str, Any]:
    return {
        "depth": depth,
        "module": call.site.module,
        "function": call.function,
        "arguments": [Hex(value) for value in call.arguments],
        "caller": session.caller(call.caller),
        "result": None if call.result is None else Hex(call.result),
        "text": str(session.machine.typed(call)),
        "instructions": call.instructions,
    }
