# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel modules out of functions in assembly, by the GNU assembler of their architecture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.archs.facts import facts
from tests.support.tools import assemble

HEAD = """
        .section .modinfo, "a"
        .asciz  "license=GPL"
        .asciz  "name=mini"
        .asciz  "vermagic={vermagic}"
        .section .gnu.linkonce.this_module, "aw"
        .balign 64
        .zero   24
        .asciz  "mini"
        .org    {size}
        .data
local:  .quad   0
        .text
"""


def built(
    machine: int, functions: Mapping[str, str], folder: Path, vermagic: str, more: str = ""
) -> bytes:
    """Return a module of functions, each of instructions with semicolons between.

    `more` is assembly behind them, for tables.
    """
    lines = [
        HEAD.format(vermagic=vermagic, size=facts(machine).link.this_module_size),
        facts(machine).link.directives,
    ]
    for name, code in functions.items():
        # la goes through a GOT in code that is position independent, as assemblers default to.
        lines.append(f"        .globl {name}\n        .type {name}, %function\n{name}:")
        lines += [f"        {one.strip()}" for one in code.split(";")]
        lines += ["        ret", f"        .size {name}, . - {name}"]
    lines.append(more)
    source = "\n".join(lines) + "\n"
    return assemble(machine, source.replace(" la ", " lla "), folder)
