# SPDX-License-Identifier: GPL-2.0-or-later
"""Objects with names: kobjects, devices, classes, and what stands for them in file systems.

Nobody looks into /sys, /proc or debugfs here. Entries keep what inlined code reads (names,
reference counts, list heads), record what a person may want to see, and accept the rest
(drivers/base/, lib/kobject.c, fs/sysfs/, fs/proc/, fs/debugfs/).
"""

from __future__ import annotations

import attrs

from allocator.types import Hex
from kernels.modelled.api.common import empty_list, errno, nothing, state, text
from kernels.modelled.api.devres import release_all
from kernels.modelled.api.memory import GFP_ZERO, duplicate, kfree, kmalloc
from kernels.modelled.api.registry import enter
from kernels.modelled.kernel import Kernel
from kernels.modelled.meter import ENTRY
from kernels.modelled.structs import layout, room, view
from kernels.modelled.structs import struct as declare
from kernels.modelled.table import Arguments, data, function

KERN_DEBUG = 7

# Kobjects (include/linux/kobject.h) ----------------------------------------------------------

declare("kobject", "name:str entry:list parent:ptr kset:ptr ktype:ptr sd:ptr kref:u32 @64")
declare("kobj_type", "release:fn sysfs_ops:ptr default_groups:ptr @48")
declare("kset", "list:list list_lock:u32 kobj:kobject uevent_ops:ptr")
# struct device begins with its kobject (include/linux/device.h).
declare(
    "device",
    "kobj:kobject parent:ptr p:ptr init_name:str type:ptr bus:ptr driver:ptr platform_data:ptr"
    " driver_data:ptr ...",
)
# Bytes to allocate for each, with room to spare.
KOBJECT, KSET, CLASS = layout("kobject").size, layout("kset").size, room("class", 192)
DEVICE = room("platform_device", room("device", 2048))


def _object_variable(name: str) -> None:
    def contents(k: Kernel) -> bytes:
        return (k.address(name) + 8).to_bytes(8, "little")

    data(name, 8 + KOBJECT, fill=contents)


for _name in "fs_kobj kernel_kobj mm_kobj power_kobj hypervisor_kobj firmware_kobj".split():
    _object_variable(_name)
# Variables that inlined code only passes on: operations, buses, attribute groups.
for _name in (
    "kobj_sysfs_ops net_ns_type_operations platform_bus_type pci_bus_type usb_bus_type"
    " i2c_bus_type spi_bus_type platform_bus dev_attr_physical_package_id cpu_subsys"
    " acpi_bus_type hid_bus_type mdio_bus_type virtio_bus_type scsi_bus_type mmc_bus_type"
).split():
    data(_name, DEVICE)


def _set_name(k: Kernel, kobject: int, name: bytes) -> None:
    kfree(k, k.word(kobject))
    k.store(kobject, duplicate(k, name + b"\0", 0))


def _init(k: Kernel, kobject: int) -> None:
    found = view(k, "kobject", kobject)
    empty_list(k, found.at("entry"))
    found.put("kref", 1)


def _get(k: Kernel, kobject: int) -> int:
    if kobject:
        found = view(k, "kobject", kobject)
        found.put("kref", found.number("kref") + 1)
    return kobject


def _put(k: Kernel, kobject: int) -> None:
    """Drop a reference; the last one calls the type's release."""
    if not kobject:
        return
    found = view(k, "kobject", kobject)
    left = found.number("kref") - 1
    found.put("kref", max(left, 0))
    if left:
        return
    kind = found.number("ktype")
    name = found.number("name")
    release = view(k, "kobj_type", kind).number("release") if kind else 0
    if release:
        k.call(release, kobject)
    if k.heap.size(name):
        kfree(k, name)


@function("void kobject_init(struct kobject *kobj, const struct kobj_type *ktype)")
def _kobject_init(k: Kernel, kobject: int, ktype: int) -> None:
    _init(k, kobject)
    view(k, "kobject", kobject).put("ktype", ktype)


@function("int kobject_set_name(struct kobject *kobj, const char *fmt, ...)")
def _kobject_set_name(k: Kernel, kobject: int, fmt: int, args: Arguments) -> int:
    _set_name(k, kobject, k.format(fmt, args))
    return 0


@function("int kobject_add(struct kobject *kobj, struct kobject *parent, const char *fmt, ...)")
def _kobject_add(k: Kernel, kobject: int, parent: int, fmt: int, args: Arguments) -> int:
    _set_name(k, kobject, k.format(fmt, args))
    found = view(k, "kobject", kobject)
    found.put("parent", parent)
    if not parent and (kset := found.number("kset")):
        found.put("parent", view(k, "kset", kset).at("kobj"))
    return 0


@function(
    "int kobject_init_and_add(struct kobject *kobj, const struct kobj_type *ktype,"
    " struct kobject *parent, const char *fmt, ...)"
)
def _kobject_init_and_add(
    k: Kernel, kobject: int, ktype: int, parent: int, fmt: int, args: Arguments
) -> int:
    _kobject_init(k, kobject, ktype)
    return _kobject_add(k, kobject, parent, fmt, args)


@function("struct kobject *kobject_create_and_add(const char *name, struct kobject *parent)")
def _kobject_create_and_add(k: Kernel, name: int, parent: int) -> int:
    kobject = kmalloc(k, KOBJECT, GFP_ZERO)
    if kobject:
        _init(k, kobject)
        _set_name(k, kobject, text(k, name))
        found = view(k, "kobject", kobject)
        found.put("parent", parent)
        found.put("ktype", k.address("dynamic_kobj_ktype"))
    return kobject


@function("void dynamic_kobj_release(struct kobject *kobj)")
def _dynamic_kobj_release(k: Kernel, kobject: int) -> None:
    kfree(k, kobject)


data(
    "dynamic_kobj_ktype",
    layout("kobj_type").size,
    fill=lambda k: k.address("dynamic_kobj_release").to_bytes(8, "little"),
)


@function("struct kobject *kobject_get(struct kobject *kobj)")
def _kobject_get(k: Kernel, kobject: int) -> int:
    return _get(k, kobject)


@function("void kobject_put(struct kobject *kobj)")
def _kobject_put(k: Kernel, kobject: int) -> None:
    _put(k, kobject)


@function(
    "struct kset *kset_create_and_add(const char *name, const struct kset_uevent_ops *ops,"
    " struct kobject *parent)"
)
def _kset_create_and_add(k: Kernel, name: int, ops: int, parent: int) -> int:
    kset = kmalloc(k, KSET, GFP_ZERO)
    if kset:
        found = view(k, "kset", kset)
        _init(k, found.at("kobj"))
        _set_name(k, found.at("kobj"), text(k, name))
        empty_list(k, found.at("list"))
        found.put("uevent_ops", ops)
        found.put("kobj.parent", parent)
        found.put("kobj.ktype", k.address("kset_ktype"))
    return kset


@function("void kset_release(struct kobject *kobj)")
def _kset_release(k: Kernel, kobject: int) -> None:
    kfree(k, kobject - (view(k, "kset", 0).at("kobj")))


data(
    "kset_ktype",
    layout("kobj_type").size,
    fill=lambda k: k.address("kset_release").to_bytes(8, "little"),
)


@function("int kset_register(struct kset *kset)")
def _kset_register(k: Kernel, kset: int) -> int:
    found = view(k, "kset", kset)
    empty_list(k, found.at("list"))
    _init(k, found.at("kobj"))
    return 0


@function("void kset_unregister(struct kset *kset)")
def _kset_unregister(k: Kernel, kset: int) -> None:
    if kset:
        _put(k, view(k, "kset", kset).at("kobj"))


nothing(
    "void kobject_del(struct kobject *kobj)",
    "int kobject_uevent(struct kobject *kobj, enum kobject_action action)",
    "int kobject_uevent_env(struct kobject *kobj, enum kobject_action action, char *envp[])",
    "int add_uevent_var(struct kobj_uevent_env *env, const char *format, ...)",
    "int kobject_rename(struct kobject *kobj, const char *new_name)",
    "int sysfs_create_group(struct kobject *kobj, const struct attribute_group *grp)",
    "int sysfs_create_groups(struct kobject *kobj, const struct attribute_group **groups)",
    "int sysfs_update_group(struct kobject *kobj, const struct attribute_group *grp)",
    "int sysfs_merge_group(struct kobject *kobj, const struct attribute_group *grp)",
    "void sysfs_remove_group(struct kobject *kobj, const struct attribute_group *grp)",
    "void sysfs_remove_groups(struct kobject *kobj, const struct attribute_group **groups)",
    "void sysfs_unmerge_group(struct kobject *kobj, const struct attribute_group *grp)",
    "int sysfs_create_file_ns(struct kobject *kobj, const struct attribute *attr, const void *ns)",
    "int sysfs_create_files(struct kobject *kobj, const struct attribute * const *attr)",
    "void sysfs_remove_file_ns(struct kobject *kobj, const struct attribute *attr, const void *n)",
    "void sysfs_remove_files(struct kobject *kobj, const struct attribute * const *attr)",
    "int sysfs_create_bin_file(struct kobject *kobj, const struct bin_attribute *attr)",
    "void sysfs_remove_bin_file(struct kobject *kobj, const struct bin_attribute *attr)",
    "int sysfs_create_link(struct kobject *kobj, struct kobject *target, const char *name)",
    "int sysfs_create_link_nowarn(struct kobject *kobj, struct kobject *t, const char *name)",
    "void sysfs_remove_link(struct kobject *kobj, const char *name)",
    "void sysfs_notify(struct kobject *kobj, const char *dir, const char *attr)",
    "void sysfs_notify_dirent(struct kernfs_node *kn)",
    "int sysfs_create_mount_point(struct kobject *parent_kobj, const char *name)",
    "void sysfs_remove_mount_point(struct kobject *parent_kobj, const char *name)",
)


# Classes and devices -------------------------------------------------------------------------


@function("struct class *class_create(const char *name)")
def _class_create(k: Kernel, name: int) -> int:
    found = kmalloc(k, CLASS, GFP_ZERO)
    if found:
        k.store(found, name)
        enter(k, "class", "class", found)
    return found


@function("void class_destroy(const struct class *cls)")
def _class_destroy(k: Kernel, address: int) -> None:
    if address and k.registry.remove("class", address) is not None:
        kfree(k, address)


@function("void device_initialize(struct device *dev)")
def device_initialize(k: Kernel, device: int) -> None:
    """Make a device's own kobject usable."""
    _init(k, device)


@function("int dev_set_name(struct device *dev, const char *name, ...)")
def _dev_set_name(k: Kernel, device: int, fmt: int, args: Arguments) -> int:
    _set_name(k, device, k.format(fmt, args))
    return 0


def _title(k: Kernel, device: int) -> str:
    found = view(k, "device", device)
    return found.text("init_name") or found.text("kobj.name")


def _device_add(k: Kernel, device: int) -> int:
    found = view(k, "device", device)
    if name := found.number("init_name"):
        _set_name(k, device, text(k, name))
        found.put("init_name", 0)
    if not found.number("kobj.name"):
        return errno("EINVAL")
    k.register("device", device, _title(k, device))
    _get(k, device)
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
        _put(k, device)


@function("void device_unregister(struct device *dev)")
def _device_unregister(k: Kernel, device: int) -> None:
    _device_del(k, device)
    _put(k, device)


@function("struct device *get_device(struct device *dev)")
def _get_device(k: Kernel, device: int) -> int:
    return _get(k, device)


@function("void put_device(struct device *dev)")
def _put_device(k: Kernel, device: int) -> None:
    _put(k, device)


@attrs.define
class _Devices:
    """Devices that the kernel made itself: (class, number) -> address, until it frees them."""

    made: dict[tuple[int, int], int] = attrs.field(factory=dict)


def _device_create(k: Kernel, cls: int, parent: int, number: int, drvdata: int, name: bytes) -> int:
    device = kmalloc(k, DEVICE, GFP_ZERO)
    if not device:
        return errno("ENOMEM")
    device_initialize(k, device)
    _set_name(k, device, name)
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
declare("platform_device_info", "parent:ptr fwnode:ptr of_node_reused:u8 name:str id:i32 ...")
declare("platform_device", "name:str id:i32 id_auto:u8 dev:device ...")


def _platform_device(k: Kernel, name: int, number: int, parent: int) -> int:
    address = kmalloc(k, DEVICE, GFP_ZERO)
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
    _set_name(k, found.at("dev"), title.encode())
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


# Entries of file systems that show something ----------------------------------------------------

NAME_MAX = 255
NODE = room("dentry", room("proc_dir_entry", 192))  # bytes of what stands for one


@attrs.define
class _Nodes:
    """Made entries: address -> kind and the entry that it lies in."""

    parents: dict[int, tuple[str, int]] = attrs.field(factory=dict)


def _node(
    k: Kernel, kind: str, name: bytes, parent: int, fields: dict[str, str | int], **calls: int
) -> int:
    last = name if kind == DEBUGFS else name.rpartition(b"/")[2]
    if len(last) > NAME_MAX:
        if kind == DEBUGFS:
            return errno("ENAMETOOLONG")
        k.print(b"name len %d\n" % len(last), 4)
        return 0
    node = kmalloc(k, NODE, GFP_ZERO)
    if node:
        state(k, _Nodes).parents[node] = kind, parent
        path = _path(k, kind, name.decode("utf-8", "replace"), parent)
        k.register(kind, node, path, fields=fields, callbacks={n: a for n, a in calls.items() if a})
    return node


def _remove(k: Kernel, node: int) -> None:
    """Remove an entry and everything below it."""
    parents = state(k, _Nodes).parents
    if node not in parents:
        return
    below: dict[int, list[int]] = {}
    k.spend(len(parents))
    for child, (_, parent) in parents.items():
        below.setdefault(parent, []).append(child)
    going = [node]
    for each in going:
        going += below.pop(each, [])
    for each in reversed(going):
        k.spend()
        kind, _ = parents.pop(each)
        k.registry.remove(kind, each)
        kfree(k, each)


declare("seq_operations", "start:fn stop:fn next:fn show:fn")
DEBUGFS, PROC = "debugfs entry", "proc entry"


@function("struct dentry *debugfs_create_dir(const char *name, struct dentry *parent)")
def _debugfs_create_dir(k: Kernel, name: int, parent: int) -> int:
    return _node(k, DEBUGFS, text(k, name), parent, {})


@function(
    "struct dentry *debugfs_create_file(const char *name, umode_t mode, struct dentry *parent,"
    " void *data, const struct file_operations *fops)",
    "struct dentry *debugfs_create_file_unsafe(const char *name, umode_t mode,"
    " struct dentry *parent, void *data, const struct file_operations *fops)",
)
def _debugfs_create_file(
    k: Kernel, name: int, mode: int, parent: int, argument: int, fops: int
) -> int:
    fields: dict[str, str | int] = {
        "mode": oct(mode),
        "data": Hex(argument),
        "operations": Hex(fops),
    }
    return _node(k, DEBUGFS, text(k, name), parent, fields)


@function(
    "struct dentry *debugfs_create_file_full(const char *name, umode_t mode,"
    " struct dentry *parent, void *data, const void *aux, const struct file_operations *fops)"
)
def _debugfs_create_file_full(
    k: Kernel, name: int, mode: int, parent: int, argument: int, _aux: int, fops: int
) -> int:
    return _debugfs_create_file(k, name, mode, parent, argument, fops)


@function(
    *(
        f"void debugfs_create_{kind}(const char *name, umode_t mode, struct dentry *p, void *v)"
        for kind in "u8 u16 u32 u64 x8 x16 x32 x64 size_t bool atomic_t ulong str".split()
    )
)
def _debugfs_create_value(k: Kernel, name: int, mode: int, parent: int, value: int) -> None:
    _node(k, DEBUGFS, text(k, name), parent, {"mode": oct(mode), "data": Hex(value)})


@function(
    "struct dentry *debugfs_create_symlink(const char *name, struct dentry *p, const char *dest)"
)
def _debugfs_create_symlink(k: Kernel, name: int, parent: int, target: int) -> int:
    to = text(k, target).decode("utf-8", "replace")
    return _node(k, DEBUGFS, text(k, name), parent, {"target": to})


@function("void debugfs_remove(struct dentry *dentry)")
def _debugfs_remove(k: Kernel, node: int) -> None:
    _remove(k, node)


def _path(k: Kernel, kind: str, name: str, parent: int) -> str:
    above = k.registry.at(kind, parent)
    return f"{above.name}/{name}" if above else name


def _remove_at(k: Kernel, kind: str, name: int, parent: int) -> None:
    """Remove the entry of that name, and what was made below it by its path."""
    path = _path(k, kind, text(k, name).decode("utf-8", "replace"), parent)
    k.spend(len(k.registry))
    for record in list(k.registry.find(kind)):
        if record.name == path or record.name.startswith(path + "/"):
            _remove(k, record.address)


@function(
    "void remove_proc_entry(const char *name, struct proc_dir_entry *parent)",
    "int remove_proc_subtree(const char *name, struct proc_dir_entry *parent)",
)
def _remove_proc_entry(k: Kernel, name: int, parent: int) -> int:
    _remove_at(k, PROC, name, parent)
    return 0


@function("void debugfs_lookup_and_remove(const char *name, struct dentry *parent)")
def _debugfs_lookup_and_remove(k: Kernel, name: int, parent: int) -> None:
    _remove_at(k, DEBUGFS, name, parent)


@function("struct dentry *debugfs_lookup(const char *name, struct dentry *parent)")
def _debugfs_lookup(k: Kernel, name: int, parent: int) -> int:
    path = _path(k, DEBUGFS, text(k, name).decode("utf-8", "replace"), parent)
    found = next(k.registry.find(DEBUGFS, path), None)
    return found.address if found else 0


@function("bool debugfs_initialized(void)")
def _debugfs_initialized(_k: Kernel) -> int:
    return 1


@function("void proc_remove(struct proc_dir_entry *de)")
def _proc_remove(k: Kernel, node: int) -> None:
    _remove(k, node)


@function(
    "struct proc_dir_entry *proc_mkdir(const char *name, struct proc_dir_entry *parent)",
)
def _proc_mkdir(k: Kernel, name: int, parent: int) -> int:
    return _node(k, PROC, text(k, name), parent, {})


@function("struct proc_dir_entry *proc_create_mount_point(const char *name)")
def _proc_create_mount_point(k: Kernel, name: int) -> int:
    return _proc_mkdir(k, name, 0)


@function(
    "struct proc_dir_entry *proc_mkdir_mode(const char *name, umode_t m, struct proc_dir_entry *p)"
)
def _proc_mkdir_mode(k: Kernel, name: int, _mode: int, parent: int) -> int:
    return _proc_mkdir(k, name, parent)


@function(
    "struct proc_dir_entry *_proc_mkdir(const char *name, umode_t mode,"
    " struct proc_dir_entry *parent, void *data, bool force_lookup)",
    "struct proc_dir_entry *proc_mkdir_data(const char *name, umode_t mode,"
    " struct proc_dir_entry *parent, void *data)",
)
def _proc_mkdir_data(k: Kernel, name: int, _mode: int, parent: int, *_data: int) -> int:
    return _proc_mkdir(k, name, parent)


@function(
    "struct proc_dir_entry *proc_symlink(const char *name, struct proc_dir_entry *parent,"
    " const char *dest)"
)
def _proc_symlink(k: Kernel, name: int, parent: int, target: int) -> int:
    to = text(k, target).decode("utf-8", "replace")
    return _node(k, PROC, text(k, name), parent, {"target": to})


@function(
    "struct proc_dir_entry *proc_create(const char *name, umode_t mode,"
    " struct proc_dir_entry *parent, const struct proc_ops *proc_ops)",
    "struct proc_dir_entry *proc_create_data(const char *name, umode_t mode,"
    " struct proc_dir_entry *parent, const struct proc_ops *proc_ops, void *data)",
)
def _proc_create(k: Kernel, name: int, mode: int, parent: int, ops: int, *_data: int) -> int:
    return _node(k, PROC, text(k, name), parent, {"mode": oct(mode), "operations": Hex(ops)})


@function(
    "struct proc_dir_entry *proc_create_single_data(const char *name, umode_t mode,"
    " struct proc_dir_entry *parent, void *show, void *data)",
    "struct proc_dir_entry *proc_create_net_single(const char *name, umode_t mode,"
    " struct proc_dir_entry *parent, void *show, void *data)",
)
def _proc_create_single(k: Kernel, name: int, mode: int, parent: int, show: int, _data: int) -> int:
    return _node(k, PROC, text(k, name), parent, {"mode": oct(mode)}, show=show)


@function(
    "struct proc_dir_entry *proc_create_seq_private(const char *name, umode_t mode,"
    " struct proc_dir_entry *parent, const struct seq_operations *ops, unsigned int size,"
    " void *data)",
    "struct proc_dir_entry *proc_create_net_data(const char *name, umode_t mode,"
    " struct proc_dir_entry *parent, const struct seq_operations *ops, unsigned int size,"
    " void *data)",
)
def _proc_create_seq(
    k: Kernel, name: int, mode: int, parent: int, ops: int, _size: int, _data: int
) -> int:
    calls = view(k, "seq_operations", ops).functions()
    return _node(k, PROC, text(k, name), parent, {"mode": oct(mode)}, **calls)


declare(
    "ctl_table",
    "procname:str data:ptr maxlen:i32 mode:u16 proc_handler:fn poll:ptr extra1:ptr extra2:ptr",
)
CTL_TABLE = layout("ctl_table").size
SYSCTL_HEADER = room("ctl_table_header", 192)


def _sysctls(k: Kernel, path: int, table: int, count: int) -> int:
    header = kmalloc(k, SYSCTL_HEADER, GFP_ZERO)
    prefix = text(k, path).decode("utf-8", "replace")
    names = []
    for n in range(count):
        found = view(k, "ctl_table", table + n * CTL_TABLE)
        k.hold(ENTRY)
        names.append(found.text("procname"))
    k.register("sysctl", header, prefix, fields={"names": tuple(names)})
    return header


@function(
    "struct ctl_table_header *register_sysctl_sz(const char *path, struct ctl_table *table,"
    " size_t table_size)"
)
def _register_sysctl(k: Kernel, path: int, table: int, count: int) -> int:
    return _sysctls(k, path, table, count)


@function(
    "void __register_sysctl_init(const char *path, struct ctl_table *table,"
    " const char *table_name, size_t table_size)"
)
def _register_sysctl_init(k: Kernel, path: int, table: int, _name: int, count: int) -> None:
    _sysctls(k, path, table, count)


@function(
    "struct ctl_table_header *register_net_sysctl_sz(struct net *net, const char *path,"
    " struct ctl_table *table, size_t table_size)"
)
def _register_net_sysctl(k: Kernel, _net: int, path: int, table: int, count: int) -> int:
    return _sysctls(k, path, table, count)


@function(
    "void unregister_sysctl_table(struct ctl_table_header *header)",
    "void unregister_net_sysctl_table(struct ctl_table_header *header)",
)
def _unregister_sysctl(k: Kernel, header: int) -> None:
    if header and k.registry.remove("sysctl", header) is not None:
        kfree(k, header)


# LEDs and input --------------------------------------------------------------------------------

LED_TRIGGER = room("led_trigger", 256)
declare("led_trigger", "name:str ...")
declare(
    "input_handler",
    "private:ptr event:fn events:fn filter:fn match:fn connect:fn disconnect:fn start:fn"
    " legacy_minors:u8 minor:i32 name:str id_table:ptr ...",
)


@function("int led_trigger_register(struct led_trigger *trigger)")
def _led_trigger_register(k: Kernel, trigger: int) -> int:
    enter(k, "led trigger", "led_trigger", trigger)
    return 0


@function("void led_trigger_unregister(struct led_trigger *trigger)")
def _led_trigger_unregister(k: Kernel, trigger: int) -> None:
    k.registry.remove("led trigger", trigger)


@function("void led_trigger_register_simple(const char *name, struct led_trigger **trigger)")
def _led_trigger_register_simple(k: Kernel, name: int, at: int) -> None:
    trigger = kmalloc(k, LED_TRIGGER, GFP_ZERO)
    k.store(trigger, name)
    k.store(at, trigger)
    enter(k, "led trigger", "led_trigger", trigger)


@function("void led_trigger_unregister_simple(struct led_trigger *trigger)")
def _led_trigger_unregister_simple(k: Kernel, trigger: int) -> None:
    if trigger:
        k.registry.remove("led trigger", trigger)
        kfree(k, trigger)


@function("int input_register_handler(struct input_handler *handler)")
def _input_register_handler(k: Kernel, handler: int) -> int:
    enter(k, "input handler", "input_handler", handler)
    return 0


@function("void input_unregister_handler(struct input_handler *handler)")
def _input_unregister_handler(k: Kernel, handler: int) -> None:
    k.registry.remove("input handler", handler)


nothing(
    "void led_trigger_event(struct led_trigger *trigger, enum led_brightness event)",
    "void led_trigger_blink(struct led_trigger *trigger, unsigned long on, unsigned long off)",
    "void led_trigger_blink_oneshot(struct led_trigger *t, unsigned long on, unsigned long off,"
    " int invert)",
)
