# SPDX-License-Identifier: GPL-2.0-or-later
"""Where `struct module` of a file has what the kernel reads and writes in it.

A kernel's build leaves one struct module in every `.ko`, in a section of its own: the name,
and pointers to init and exit, which are the only relocations there. The kernel calls what
those members point at, whatever the functions' symbols are called.

Its layout depends on version, architecture and configuration. Where the kernel's is known, its
types tell it (`Layouts`). In a module of another build the pointers tell where init and exit
stand, since init comes first; of one alone, the function's alias or section tells which it is.
The name tells where what is before it stands. What nothing tells is unknown, and is not guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
import numpy as np

from allocator.types import ADDRESS_MASK
from archs.layouts import Layouts
from archs.levels.load import NAME_AND_ADDRESS
from loader.elfview import ElfView, Section
from loader.errors import BadModule
from loader.files import module_name
from loader.layout import THIS_MODULE

STRUCTURE = "module"
# Those before the first that an option of the configuration adds (a build id stands behind the
# name since 5.14, CONFIG_STACKTRACE_BUILD_ID): where the name is, so are they.
HEAD = ("state", "list", "name")
MEMBERS = (
    *HEAD,
    *("mkobj", "version", "srcversion"),
    *("syms", "num_syms", "gpl_syms", "num_gpl_syms", "kp", "num_kp", "extable", "num_exentries"),
    *("init", "mem", "taints", "args", "percpu", "percpu_size"),
    *("source_list", "target_list", "exit", "refcnt"),
)
_ALIASES = {"init_module": "init", "cleanup_module": "exit"}
_SECTIONS = {".init.text": "init", ".exit.text": "exit"}


@attrs.frozen
class ThisModule:
    """struct module in a file.

    Parameters
    ----------
    section
        The section that it is.
    members
        Member -> offset, of those whose place is known: all where its kernel's types are, or what
        a module of another build tells.
    modelled
        Whether it is laid out as in the kernel that is modelled, or given.
    build
        For which kernel the module says that it was built; empty: it does not say.
    """

    section: Section
    members: Mapping[str, int]
    modelled: bool
    build: str


def this_module(view: ElfView, layouts: Layouts) -> ThisModule | None:
    """Return what is known of struct module in a file; None where it has none.

    Parameters
    ----------
    layouts
        Of the kernel that it is for, which may be unknown.

    Raises
    ------
    BadModule
        When it has pointers of which cannot be told which is init and which is exit.
    """
    section = view.section(THIS_MODULE)
    if section is None:
        return None
    build = view.modinfo.get("vermagic", "").partition(" ")[0]
    pointers = _pointers(view, section)
    if layouts.has(STRUCTURE) and section.size == layouts.size_of(STRUCTURE):
        places = {layouts.offset_of(STRUCTURE, "init"), layouts.offset_of(STRUCTURE, "exit")}
        if pointers.keys() <= places:
            return ThisModule(section, members_of(layouts, MEMBERS), True, build)
    usual = view.arch.loads.layouts
    members: dict[str, int] = {}
    word = view.dialect.word
    head = members_of(usual, HEAD)
    name = bytes(view.contents(section))[head["name"] :][: NAME_AND_ADDRESS - word]
    title = (view.modinfo.get("name") or module_name(view.name)).encode()
    if title and name.partition(b"\0")[0] == title:
        members.update(head)
    members.update(_entries(view, section, pointers, usual))
    # `void (*exit)(void); atomic_t refcnt;` since 3.19
    if "exit" in members and members["exit"] + word + 4 <= section.size:
        members["refcnt"] = members["exit"] + word
    return ThisModule(section, members, False, build)


def members_of(layouts: Layouts, names: Sequence[str]) -> Mapping[str, int]:
    """Return where members of struct module stand, of those that a kernel has.

    >>> from archs import arch
    >>> members_of(arch("arm64").loads.layouts, HEAD[:3])
    {'state': 0, 'list': 8, 'name': 24}
    """
    return {m: layouts.offset_of(STRUCTURE, m) for m in names if layouts.has(STRUCTURE, m)}


def _pointers(view: ElfView, section: Section) -> Mapping[int, tuple[int, int]]:
    """Return offset -> symbol and addend of the pointers in a section, in ascending order."""
    found: dict[int, tuple[int, int]] = {}
    for table in view.tables:
        if table.target.index == section.index:
            wanted = np.isin(table.records["type"], view.arch.link.pointers)
            rows = table.records[wanted][["offset", "symbol", "addend"]].tolist()
            found |= {offset: (symbol, addend) for offset, symbol, addend in rows}
    return dict(sorted(found.items()))


def _entries(
    view: ElfView, section: Section, pointers: Mapping[int, tuple[int, int]], usual: Layouts
) -> Mapping[str, int]:
    """Return where init and exit stand in a struct module of another build."""
    if not pointers:
        return {}
    where = f"section {section.index} ({THIS_MODULE})"
    if len(pointers) > 2:
        reason = f"{len(pointers)} pointers: which are init and exit cannot be told"
        raise BadModule(view.name, where, reason)
    first, *last = pointers
    if last:
        return {"init": first, "exit": last[0]}
    member = _meaning(view, *pointers[first])
    if not member:
        reason = (
            f"one pointer, at {first:#x} of {section.size:#x}: whether to init or to exit neither "
            f"its symbol nor its section tells (a kernel {usual.series} has "
            f"them at {usual.offset_of(STRUCTURE, 'init'):#x} and "
            f"{usual.offset_of(STRUCTURE, 'exit'):#x})"
        )
        raise BadModule(view.name, where, reason)
    return {member: first}


def _meaning(view: ElfView, index: int, addend: int) -> str:
    """Return `init` or `exit` for a function, as its aliases or its section tell; else nothing."""
    symbols = view.symbols
    shndx = int(symbols["shndx"][index])
    target = int(symbols["value"][index]) + addend & ADDRESS_MASK
    same = (symbols["shndx"] == shndx) & (symbols["value"] == target)
    names = [view.symbol_name(index), *map(view.symbol_name, np.flatnonzero(same).tolist())]
    found = {_ALIASES[name] for name in names if name in _ALIASES}
    if not found and 0 < shndx < len(view.sections):
        title = view.sections[shndx].name
        found = {m for start, m in _SECTIONS.items() if f"{title}.".startswith(f"{start}.")}
    return found.pop() if len(found) == 1 else ""
