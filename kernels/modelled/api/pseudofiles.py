# SPDX-License-Identifier: GPL-2.0-or-later
"""Entries of /proc, debugfs and sysctl: recorded, with what they call (fs/proc/, fs/debugfs/)."""

from __future__ import annotations

import attrs

from allocator.types import Hex
from kernels.modelled.api.common import errno, state, text
from kernels.modelled.api.memory import GFP_ZERO, kfree, kmalloc
from kernels.modelled.costs import ENTRY
from kernels.modelled.kernel import Kernel
from kernels.modelled.structs import size_of, view
from kernels.modelled.structs import struct as declare
from kernels.modelled.table import function

NAME_MAX = 255
DEBUGFS, PROC = "debugfs entry", "proc entry"
NODE = {DEBUGFS: size_of("dentry"), PROC: size_of("proc_dir_entry")}  # what stands for one


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
    node = kmalloc(k, NODE[kind](k), GFP_ZERO)
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


declare("seq_operations", "start stop next show")


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


declare("ctl_table", "procname data maxlen mode proc_handler")
CTL_TABLE = size_of("ctl_table")
SYSCTL_HEADER = size_of("ctl_table_header")


def _sysctls(k: Kernel, path: int, table: int, count: int) -> int:
    header = kmalloc(k, SYSCTL_HEADER(k), GFP_ZERO)
    prefix = text(k, path).decode("utf-8", "replace")
    names = []
    for n in range(count):
        found = view(k, "ctl_table", table + n * CTL_TABLE(k))
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
