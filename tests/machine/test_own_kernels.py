# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels that were built here: their checks report, their tests come to what they do under QEMU.

EXECMEM_OWN_KERNELS names folders of build trees (`make O=FOLDER/NAME`).
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from emulator.faults import Fault, FaultKind
from execmem.cli import main
from machine.booted import kunit
from machine.booted.kunit import Outcome
from tests.support import own

TREES = own.trees()
pytestmark = pytest.mark.skipif(not TREES, reason=own.WHY)
SECONDS = 120


@pytest.fixture(params=[str(path) for path in TREES] or [""], ids=lambda name: Path(name).name)
def tree(request: Any) -> Path:
    """Return a folder in which a kernel was built."""
    return Path(request.param)


# Function, its argument -> option, what the report is called, and where its name is to be.
REPORTS = [
    ("bug_out_of_bounds", 2, "KASAN", "KASAN: slab-out-of-bounds"),
    ("bug_use_after_free", 0, "KASAN", "KASAN: slab-use-after-free"),
    ("bug_double_free", 0, "KASAN", "KASAN: double-free"),
    ("bug_bounds", 9, "UBSAN_BOUNDS", "UBSAN: array-index-out-of-bounds"),
    ("bug_shift", 40, "UBSAN_SHIFT", "UBSAN: shift-out-of-bounds"),
    (
        "bug_sleep",
        0,
        "DEBUG_ATOMIC_SLEEP",
        "atomic sleep: sleeping function called from invalid context",
    ),
    (
        "bug_order",
        0,
        "PROVE_LOCKING",
        "lockdep: possible circular locking dependency detected",
    ),
    ("bug_list", 0, "DEBUG_LIST", "list: list_del corruption"),
    ("bug_warn", 0, "BUG", "WARN: this is 42"),
]


@pytest.mark.parametrize(("function", "argument", "option", "name"), REPORTS)
def test_a_check_reports_by_name_and_the_machine_goes_on(
    tree: Path, function: str, argument: int, option: str, name: str
) -> None:
    """A check reports by name, place and backtrace; the machine goes on, and goes back."""
    own.has(tree, option, "MODULES")
    machine = own.machine(tree)
    with machine.fork():
        module = machine.load(own.modules(tree) / "reports.ko")
        usual = {each.name for each in module.report.reports}  # UBSAN_ALIGNMENT finds many
        before = len(machine.log)
        module.call(function, argument)
        machine.sleep(0.02)  # a backtrace may be printed by the next tick (vprintk_deferred())
        found = [e for e in machine.kernel.reports_since(before) if e.name not in usual]
        assert found, [line.text for line in machine.log[before:]]
        meant = [each for each in found if each.name.startswith(name)]
        assert meant, [each.name for each in found]
        everything = " ".join([meant[0].where, *meant[0].backtrace])
        # Where UBSAN_ALIGNMENT reports in the middle of it, the rest is no more told as its own.
        nested = any(
            each.what == "misaligned-access" for each in machine.kernel.reports_since(before)
        )
        assert nested or f"{function}+0x" in everything
        assert module.call("bug_none") == 1


def test_an_oops_is_a_fault_and_the_machine_goes_on(tree: Path) -> None:
    """An oops is a fault with a backtrace, and leaves no poison on the stack behind."""
    own.has(tree, "MODULES")
    machine = own.machine(tree)
    with machine.fork():
        module = machine.load(own.modules(tree) / "reports.ko")
        for _ in range(3):
            with pytest.raises(Fault) as caught:
                module.call("bug_null")
            assert caught.value.where.startswith("bug_null+0x")
            machine.sleep(0.02)
            before = len(machine.log)
            assert module.call("bug_none") == 1
            assert machine.call(machine.function("strlen"), b"12345") == 5
            assert not machine.kernel.reports_since(before)


@pytest.mark.parametrize(
    ("name", "outcome", "crashed"),
    [
        ("oopses", Outcome.FAILED, None),
        ("panics", Outcome.CRASHED, "panics.breaks"),
        ("hangs", Outcome.CRASHED, "hangs.breaks"),
    ],
)
def test_what_a_test_does_to_the_kernel_is_that_tests_failure(
    tree: Path, name: str, outcome: Outcome, crashed: str | None
) -> None:
    """An oops, a panic, a hang is that test's failure, and the machine is as before."""
    own.has(tree, "MODULES", "KUNIT")
    machine = own.machine(tree)
    before = len(machine.log)
    machine.seconds = 5 if name == "hangs" else SECONDS
    found = kunit.run(machine, own.modules(tree) / f"{name}.ko")
    machine.seconds = SECONDS
    assert found.outcome is outcome, found
    leaves = {title: test.status.value for title, test in found.results.leaves()}
    if crashed is None:
        assert leaves == {
            "oopses.before": "passed",
            "oopses.breaks": "failed",
            "oopses.after": "passed",
        }
        assert any(each.kind in (FaultKind.READ, FaultKind.WRITE) for each in found.reports)
    else:
        assert leaves[crashed] == "crashed"
    assert len(machine.log) == before


def test_built_in_tests_come_to_what_kunit_py_says(tree: Path, capsys: Any, tmp_path: Path) -> None:
    """The tests that are built in come to what the kernel's own kunit.py says under QEMU."""
    own.has(tree, "KUNIT")
    tool = tree / "source" / "tools" / "testing" / "kunit" / "kunit.py"
    arch = {"x86_64": "x86_64", "arm64": "arm64", "riscv64": "riscv"}[own.arch_of(tree).name]
    emulator = {"x86_64": "x86_64", "arm64": "aarch64", "riscv": "riscv64"}[arch]
    if own.config(tree)["KUNIT"] != "y" or not tool.is_file():
        pytest.skip(f"{tree.name} has no KUnit built in, or no sources beside it")
    if shutil.which(f"qemu-system-{emulator}") is None:
        pytest.skip(f"no qemu-system-{emulator}")
    result = tmp_path / "peer.json"
    words = ["python3", str(tool), "exec", f"--arch={arch}", f"--build_dir={tree}"]
    done = subprocess.run(
        [*words, f"--json={result}", f"--timeout={SECONDS}"],
        cwd=tool.parents[3],
        capture_output=True,
        check=False,
    )
    document = json.loads(result.read_text())
    theirs = {
        f"{group['name']}.{case['name']}": case["status"]
        for group in document["sub_groups"]
        for case in group["test_cases"]
    }
    with pytest.raises(SystemExit) as ended:
        main(["kunit", "--kernel", str(tree), "--json"])
    ours = json.loads(capsys.readouterr().out)
    status = {"passed": "PASS", "failed": "FAIL", "skipped": "SKIP", "crashed": "ERROR"}
    assert {test["name"]: status[test["status"]] for test in ours["modules"][0]["tests"]} == theirs
    assert bool(ended.value.code) == bool(done.returncode)


def test_the_forms_of_one_kernel_are_the_same_kernel(tree: Path) -> None:
    """The ELF file, the image for boot loaders and the folder are the same kernel."""
    from loader.kernel.find import read_kernel

    images = [*tree.glob("arch/*/boot/bzImage"), *tree.glob("arch/*/boot/Image")]
    whole = read_kernel(tree / "vmlinux")
    for path in [tree, *images]:
        found = read_kernel(path)
        assert found.release == whole.release
        assert found.config == whole.config
        assert dict(found.symbols) == dict(whole.symbols)
        assert found.exports.keys() == whole.exports.keys()
        assert (found.btf is None) == (whole.btf is None)
