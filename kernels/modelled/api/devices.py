# SPDX-License-Identifier: GPL-2.0-or-later
"""Classes, devices, and what a driver says about one (drivers/base/)."""

from __future__ import annotations

import attrs

from kernels.modelled.api.common import errno, nothing, state, text
from kernels.modelled.api.devres import release_all
from kernels.modelled.api.kobjects import get_kobject, init_kobject, put_kobject, set_name
from kernels.modelled.api.memory import GFP_ZERO, kfree, kmalloc
from kernels.modelled.api.registration import enter
from kernels.modelled.kernel import Kernel
from kernels.modelled.structs import size_of, view
from kernels.modelled.structs import struct as declare
from kernels.modelled.table import Arguments, data, function

KERN_DEBUG = 7

declare("device", "kobj parent init_name driver driver_data")
CLASS, DEVICE = size_of("class"), size_of("device")
VARIABLE = 2048  # bytes of a variable that is passed on: more than any such structure has

# Variables that inlined code only passes on: operations, buses, attribute groups.
for _name in (
    "kobj_sysfs_ops net_ns_type_operations platform_bus_type pci_bus_type usb_bus_type"
    " i2c_bus_type spi_bus_type platform_bus dev_attr_physical_package_id cpu_subsys"
    " acpi_bus_type hid_bus_type mdio_bus_type virtio_bus_type scsi_bus_type mmc_bus_type"
).split():
    data(_name, VARIABLE)


@function("struct class *class_create(const char *name)")
def _class_create(k: Kernel, name: int) -> int:
    found = kmalloc(k, CLASS(k), GFP_ZERO)
    if found:
        view(k, "class", found).put("name", name)
        enter(k, "class", "class", found)
    return found


@function("void class_destroy(const struct class *cls)")
def _class_destroy(k: Kernel, address: int) -> None:
    if address and k.registry.remove("class", address) is not None:
        kfree(k, address)


@function("void device_initialize(struct device *dev)")
def device_initialize(k: Kernel, device: int) -> None:
    """Make a device's own kobject usable."""
    init_kobject(k, view(k, "device", device).at("kobj"))


@function("int dev_set_name(struct device *dev, const char *name, ...)")
def _dev_set_name(k: Kernel, device: int, fmt: int, args: Arguments) -> int:
    set_name(k, device, k.format(fmt, args))
    return 0


def _title(k: Kernel, device: int) -> str:
    found = view(k, "device", device)
    return found.text("init_name") or found.text("kobj.name")


def _device_add(k: Kernel, device: int) -> int:
    found = view(k, "device", device)
    if name := found.number("init_name"):
        set_name(k, device, text(k, name))
        found.put("init_name", 0)
    if not found.number("kobj.name"):
        return errno("EINVAL")
    k.register("device", device, _title(k, device))
    get_kobject(k, device)
    return 0


@function("int device_add(struct device *dev)")
def _add(k: Kernel, device: int) -> int:
    return _device_add(k, device)


@function("int device_register(struct device *dev)")
def _device_register(k: Kernel, device: int) -> int:
    device_initialize(k, device)
    return _device_add(k, device)


@function("void device_del(struct device *dev)")
def _device_del(k: Kernel, device: int) -> None:
    release_all(k, device)
    if k.registry.remove("device", device) is not None:
        put_kobject(k, device)


@function("void device_unregister(struct device *dev)")
def _device_unregister(k: Kernel, device: int) -> None:
    _device_del(k, device)
    put_kobject(k, device)


@function("struct device *get_device(struct device *dev)")
def _get_device(k: Kernel, device: int) -> int:
    return get_kobject(k, device)


@function("void put_device(struct device *dev)")
def _put_device(k: Kernel, device: int) -> None:
    put_kobject(k, device)


@attrs.define
class _Devices:
    """Devices that the kernel made itself: (class, number) -> address, until it frees them."""

    made: dict[tuple[int, int], int] = attrs.field(factory=dict)


def _device_create(k: Kernel, cls: int, parent: int, number: int, drvdata: int, name: bytes) -> int:
    device = kmalloc(k, DEVICE(k), GFP_ZERO)
    if not device:
        return errno("ENOMEM")
    device_initialize(k, device)
    set_name(k, device, name)
    found = view(k, "device", device)
    found.put("parent", parent)
    found.put("driver_data", drvdata)
    _device_add(k, device)
    state(k, _Devices).made[cls, number] = device
    return device


@function(
    "struct device *device_create(const struct class *cls, struct device *parent, dev_t devt,"
    " void *drvdata, const char *fmt, ...)"
)
def _create(
    k: Kernel, cls: int, parent: int, number: int, drvdata: int, fmt: int, args: Arguments
) -> int:
    return _device_create(k, cls, parent, number, drvdata, k.format(fmt, args))


@function(
    "struct device *device_create_with_groups(const struct class *cls, struct device *parent,"
    " dev_t devt, void *drvdata, const struct attribute_group **groups, const char *fmt, ...)"
)
def _create_with_groups(
    k: Kernel,
    cls: int,
    parent: int,
    number: int,
    drvdata: int,
    _groups: int,
    fmt: int,
    args: Arguments,
) -> int:
    return _device_create(k, cls, parent, number, drvdata, k.format(fmt, args))


@function("void device_destroy(const struct class *cls, dev_t devt)")
def _device_destroy(k: Kernel, cls: int, number: int) -> None:
    device = state(k, _Devices).made.pop((cls, number), 0)
    if device:
        _free_device(k, device)


def _free_device(k: Kernel, device: int) -> None:
    release_all(k, device)
    k.registry.remove("device", device)
    kfree(k, k.word(device))
    kfree(k, device)


@function("struct device *__root_device_register(const char *name, struct module *owner)")
def _root_device_register(k: Kernel, name: int, _owner: int) -> int:
    return _device_create(k, 0, 0, 0, 0, text(k, name))


@function("void root_device_unregister(struct device *dev)")
def _root_device_unregister(k: Kernel, device: int) -> None:
    _free_device(k, device)


# include/linux/platform_device.h
declare("platform_device_info", "parent name id")
declare("platform_device", "name id dev")
PLATFORM_DEVICE = size_of("platform_device")


def _platform_device(k: Kernel, name: int, number: int, parent: int) -> int:
    address = kmalloc(k, PLATFORM_DEVICE(k), GFP_ZERO)
    if address:
        found = view(k, "platform_device", address)
        found.put("name", name)
        found.put("id", number)
        device_initialize(k, found.at("dev"))
        found.put("dev.parent", parent)
    return address


def _platform_device_add(k: Kernel, address: int) -> int:
    found = view(k, "platform_device", address)
    number, name = found.number("id"), found.text("name")
    title = name if number == -1 else f"{name}.{number}"  # PLATFORM_DEVID_NONE
    set_name(k, found.at("dev"), title.encode())
    return _device_add(k, found.at("dev"))


@function(
    "struct platform_device *platform_device_register_full(const struct platform_device_info *p)"
)
def _platform_device_register_full(k: Kernel, info: int) -> int:
    asked = view(k, "platform_device_info", info)
    address = _platform_device(k, asked.number("name"), asked.number("id"), asked.number("parent"))
    return address if address and _platform_device_add(k, address) == 0 else errno("ENOMEM")


@function("struct platform_device *platform_device_alloc(const char *name, int id)")
def _platform_device_alloc(k: Kernel, name: int, number: int) -> int:
    return _platform_device(k, name, number, 0)


@function("int platform_device_add(struct platform_device *pdev)")
def _add_platform_device(k: Kernel, address: int) -> int:
    return _platform_device_add(k, address)


@function("int platform_device_register(struct platform_device *pdev)")
def _platform_device_register(k: Kernel, address: int) -> int:
    device_initialize(k, view(k, "platform_device", address).at("dev"))
    return _platform_device_add(k, address)


@function(
    "void platform_device_unregister(struct platform_device *pdev)",
    "void platform_device_del(struct platform_device *pdev)",
    "void platform_device_put(struct platform_device *pdev)",
)
def _platform_device_unregister(k: Kernel, address: int) -> None:
    if not address or address >= -4095 % (1 << 64):
        return
    device = view(k, "platform_device", address).at("dev")
    release_all(k, device)
    k.registry.remove("device", device)
    if k.heap.size(address):
        kfree(k, k.word(device))
        kfree(k, address)


@function("const char *dev_driver_string(const struct device *dev)")
def _dev_driver_string(k: Kernel, device: int) -> int:
    driver = view(k, "device", device).number("driver")
    return k.word(driver) if driver else k.address("empty_zero_page")


nothing(
    "int class_create_file_ns(const struct class *c, const struct class_attribute *a, void *ns)",
    "void class_remove_file_ns(const struct class *c, const struct class_attribute *a, void *ns)",
    "int device_create_file(struct device *dev, const struct device_attribute *attr)",
    "void device_remove_file(struct device *dev, const struct device_attribute *attr)",
    "int device_create_bin_file(struct device *dev, const struct bin_attribute *attr)",
    "void device_remove_bin_file(struct device *dev, const struct bin_attribute *attr)",
    "int driver_create_file(const struct device_driver *d, const struct driver_attribute *a)",
    "void driver_remove_file(const struct device_driver *d, const struct driver_attribute *a)",
    "int bus_create_file(const struct bus_type *bus, struct bus_attribute *attr)",
    "void bus_remove_file(const struct bus_type *bus, struct bus_attribute *attr)",
    "int bus_for_each_dev(const struct bus_type *bus, struct device *s, void *data, void *fn)",
    "int bus_for_each_drv(const struct bus_type *bus, void *start, void *data, void *fn)",
    "struct device *bus_find_device(const struct bus_type *b, void *start, void *data, void *m)",
    "int device_for_each_child(struct device *dev, void *data, void *fn)",
    "struct device *device_find_child(struct device *dev, const void *data, void *match)",
    "struct device *class_find_device(const struct class *c, void *start, void *data, void *m)",
    "int class_for_each_device(const struct class *c, void *start, void *data, void *fn)",
    "int class_interface_register(struct class_interface *ci)",
    "void class_interface_unregister(struct class_interface *ci)",
    "int bus_register_notifier(const struct bus_type *bus, struct notifier_block *nb)",
    "int bus_unregister_notifier(const struct bus_type *bus, struct notifier_block *nb)",
    "int component_add(struct device *dev, const struct component_ops *ops)",
    "void component_del(struct device *dev, const struct component_ops *ops)",
)


# What a driver says about a device ------------------------------------------------------------


def _say(k: Kernel, level: int, device: int, message: bytes) -> None:
    if not device:
        prefix = "(NULL device *)"
    else:
        driver = view(k, "device", device).number("driver")
        name = text(k, k.word(driver)).decode("utf-8", "replace") if driver else ""
        prefix = f"{name} {_title(k, device)}"
    k.print(prefix.encode() + b": " + message, level)


def _speaker(name: str, level: int) -> None:
    @function(f"void {name}(const struct device *dev, const char *fmt, ...)")
    def _dev_message(k: Kernel, device: int, fmt: int, args: Arguments) -> None:
        _say(k, level, device, k.format(fmt, args))


for _level, _name in enumerate("emerg alert crit err warn notice info".split()):
    _speaker(f"_dev_{_name}", _level)


@function("void _dev_printk(const char *level, const struct device *dev, const char *fmt, ...)")
def _dev_printk(k: Kernel, level: int, device: int, fmt: int, args: Arguments) -> None:
    digit = text(k, level)[1:2]
    _say(k, int(digit) if digit.isdigit() else 4, device, k.format(fmt, args))


@function("void __dynamic_dev_dbg(struct _ddebug *d, const struct device *dev, const char *f, ...)")
def _dynamic_dev_dbg(k: Kernel, _site: int, device: int, fmt: int, args: Arguments) -> None:
    _say(k, KERN_DEBUG, device, k.format(fmt, args))


@function("int dev_err_probe(const struct device *dev, int err, const char *fmt, ...)")
def _dev_err_probe(k: Kernel, device: int, err: int, fmt: int, args: Arguments) -> int:
    _say(k, 3, device, b"error " + str(err).encode() + b": " + k.format(fmt, args))
    return err
