# SPDX-License-Identifier: GPL-2.0-or-later
"""What belongs to a device and goes with it (drivers/base/devres.c): memory, and actions to undo.

Everything is released when the device goes, the newest first. A resource that a module
defines itself is memory with a release function, which gets the device and the memory.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

from kernels.modelled.api.common import errno, state, stop, text
from kernels.modelled.api.memory import GFP_ZERO, duplicate, get_free_pages, kfree, kmalloc
from kernels.modelled.kernel import Kernel
from kernels.modelled.table import Arguments, function


@attrs.frozen
class Resource:
    """One thing to release: what it is known by, and how it is released."""

    key: tuple[int, ...]
    release: Callable[[Kernel], object]


@attrs.define
class _Devres:
    """Devices and what they own, in order; resources that no device owns yet: memory -> release.

    `each` has an entry for every resource, so that they can be counted.
    """

    each: set[int] = attrs.field(factory=set)
    owned: dict[int, list[Resource]] = attrs.field(factory=dict)
    made: dict[int, int] = attrs.field(factory=dict)


def own(k: Kernel, device: int, resource: Resource) -> None:
    """Let a device own something until it goes."""
    found = state(k, _Devres)
    found.each.add(id(resource))
    found.owned.setdefault(device, []).append(resource)


def release_all(k: Kernel, device: int) -> None:
    """Release what a device owns, the newest first."""
    found = state(k, _Devres)
    for resource in reversed(found.owned.pop(device, [])):
        k.spend()
        found.each.discard(id(resource))
        resource.release(k)


def _give_up(k: Kernel, device: int, key: tuple[int, ...]) -> Resource | None:
    """Let a device own something no longer; return it."""
    found = state(k, _Devres)
    owned = found.owned.get(device, [])
    k.spend(len(owned))
    for resource in reversed(owned):
        if resource.key == key:
            found.each.discard(id(resource))
            owned.remove(resource)
            return resource
    return None


# Memory ----------------------------------------------------------------------------------------


def _own_memory(k: Kernel, device: int, address: int) -> int:
    if address:
        own(k, device, Resource((address,), lambda k: kfree(k, address)))
    return address


@function("void *devm_kmalloc(struct device *dev, size_t size, gfp_t gfp)")
def _devm_kmalloc(k: Kernel, device: int, size: int, gfp: int) -> int:
    return _own_memory(k, device, kmalloc(k, size, gfp))


@function("void devm_kfree(struct device *dev, const void *p)")
def _devm_kfree(k: Kernel, device: int, address: int) -> None:
    resource = _give_up(k, device, (address,))
    if resource is not None:
        resource.release(k)
    elif address:
        stop(k, f"devm_kfree of {address:#x}: not memory of this device")


@function("void *devm_krealloc(struct device *dev, void *ptr, size_t size, gfp_t gfp)")
def _devm_krealloc(k: Kernel, device: int, old: int, size: int, gfp: int) -> int:
    room = k.heap.size(old)
    if room >= size:
        return old
    new = _devm_kmalloc(k, device, size, gfp)
    if new and old:
        k.memory.write(new, k.memory.read(old, room))
        _devm_kfree(k, device, old)
    return new


@function("void *devm_kmemdup(struct device *dev, const void *src, size_t len, gfp_t gfp)")
def _devm_kmemdup(k: Kernel, device: int, src: int, size: int, gfp: int) -> int:
    return _own_memory(k, device, duplicate(k, k.memory.read(src, size), gfp))


@function("char *devm_kstrdup(struct device *dev, const char *s, gfp_t gfp)")
def _devm_kstrdup(k: Kernel, device: int, s: int, gfp: int) -> int:
    return _own_memory(k, device, duplicate(k, text(k, s) + b"\0", gfp)) if s else 0


@function("char *devm_kasprintf(struct device *dev, gfp_t gfp, const char *fmt, ...)")
def _devm_kasprintf(k: Kernel, device: int, gfp: int, fmt: int, args: Arguments) -> int:
    return _own_memory(k, device, duplicate(k, k.format(fmt, args) + b"\0", gfp))


@function("unsigned long devm_get_free_pages(struct device *dev, gfp_t gfp, unsigned int order)")
def _devm_get_free_pages(k: Kernel, device: int, gfp: int, order: int) -> int:
    return _own_memory(k, device, get_free_pages(k, gfp, order))


# Actions ---------------------------------------------------------------------------------------


@function("int __devm_add_action(struct device *dev, void *action, void *data, const char *name)")
def _devm_add_action(k: Kernel, device: int, action: int, argument: int, _name: int) -> int:
    own(k, device, Resource((action, argument), lambda k: k.call(action, argument)))
    return 0


@function(
    "int devm_remove_action_nowarn(struct device *dev, void *action, void *data)",
    "void devm_remove_action(struct device *dev, void *action, void *data)",
)
def _devm_remove_action(k: Kernel, device: int, action: int, argument: int) -> int:
    return 0 if _give_up(k, device, (action, argument)) else errno("ENOENT")


@function("void devm_release_action(struct device *dev, void *action, void *data)")
def _devm_release_action(k: Kernel, device: int, action: int, argument: int) -> None:
    resource = _give_up(k, device, (action, argument))
    if resource is not None:
        resource.release(k)


# Resources of a module's own ----------------------------------------------------------------------


@function(
    "void *__devres_alloc_node(void *release, size_t size, gfp_t gfp, int nid, const char *name)"
)
def _devres_alloc(k: Kernel, release: int, size: int, gfp: int, _node: int, _name: int) -> int:
    found = kmalloc(k, size, gfp | GFP_ZERO)
    if found:
        state(k, _Devres).made[found] = release
    return found


@function("void devres_add(struct device *dev, void *res)")
def _devres_add(k: Kernel, device: int, address: int) -> None:
    release = state(k, _Devres).made.pop(address, 0)

    def undo(k: Kernel) -> None:
        if release:
            k.call(release, device, address)
        kfree(k, address)

    own(k, device, Resource((address,), undo))


@function("void devres_free(void *res)")
def _devres_free(k: Kernel, address: int) -> None:
    if address:
        state(k, _Devres).made.pop(address, None)
        kfree(k, address)


@function("void *devres_open_group(struct device *dev, void *id, gfp_t gfp)")
def _devres_open_group(k: Kernel, device: int, number: int, _gfp: int) -> int:
    group = number or len(state(k, _Devres).owned.get(device, [])) + 1
    own(k, device, Resource((-1, group), lambda _k: None))
    return group


@function("int devres_release_group(struct device *dev, void *id)")
def _devres_release_group(k: Kernel, device: int, group: int) -> int:
    owned = state(k, _Devres).owned.get(device, [])
    keys = [resource.key for resource in owned]
    if (-1, group) not in keys:
        return errno("ENOENT")
    start = keys.index((-1, group))
    inside = owned[start:]
    del owned[start:]
    for resource in reversed(inside):
        resource.release(k)
    return len(inside)


@function(
    "void devres_close_group(struct device *dev, void *id)",
    "void devres_remove_group(struct device *dev, void *id)",
)
def _devres_close_group(_k: Kernel, _device: int, _group: int) -> None:
    return
