# SPDX-License-Identifier: GPL-2.0-or-later
"""The workloads that designs are compared on, by name.

Every one is a fixed sequence of operations: what is random comes from a seed, so two
designs see the same requests and two runs give the same numbers.

Sources of the shapes: BPF program sizes (half below 500 bytes, three quarters below 2 KiB)
from the cover letter of execmem_alloc v5 (Song Liu, November 2022); the direct-map test
from Aaron Lu's mail in the same thread (7 November 2022).
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType

import attrs

from allocator.types import GIB, MIB, PAGE_SIZE, Consumer, MemType
from allocator.workloads.operations import (
    Alloc,
    Free,
    Load,
    Module,
    Operation,
    Pages,
    Region,
    Unload,
)
from allocator.workloads.table import debian, load_order

# A name that an architecture's table does not have is passed over: it is built in there,
# or a driver of other machines.
DESKTOP = """
    ahci algif_hash algif_skcipher amdgpu ath11k_pci autofs4 binfmt_misc bluetooth
    btusb cfg80211 configfs dm_crypt dm_mod e1000e efivarfs ehci_pci evdev ext4 hid_generic
    hid_multitouch i2c_i801 i915 isofs iwlmvm iwlwifi joydev kvm_amd kvm_intel loop mac80211
    nf_tables nft_chain_nat nft_ct nls_ascii nls_cp437 nouveau nvme overlay parport_pc pcspkr
    psmouse r8169 rfkill sd_mod sg snd_aloop snd_hda_codec_hdmi snd_hda_codec_realtek
    snd_hda_intel snd_seq snd_usb_audio squashfs sr_mod stmmac tcp_bbr thunderbolt tls tun
    typec_ucsi uas usb_storage usbhid uvcvideo vfat wireguard xhci_pci zram
""".split()
SERVER = """
    8021q act_mirred ahci ast autofs4 binfmt_misc bnxt_en bonding br_netfilter bridge btrfs
    ceph cls_bpf configfs dm_crypt dm_mirror dm_mod dm_multipath dm_raid dm_snapshot
    dm_thin_pool drbd e1000e efivarfs ehci_pci ext4 i40e ice igb inet_diag ip6table_filter
    ip_vs ipmi_devintf ipmi_si ipmi_ssif iptable_filter iptable_nat iscsi_tcp ixgbe kvm
    kvm_amd kvm_intel loop lpfc macvlan megaraid_sas mgag200 mlx5_core mpt3sas nbd nf_conntrack
    nf_tables nfsd nfsv4 nft_chain_nat nft_ct nft_nat nvme overlay qla2xxx raid1 raid456 rbd
    rpcsec_gss_krb5 sch_htb scsi_dh_alua sd_mod sg target_core_mod tcp_bbr tcp_diag tg3 tls
    tun udp_diag unix_diag veth vhost_net vhost_vsock virtio_blk virtio_gpu virtio_net
    virtio_scsi vxlan wireguard xfs xhci_pci xt_MASQUERADE xt_addrtype xt_conntrack zram
""".split()

# Bytes that one program of Aaron Lu's test protects, and pages that its load takes from
# the kernel besides (program text, maps, the verifier's state that stays): his DirectMap4k
# grew by about 732 KiB a program, which is what spreads the protected pages out.
PROTECTED_PAGES = 3
OTHER_PAGES = 180
SLOT = 16  # bytes of a kprobe's instruction slot
TRAMPOLINE = 256  # bytes of an ftrace trampoline
THUNK = 64


def modules(table: Mapping[str, Module], names: Iterable[str]) -> Iterator[Operation]:
    """Yield the loads of the named modules and their dependencies, dependencies first."""
    return (Load(module) for module in load_order(table, names))


def named(names: Iterable[str]) -> Callable[[str], Iterable[Operation]]:
    """Return what loads the modules of a list, as far as an architecture has them."""

    def build(arch: str) -> Iterator[Operation]:
        table = debian(arch)
        return modules(table, [name for name in names if name in table])

    return build


def _churn(arch: str, *, steps: int = 2000, seed: int = 1) -> Iterator[Operation]:
    """Load and unload random modules over a server's; only what nobody uses is unloaded."""
    chance = random.Random(seed)  # noqa: S311 - a run that can be repeated, no secret
    table = debian(arch)
    loaded: dict[str, Module] = {}
    users: dict[str, int] = {}
    visiting: list[str] = []

    def load(names: Iterable[str]) -> Iterator[Load]:
        for module in load_order(table, names):
            if module.name not in loaded:
                loaded[module.name] = module
                for needed in module.depends:
                    users[needed] = users.get(needed, 0) + 1
                yield Load(module)

    yield from load([name for name in SERVER if name in table])
    resident = set(loaded)
    names = list(table)
    for _ in range(steps):
        idle = [name for name in visiting if not users.get(name)]
        if len(visiting) < 64 or not idle or chance.random() < 0.5:
            arrived = [item.module.name for item in load([chance.choice(names)])]
            yield from (Load(loaded[name]) for name in arrived)
            visiting += [name for name in arrived if name not in resident]
            continue
        gone = chance.choice(idle)
        visiting.remove(gone)
        for needed in loaded.pop(gone).depends:
            users[needed] -= 1
        yield Unload(gone)


def program_size(chance: random.Random) -> int:
    """Return the bytes of a random BPF program: half below 500, three quarters below 2048."""
    kind = chance.random()
    if kind < 0.5:
        return chance.randrange(64, 500)
    if kind < 0.75:
        return chance.randrange(500, 2048)
    return int(2048 * 16 ** chance.random())


def _bpf(
    _arch: str, *, programs: int = 4000, live: int = 500, seed: int = 1
) -> Iterator[Operation]:
    """Load BPF programs one after the other; each lives for `live` loads on average."""
    chance = random.Random(seed)  # noqa: S311 - a run that can be repeated, no secret
    ends: list[tuple[float, int]] = []
    for number in range(programs):
        while ends and ends[0][0] <= number:
            yield Free(f"bpf-{heapq.heappop(ends)[1]}")
        size = program_size(chance)
        yield Alloc(key=f"bpf-{number}", size=size, consumer=Consumer.BPF, align=8)
        heapq.heappush(ends, (number + chance.expovariate(1 / live), number))


def _concurrent(programs: int) -> Callable[[str], Iterable[Operation]]:
    """Return Aaron Lu's experiment with so many programs, all alive at the end."""

    def build(_arch: str) -> Iterator[Operation]:
        for number in range(programs):
            size = PROTECTED_PAGES * PAGE_SIZE
            yield Pages(OTHER_PAGES)
            yield Alloc(key=f"bpf-{number}", size=size, consumer=Consumer.BPF, align=8)

    return build


def _pages(_arch: str) -> Iterator[Operation]:
    """Return the programs of the published iTLB comparison: 200 KiB, a page each."""
    for number in range(50):
        yield Alloc(key=f"bpf-{number}", size=PAGE_SIZE, consumer=Consumer.BPF, align=8)


def attach(kind: Consumer, numbers: Iterable[int]) -> Iterator[Operation]:
    """Yield the allocations of slots, trampolines or thunks, keyed by their numbers."""
    size = {Consumer.KPROBES: SLOT, Consumer.FTRACE: TRAMPOLINE, Consumer.THUNK: THUNK}[kind]
    for number in numbers:
        yield Alloc(key=f"{kind.value}-{number}", size=size, consumer=kind, align=8)


def _probes(arch: str, *, probes: int = 1000, seed: int = 1) -> Iterator[Operation]:
    """Attach kprobes and ftrace trampolines on a server, detach half, attach again."""
    chance = random.Random(seed)  # noqa: S311 - a run that can be repeated, no secret
    yield from named(SERVER)(arch)
    counts = {Consumer.KPROBES: probes, Consumer.FTRACE: probes // 10}
    for kind, count in counts.items():
        yield from attach(kind, range(count))
    for kind, count in counts.items():
        gone = chance.sample(range(count), count // 2)
        yield from (Free(f"{kind.value}-{number}") for number in gone)
        yield from attach(kind, gone[: count // 4])


def _no_modules(arch: str) -> Iterator[Operation]:
    """Serve a kernel that is built without modules: thunks, trampolines, slots, programs."""
    yield from attach(Consumer.THUNK, range(32))
    yield from attach(Consumer.FTRACE, range(64))
    yield from attach(Consumer.KPROBES, range(256))
    yield from _bpf(arch, programs=500, live=200)


@attrs.frozen
class WorkloadSource:
    """A workload by name: one sentence, and how its operations are made for an architecture.

    `memory` is the physical memory in bytes that a run needs.
    """

    title: str
    build: Callable[[str], Iterable[Operation]]
    memory: int = 2 * GIB


def _middle_slice(_arch: str) -> Iterable[Operation]:
    """Yield loads after which a slice of 2 MiB in the middle of three large leaves is free."""

    def load(name: str, text: int) -> Load:
        kinds = ((MemType.TEXT, text * MIB), (MemType.DATA, 2048))
        regions = tuple(Region(kind, size, align=64) for kind, size in kinds)
        return Load(Module(name=name, regions=regions))

    yield from (load("first", 5), load("last", 1), Unload("first"))
    yield from (load("low", 2), load("middle", 2), load("high", 1), Unload("middle"))


WORKLOADS: Mapping[str, WorkloadSource] = MappingProxyType(
    {
        "debian": WorkloadSource(
            "every module of Debian 6.12, dependencies first",
            lambda arch: modules(debian(arch), debian(arch)),
        ),
        "debian-alphabetical": WorkloadSource(
            "every module of Debian 6.12, alphabetically",
            lambda arch: map(Load, debian(arch).values()),
        ),
        "desktop": WorkloadSource("modules of a desktop and their dependencies", named(DESKTOP)),
        "server": WorkloadSource("modules of a server and their dependencies", named(SERVER)),
        "middle-slice": WorkloadSource(
            "2 MiB of text in the middle of 6 MiB come and go", _middle_slice
        ),
        "churn": WorkloadSource("random modules loaded and unloaded over a server's", _churn),
        "bpf": WorkloadSource("4,000 BPF programs, about 500 alive at a time", _bpf),
        "bpf-512": WorkloadSource(
            "512 BPF programs of three pages at once", _concurrent(512), 8 * GIB
        ),
        "bpf-1024": WorkloadSource(
            "1,024 BPF programs of three pages at once", _concurrent(1024), 8 * GIB
        ),
        "bpf-2048": WorkloadSource(
            "2,048 BPF programs of three pages at once", _concurrent(2048), 8 * GIB
        ),
        "bpf-50-pages": WorkloadSource(
            "50 BPF programs of one page, to compare iTLB misses", _pages
        ),
        "probes": WorkloadSource("kprobes and ftrace attached and detached on a server", _probes),
        "no-modules": WorkloadSource(
            "thunks, trampolines, slots and programs, no modules", _no_modules
        ),
    }
)
