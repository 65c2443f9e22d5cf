# SPDX-License-Identifier: GPL-2.0-or-later
"""Registering with the kernel's subsystems: accepted, recorded, and recorded again when undone.

Nobody uses here what a module registers, but a person may, so an entry only says which
structure comes in which argument, and which of its members are of interest. Where the
subsystem fills in a member that inlined code reads, the entry does so too.

    registration(
        "pci driver", "pci_driver",
        "int __pci_register_driver(struct pci_driver *drv, struct module *owner, const char *name)",
        "void pci_unregister_driver(struct pci_driver *drv)",
    )
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from allocator.types import Hex
from archs.layouts import As
from kernels.modelled.kernel import Kernel
from kernels.modelled.structs import USED, StructView, view
from kernels.modelled.table import function
from kernels.prototypes import parse
from kernels.registry import Field

DeviceIds = Callable[[Kernel, int], Iterator[str]]


def enter(
    k: Kernel,
    kind: str,
    structure: str,
    address: int,
    *,
    name: str = "name",
    fields: tuple[str, ...] = (),
    ids: tuple[str, DeviceIds] | None = None,
) -> None:
    """Record the structure at `address`: its name, members of interest, ids, and callbacks."""
    found = view(k, structure, address)
    values: dict[str, Field] = {
        member.rpartition(".")[2]: member_value(found, member) for member in fields
    }
    if ids is not None and (table := found.number(ids[0])):
        values["ids"] = tuple(ids[1](k, table))
    title = found.text(name) if name.partition(".")[0] in USED[structure] else ""
    k.register(kind, address, title, fields=values, callbacks=found.functions())


def name_text(k: Kernel, address: int) -> str:
    """Return the string at `address`, for a record."""
    return k.string(address).decode("utf-8", "backslashreplace")


def member_value(found: StructView, member: str) -> Field:
    """Return a member as a record has it."""
    found_as = found.member(member)
    if found_as.kind in (As.STRING, As.CHARACTERS):
        return found.text(member)
    number = found.number(member)
    return Hex(number) if found_as.size > 4 else number


def registration(
    kind: str,
    structure: str,
    register: str | tuple[str, ...],
    unregister: str | tuple[str, ...] = (),
    *,
    name: str = "name",
    fields: tuple[str, ...] = (),
    ids: tuple[str, DeviceIds] | None = None,
) -> None:
    """Declare the functions that register and unregister one kind of structure.

    Parameters
    ----------
    kind, name, fields, ids
        As in the record; `name` and `fields` are members, `ids` a member and the reader of
        the table that it points at.
    structure
        The declared structure; the argument that points at it is found by its type.
    register, unregister
        Prototypes. A parameter called `count` says that the structures are an array.
    """

    def each(k: Kernel, text: str, args: tuple[int, ...]) -> Iterator[int]:
        parameters = parse(text).params
        at = next(i for i, p in enumerate(parameters) if f"struct {structure} *" in p.type.text)
        counts = [value for p, value in zip(parameters, args, strict=True) if p.name == "count"]
        step = k.layouts.size_of(structure) if counts else 0
        yield from (args[at] + n * step for n in range(counts[0] if counts else 1))

    def entering(text: str) -> None:
        @function(text)
        def _register(k: Kernel, *args: int) -> int:
            for address in each(k, text, args):
                k.spend()
                enter(k, kind, structure, address, name=name, fields=fields, ids=ids)
            return 0

    def leaving(text: str) -> None:
        @function(text)
        def _unregister(k: Kernel, *args: int) -> int:
            for address in each(k, text, args):
                k.spend()
                k.registry.remove(kind, address)
            return 0

    for text in (register,) if isinstance(register, str) else register:
        entering(text)
    for text in (unregister,) if isinstance(unregister, str) else unregister:
        leaving(text)
