# SPDX-License-Identifier: GPL-2.0-or-later
"""nomodules: a kernel without modules still needs executable memory.

ftrace trampolines, kprobe slots, BPF programs and mitigation thunks all make code at run
time. With module_alloc they depended on CONFIG_MODULES; execmem serves them by itself, each
from the range its architecture gives it.
"""

from __future__ import annotations

from allocator import Execmem, KernelMemory, PhysicalMemory
from allocator.types import GIB, Consumer, Hex, MemType, size_text
from archs import archs
from samples.story import Grid, Story, Text

WANTED = ((Consumer.FTRACE, 256), (Consumer.KPROBES, 16), (Consumer.BPF, 480), (Consumer.THUNK, 32))


def main() -> Story:
    """Allocate for every consumer, with neither loader nor machine in sight."""
    story = Story("nomodules", "Executable memory in a kernel without modules")
    rows = []
    for arch in archs():
        memory = KernelMemory(PhysicalMemory(GIB), arch.loads.address_map())
        execmem = Execmem(memory, trap=arch.loads.trap, text_poke=arch.text_poke)
        call = arch.link.call
        image = memory.address_map.image
        facts = {}
        for consumer, size in WANTED:
            pending = execmem.alloc(MemType.TEXT, size, consumer=consumer)
            pending.write(0, (arch.runs.emulation.ret * size)[:size])
            got = pending.finish()
            far = max(abs(image.start - got.address), abs(image.end - got.address))
            reaches = call is None or all(
                to in call.span(got.address) for to in (image.start, image.end - 4)
            )
            execmem.quiet()  # without text_poke leaves heal then
            leaf = memory.translate(got.address)
            assert leaf is not None
            facts[consumer.value] = {
                "address": Hex(got.address),
                "reaches": reaches,
                "leaf": leaf.leaf,
            }
            rows.append(
                (
                    arch.title,
                    consumer.value,
                    str(size),
                    f"{got.address:#x}",
                    size_text(far),
                    "yes" if reaches else "no",
                    size_text(leaf.leaf),
                )
            )
        execmem.check()
        story.facts[arch.name] = facts
    story.parts = [
        Text(
            "Nothing but the allocator: no loader, no module. Far is the distance to the farther "
            "end of the kernel image; reaches, whether a direct call gets to all of it."
        ),
        Grid(
            ("arch", "for", "bytes", "address", "far", "reaches", "leaf"),
            tuple(rows),
            "bytes,far,leaf",
        ),
        Text(
            "A consumer that does not reach is one whose code never calls the kernel directly: what "
            "a slot of kprobes would reach is emulated, so arm64 and riscv64 give slots the whole "
            "vmalloc range."
        ),
    ]
    return story
