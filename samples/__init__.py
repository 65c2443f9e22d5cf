# SPDX-License-Identifier: GPL-2.0-or-later
"""Demos, one idea each, and the sample modules that they load."""

from __future__ import annotations

from importlib import import_module

from samples.story import Story

# In the order of a course.
DEMOS: dict[str, str] = {
    "tour": "one module on three architectures: where it lies, how far it reaches, what it does",
    "reach": "how far a direct call gets, and what happens one step further",
    "veneer": "the 128 MiB wall of arm64, and the PLT entry that leads over it",
    "adrp": "why arm64 code may move by pages, and not by less",
    "hi20": "why RISC-V adds 0x800 before it takes the upper 20 bits",
    "auipc": "a RISC-V instruction that begins two bytes before a page ends",
    "model": "why x86-64 modules live in the top 2 GiB, their data included",
    "vmalloc_else": "the #else of the thread, which puts text where no call gets",
    "flow": "alloc, write, finish: with text_poke and without",
    "poke": "changing code that another CPU runs, and what goes wrong when a step is left out",
    "rox": "the ROX cache, the leaf that splits, and the one that need not",
    "holes": "what init leaves behind between the texts that stay",
    "after_init": "data that init may write and nobody after it",
    "initplt": "why init text has PLT entries of its own",
    "nomodules": "executable memory in a kernel without modules",
    "trees": "three blocks against three trees, with a server's modules",
    "fit": "do 4,350 modules fit where arm64's calls reach?",
}


def story_of(name: str) -> Story:
    """Run the demo called `name` and return what it tells; KeyError for an unknown name."""
    if name not in DEMOS:
        raise KeyError(name)
    story: Story = import_module(f"samples.{name}").main()
    return story
