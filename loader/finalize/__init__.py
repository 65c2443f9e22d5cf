# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel edits in a module between relocation and init.

A module is compiled for every CPU and relocated for one kernel; only then the kernel
knows which instructions this boot wants, and rewrites them in place: padding for traced
calls becomes NOPs, thunks become what the mitigations chose, alternatives are picked,
tables that will be searched are sorted. All of it is predicted here from three things:
the module's relocated bytes, the kernel's symbols and an `Environment`, which says what
CPU and what command line the kernel was booted with.

What is done, and in which order, is the architecture's: its passes (`Arch.finalise`,
`archs.passes`) edit a `Subject` and note which bytes they own, so that any byte can be
attributed afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property

import attrs

from archs import archs
from archs.environment import Environment, SymbolNeeded
from loader.elfview import ElfView
from loader.errors import UnresolvedSymbols
from loader.finalize.subject import Edits, Subject
from loader.layout import Layout
from loader.linked import Linked

__all__ = ["Edits", "Environment", "Finalised", "Subject", "finalise", "mechanisms"]


def mechanisms() -> tuple[str, ...]:
    """Return the names of the passes of all architectures, in order of application."""
    return tuple(dict.fromkeys(step.name for arch in archs() for step in arch.finalise))


@attrs.frozen(eq=False)
class Finalised:
    """What finalisation did to a linked module, whose sections now hold the final bytes."""

    _subject: Subject

    @cached_property
    def edits(self) -> Mapping[str, Edits]:
        """By pass, the places that it decides, changed or not, in order of application."""
        return self._subject.edits()

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left alone, and why, for a person."""
        return tuple(self._subject.notes)


def finalise(
    view: ElfView,
    layout: Layout,
    addresses: Mapping[int, int],
    linked: Linked,
    environment: Environment,
    *,
    without: Iterable[str] = (),
) -> Finalised:
    """Edit a linked module in place as the kernel does before it calls init.

    Parameters
    ----------
    view, layout, addresses
        What the module was linked from: see `loader.link.link_view`.
    linked
        The result of that link; its buffer is edited.
    environment
        What the kernel runs on, and with which options.
    without
        Names of passes to leave out.

    Raises
    ------
    BadModule
        When a table of the module names a place outside it, or instructions that a pass does
        not know.
    UnresolvedSymbols
        When the environment lacks a symbol that its own features need.
    """
    if view.built_for not in (None, environment.version):  # whose kernel would do it
        environment = attrs.evolve(environment, version=view.built_for)
    subject = Subject(view, layout, addresses, linked, environment)
    for step in view.arch.finalise:
        if step.name not in without:
            subject.begin(step.name)
            try:
                step.run(subject)
            except SymbolNeeded as error:
                hint = f"{step.name} needs the kernel's symbol: give it in Environment.symbols"
                raise UnresolvedSymbols(view.name, (str(error),), hint) from None
    return Finalised(subject)
