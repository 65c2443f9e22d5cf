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

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from allocator.types import MemType
from archs.passes.heapsort import order
from archs.passes.subject import RUNNING, U64, Subject

SITE = np.dtype([("code", "<i4"), ("key", "<i4")])
TAIL, INIT = np.uint64(1), np.uint64(2)
FLAGS = TAIL | INIT
MODULES = np.uint64(8)  # struct static_call_key: the function, then the users
KEY, TRAMPOLINE = "__SCK__", "__SCT__"
TRACEPOINT, TRACER = "tp_func_", "__traceiter_"


Write = Callable[[Subject, U64, U64, NDArray[np.bool_]], None]


def attach(subject: Subject, *, write: Write) -> None:
    """Sort the sites by key, mark those of init code and write the calls.

    Parameters
    ----------
    write
        Writes the calls of functions (0: of nothing) at sites, told which are tail calls.
    """
    table = subject.table(".static_call_sites", SITE)
    if table is None:
        return
    imported = _imported(subject)
    words, names = _resolved(subject, table.targets("key"), imported)
    chosen = np.array(order((words & ~FLAGS).tolist(), subject.environment.version), np.intp)
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
    write(subject, code[written], functions[which][written], (words[written] & TAIL) != 0)


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
