# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel knows of its CPUs and of where things lie; guards and bugs.

Most of these are variables that inlined kernel code reads (arch/*/kernel/setup.c,
kernel/cpu.c, kernel/panic.c). CPU features are announced as far as the emulated CPU has them.
"""

from __future__ import annotations

import random
from typing import ClassVar

import attrs

from emulator.faults import FaultKind
from kernels.modelled.api.common import state, stop
from kernels.modelled.bounds import PIECE
from kernels.modelled.kernel import Kernel
from kernels.modelled.structs import made, size_of
from kernels.modelled.structs import struct as declare
from kernels.modelled.table import data, function

NR_CPUS = 8192  # the most that any of the modelled configurations has
PREEMPT_ENABLED = 1 << 31  # x86: the bit "no need to reschedule" is kept inverted
KERNEL_MAP = 0xFFFF_FFFF_8000_0000  # __START_KERNEL_map
declare("cpuinfo_x86", "x86_capability")
declare("pcpu_hot", "current_task preempt_count cpu_number")
declare(
    "kernel_mapping",
    "page_offset virt_addr phys_addr size va_pa_offset va_kernel_pa_offset",
)
SV39, SV48 = 1 << 38, 1 << 47  # half of their address spaces
ADDRESSES = 1 << 64

SYSTEM_RUNNING = 3  # enum system_states of linux/kernel.h


def _u64(value: int) -> bytes:
    return (value % ADDRESSES).to_bytes(8, "little")


def _linear(k: Kernel) -> int:
    """Return what compiled code takes for the address of the direct map."""
    found = k.memory.address_map.page_offset
    return k.memory.direct_map.start if found is None else found


def _physical(k: Kernel) -> int:
    """Return the physical address of the kernel image."""
    found = k.memory.translate(k.image.start)
    assert found is not None
    return found.address


def _pcpu_hot(k: Kernel) -> bytes:
    members = {
        "current_task": k.current,
        "preempt_count": PREEMPT_ENABLED,
        "cpu_number": k.cpu.number,
    }
    return made(k, "pcpu_hot", members)


def _every_cpu(k: Kernel) -> bytes:
    return ((1 << len(k.cpus)) - 1).to_bytes(NR_CPUS // 8, "little")


def _how_many(k: Kernel) -> bytes:
    return len(k.cpus).to_bytes(4, "little")


def _boot_cpu_data(k: Kernel) -> bytes:
    has = sum(1 << n for n in k.arch.runs.emulation.features)
    return made(k, "cpuinfo_x86", {"x86_capability": has})


data("pcpu_hot", size_of("pcpu_hot"), percpu=True, fill=_pcpu_hot)
data("const_pcpu_hot", size_of("pcpu_hot"), percpu=True, fill=_pcpu_hot)
data("this_cpu_off", 8, percpu=True, fill=lambda k: _u64(k.percpu.offset))
data("numa_node", 4, percpu=True)
data("x86_cpu_to_apicid", 4, percpu=True, fill=lambda k: k.cpu.number.to_bytes(4, "little"))
data("__per_cpu_offset", NR_CPUS * 8, fill=lambda k: b"".join(map(_u64, k.percpu.offsets)))
data("nr_cpu_ids", 4, fill=_how_many)
data("__num_online_cpus", 4, fill=_how_many)
for _mask in ("online", "possible", "present", "active"):
    data(f"__cpu_{_mask}_mask", NR_CPUS // 8, fill=_every_cpu)
data("boot_cpu_data", size_of("cpuinfo_x86"), fill=_boot_cpu_data)
data("static_key_initialized", 1, fill=lambda _k: b"\1")
data("system_state", 4, fill=lambda _k: SYSTEM_RUNNING.to_bytes(4, "little"))
data("fips_enabled", 4)
data("empty_zero_page", lambda k: k.memory.page_size, align=lambda k: k.memory.page_size)
data("init_on_free", 16)
data("init_on_alloc", 16)
data("elfcorehdr_addr", 8)

# Where memory lies, for inlined virt_to_page() and its like. There are no struct pages: only
# their addresses count, and nothing is mapped there.
data("page_offset_base", 8, fill=lambda k: _u64(k.memory.direct_map.start))
data("vmalloc_base", 8, fill=lambda k: _u64(k.memory.address_map.vmalloc.start))
data("vmemmap_base", 8, fill=lambda k: _u64(k.memory.address_map.vmemmap))
data("vmemmap_start_pfn", 8)
data("phys_base", 8, fill=lambda k: _u64(_physical(k) - k.image.start + KERNEL_MAP))
data("memstart_addr", 8, fill=lambda k: _u64(_linear(k) - k.memory.direct_map.start))
data("kimage_voffset", 8, fill=lambda k: _u64(k.image.start - _physical(k)))
# Sv39 has three levels of tables; what reaches below its upper half has more (riscv64).
data("pgtable_l4_enabled", 1, fill=lambda k: bytes([k.memory.direct_map.start < -SV39 % ADDRESSES]))
data("pgtable_l5_enabled", 1, fill=lambda k: bytes([k.memory.direct_map.start < -SV48 % ADDRESSES]))


def _kernel_map(k: Kernel) -> bytes:
    start, physical = k.image.start, _physical(k)
    direct = k.memory.direct_map.start
    members = {
        "page_offset": direct,
        "virt_addr": start,
        "phys_addr": physical,
        "size": k.image.size,
        "va_pa_offset": direct,
        "va_kernel_pa_offset": start - physical,
    }
    return made(k, "kernel_mapping", members)


data("kernel_map", size_of("kernel_mapping"), fill=_kernel_map)


# Guards ------------------------------------------------------------------------------------


@function("void __stack_chk_fail(void)")
def _stack_chk_fail(k: Kernel) -> None:
    stop(k, "the canary of a stack frame was overwritten", FaultKind.STACK_PROTECTOR)


@function("void BUG_func(void)")
def _bug_func(k: Kernel) -> None:
    stop(k, "BUG: a call of a function that is not there")


@function("void __ubsan_handle_out_of_bounds(void *data, void *index)")
def _ubsan_out_of_bounds(k: Kernel, _data: int, index: int) -> None:
    stop(k, f"UBSAN: array-index-out-of-bounds: index {index}")


# Features ----------------------------------------------------------------------------------


@function("int cpu_has_xfeatures(u64 xfeatures_mask, const char **feature_name)")
def _cpu_has_xfeatures(_k: Kernel, _mask: int, _name: int) -> int:
    return 0  # no AVX


@function("bool cpu_have_feature(unsigned int num)")
def _cpu_have_feature(k: Kernel, number: int) -> int:
    return int(number in k.arch.runs.emulation.features)


@function("bool irq_fpu_usable(void)")
def _fpu_usable(_k: Kernel) -> int:
    return 1


@function("void kernel_fpu_begin_mask(unsigned int kfpu_mask)")
def _kernel_fpu_begin(_k: Kernel, _mask: int) -> None:
    return


@function(
    "void kernel_fpu_end(void)",
    "void kernel_neon_begin(void)",
    "void kernel_neon_end(void)",
    "void kernel_vector_begin(void)",
    "void kernel_vector_end(void)",
)
def _kernel_simd(_k: Kernel) -> None:
    return


@function("void alt_cb_patch_nops(struct alt_instr *a, __le32 *orig, __le32 *new, int n)")
def _alt_cb_patch_nops(k: Kernel, *_args: int) -> None:
    stop(k, "alt_cb_patch_nops is for the kernel's own patching")


# Random numbers (drivers/char/random.c): seeded, so that a run can be repeated ----------------


@attrs.define
class _Random:
    lasting: ClassVar[bool] = True
    source: random.Random | None = None


def _random(k: Kernel) -> random.Random:
    found = state(k, _Random)
    if found.source is None:
        found.source = random.Random(k.seed)  # noqa: S311 -- repeatable, no secret
    return found.source


def entropy(k: Kernel) -> int:
    """Return 64 random bits, as the CPU's own generator does."""
    return _random(k).getrandbits(64)


@function("void get_random_bytes(void *buf, size_t len)")
def _get_random_bytes(k: Kernel, buffer: int, size: int) -> None:
    for done in range(0, size, PIECE):
        some = _random(k).randbytes(min(PIECE, size - done))
        k.memory.write(buffer + done, some)


@function(
    "u8 get_random_u8(void)",
    "u16 get_random_u16(void)",
    "u32 get_random_u32(void)",
    "u64 get_random_u64(void)",
)
def _get_random(k: Kernel) -> int:
    return _random(k).getrandbits(64)


@function("u32 __get_random_u32_below(u32 ceil)")
def _get_random_u32_below(k: Kernel, ceiling: int) -> int:
    return _random(k).randrange(ceiling) if ceiling else 0
