# SPDX-License-Identifier: GPL-2.0-or-later
"""Static calls: calls through a pointer that are written into the code.

Each call site names a key, the pointer that says where the call goes. When a module comes
in, the kernel sorts its sites by key, marks those that will vanish with the init memory,
and writes the call that the key says now into each (kernel/static_call_inline.c:
static_call_add_module). A site may name the key's trampoline instead, where modules are
not to see the key; then the kernel looks up the key that belongs to it.

The keys of the kernel are its own data, so what they say is known from the environment:
`Environment.static_calls`, and for the rest the default of the kernel's macros, which name
the function of a tracepoint `__traceiter_NAME`. A site whose key's function is not known
keeps its call through the trampoline, which leads to the same place.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from allocator.types import ADDRESS_MASK, MemType
from loader.elf import ElfView
from loader.finalize.callthunks import redirected
from loader.finalize.heapsort import order
from loader.finalize.subject import RUNNING, U64, Subject

SITE = np.dtype([("code", "<i4"), ("key", "<i4")])
TAIL, INIT = np.uint64(1), np.uint64(2)
FLAGS = TAIL | INIT
MODULES = np.uint64(8)  # struct static_call_key: the function, then the users
KEY, TRAMPOLINE = "__SCK__", "__SCT__"
TRACEPOINT, TRACER = "tp_func_", "__traceiter_"


def attach(subject: Subject) -> None:
    """Sort the sites by key, mark those of init code and write the calls."""
    table = subject.table(".static_call_sites", SITE)
    if table is None or subject.rules.static_call is None:
        return
    imported = _imported(subject)
    words, names = _resolved(subject, table.targets("key"), imported)
    chosen = np.array(order((words & ~FLAGS).tolist()), np.intp)
    code, words = table.targets("code")[chosen], words[chosen]
    words |= np.where(subject.within(code, MemType.INIT_TEXT), INIT, np.uint64(0))
    table.point("code", code)
    table.point("key", words)
    subject.claim(table)
    keys, which = np.unique(words & ~FLAGS, return_inverse=True)
    functions, known = _functions(subject, keys, names)
    # A key leads to the modules that use it by a list on the heap.
    subject.note(subject.offsets(keys[subject.within(keys)] + MODULES, 8), 8, RUNNING)
    written = known[which]
    _write(subject, code[written], functions[which][written], (words[written] & TAIL) != 0)


def defaults(view: ElfView, addresses: Mapping[int, int]) -> dict[str, int]:
    """Return what the static calls that a module exports call at first, by name; 0 for nothing.

    Other modules find it in their environment: a key is data of the module that defines it.
    """
    keys = {n[len(KEY) :]: i for n, i in view.global_symbols.items() if n.startswith(KEY)}
    found = dict.fromkeys(keys, 0)
    symbols = view.symbols
    for table in view.tables:
        mine = {
            int(symbols["value"][index]): name
            for name, index in keys.items()
            if symbols["shndx"][index] == table.target.index
        }
        for number in np.flatnonzero(np.isin(table.records["offset"], list(mine))).tolist():
            offset, _, index, addend = table.records[number].tolist()
            if int(symbols["shndx"][index]) in addresses:
                base = addresses[int(symbols["shndx"][index])] + int(symbols["value"][index])
                found[mine[offset]] = base + addend & ADDRESS_MASK
    return found


def _imported(subject: Subject) -> dict[int, str]:
    """Return the static calls that the module imports: address of key or trampoline -> name."""
    prefixes, length = (KEY, TRAMPOLINE), len(KEY)
    return {at: n[length:] for n, at in subject.imported.items() if n[:length] in prefixes}


def _resolved(
    subject: Subject, words: U64, imported: Mapping[int, str]
) -> tuple[U64, dict[int, str]]:
    """Return keys with their flags, where trampolines stood, and the names of imported keys."""
    names = {}
    found, which = np.unique(words & ~FLAGS, return_inverse=True)
    for number, address in enumerate(found.tolist()):
        if address in imported:
            name = imported[address]
            found[number] = key = subject.environment.symbols.get(KEY + name, address)
            names[key] = name
    return found[which] | words & FLAGS, names


def _functions(
    subject: Subject, keys: U64, names: Mapping[int, str]
) -> tuple[U64, NDArray[np.bool_]]:
    """Return what the keys call now, 0 for nothing, and which of them anybody knows."""
    environment = subject.environment
    known = subject.within(keys)
    functions = np.zeros(keys.size, np.uint64)
    functions[known] = subject.bytes_at(subject.offsets(keys[known], 8), 8).view(np.uint64)[:, 0]
    for number, key in enumerate(keys.tolist()):
        name = names.get(key)
        if name is not None:
            tracer = TRACER + name.removeprefix(TRACEPOINT) if name.startswith(TRACEPOINT) else ""
            function = environment.static_calls.get(name, environment.symbols.get(tracer))
            functions[number], known[number] = function or 0, function is not None
    return functions, known


def _write(subject: Subject, sites: U64, functions: U64, tail: NDArray[np.bool_]) -> None:
    """Write the calls of functions (0: of nothing) at the sites."""
    rules = subject.rules
    assert rules.static_call is not None
    assert rules.thunks is not None
    counted = (functions != 0) & ~tail  # a tail call enters the function itself
    functions[counted] = redirected(subject, functions[counted])
    code = subject.bytes_at(subject.offsets(sites), rules.thunks.longest)
    length = rules.thunks.length(code)
    for size in set(length.tolist()) - {0}:
        chosen = np.flatnonzero(length == size)
        at = subject.offsets(sites[chosen], size)
        site, function = sites[chosen], functions[chosen]
        environment = subject.environment
        new = rules.static_call(code[chosen, :size], site, function, tail[chosen], environment)
        subject.write(at, new)
