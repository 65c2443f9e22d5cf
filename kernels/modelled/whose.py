# SPDX-License-Identifier: GPL-2.0-or-later
"""By whose structures the kernel has to go: its own, or those of the build whose code calls.

One kernel answers the modules of several builds. Where members of their structures lie is known
of one build, that of the kernel (`Layouts`). A module of another build is served as long as
nothing is read or written by them; what asks for one then gets the layouts of that build, which
are unknown, and stops by name.

Nothing of such a module's comes into the kernel by a structure, so what is asked of its registry
is always about its own build; what is put off is done by the layouts of who put it off. Else only
who calls counts: where the call returns to, and the guest function that is under way, since a call
in the last place of a function returns to whoever called that. Modules that link to one another
share structures, whoever of them calls. Where neither tells a module, the caller may be any.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from allocator import AccessError
from archs.layouts import Layouts
from kernels.runner import GuestRunner
from loader.loaded import LoadedModule


class Served(Protocol):
    """The call of a kernel function under way."""

    function: str  # empty between calls

    def return_to(self) -> int:
        """Return where it returns to; AccessError where its stack is none."""
        ...


class Whose:
    """Knows whose structures count.

    Parameters
    ----------
    own
        Layouts of the kernel's own structures.
    serving
        Whether a call of the guest is served, and where it returns to.
    runner
        Knows which module code is in.
    modules
        The loaded modules, by name.
    """

    def __init__(
        self,
        own: Layouts,
        serving: Served,
        runner: GuestRunner,
        modules: Mapping[str, LoadedModule],
    ) -> None:
        self.own = own
        self._serving = serving
        self._runner = runner
        self._modules = modules
        self._others: dict[str, Layouts] = {}  # those of modules of other builds
        self._reached: dict[str, Layouts] = {}  # and of all that link to them
        self._told: tuple[Layouts, int] | None = None  # and how deep in the guest it counts

    @property
    def layouts(self) -> Layouts:
        """Where members lie of the structures that whoever is served now has."""
        told = self._told
        if told is not None and (told[0] is self.own or told[1] == self._runner.depth):
            return told[0]
        if not self._others or not self._serving.function:
            return self.own
        return self._of_caller()

    @contextmanager
    def by(self, layouts: Layouts | None) -> Iterator[None]:
        """Go by these meanwhile, but for guest functions that are called; None: by its own."""
        before = self._told
        if layouts is None or layouts is self.own:
            self._told = self.own, 0
        else:
            self._told = layouts, self._runner.depth
        try:
            yield
        finally:
            self._told = before

    def coming(self, loaded: LoadedModule) -> None:
        """Note a module that is there from now on."""
        if loaded.layouts is not None and loaded.layouts is not self.own:
            self._others[loaded.name] = loaded.layouts
        self._link()

    def gone(self, loaded: LoadedModule) -> None:
        """Forget a module."""
        self._others.pop(loaded.name, None)
        self._link(without=loaded.name)

    def _link(self, without: str = "") -> None:
        """Find what links to modules of other builds, in whichever direction."""
        self._reached = dict(self._others)
        if not self._others:
            return
        pairs = [(n, p) for n, m in self._modules.items() if n != without for p in m.providers]
        ahead = list(self._others)
        while ahead:
            name = ahead.pop()
            for one, other in pairs:
                if name in (one, other):
                    beside = other if name == one else one
                    if beside not in self._reached:
                        self._reached[beside] = self._reached[name]
                        ahead.append(beside)

    def _of_caller(self) -> Layouts:
        try:
            places = [self._serving.return_to(), self._runner.entry]
        except AccessError:  # it has no stack
            places = [self._runner.entry]
        names = {self._runner.locate(place)[0] for place in places} - {""}
        for name in names:
            if name in self._reached:
                return self._reached[name]
        return self.own if names else next(iter(self._others.values()))
