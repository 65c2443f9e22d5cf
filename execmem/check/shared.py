# SPDX-License-Identifier: GPL-2.0-or-later
"""A body that every architecture shares: one word a line, spelt out by each (`Assembly.lines`).

function NAME    a global function begins, with a frame of its own
return           it ends with the value of the last word
value N          a number
call NAME        the value that a function returns
branch NAME      go there for good, without the frame
address-of NAME  an address, formed as a module's code forms it
load             the eight bytes at the last value
word NAME        eight bytes of data: an address
begin            what stands before everything

All other lines are the assembler's own (labels, `.data`, `.section`, `.space`).
"""

from __future__ import annotations

from archs import Arch
from execmem.check.case import BadCase, Case

_FUNCTION = (".globl {0}", ".type {0}, %function", ".p2align 2", "{0}:")
_PLAIN = frozenset(("return", "load"))


def spell(case: Case, arch: Arch) -> str:
    """Return the assembly of a shared case for one architecture, line by line.

    BadCase where a word lacks what must follow it, or the architecture has no words.
    """
    assembly = arch.link.assembly
    if assembly is None or not assembly.lines:
        raise BadCase(case.path, 0, f"nobody has said how {arch.name} spells a shared body")
    spelt = ["; ".join(assembly.lines.get("begin", ()))]
    for number, line in enumerate(case.source.splitlines(), 1):
        word, _, rest = line.strip().partition(" ")
        lines = assembly.lines.get(word)
        if lines is None or word == "begin":
            spelt.append(line if not line.lstrip().startswith(("#", "//")) else "")
            continue
        rest = rest.split("#")[0].strip()
        if bool(rest) == (word in _PLAIN):
            raise BadCase(
                case.path, number, f"{word}: {'something' if rest else 'nothing'} follows"
            )
        if word == "function":
            lines = (*_FUNCTION, *lines)
        spelt.append("; ".join(one.format(rest) for one in lines))
    return "\n".join(spelt) + "\n"
