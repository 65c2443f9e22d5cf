# SPDX-License-Identifier: GPL-2.0-or-later
"""`docs/relocations.md`, written from the architectures' rows.

`python -m execmem.tables FILE` writes it; a test compares the committed file.
"""

from __future__ import annotations

import sys

from allocator.files import write_file
from archs import Arch, Part, Reloc, archs

HEAD = """# Relocations

Written from the rows in `archs/`: what the engine does is what stands here. X is what the
value column computes; its bits go into the fields as `X[high:low] -> word[high:low]`.
*Kernel* says what the kernel's own module loader checks where that differs.
"""


def document() -> str:
    """Return the document."""
    return "\n".join([HEAD, *(_arch(arch) for arch in archs())])


def _arch(arch: Arch) -> str:
    supported = [row for row in arch.link.relocations.values() if not row.unsupported]
    refused = [row for row in arch.link.relocations.values() if row.unsupported]
    lines = [
        f"## {arch.title}",
        "",
        f"{len(supported)} types are applied, {len(refused)} are refused by name.",
        "",
        "| # | name | value | fields | reach | kernel |",
        "|---|---|---|---|---|---|",
        *(
            f"| {row.number} | {row.name} | {_value(row)} | {_fields(row)} | {_reach(row)} "
            f"| {_kernel(row)} |"
            for row in sorted(supported, key=lambda row: row.number)
        ),
        "",
        "| refused | why |",
        "|---|---|",
        *(f"| {names} | {why} |" for why, names in _by_reason(refused).items()),
        "",
    ]
    return "\n".join(lines)


def _value(row: Reloc) -> str:
    if row.got is None:
        return f"`{row.op.formula}`"
    return f"`{row.op.formula}`, S being the {row.got.text}"


def _fields(row: Reloc) -> str:
    if row.uleb:
        return "ULEB128, length kept"
    return "; ".join(map(_part, row.parts)) or "none"


def _part(part: Part) -> str:
    where = f"at P+{part.offset}: " if part.offset else ""
    bias = f" of X+{part.bias:#x}" if part.bias else ""
    if part.whole:
        return f"{where}word{8 * part.size}"
    slices = ", ".join(
        f"X[{s.x + s.bits - 1}:{s.x}] -> word{8 * part.size}[{s.word + s.bits - 1}:{s.word}]"
        for s in part.slices
    )
    return f"{where}{slices}{bias}{', MOVZ or MOVN by sign' if part.movz else ''}"


def _reach(row: Reloc) -> str:
    if row.reach is None:
        return "any"
    unlimited = row.reach.lo == -(1 << 63)
    text = "any" if unlimited else f"`{row.reach}` {row.reach.text()}"
    if row.reach.align > 1:
        text += f", multiple of {row.reach.align}"
    return f"{text}, else a PLT entry" if row.stub else text


def _kernel(row: Reloc) -> str:
    if not row.kernel:
        return "does not know it"
    if row.kernel_reach == row.reach:
        return ""
    return "no check" if row.kernel_reach is None else f"`{row.kernel_reach}`"


def _by_reason(rows: list[Reloc]) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row.unsupported, []).append(f"{row.name} ({row.number})")
    return {why: ", ".join(names) for why, names in found.items()}


if __name__ == "__main__":
    write_file(sys.argv[1], document())
