# SPDX-License-Identifier: GPL-2.0-or-later
"""The record that describes an architecture, made of levels (`archs.levels`).

Everything that makes one architecture different stands in one file as one value of
this record; no other package asks for an architecture's name. An absent capability is
None, and code asks for the capability.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs

from allocator.errors import ExecmemError
from allocator.types import TextPoke
from archs.environment import Boot, Environment
from archs.levels.boot import Boot as BootLevel
from archs.levels.debug import Debug
from archs.levels.link import Link
from archs.levels.load import Erratum, Load, Plt
from archs.levels.patch import LivePatch, Patch
from archs.levels.run import Run
from archs.passes.subject import Pass
from archs.text import TextPatching


@attrs.define(auto_exc=True, str=False)
class LevelMissing(ExecmemError, ValueError):
    """Something needs a level that an architecture does not have."""

    arch: str
    level: str
    lacks: str

    def __str__(self) -> str:
        return f"{self.arch} has no level {self.level!r}: {self.lacks} is not known of it"


@attrs.frozen(kw_only=True)
class Arch:
    """One architecture, as levels. Adding one: a file that ends in such a record, and a line.

    Each level is a record of its own, and makes the next set of registry-parametrised tests
    pass; without it, what needs it says so by name.

    Parameters
    ----------
    name, aliases
        The name used everywhere, and the ones accepted besides.
    title
        The manufacturer's spelling, for people.
    machine
        `e_machine` of its modules.
    link
        *links*: what relocations mean.
    load
        *loads*: where modules may lie. Code that cannot do without asks for `loads`.
    run
        *runs*: calling convention and emulated CPU. Code that cannot do without asks for `runs`.
    patch
        *pokes and traces*: how finished text is written; None: it never is.
    boot
        *boots*: how a whole kernel is started. Code that cannot do without asks for `boots`.
    debug
        *is debugged*: registers as a debugger calls them. Code that cannot do without asks for
        `debugs`.
    finalise
        *finalises*: what the kernel edits in a module before its init runs, in its order.
    environment
        Returns what a boot means for modules; None where no pass asks.
    """

    name: str
    aliases: tuple[str, ...] = ()
    title: str
    machine: int
    link: Link
    load: Load | None = None
    run: Run | None = None
    patch: Patch | None = None
    boot: BootLevel | None = None
    debug: Debug | None = None
    finalise: tuple[Pass, ...] = ()
    environment: Callable[[Boot], Environment] | None = None

    @property
    def loads(self) -> Load:
        """The level that loading needs; LevelMissing where there is none."""
        if self.load is None:
            raise LevelMissing(self.name, "load", "where its modules may lie")
        return self.load

    @property
    def runs(self) -> Run:
        """The level that running needs; LevelMissing where there is none."""
        if self.run is None:
            raise LevelMissing(self.name, "run", "how its functions are called")
        return self.run

    @property
    def boots(self) -> BootLevel:
        """The level that booting needs; LevelMissing where there is none."""
        if self.boot is None:
            raise LevelMissing(self.name, "boot", "how its kernels are started")
        return self.boot

    @property
    def debugs(self) -> Debug:
        """The level that debugging needs; LevelMissing where there is none."""
        if self.debug is None:
            raise LevelMissing(self.name, "debug", "what a debugger calls its registers")
        return self.debug

    # What an absent level has none of.

    @property
    def plt(self) -> Plt | None:
        """Stubs for branches that do not reach."""
        return None if self.load is None else self.load.plt

    @property
    def got_section(self) -> str | None:
        """Section of the global offset table."""
        return None if self.load is None else self.load.got_section

    @property
    def errata(self) -> Mapping[str, Erratum]:
        """CPU errata that the loader can work around, by number."""
        return {} if self.load is None else self.load.errata

    @property
    def text_poke(self) -> TextPoke | None:
        """How finished text is written."""
        return None if self.patch is None else self.patch.text_poke

    @property
    def live_patch(self) -> LivePatch | None:
        """How text is written that may be executed meanwhile."""
        return None if self.patch is None else self.patch.live

    @property
    def patching(self) -> TextPatching | None:
        """The instructions of static keys, static calls, ftrace and kprobes."""
        return None if self.patch is None else self.patch.text
