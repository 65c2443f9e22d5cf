# SPDX-License-Identifier: GPL-2.0-or-later
"""Networking: one name space, and what modules hook into it (net/core/, net/netlink/).

Protocols, families and hooks are recorded; no packet ever comes. What a module keeps per
name space is really allocated and set up for the one there is, `init_net`.
"""

from __future__ import annotations

from typing import NoReturn

import attrs

from kernels.modelled.api.common import errno, nothing, signed_int, state, stop
from kernels.modelled.api.held import give, holder, take
from kernels.modelled.api.memory import GFP_ZERO, create_cache, destroy_cache, kfree, kmalloc
from kernels.modelled.api.registration import enter
from kernels.modelled.api.sched import block
from kernels.modelled.kernel import Kernel
from kernels.modelled.structs import POINTER, made, size_of, view
from kernels.modelled.structs import struct as declare
from kernels.modelled.table import data, function

# Behind the name space lies the table of what modules keep in it, `gen`. The table's first three
# slots are its own header, so numbers begin behind them (MIN_PERNET_OPS_ID).
declare("net", "gen")
NET = size_of("net")
FIRST_ID, MOST_IDS = 3, 512


def _init_net(k: Kernel) -> bytes:
    return made(k, "net", {"gen": k.address("init_net") + NET(k)})


data("init_net", lambda k: NET(k) + POINTER * MOST_IDS, fill=_init_net)
data("init_task", size_of("task_struct"))
# Pointers that one module sets and another may follow.
for _hook in (
    "br_fdb_test_addr_hook nf_defrag_v4_hook nf_defrag_v6_hook udp_tunnel_nic_ops nf_ct_hook"
    " nf_nat_hook nfnl_ct_hook nf_ctnetlink_has_listener ip_ct_attach"
).split():
    data(_hook, 8)


# Per name space ------------------------------------------------------------------------------


def _register_pernet(k: Kernel, ops: int) -> int:
    net = k.address("init_net")
    found = view(k, "pernet_operations", ops)
    at, memory = found.number("id"), 0
    if at:
        taken = {r.fields["id"] for r in k.registry.find("pernet operations")}
        number = next((n for n in range(FIRST_ID, MOST_IDS) if n not in taken), 0)
        if not number:
            return errno("ENOSPC")
        k.store(at, number, 4)
        if found.number("size"):
            memory = kmalloc(k, found.number("size"), GFP_ZERO)
            if not memory:
                return errno("ENOMEM")
        k.store(net + NET(k) + POINTER * number, memory)
    result = signed_int(k.call(init, net)) if (init := found.number("init")) else 0
    if result < 0:
        kfree(k, memory)
        return result
    k.register(
        "pernet operations",
        ops,
        fields={"id": k.word(at, 4) if at else 0},
        callbacks=found.functions(),
    )
    return 0


def _unregister_pernet(k: Kernel, ops: int) -> None:
    net = k.address("init_net")
    if k.registry.remove("pernet operations", ops) is None:
        return
    found = view(k, "pernet_operations", ops)
    for member in ("pre_exit", "exit"):
        if callback := found.number(member):
            k.call(callback, net)
    if at := found.number("id"):
        slot = net + NET(k) + POINTER * k.word(at, 4)
        kfree(k, k.word(slot))
        k.store(slot, 0)


@function(
    "int register_pernet_subsys(struct pernet_operations *ops)",
    "int register_pernet_device(struct pernet_operations *ops)",
)
def _register_pernet_operations(k: Kernel, ops: int) -> int:
    return _register_pernet(k, ops)


@function(
    "void unregister_pernet_subsys(struct pernet_operations *ops)",
    "void unregister_pernet_device(struct pernet_operations *ops)",
)
def _unregister_pernet_operations(k: Kernel, ops: int) -> None:
    _unregister_pernet(k, ops)


nothing("void __put_net(struct net *net)", "void net_drop_ns(void *net)")


# The lock of the whole configuration -----------------------------------------------------------


RTNL = -2  # in the table of what is held: it is no module's, and has no address here


@attrs.define
class _Rtnl:
    """The task that has the lock; 0: none."""

    owner: int = 0


def _rtnl_deadlock(k: Kernel) -> NoReturn:
    place, cause = holder(k, RTNL)
    since = f" since {place}" if place else ""
    stop(k, f"deadlock: rtnl_mutex is held already{since}, and nobody else runs", cause=cause)


@function("void rtnl_lock(void)", "int rtnl_lock_killable(void)")
def _rtnl_lock(k: Kernel) -> int:
    if state(k, _Rtnl).owner == k.current:
        _rtnl_deadlock(k)
    block(k, lambda: not state(k, _Rtnl).owner, hopeless=lambda: _rtnl_deadlock(k))
    state(k, _Rtnl).owner = k.current
    take(k, RTNL)
    return 0


@function("int rtnl_trylock(void)")
def _rtnl_trylock(k: Kernel) -> int:
    if state(k, _Rtnl).owner:
        return 0
    _rtnl_lock(k)
    return 1


@function("void rtnl_unlock(void)", "void __rtnl_unlock(void)")
def _rtnl_unlock(k: Kernel) -> None:
    if not state(k, _Rtnl).owner:
        stop(k, "unlock of rtnl_mutex, which is not held")
    state(k, _Rtnl).owner = 0
    give(k, RTNL)


@function("int rtnl_is_locked(void)")
def _rtnl_is_locked(k: Kernel) -> int:
    return int(state(k, _Rtnl).owner != 0)


# Families, protocols, hooks --------------------------------------------------------------------

declare("packet_type", "type dev func")
declare("rtnl_msg_handler", "owner protocol msgtype doit dumpit flags")
HANDLER = size_of("rtnl_msg_handler")
declare("net_proto_family", "family create owner")
declare("rtnl_af_ops", "list family")


@function("void dev_add_pack(struct packet_type *pt)")
def _dev_add_pack(k: Kernel, packet: int) -> None:
    number = int.from_bytes(k.memory.read(view(k, "packet_type", packet).at("type"), 2), "big")
    enter(k, "packet type", "packet_type", packet, name="")
    record = k.registry.remove("packet type", packet)
    if record is not None:
        k.registry.add(attrs.evolve(record, name=f"{number:#06x}"))


@function("void dev_remove_pack(struct packet_type *pt)", "void __dev_remove_pack(void *pt)")
def _dev_remove_pack(k: Kernel, packet: int) -> None:
    k.registry.remove("packet type", packet)


@function("int genl_register_family(struct genl_family *family)")
def _genl_register_family(k: Kernel, family: int) -> int:
    enter(k, "generic netlink family", "genl_family", family, fields=("version", "maxattr"))
    return 0


@function("int genl_unregister_family(const struct genl_family *family)")
def _genl_unregister_family(k: Kernel, family: int) -> int:
    return 0 if k.registry.remove("generic netlink family", family) else errno("ENOENT")


@function("int sock_register(const struct net_proto_family *fam)")
def _sock_register(k: Kernel, family: int) -> int:
    number = view(k, "net_proto_family", family).number("family")
    enter(k, "socket family", "net_proto_family", family, name="", fields=("family",))
    return 0 if number < 46 else errno("ENOBUFS")  # NPROTO


@function("void sock_unregister(int family)")
def _sock_unregister(k: Kernel, number: int) -> None:
    for record in list(k.registry.find("socket family")):
        if record.fields.get("family") == number:
            k.registry.remove("socket family", record.address)


@function("int __rtnl_register_many(const struct rtnl_msg_handler *handlers, int n)")
def _rtnl_register_many(k: Kernel, handlers: int, count: int) -> int:
    for n in range(count):
        enter(k, "rtnl message", "rtnl_msg_handler", handlers + HANDLER(k) * n, fields=("msgtype",))
    return 0


@function("void __rtnl_unregister_many(const struct rtnl_msg_handler *handlers, int n)")
def _rtnl_unregister_many(k: Kernel, handlers: int, count: int) -> None:
    for n in range(count):
        k.spend()
        k.registry.remove("rtnl message", handlers + HANDLER(k) * n)


nothing(
    "int rtnl_register_module(struct module *owner, int protocol, int msgtype, void *doit,"
    " void *dumpit, unsigned int flags)",
    "int rtnl_unregister(int protocol, int msgtype)",
    "void rtnl_unregister_all(int protocol)",
    "void rtnl_af_register(struct rtnl_af_ops *ops)",
    "void rtnl_af_unregister(struct rtnl_af_ops *ops)",
    "void brioctl_set(void *hook)",
    "void vlan_ioctl_set(void *hook)",
    "int proto_register(struct proto *prot, int alloc_slab)",
    "void proto_unregister(struct proto *prot)",
    "void inet_register_protosw(struct inet_protosw *p)",
    "void inet_unregister_protosw(struct inet_protosw *p)",
    "int inet_add_protocol(const struct net_protocol *prot, unsigned char protocol)",
    "int inet_del_protocol(const struct net_protocol *prot, unsigned char protocol)",
    "int inet6_add_protocol(const struct inet6_protocol *prot, unsigned char protocol)",
    "int inet6_del_protocol(const struct inet6_protocol *prot, unsigned char protocol)",
    "int tcp_register_congestion_control(struct tcp_congestion_ops *type)",
    "void tcp_unregister_congestion_control(struct tcp_congestion_ops *type)",
    "int register_qdisc(struct Qdisc_ops *qops)",
    "void unregister_qdisc(const struct Qdisc_ops *qops)",
    "int register_tcf_proto_ops(struct tcf_proto_ops *ops)",
    "void unregister_tcf_proto_ops(struct tcf_proto_ops *ops)",
    "int tcf_register_action(struct tc_action_ops *a, struct pernet_operations *ops)",
    "int tcf_unregister_action(struct tc_action_ops *a, struct pernet_operations *ops)",
    "int nf_register_net_hook(struct net *net, const struct nf_hook_ops *ops)",
    "void nf_unregister_net_hook(struct net *net, const struct nf_hook_ops *ops)",
    "int nf_register_net_hooks(struct net *net, const struct nf_hook_ops *reg, unsigned int n)",
    "void nf_unregister_net_hooks(struct net *net, const struct nf_hook_ops *reg, unsigned n)",
    "int nf_register_sockopt(struct nf_sockopt_ops *reg)",
    "void nf_unregister_sockopt(struct nf_sockopt_ops *reg)",
    "int xt_register_target(struct xt_target *target)",
    "void xt_unregister_target(struct xt_target *target)",
    "int xt_register_targets(struct xt_target *target, unsigned int n)",
    "void xt_unregister_targets(struct xt_target *target, unsigned int n)",
    "int xt_register_match(struct xt_match *match)",
    "void xt_unregister_match(struct xt_match *match)",
    "int xt_register_matches(struct xt_match *match, unsigned int n)",
    "void xt_unregister_matches(struct xt_match *match, unsigned int n)",
    "int phy_driver_register(struct phy_driver *new_driver, struct module *owner)",
    "void phy_driver_unregister(struct phy_driver *drv)",
    "int phy_drivers_register(struct phy_driver *new_driver, int n, struct module *owner)",
    "void phy_drivers_unregister(struct phy_driver *drv, int n)",
    "void sk_stream_kill_queues(struct sock *sk)",
)


# Queues of fragments (net/ipv4/inet_fragment.c): set up, never filled -----------------------------

declare("inet_frags", "qsize frags_cachep frags_cache_name")
declare("fqdir", "f net")
FQDIR = size_of("fqdir")


@function("int inet_frags_init(struct inet_frags *f)")
def _inet_frags_init(k: Kernel, frags: int) -> int:
    found = view(k, "inet_frags", frags)
    cache = create_cache(k, found.number("frags_cache_name"), found.number("qsize"))
    found.put("frags_cachep", cache)
    return 0 if cache else errno("ENOMEM")


@function("void inet_frags_fini(struct inet_frags *f)")
def _inet_frags_fini(k: Kernel, frags: int) -> None:
    found = view(k, "inet_frags", frags)
    destroy_cache(k, found.number("frags_cachep"))
    found.put("frags_cachep", 0)


@function("int fqdir_init(struct fqdir **fqdirp, struct inet_frags *f, struct net *net)")
def _fqdir_init(k: Kernel, at: int, frags: int, net: int) -> int:
    directory = kmalloc(k, FQDIR(k), GFP_ZERO)
    if not directory:
        return errno("ENOMEM")
    found = view(k, "fqdir", directory)
    found.put("f", frags)
    found.put("net", net)
    k.store(at, directory)
    return 0


@function("void fqdir_exit(struct fqdir *fqdir)")
def _fqdir_exit(k: Kernel, directory: int) -> None:
    kfree(k, directory)
