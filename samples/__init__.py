# SPDX-License-Identifier: GPL-2.0-or-later
"""Demos, one idea each, and the sample modules that they load."""

from __future__ import annotations

import json
from importlib import import_module
from typing import get_args

from allocator.errors import ExecmemError, printable
from allocator.plugins import DEMOS as GROUP
from allocator.plugins import bring, installed, origin, said
from samples.story import Story, StoryPart

# In the order of a course.
DEMOS: dict[str, str] = {
    "tour": "one module on every architecture: where it lies, how far it reaches, what it does",
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
    "guard": "seven mistakes of a parser, and what finds each without looking at every access",
    "nomodules": "executable memory in a kernel without modules",
    "trees": "three blocks against three trees, with a server's modules",
    "fit": "do 4,350 modules fit where arm64's calls reach?",
}


def titles() -> dict[str, str]:
    """Return every lesson and what it shows, ours first; those of packages that fail say why."""
    found = dict(DEMOS)
    for name, point in sorted(installed(GROUP).items()):
        if name not in found:
            try:
                lines = (bring(point).__doc__ or "").strip().splitlines()
                told = printable(lines[0]) if lines else ""
            except ExecmemError as error:
                told = str(error)
            found[name] = f"{told} ({origin(point)})".strip()
    return found


def story_of(name: str) -> Story:
    """Run the lesson called `name` and return what it tells.

    Raises
    ------
    KeyError
        There is none of this name.
    ExecmemError
        The package that brings it raises something, or returns no story.
    """
    if name in DEMOS:
        story: Story = import_module(f"samples.{name}").main()
        return story
    point = installed(GROUP)[name]
    main = bring(point)
    told: object = None
    where = f"{GROUP} {name!r} of {origin(point)}"
    try:
        told = getattr(main, "main", main)()
    except ExecmemError:
        raise
    except (Exception, SystemExit) as error:
        raise ExecmemError(printable(f"{where}: {said(error)}")) from error
    if not isinstance(told, Story):
        raise ExecmemError(printable(f"{where}: returned {type(told).__name__}, no Story"))
    strange = [part for part in told.parts if not isinstance(part, get_args(StoryPart))]
    if strange:
        kind = type(strange[0]).__name__
        raise ExecmemError(printable(f"{where}: a story has no part of type {kind}"))
    try:
        json.dumps(told.as_json())
    except (TypeError, ValueError) as error:
        raise ExecmemError(printable(f"{where}: its facts are no JSON: {error}")) from None
    return told
