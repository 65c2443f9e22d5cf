# SPDX-License-Identifier: GPL-2.0-or-later
"""What kernels say when something is wrong, in the words of each architecture and checker."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulator.faults import FaultKind
from kernels.booted import reports

X86 = """\
BUG: kernel NULL pointer dereference, address: 0000000000000010
#PF: supervisor write access in kernel mode
#PF: error_code(0x0002) - not-present page
PGD 0 P4D 0
Oops: Oops: 0002 [#1] PREEMPT SMP NOPTI
CPU: 0 UID: 0 PID: 1 Comm: init Tainted: G            E      6.12.107
RIP: 0010:broken_store+0x5/0x20 [broken]
Code: 90 90
Call Trace:
 <TASK>
 ? __die_body.cold+0x19/0x27
 caller+0x12/0x30 [broken]
 do_one_initcall+0x5b/0x310
 </TASK>
Modules linked in: broken(E+)
"""
ARM64 = """\
Unable to handle kernel paging request at virtual address ffff800081234560
Mem abort info:
  ESR = 0x0000000096000047
  WnR = 1
Internal error: Oops: 0000000096000047 [#1] SMP
pc : touch+0x14/0x40 [broken]
lr : do_one_initcall+0x60/0x2e0
Call trace:
 touch+0x14/0x40 [broken]
 do_one_initcall+0x60/0x2e0
 el0_svc+0x38/0x148
Code: aa0003e0
"""
RISCV = """\
Unable to handle kernel NULL pointer dereference at virtual address 0000000000000008
Oops [#1]
epc : strlen+0x8/0x18
 ra : kobject_get_path+0x30/0xa0
status: 0000000200000120 badaddr: 0000000000000008 cause: 000000000000000d
[<ffffffff80a00000>] strlen+0x8/0x18
"""
KASAN = """\
==================================================================
BUG: KASAN: slab-out-of-bounds in parse+0x1c/0x100 [fuzzed]
Write of size 1 at addr ffff888005a8c0c0 by task init/1
"""


@pytest.mark.parametrize(
    ("log", "kind", "where", "address"),
    [
        (X86, FaultKind.WRITE, "broken_store+0x5/0x20 [broken]", 0x10),
        (ARM64, FaultKind.WRITE, "touch+0x14/0x40 [broken]", 0xFFFF800081234560),
        (RISCV, FaultKind.READ, "strlen+0x8/0x18", 8),
        (KASAN, FaultKind.OUT_OF_BOUNDS, "parse+0x1c/0x100 [fuzzed]", 0xFFFF888005A8C0C0),
        ("kernel BUG at mm/slub.c:546!\n", FaultKind.BUG, "mm/slub.c:546", None),
        (
            "CFI failure at f+0x8/0x20 [m] (target: g+0x0/0x4 [m])\n",
            FaultKind.CFI,
            "f+0x8/0x20 [m]",
            None,
        ),
        ("Kernel panic - not syncing: all is lost\n", FaultKind.PANIC, "all is lost", None),
    ],
)
def test_a_report_says_what_where_and_of_which_address(
    log: str, kind: FaultKind, where: str, address: int | None
) -> None:
    """A report says what where and of which address."""
    found = reports.find(["an ordinary line", *log.splitlines()])
    assert found is not None
    assert (found.kind, found.where, found.address) == (kind, where, address)


def test_who_called_is_told_without_guesses() -> None:
    """Who called is told without guesses."""
    x86, arm64 = (reports.find(log.splitlines()) for log in (X86, ARM64))
    assert x86 is not None
    assert arm64 is not None
    assert x86.backtrace == ("caller+0x12/0x30 [broken]", "do_one_initcall+0x5b/0x310")
    assert arm64.backtrace[1:] == ("do_one_initcall+0x60/0x2e0", "el0_svc+0x38/0x148")


def test_the_gravest_is_found_first() -> None:
    """The gravest is found first."""
    log = ["Kernel panic - not syncing: Fatal exception", *X86.splitlines()]
    found = reports.find(log)
    assert found is not None
    assert found.kind is FaultKind.WRITE


def test_a_warning_is_no_fault() -> None:
    """A warning is no fault."""
    lines = [
        "WARNING: CPU: 0 PID: 1 at lib/refcount.c:28 refcount_warn+0xba/0x100",
        "ok",
        "WARNING: lib/kobject.c:734 at kobject_put+0xd4/0x270, CPU#0: init/1",  # since 6.18
        "WARNING: possible circular locking dependency detected",  # lockdep's
    ]
    assert reports.find(lines[:3]) is None
    assert [w.where for w in reports.warnings(lines)] == [
        "lib/refcount.c:28 refcount_warn+0xba/0x100",
        "lib/kobject.c:734 at kobject_put+0xd4/0x270, CPU#0: init/1",
    ]


# Documentation/dev-tools/kasan.rst, kfence.rst and ubsan.rst of 6.12, RCU/lockdep-splat.rst; what
# is not there as kernel/locking/lockdep.c, kernel/sched/core.c, lib/list_debug.c, kernel/panic.c
# and kernel/cfi.c print it.
MANY = """\
ordinary
==================================================================
BUG: KASAN: slab-out-of-bounds in kmalloc_oob_right+0xa8/0xbc [kasan_test]
Write of size 1 at addr ffff8801f44ec37b by task insmod/2760

CPU: 1 PID: 2760 Comm: insmod Not tainted 4.19.0-rc3+ #698
Call Trace:
 dump_stack+0x94/0xd8
 print_address_description+0x73/0x280
 kasan_report+0x144/0x187
 __asan_report_store1_noabort+0x17/0x20
 kmalloc_oob_right+0xa8/0xbc [kasan_test]
 kmalloc_tests_init+0x16/0x700 [kasan_test]

Allocated by task 2760:
 kmalloc_oob_right+0x56/0xbc [kasan_test]
==================================================================
================================================================================
UBSAN: array-index-out-of-bounds in lib/test_ubsan.c:84:10
index 4 is out of range for type 'char [4]'
CPU: 0 PID: 1 Comm: init Not tainted 6.12.0
Call Trace:
 <TASK>
 dump_stack_lvl+0x64/0x80
 ubsan_epilogue+0x5/0x30
 __ubsan_handle_out_of_bounds+0x46/0x60
 test_ubsan_out_of_bounds+0x80/0xa0 [test_ubsan]
 </TASK>
---[ end trace ]---
==================================================================
BUG: KFENCE: out-of-bounds read in test_out_of_bounds_read+0xa6/0x234

Out-of-bounds read at 0xffff8c3f2e291fff (1B left of kfence-#72):
 test_out_of_bounds_read+0xa6/0x234
 kunit_try_run_case+0x61/0xa0

kfence-#72: 0xffff8c3f2e292000-0xffff8c3f2e29201f, size=32, cache=kmalloc-32
==================================================================
======================================================
WARNING: possible circular locking dependency detected
6.12.0 #1 Not tainted
------------------------------------------------------
init/1 is trying to acquire lock:
ffffffffc0002000 (a){+.+.}-{3:3}, at: bug_order+0x60/0x90 [reports]

the existing dependency chain (in reverse order) is:

-> #1 (b){+.+.}-{3:3}:
       __mutex_lock+0x8c/0x9a0
       bug_order+0x30/0x90 [reports]

stack backtrace:
CPU: 0 UID: 0 PID: 1 Comm: init Not tainted 6.12.0 #1
Call Trace:
 <TASK>
 dump_stack_lvl+0x64/0x80
 print_circular_bug+0x2d0/0x3b0
 check_noncircular+0x14b/0x170
 __lock_acquire+0x14fe/0x2b80
 lock_acquire+0xd1/0x2f0
 __mutex_lock+0x8c/0x9a0
 bug_order+0x60/0x90 [reports]
 </TASK>
BUG: sleeping function called from invalid context at kernel/locking/mutex.c:585
in_atomic(): 1, irqs_disabled(): 0, non_block: 0, pid: 1, name: init
Call Trace:
 <TASK>
 dump_stack_lvl+0x64/0x80
 __might_resched+0x120/0x170
 bug_sleep+0x20/0x40 [reports]
 </TASK>
------------[ cut here ]------------
list_del corruption, ffff888003a1b400->next is LIST_POISON1 (dead000000000100)
WARNING: CPU: 0 PID: 1 at lib/list_debug.c:56 __list_del_entry_valid_or_report+0x7a/0xf0
RIP: 0010:__list_del_entry_valid_or_report+0x7a/0xf0
Call Trace:
 <TASK>
 bug_list+0x70/0x90 [reports]
 </TASK>
---[ end trace 0000000000000000 ]---
------------[ cut here ]------------
this is 42
WARNING: CPU: 0 PID: 1 at drivers/x.c:7 bug_warn+0x15/0x20 [reports]
RIP: 0010:bug_warn+0x15/0x20 [reports]
Call Trace:
 <TASK>
 do_one_initcall+0x58/0x300
 </TASK>
---[ end trace 0000000000000000 ]---
CFI failure at bug_cfi+0x18/0x30 [reports] (target: wrong+0x0/0x10 [reports]; expected type: 0x12345678)
------------[ cut here ]------------
WARNING: CPU: 0 PID: 1 at bug_cfi+0x18/0x30 [reports]
RIP: 0010:bug_cfi+0x18/0x30 [reports]
Call Trace:
 do_one_initcall+0x58/0x300
---[ end trace 0000000000000000 ]---
=============================
WARNING: suspicious RCU usage
block/cfq-iosched.c:2776 suspicious rcu_dereference_protected() usage!
stack backtrace:
Call Trace:
 [<ffffffff810abb9b>] lockdep_rcu_dereference+0xbb/0xc0
 [<ffffffff812b6139>] __cfq_exit_single_io_context+0xe9/0x120
"""


def test_all_reports_of_a_log_have_a_name_and_a_place() -> None:
    """All reports of a log have a name and a place; what belongs together is one."""
    found = list(reports.every(MANY.splitlines()))
    assert [(each.name, each.where) for each in found] == [
        ("KASAN: slab-out-of-bounds", "kmalloc_oob_right+0xa8/0xbc [kasan_test]"),
        ("UBSAN: array-index-out-of-bounds", "test_ubsan_out_of_bounds+0x80/0xa0 [test_ubsan]"),
        ("KFENCE: out-of-bounds read", "test_out_of_bounds_read+0xa6/0x234"),
        (
            "lockdep: possible circular locking dependency detected",
            "bug_order+0x60/0x90 [reports]",
        ),
        ("atomic sleep: sleeping function called from invalid context", BUG_SLEEP),
        (
            "list: list_del corruption, ffff888003a1b400->next is LIST_POISON1 (dead000000000100)",
            "bug_list+0x70/0x90 [reports]",
        ),
        ("WARN: this is 42", "bug_warn+0x15/0x20 [reports]"),
        ("CFI", "bug_cfi+0x18/0x30 [reports]"),
        ("lockdep: suspicious RCU usage", "__cfq_exit_single_io_context+0xe9/0x120"),
    ]
    assert [each.address for each in found[:3]] == [0xFFFF8801F44EC37B, None, 0xFFFF8C3F2E291FFF]
    assert found[0].backtrace[-2:] == (
        "kmalloc_oob_right+0xa8/0xbc [kasan_test]",
        "kmalloc_tests_init+0x16/0x700 [kasan_test]",
    )
    assert all(each.backtrace and each.lines for each in found)


BUG_SLEEP = "bug_sleep+0x20/0x40 [reports]"


@given(st.lists(st.sampled_from([*MANY.splitlines(), *X86.splitlines()]) | st.text(max_size=40)))
@settings(max_examples=150, deadline=None)
def test_any_log_is_read(lines: list[str]) -> None:
    """Any log is read, and each report is in it."""
    for report in reports.every(lines):
        assert report.text in [line.strip() for line in lines]
        assert report.name
    reports.find(lines)


def test_a_fault_has_its_place_behind_another_report() -> None:
    """A fault has its place, though another report stands in the middle of it."""
    lines = [
        "Unable to handle kernel NULL pointer dereference at virtual address 0000000000000008",
        "------------[ cut here ]------------",
        "UBSAN: misaligned-access in kernel/module/main.c:3606:2",
        "Call Trace:",
        "[<ffffffff80007aa8>] up+0x2e/0xca",
        "---[ end trace ]---",
        "epc : bug_null+0x2/0xa [reports]",
    ]
    found = reports.find(lines)
    assert found is not None
    assert (found.kind, found.where) == (FaultKind.READ, "bug_null+0x2/0xa [reports]")


def test_addresses_become_names_where_the_kernel_prints_none() -> None:
    """Addresses become names, where the kernel prints none for want of kallsyms."""
    lines = [
        "WARNING: CPU: 0 PID: 1 at 0xffffffff81000010",
        "RIP: 0010:0xffffffff81000010",
        "Call Trace:",
        " 0xffffffff81000020",
    ]
    (found,) = reports.every(lines)
    named = reports.named(found, lambda address: f"f+{address & 0xFF:#x}/0x40")
    assert (named.where, named.backtrace) == ("f+0x10/0x40", ("f+0x20/0x40",))
