# SPDX-License-Identifier: GPL-2.0-or-later
"""What else modules register: file systems, text search, character sets, notifiers."""

from __future__ import annotations

from kernels.modelled.api.registration import registration
from kernels.modelled.structs import struct

struct("file_system_type", "name init_fs_context parameters mount kill_sb owner")
struct(
    "ts_ops",
    "name init find destroy get_pattern get_pattern_len owner",
)
struct("nls_table", "charset alias uni2char char2uni")
struct(
    "pernet_operations",
    "list init pre_exit exit exit_batch exit_batch_rtnl id size",
)
struct("notifier_block", "notifier_call next priority")
struct("genl_family", "name version maxattr")
struct("rtnl_link_ops", "list kind alloc setup")

registration(
    "filesystem",
    "file_system_type",
    "int register_filesystem(struct file_system_type *fs)",
    "int unregister_filesystem(struct file_system_type *fs)",
)
registration(
    "text search",
    "ts_ops",
    "int textsearch_register(struct ts_ops *ops)",
    "int textsearch_unregister(struct ts_ops *ops)",
)
registration(
    "character set",
    "nls_table",
    "int __register_nls(struct nls_table *nls, struct module *owner)",
    "int unregister_nls(struct nls_table *nls)",
    name="charset",
)
registration(
    "rtnl link",
    "rtnl_link_ops",
    (
        "int rtnl_link_register(struct rtnl_link_ops *ops)",
        "int __rtnl_link_register(struct rtnl_link_ops *ops)",
    ),
    (
        "void rtnl_link_unregister(struct rtnl_link_ops *ops)",
        "void __rtnl_link_unregister(struct rtnl_link_ops *ops)",
    ),
    name="kind",
)

# Notifier chains by the functions that add to them, each with its counterpart.
for _chain in (
    "netdevice_notifier inetaddr_notifier inet6addr_notifier netevent_notifier"
    " switchdev_notifier switchdev_blocking_notifier pm_notifier reboot_notifier oom_notifier"
    " die_notifier keyboard_notifier acpi_notifier module_notifier inetaddr_validator_notifier"
    " inet6addr_validator_notifier"
).split():
    registration(
        _chain.replace("_", " "),
        "notifier_block",
        f"int register_{_chain}(struct notifier_block *nb)",
        f"int unregister_{_chain}(struct notifier_block *nb)",
        fields=("priority",),
    )
registration(
    "fib notifier",
    "notifier_block",
    "int register_fib_notifier(struct net *net, struct notifier_block *nb, void *cb,"
    " struct netlink_ext_ack *extack)",
    "int unregister_fib_notifier(struct net *net, struct notifier_block *nb)",
    fields=("priority",),
)
registration(
    "netlink notifier",
    "notifier_block",
    "int netlink_register_notifier(struct notifier_block *nb)",
    "int netlink_unregister_notifier(struct notifier_block *nb)",
    fields=("priority",),
)
