# SPDX-License-Identifier: GPL-2.0-or-later
"""Write the bytes of a call by hand, as a linker would."""

from __future__ import annotations

from functools import cache

from archs import Arch
from archs.reloc import Reloc
from loader.link import link_view
from loader.listing import Listing, Relocation, decode
from machine.machine import ModelledMachine
from samples.course.task import Answer, Check, Task, Verdict
from samples.modules import root

MODULE, SYMBOL = "mathuser", "mathlib_gcd"
# Lower by: so that no tool shows the bytes, and lower halves have their sign bit.
AWAY = 0x24440


@cache
def call(arch: str) -> Relocation:
    """Return the relocation of the call, linked as if the function lay where it does not."""
    machine = ModelledMachine(arch, root=root(arch))
    loaded = machine.load(MODULE, init=False).loaded
    places = {index: section.address for index, section in loaded.sections.items()}
    symbols = {
        name: int(loaded.linked.symbols[index])
        for index, name in zip(
            loaded.view.undefined_indices.tolist(), loaded.view.undefined_names, strict=True
        )
    }
    symbols[SYMBOL] -= AWAY
    linked = link_view(loaded.view, loaded.layout, places, symbols, percpu=loaded.percpu)
    found = Listing(loaded.view, linked, places).select(symbol=SYMBOL)
    return next(one for one in found if one.section.name == ".text")


def fields(row: Reloc) -> list[str]:
    """Return in words which bits of X go where."""
    told = []
    for part in row.parts:
        bias = f" of X + {part.bias:#x}" if part.bias else " of X"
        for each in part.slices:
            first, last = each.word, each.word + each.bits - 1
            told.append(
                f"bits {each.x}-{each.x + each.bits - 1}{bias} into bits {first}-{last} of the "
                f"{part.size} bytes at P+{part.offset}"
            )
    return told


def _text(arch: Arch) -> str:
    one = call(arch.name)
    assert one.row is not None
    return (
        f"{MODULE}.ko calls {SYMBOL}, which lies {AWAY:#x} bytes lower than\n"
        f"`execmem relocs {MODULE} --arch {arch.name}` shows it. The place of the relocation is\n"
        f"P = {one.place:#x}; the function is S = {one.value:#x}; A = {one.addend:#x}.\n"
        f"{one.type} computes X = {one.formula}; then\n"
        + "".join(f"  {line}\n" for line in fields(one.row))
        + f"with the lowest byte first in memory. The file has {one.before.hex(' ')}\n"
        "there. Write the bytes that the linker leaves."
    )


def _grade(answer: Answer) -> Verdict:
    one = call(answer.arch.name)
    code = answer.code("bytes")
    size = len(one.after)
    checks = [Check("bytes", str(len(code)), str(size), len(code) == size)]
    if len(code) != size:
        return Verdict(tuple(checks))
    assert one.row is not None
    fields = 0
    for part in one.row.parts:
        mask = bytearray(size)
        mask[part.offset : part.offset + part.size] = part.mask.to_bytes(part.size, part.order)
        fields |= int.from_bytes(mask, "little")
    wrong, changed = (
        int.from_bytes(code, "little") ^ int.from_bytes(other, "little")
        for other in (one.after, one.before)
    )
    outside = (changed & ~fields).bit_count()
    held, off = decode(one.row, code), decode(one.row, code) - decode(one.row, one.after)
    checks += [
        Check("bits changed outside of the fields", str(outside), "0", not outside),
        Check("X that the fields hold", f"{held:+#x}", one.formula, not off),
        Check("X is off by", f"{off:+#x}", "+0x0", not off),
    ]
    return Verdict(tuple(checks), wrong.bit_count())


TASK = Task(
    name="by-hand",
    title="Write the bytes of a call by hand, as a linker would.",
    text=_text,
    template=lambda arch: f'bytes = "{call(arch.name).before.hex(" ")}"\n',
    hints=(
        "Compute X first: put the numbers into the formula; it may be negative.",
        (
            "Which bits of X go into which bits of which word? Some types drop the lowest bits, some "
            "add half a unit before they take the upper ones (`execmem demo hi20`)."
        ),
        "Instructions are stored with the lowest byte first. Only bits of the fields change.",
    ),
    grade=_grade,
    unit="wrong bits",
    best={"x86_64": 0, "arm64": 0, "riscv64": 0, "mips64el": 0},
)
