# SPDX-License-Identifier: GPL-2.0-or-later
"""Names -> addresses between modules, with the references that keep an owner loaded.

The kernel's own symbols come from whoever runs the kernel (`KernelSymbols`); modules add
what their `__ksymtab` sections export and take it away when they go.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import attrs

from loader.elf import MAX_NAME, ElfView
from loader.errors import BadModule, MissingDependency, SymbolClash, UnresolvedSymbols

KSYMTABS = ("__ksymtab", "__ksymtab_gpl")


class KernelSymbols(Protocol):
    """The kernel's side of symbol resolution."""

    def knows(self, name: str) -> bool:
        """Return whether the kernel implements or declares `name`."""
        ...

    def address(self, name: str, *, called: bool = True) -> int:
        """Return the address of a kernel symbol; an unknown one gets something that stands in.

        Parameters
        ----------
        called
            Whether the module calls it; else it may be a variable.
        """
        ...


@attrs.frozen
class Export:
    """One exported symbol."""

    name: str
    address: int
    owner: str
    gpl: bool


@attrs.define
class SymbolTable:
    """Exports of loaded modules, in front of the kernel's symbols.

    Parameters
    ----------
    kernel
        Answers for what no module exports.
    refuse_unknown
        Refuse a name that the kernel does not know and that the module's build did not
        vouch for in `__versions`; otherwise such a name gets a stub that stops.
    """

    kernel: KernelSymbols
    refuse_unknown: bool = False
    exports: dict[str, Export] = attrs.field(factory=dict)

    def resolve(
        self, view: ElfView, missing_modules: Iterable[str] = ()
    ) -> tuple[dict[str, int], frozenset[str], tuple[str, ...]]:
        """Return addresses of undefined names, the owning modules, and names nobody implements.

        Raises
        ------
        MissingDependency, UnresolvedSymbols
            Naming every symbol at once.
        """
        found: dict[str, int] = {}
        owners: set[str] = set()
        unknown: list[str] = []
        from_kernel: list[str] = []
        for name in view.undefined:
            export = self.exports.get(name)
            if export is not None:
                found[name] = export.address
                owners.add(export.owner)
                continue
            if self.kernel.knows(name):
                from_kernel.append(name)
            elif name not in view.weak_undefined:
                unknown.append(name)
        missing = tuple(missing_modules)
        if missing:
            hint = "load them first, or give the folder that holds lib/modules (--root)"
            raise MissingDependency(view.name, missing, tuple(sorted(unknown)), hint)
        if self.refuse_unknown:
            refused = tuple(sorted(name for name in unknown if name not in view.versions))
            if refused:
                hint = (
                    "no module and not the kernel has them; a stub stands in with --unknown fault"
                )
                raise UnresolvedSymbols(view.name, refused, hint)
        for name in from_kernel:
            found[name] = self.kernel.address(name)
        for name in unknown:
            found[name] = self.kernel.address(name, called=name in view.called)
        return found, frozenset(owners), tuple(unknown)

    def publish(self, module: str, exports: Iterable[Export]) -> None:
        """Add the exports of a module (kernel: verify_exported_symbols)."""
        exports = tuple(exports)
        clashes = [(e.name, self.exports[e.name].owner) for e in exports if e.name in self.exports]
        if clashes:
            names, owners = zip(*clashes, strict=True)
            raise SymbolClash(module, names, owners)
        self.exports.update((export.name, export) for export in exports)

    def withdraw(self, module: str) -> None:
        """Remove what a module exported."""
        for name in [n for n, export in self.exports.items() if export.owner == module]:
            del self.exports[name]


def exports_of(
    view: ElfView, addresses: Mapping[int, int], linked: Mapping[int, memoryview], owner: str
) -> tuple[Export, ...]:
    """Return what a module exports, read from its relocated `__ksymtab` tables.

    An entry is (value, name, namespace): 32-bit self-relative words where the
    architecture has CONFIG_HAVE_ARCH_PREL32_RELOCATIONS, pointers elsewhere
    (include/linux/export-internal.h).
    """
    strings = view.section("__ksymtab_strings")
    found: list[Export] = []
    for title in KSYMTABS:
        section = view.section(title)
        if section is None or strings is None or not {section.index, strings.index} <= {*linked}:
            continue
        table, start = linked[section.index], addresses[section.index]
        names, first = bytes(linked[strings.index]), addresses[strings.index]
        width = 4 if view.arch.prel32 else 8
        for at in range(0, len(table) - 3 * width + 1, 3 * width):
            value, name = (
                int.from_bytes(table[at + k : at + k + width], "little", signed=width == 4)
                + (start + at + k if width == 4 else 0)
                for k in (0, width)
            )
            at_name = name - first
            text = names[at_name : at_name + MAX_NAME].partition(b"\0")[0] if at_name >= 0 else b""
            if len(text) == MAX_NAME:
                raise BadModule(view.name, title, f"a name has {MAX_NAME} bytes or more")
            if text:
                found.append(
                    Export(text.decode("utf-8", "backslashreplace"), value, owner, "gpl" in title)
                )
    return tuple(found)
