# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls through the pointers of pv_ops, where bare hardware needs none (x86-64).

A kernel that may run under a hypervisor calls what differs there through pointers. Until Linux
6.6 a table of its own named these calls, and the kernel made them direct ones, or NOPs
(arch/x86/kernel/alternative.c: apply_paravirt); later ones are alternatives that call.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from archs.environment import Environment
from archs.insn_x86_64 import CALL
from archs.passes.subject import Subject
from archs.passes.x86_64.ideal_nops import nops_of
from archs.versions import Version

SECTION = ".parainstructions"
ENTRY = np.dtype([("place", "<u8"), ("type", "u1"), ("length", "u1"), ("padding", "V6")])
NOTHING = "nop_func"
_OLDER = {
    "nop_func": "_paravirt_nop",
    "pv_native_save_fl": "native_save_fl",
    "pv_native_safe_halt": "native_safe_halt",
    "pv_native_wbinvd": "native_wbinvd",
}
# What the pointers hold on bare hardware, by their place in struct paravirt_patch_template
# (arch/x86/kernel/paravirt.c), of the versions whose order is known.
_6_12 = (
    "native_io_delay pv_native_get_debugreg pv_native_set_debugreg native_read_cr0 "
    "native_write_cr0 native_write_cr4 native_load_tr_desc native_load_gdt native_load_idt "
    "native_set_ldt native_store_tr native_load_tls native_load_gs_index native_write_ldt_entry "
    "native_write_gdt_entry native_write_idt_entry nop_func nop_func native_load_sp0 "
    "native_tss_invalidate_io_bitmap native_tss_update_io_bitmap pv_native_wbinvd native_cpuid "
    "native_read_msr native_write_msr native_read_msr_safe native_write_msr_safe native_read_pmc "
    "nop_func nop_func pv_native_save_fl pv_native_irq_disable pv_native_irq_enable "
    "pv_native_safe_halt native_halt native_flush_tlb_local native_flush_tlb_global "
    "native_flush_tlb_one_user native_flush_tlb_multi"
).split()
_5_10 = (
    "native_patch native_sched_clock native_steal_clock native_io_delay native_get_debugreg "
    "native_set_debugreg native_read_cr0 native_write_cr0 native_write_cr4 native_load_tr_desc "
    "native_load_gdt native_load_idt native_set_ldt native_store_tr native_load_tls "
    "native_load_gs_index native_write_ldt_entry native_write_gdt_entry native_write_idt_entry "
    "nop_func nop_func native_load_sp0 native_tss_invalidate_io_bitmap "
    "native_tss_update_io_bitmap native_wbinvd native_cpuid native_read_msr native_write_msr "
    "native_read_msr_safe native_write_msr_safe native_read_pmc native_iret nop_func nop_func "
    "native_save_fl native_restore_fl native_irq_disable native_irq_enable native_safe_halt "
    "native_halt native_flush_tlb_local native_flush_tlb_global native_flush_tlb_one_user "
    "native_flush_tlb_others"
).split()
# What 5.10 wrote instead of a call, where there is room (paravirt_patch.c).
_INLINE = {
    "native_irq_disable": "fa",
    "native_irq_enable": "fb",
    "native_save_fl": "9c58",
    "native_restore_fl": "579d",
    "native_wbinvd": "0f09",
}
_7_2 = [name for name in _6_12 if name not in ("native_io_delay", "pv_native_wbinvd")]
PV_OPS: Mapping[Version, list[str]] = {
    (5, 10): _5_10,
    (6, 1): _6_12,
    (6, 12): _6_12,
    (7, 2): _7_2,
    (7, 3): _7_2,  # -rc7
}

INLINED: Collection[Version] = ((5, 10),)


def function_of(number: int, environment: Environment) -> str:
    """Return the symbol of the function that a pointer holds; empty where that is not known."""
    known = PV_OPS.get(environment.version, [])
    name = known[number] if 0 <= number < len(known) else ""
    if name in _OLDER and name not in environment.symbols:
        return _OLDER[name]
    return name


def apply(subject: Subject) -> None:
    """Make the calls that the table names direct ones; what is not known stays."""
    table = subject.table(SECTION, ENTRY)
    if table is None:
        return
    environment, left = subject.environment, 0
    nops = nops_of(environment)
    places, lengths = table.entries["place"], table.entries["length"].astype(np.intp)
    where = subject.offsets(places, lengths)
    rows = table.entries["type"].tolist(), places.tolist(), lengths.tolist(), where.tolist()
    for number, place, length, at in zip(*rows, strict=True):
        name = function_of(number, environment)
        if name not in environment.symbols:
            left += 1
            continue
        code = b""
        if name not in (NOTHING, _OLDER[NOTHING]):
            away = environment.symbols[name] - place - 5
            code = bytes((CALL,)) + (away & 0xFFFF_FFFF).to_bytes(4, "little")
        if environment.version in INLINED and name in _INLINE:
            code = bytes.fromhex(_INLINE[name])
        if len(code) > length:
            raise subject.refusal(SECTION, f"a site of {length} bytes at {place:#x}")
        new = code + nops[length - len(code)]
        subject.write(np.array([at], np.intp), np.frombuffer(new, np.uint8))
    if left:
        subject.report(pv_ops_text(left, environment))


def pv_ops_text(count: int, environment: Environment) -> str:
    """Return what to say of calls that stay as compiled."""
    version = ".".join(map(str, environment.version))
    return f"{count} calls through pv_ops: what it holds in Linux {version} is not known"
