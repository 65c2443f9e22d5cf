# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel edits in a module between relocation and init, one file per mechanism.

A module is compiled for every CPU and relocated for one kernel; only then the kernel
knows which instructions this boot wants, and rewrites them in place: padding for traced
calls becomes NOPs, thunks become what the mitigations chose, alternatives are picked,
tables that will be searched are sorted. All of it is predicted here from three things:
the module's relocated bytes, the kernel's symbols and an `Environment`, which says what
CPU and what command line the kernel was booted with.

The architecture names the mechanisms and their order (`Arch.finalisation`), because the
order is part of the meaning: calls are counted only after alternatives have brought
theirs. Each mechanism is a function that edits a `Subject` and notes which bytes it owns,
so that any byte can be attributed afterwards.

Sources: arch/*/kernel/module.c (module_finalize), kernel/module/main.c (load_module,
prepare_coming_module).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING

import attrs

from archs.environment import Environment, SymbolNeeded
from loader.elf import ElfView
from loader.errors import UnresolvedSymbols
from loader.finalize import (
    alternatives,
    callthunks,
    extable,
    ftrace,
    ibt_seal,
    jump_labels,
    orc,
    retpolines,
    returns,
    same_size,
    smp_locks,
    static_calls,
    trace_events,
    trampolines,
)
from loader.finalize.subject import Edits, Subject
from loader.layout import Layout

if TYPE_CHECKING:  # the link finalises on request
    from loader.linked import Linked

__all__ = ["MECHANISMS", "Edits", "Environment", "Finalised", "Subject", "finalise"]

MECHANISMS: Mapping[str, Callable[[Subject], None]] = MappingProxyType(
    {
        "alternatives": alternatives.apply,
        "callthunks": callthunks.apply,
        "extable": extable.sort,
        "ftrace": ftrace.prepare,
        "ibt_seal": ibt_seal.seal,
        "jump_labels": jump_labels.attach,
        "orc": orc.sort,
        "retpolines": retpolines.apply,
        "returns": returns.apply,
        "smp_locks": smp_locks.drop,
        "static_calls": static_calls.attach,
        "ftrace_trampolines": trampolines.fill,
        "same_size_alternatives": same_size.apply,
        "trace_events": trace_events.register,
        "running_kernel": trace_events.running,
    }
)


@attrs.frozen(eq=False)
class Finalised:
    """What finalisation did to a linked module, whose sections now hold the final bytes."""

    _subject: Subject

    @cached_property
    def edits(self) -> Mapping[str, Edits]:
        """By mechanism, the places that it decides, changed or not, in order of application."""
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
        Mechanisms to leave out.

    Raises
    ------
    BadModule
        When a table of the module names a place outside it, or instructions that the
        mechanism does not know.
    UnresolvedSymbols
        When the environment lacks a symbol that its own features need.
    """
    subject = Subject(view, layout, addresses, linked, environment)
    finalisation = view.arch.finalisation
    for name in finalisation.order if finalisation else ():
        if name not in without:
            subject.begin(name)
            try:
                MECHANISMS[name](subject)
            except SymbolNeeded as error:
                hint = f"{name} needs the kernel's symbol: give it in Environment.symbols"
                raise UnresolvedSymbols(view.name, (str(error),), hint) from None
    return Finalised(subject)
