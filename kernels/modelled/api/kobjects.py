# SPDX-License-Identifier: GPL-2.0-or-later
"""Objects with names and reference counts (lib/kobject.c, fs/sysfs/).

Nobody looks into /sys here. Entries keep what inlined code reads (names, reference counts,
list heads), and accept the rest.
"""

from __future__ import annotations

from kernels.modelled.api.common import empty_list, nothing, text
from kernels.modelled.api.memory import GFP_ZERO, duplicate, kfree, kmalloc
from kernels.modelled.kernel import Kernel
from kernels.modelled.structs import POINTER, made, size_of, view
from kernels.modelled.structs import struct as declare
from kernels.modelled.table import Arguments, data, function

declare("kobject", "name entry parent kset ktype kref")
declare("kobj_type", "release")
declare("kset", "list kobj uevent_ops")
KOBJECT, KSET = size_of("kobject"), size_of("kset")


def _object_variable(name: str) -> None:
    def contents(k: Kernel) -> bytes:
        return (k.address(name) + POINTER).to_bytes(POINTER, "little")

    data(name, lambda k: POINTER + KOBJECT(k), fill=contents)


for _name in "fs_kobj kernel_kobj mm_kobj power_kobj hypervisor_kobj firmware_kobj".split():
    _object_variable(_name)


def set_name(k: Kernel, kobject: int, name: bytes) -> None:
    """Give a kobject a name of its own."""
    found = view(k, "kobject", kobject)
    kfree(k, found.number("name"))
    found.put("name", duplicate(k, name + b"\0", 0))


def init_kobject(k: Kernel, kobject: int) -> None:
    """Let a kobject be in no list, and held once."""
    found = view(k, "kobject", kobject)
    empty_list(k, found.at("entry"))
    found.put("kref", 1)


def get_kobject(k: Kernel, kobject: int) -> int:
    """Take a reference to a kobject, and return it."""
    if kobject:
        found = view(k, "kobject", kobject)
        found.put("kref", found.number("kref") + 1)
    return kobject


def put_kobject(k: Kernel, kobject: int) -> None:
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
    init_kobject(k, kobject)
    view(k, "kobject", kobject).put("ktype", ktype)


@function("int kobject_set_name(struct kobject *kobj, const char *fmt, ...)")
def _kobject_set_name(k: Kernel, kobject: int, fmt: int, args: Arguments) -> int:
    set_name(k, kobject, k.format(fmt, args))
    return 0


@function("int kobject_add(struct kobject *kobj, struct kobject *parent, const char *fmt, ...)")
def _kobject_add(k: Kernel, kobject: int, parent: int, fmt: int, args: Arguments) -> int:
    set_name(k, kobject, k.format(fmt, args))
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
    kobject = kmalloc(k, KOBJECT(k), GFP_ZERO)
    if kobject:
        init_kobject(k, kobject)
        set_name(k, kobject, text(k, name))
        found = view(k, "kobject", kobject)
        found.put("parent", parent)
        found.put("ktype", k.address("dynamic_kobj_ktype"))
    return kobject


@function("void dynamic_kobj_release(struct kobject *kobj)")
def _dynamic_kobj_release(k: Kernel, kobject: int) -> None:
    kfree(k, kobject)


data(
    "dynamic_kobj_ktype",
    size_of("kobj_type"),
    fill=lambda k: made(k, "kobj_type", {"release": k.address("dynamic_kobj_release")}),
)


@function("struct kobject *kobject_get(struct kobject *kobj)")
def _kobject_get(k: Kernel, kobject: int) -> int:
    return get_kobject(k, kobject)


@function("void kobject_put(struct kobject *kobj)")
def _kobject_put(k: Kernel, kobject: int) -> None:
    put_kobject(k, kobject)


@function(
    "struct kset *kset_create_and_add(const char *name, const struct kset_uevent_ops *ops,"
    " struct kobject *parent)"
)
def _kset_create_and_add(k: Kernel, name: int, ops: int, parent: int) -> int:
    kset = kmalloc(k, KSET(k), GFP_ZERO)
    if kset:
        found = view(k, "kset", kset)
        init_kobject(k, found.at("kobj"))
        set_name(k, found.at("kobj"), text(k, name))
        empty_list(k, found.at("list"))
        found.put("uevent_ops", ops)
        found.put("kobj.parent", parent)
        found.put("kobj.ktype", k.address("kset_ktype"))
    return kset


@function("void kset_release(struct kobject *kobj)")
def _kset_release(k: Kernel, kobject: int) -> None:
    kfree(k, kobject - k.layouts.offset_of("kset", "kobj"))


data(
    "kset_ktype",
    size_of("kobj_type"),
    fill=lambda k: made(k, "kobj_type", {"release": k.address("kset_release")}),
)


@function("int kset_register(struct kset *kset)")
def _kset_register(k: Kernel, kset: int) -> int:
    found = view(k, "kset", kset)
    empty_list(k, found.at("list"))
    init_kobject(k, found.at("kobj"))
    return 0


@function("void kset_unregister(struct kset *kset)")
def _kset_unregister(k: Kernel, kset: int) -> None:
    if kset:
        put_kobject(k, view(k, "kset", kset).at("kobj"))


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
