# SPDX-License-Identifier: GPL-2.0-or-later
"""What kernels say when something is wrong, in the words of each architecture and checker."""

from __future__ import annotations

import pytest

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
        (KASAN, FaultKind.OUT_OF_BOUNDS, "parse+0x1c/0x100 [fuzzed]", None),
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
