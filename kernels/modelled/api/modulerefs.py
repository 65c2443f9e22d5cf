# SPDX-License-Identifier: GPL-2.0-or-later
"""Modules that hold on to themselves and to others (kernel/module/main.c)."""

from __future__ import annotations

from archs.layouts import NotKnown
from kernels.modelled.api.common import stop
from kernels.modelled.kernel import Kernel
from kernels.modelled.modules import BASE, STATES
from kernels.modelled.table import data, function
from loader.loaded import State

data("modules", 16, fill=lambda k: 2 * k.address("modules").to_bytes(8, "little"))


def _of_module(k: Kernel, module: int, member: str) -> int:
    """Return the address of a member of struct module; stop where it is not known."""
    found = k.modules.at(module)
    if found is None or found.this is None:
        stop(k, f"no module's struct module lies at {module:#x}")
    address = found.member(member)
    if address is None:
        layouts = k.layouts if found.layouts is None else found.layouts
        raise NotKnown(f"module.{member}", layouts.release, layouts.hint)
    return address


@function("bool try_module_get(struct module *module)")
def _try_module_get(k: Kernel, module: int) -> int:
    if not module:
        return 1
    count = _of_module(k, module, "refcnt")
    if k.word(_of_module(k, module, "state"), 4) == STATES[State.GOING] or not k.word(count, 4):
        return 0
    k.store(count, k.word(count, 4) + 1, 4)
    return 1


@function("void __module_get(struct module *module)")
def _module_get(k: Kernel, module: int) -> None:
    if module:
        count = _of_module(k, module, "refcnt")
        k.store(count, k.word(count, 4) + 1, 4)


@function("void module_put(struct module *module)")
def _module_put(k: Kernel, module: int) -> None:
    if module:
        count = _of_module(k, module, "refcnt")
        before = k.word(count, 4)
        if not before or before >> 31:
            k.print(b"WARNING: module_put() of a module that nobody holds\n", 4)
        else:
            k.store(count, before - 1, 4)


@function("int module_refcount(struct module *mod)")
def _module_refcount(k: Kernel, module: int) -> int:
    return k.word(_of_module(k, module, "refcnt"), 4) - BASE
