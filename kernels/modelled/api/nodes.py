# SPDX-License-Identifier: GPL-2.0-or-later
"""Buses, classes and device nodes (include/linux/device/, fs.h, miscdevice.h)."""

from __future__ import annotations

from kernels.modelled.api.common import empty_list
from kernels.modelled.api.registration import name_text, registration
from kernels.modelled.kernel import Kernel
from kernels.modelled.structs import struct, view
from kernels.modelled.table import function
from kernels.registry import Field

struct(
    "bus_type",
    "name match uevent probe sync_state remove shutdown irq_get_affinity online offline"
    " suspend resume num_vf dma_configure dma_cleanup",
)
struct(
    "class",
    "name dev_uevent devnode class_release dev_release shutdown_pre namespace get_ownership",
)
struct(
    "file_operations",
    "owner llseek read write read_iter write_iter iopoll iterate_shared poll unlocked_ioctl"
    " compat_ioctl mmap open flush release fsync fasync lock",
)
struct("miscdevice", "minor name fops list parent groups nodename mode")
struct(
    "block_device_operations",
    "submit_bio poll_bio open release ioctl compat_ioctl free_disk",
)
MISC_DYNAMIC_MINOR = 255

registration(
    "bus",
    "bus_type",
    "int bus_register(const struct bus_type *bus)",
    "void bus_unregister(const struct bus_type *bus)",
)
registration(
    "class",
    "class",
    "int class_register(const struct class *cls)",
    "void class_unregister(const struct class *cls)",
)


def file_operations(k: Kernel, address: int) -> dict[str, int]:
    """Return the callbacks of a struct file_operations."""
    return view(k, "file_operations", address).functions() if address else {}


@function("int misc_register(struct miscdevice *misc)")
def _misc_register(k: Kernel, misc: int) -> int:
    found = view(k, "miscdevice", misc)
    if found.number("minor") == MISC_DYNAMIC_MINOR:
        taken = {record.fields["minor"] for record in k.registry.find("misc device")}
        found.put("minor", next(n for n in range(128, 1 << 20) if n not in taken and n != 255))
    k.register(
        "misc device",
        misc,
        found.text("name"),
        fields={
            "minor": found.number("minor"),
            "node": found.text("nodename") or found.text("name"),
        },
        callbacks=file_operations(k, found.number("fops")),
    )
    return 0


@function("void misc_deregister(struct miscdevice *misc)")
def _misc_deregister(k: Kernel, misc: int) -> None:
    k.registry.remove("misc device", misc)


FIRST_MAJOR = 234  # dynamic majors are given from 254 down to 234, then from 511 down to 384
LAST_MAJOR = 254


def major(k: Kernel, kind: str, wanted: int) -> int:
    """Return the major number of a registration that asks for `wanted`; 0: any that is free."""
    taken = {record.fields.get("major") for record in k.registry.find(kind)}
    free = (n for n in range(LAST_MAJOR, FIRST_MAJOR - 1, -1) if n not in taken)
    return wanted or next(free, 511)


@function(
    "int __register_chrdev(unsigned int major, unsigned int baseminor, unsigned int count,"
    " const char *name, const struct file_operations *fops)"
)
def _register_chrdev(k: Kernel, wanted: int, base: int, count: int, name: int, fops: int) -> int:
    number = major(k, "char device", wanted)
    fields: dict[str, Field] = {"major": number, "minor": base, "count": count}
    callbacks = file_operations(k, fops)
    key = number << 20 | base
    k.register("char device", key, name_text(k, name), fields=fields, callbacks=callbacks)
    return 0 if wanted else number


@function(
    "void __unregister_chrdev(unsigned int major, unsigned int baseminor, unsigned int count,"
    " const char *name)"
)
def _unregister_chrdev(k: Kernel, number: int, base: int, _count: int, _name: int) -> None:
    k.registry.remove("char device", number << 20 | base)


@function(
    "int alloc_chrdev_region(dev_t *dev, unsigned baseminor, unsigned count, const char *name)"
)
def _alloc_chrdev_region(k: Kernel, dev: int, base: int, count: int, name: int) -> int:
    number = major(k, "char device", 0)
    key = number << 20 | base
    k.store(dev, key, 4)
    fields: dict[str, Field] = {"major": number, "minor": base, "count": count}
    k.register("char device", key, name_text(k, name), fields=fields)
    return 0


@function("int register_chrdev_region(dev_t from, unsigned count, const char *name)")
def _register_chrdev_region(k: Kernel, first: int, count: int, name: int) -> int:
    fields: dict[str, Field] = {
        "major": first >> 20,
        "minor": first & ((1 << 20) - 1),
        "count": count,
    }
    k.register("char device", first, name_text(k, name), fields=fields)
    return 0


@function("void unregister_chrdev_region(dev_t from, unsigned count)")
def _unregister_chrdev_region(k: Kernel, first: int, _count: int) -> None:
    k.registry.remove("char device", first)


# struct cdev (fs/char_dev.c) begins with its kobject.
struct("cdev", "kobj owner ops list dev count")


@function("void cdev_init(struct cdev *cdev, const struct file_operations *fops)")
def _cdev_init(k: Kernel, cdev: int, fops: int) -> None:
    found = view(k, "cdev", cdev)
    k.memory.write(cdev, bytes(found.size))
    empty_list(k, found.at("list"))
    found.put("ops", fops)


@function("int cdev_add(struct cdev *p, dev_t dev, unsigned count)")
def cdev_add(k: Kernel, cdev: int, first: int, count: int) -> int:
    """Record the devices of a cdev, by the name of the region that their numbers are of."""
    found = view(k, "cdev", cdev)
    found.put("dev", first)
    found.put("count", count)
    number, minor = first >> 20, first & ((1 << 20) - 1)
    regions = (r for r in k.registry.find("char device") if r.fields.get("major") == number)
    fields: dict[str, Field] = {"major": number, "minor": minor, "count": count}
    callbacks = file_operations(k, found.number("ops"))
    name = next((r.name for r in regions), "")
    k.register("char device", cdev, name, fields=fields, callbacks=callbacks)
    return 0


@function("void cdev_del(struct cdev *p)")
def cdev_del(k: Kernel, cdev: int) -> None:
    """Forget the devices of a cdev."""
    k.registry.remove("char device", cdev)


@function("int __register_blkdev(unsigned int major, const char *name, void *probe)")
def _register_blkdev(k: Kernel, wanted: int, name: int, probe: int) -> int:
    number = major(k, "block major", wanted)
    k.register(
        "block major",
        number,
        name_text(k, name),
        fields={"major": number},
        callbacks={"probe": probe} if probe else {},
    )
    return 0 if wanted else number


@function("void unregister_blkdev(unsigned int major, const char *name)")
def _unregister_blkdev(k: Kernel, number: int, _name: int) -> None:
    k.registry.remove("block major", number)
