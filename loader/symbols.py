# SPDX-License-Identifier: GPL-2.0-or-later
"""Names -> addresses between modules, with the references that keep an owner loaded.

The kernel's own symbols come from whoever runs the kernel (`KernelSymbols`); modules add
what their `__ksymtab` sections export and take it away when they go.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Protocol

import attrs
import numpy as np

from archs import Order
from archs.layouts import Layouts
from loader.elfview import MAX_NAME, ElfView, LongNames
from loader.errors import MissingDependency, SymbolClash, UnresolvedSymbols

KSYMTABS = ("__ksymtab", "__ksymtab_gpl")
KSYM_FLAG_GPL = 1  # in `__kflagstab`, which has a byte for every export since Linux 7


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
    """One exported symbol.

    Parameters
    ----------
    gpl
        Whether only modules with a compatible licence may use it.
    namespace
        Which namespace those import; empty for none.
    crc
        Version of its type (CONFIG_MODVERSIONS), or None.
    """

    name: str
    address: int
    owner: str
    gpl: bool
    namespace: str = ""
    crc: int | None = None


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
    exported
        What the modules' own kernel exports, where that is known: it alone vouches then.
    stand_in
        Returns the address of what stands in for a kernel variable of a structure that layouts
        lack; None: they lack none that it needs.
    """

    kernel: KernelSymbols
    refuse_unknown: bool = False
    exported: Collection[str] | None = None
    exports: dict[str, Export] = attrs.field(factory=dict)
    stand_in: Callable[[str, Layouts], int | None] = lambda _name, _layouts: None

    def resolve(
        self,
        view: ElfView,
        missing_modules: Iterable[str] = (),
        hidden: frozenset[str] = frozenset(),
        layouts: Layouts | None = None,
    ) -> tuple[dict[str, int], frozenset[str], tuple[str, ...]]:
        """Return addresses of undefined names, the owning modules, and names nobody implements.

        Parameters
        ----------
        hidden
            Names that the module may not see: weak ones, which stay 0.
        layouts
            Of its kernel's structures; None: as the kernel has them.

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
            if name in hidden:
                continue
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
            vouched = view.versions if self.exported is None else self.exported
            refused = tuple(sorted(name for name in unknown if name not in vouched))
            if refused:
                hint = (
                    "no module and not the kernel has them; a stub stands in with --unknown fault"
                )
                raise UnresolvedSymbols(view.name, refused, hint)
        for name in from_kernel:
            found[name] = self.address(name, layouts)
        for name in unknown:
            found[name] = self.kernel.address(name, called=name in view.called)
        return found, frozenset(owners), tuple(unknown)

    def address(self, name: str, layouts: Layouts | None = None, *, called: bool = True) -> int:
        """Return the address of a kernel symbol for a module whose kernel has those layouts."""
        found = None if layouts is None else self.stand_in(name, layouts)
        return self.kernel.address(name, called=called) if found is None else found

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
    (include/linux/export-internal.h). CRCs are in a table beside it. Which exports are
    GPL-only says the table that they are in, or since Linux 7 a table of flags.
    """
    strings = view.find("__ksymtab_strings")
    flags = view.find("__kflagstab")
    marks = bytes(view.contents(flags)) if flags is not None else b""
    found: list[Export] = []
    for title in KSYMTABS:
        section = view.find(title)
        if section is None or strings is None or not {section.index, strings.index} <= {*linked}:
            continue
        table = _Ksymtab(
            (view.name, title),
            view.dialect.word if not view.arch.loads.prel32 else 4,
            view.arch.loads.prel32,
            view.dialect.order,
            bytes(linked[section.index]),
            addresses[section.index],
            bytes(linked[strings.index]),
            addresses[strings.index],
        )
        gpl, crcs = title.endswith("_gpl"), _crcs_of(view, title)
        for number, at in enumerate(table.entries):
            name = table.text(at + table.width)
            if not name:
                continue
            marked = marks[number] & KSYM_FLAG_GPL if number < len(marks) else 0
            space = table.text(at + 2 * table.width)
            crc = crcs[number] if number < len(crcs) else None
            found.append(Export(name, table.address(at), owner, gpl or marked > 0, space, crc))
    return tuple(found)


@attrs.frozen
class _Ksymtab:
    """A `__ksymtab` and its strings: what errors name, fields, contents, addresses.

    `width` is that of a field in bytes, `relative` whether it counts from itself. `long` keeps the names that are long.
    """

    where: tuple[str, str]
    width: int
    relative: bool
    order: Order
    data: bytes
    start: int
    strings: bytes
    first: int
    long: LongNames = attrs.Factory(lambda self: LongNames(*self.where), takes_self=True)

    @property
    def entries(self) -> range:
        """Where entries begin."""
        return range(0, len(self.data) - 3 * self.width + 1, 3 * self.width)

    def address(self, at: int) -> int:
        """Return where a field points; 0 where it is empty."""
        value = int.from_bytes(self.data[at : at + self.width], self.order, signed=self.relative)
        return value + self.start + at if value and self.relative else value

    def text(self, at: int) -> str:
        """Return the string that a field points at; empty where it points elsewhere."""
        there = self.address(at) - self.first
        found = self.strings[there : there + MAX_NAME].partition(b"\0")[0] if there >= 0 else b""
        if len(found) == MAX_NAME:
            found = self.long.at(self.strings, there)
        return found.decode("utf-8", "backslashreplace")


def _crcs_of(view: ElfView, table: str) -> Sequence[int]:
    """Return the CRCs that stand beside a table of exports, where they stand there as numbers.

    Until Linux 5.18 they are symbols' values, which relocations bring; those are not read.
    """
    section = view.find(table.replace("ksymtab", "kcrctab"))
    if section is None or any(t.target.index == section.index for t in view.tables):
        return ()
    raw = view.contents(section)
    crcs: list[int] = np.frombuffer(raw[: len(raw) & -4], view.dialect.unsigned(4)).tolist()
    return crcs
