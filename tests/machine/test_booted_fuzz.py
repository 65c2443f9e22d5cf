# SPDX-License-Identifier: GPL-2.0-or-later
"""Fuzzing on booted kernels: inputs by prototypes, faults of the kernel's own, the machine as it was."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from allocator.types import ADDRESS_MASK
from archs import Arch
from execmem import fuzz
from execmem.cli import main
from execmem.fuzzing import targets
from execmem.fuzzing.engine import Finding, Search, finding_of
from execmem.fuzzing.inputs import BadInput
from machine.booted.machine import BootedMachine
from tests.support import booted, comparing
from tests.support.sampled import built_for

KERNELS = [each for each in booted.releases() if each[0].startswith("6.12")]
PAGE = Path(__file__).parents[2] / "docs" / "howto" / "fuzz.md"
MOUSE = bytes.fromhex(  # Device Class Definition for HID 1.11, E.10
    "05010902a1010901a100050919012903150025019503750181029501750581010501093009311581257f750895028106c0c0"
)
UNLZ4 = ("dest=out:4096", "maxDecompressedSize=4096")


@pytest.fixture(params=KERNELS, ids=[name for name, _, _ in KERNELS])
def machine(request: pytest.FixtureRequest) -> Iterator[BootedMachine]:
    """Return a kernel of each architecture that is at hand, booted, as it was at first."""
    _, folder, _ = request.param
    found = booted.machine(folder, folder if list(folder.rglob("*.ko*")) else None)
    with found.fork():
        yield found


def test_a_function_of_the_kernel(machine: BootedMachine) -> None:
    """What is obvious is not said; a length that is wrong is found, by the kernel's own oops."""
    lines = len(machine.log)
    runs = [
        fuzz(machine, "LZ4_decompress_safe", "source=bytes:0-64", *UNLZ4, executions=300, seed=4)
        for _ in range(2)
    ]
    assert not runs[0].crashes
    assert len(runs[0].corpus) > 3
    assert runs[0].corpus == runs[1].corpus
    wrong = ("source=bytes:0-8", "compressedSize=64", *UNLZ4)
    found = fuzz(machine, machine.functions["LZ4_decompress_safe"], *wrong, executions=12)
    assert found.crashes
    assert found.crashes[0].kind == "read"
    assert found.crashes[0].where.startswith("LZ4_decompress_safe+")
    assert len(machine.log) == lines
    with pytest.raises(BadInput, match="nobody knows what to pass"):
        fuzz(machine, "vfs_read", "count=1", executions=1)


OPTIONS, REPORT = re.findall(r"```text\n(def setup.*?)```", PAGE.read_text("utf-8"), re.DOTALL)


def test_the_harness_of_the_page(machine: BootedMachine, tmp_path: Path) -> None:
    """Structures by their members; what is matched is what the patterns say."""
    (tmp_path / "options.py").write_text(OPTIONS)
    target = targets.harness(machine, f"{tmp_path}/options.py:options")
    texts = {b"size=42": 1, b"mode=17": 2, b"name=x": 3, b"size=no": 0, b"": 0}
    with Search(machine, target) as search:
        rounds = {text: search.run_one(text) for text in texts}
    assert [found.fault for found in rounds.values()] == [None] * len(texts)
    assert {text: found.result for text, found in rounds.items()} == texts


def test_a_finding_is_handed_on(
    machine: BootedMachine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its report names kernel, oops and input, and its script shows the same elsewhere."""
    if machine.arch.name != KERNELS[0][2].name:
        pytest.skip(f"done with {KERNELS[0][0]}")
    words = ["fuzz", "vmlinux", "LZ4_decompress_safe", "--kernel", str(KERNELS[0][1])]
    for each in ("source=bytes:0-8", "compressedSize=64", *UNLZ4):
        words += ["--input", each]
    words += ["--sanitize", "none", "--executions", "5", "--out", str(tmp_path / "out"), "--json"]
    with pytest.raises(SystemExit):
        main(words)
    crash = json.loads(capsys.readouterr().out)["crashes"][0]
    report = (Path(crash["folder"]) / "report.txt").read_text()
    for told in (
        machine.kernel.release,
        crash["text"],
        crash["where"],
        "vmlinux LZ4_decompress_safe",
    ):
        assert told in report
    data = bytes.fromhex(crash["input"])
    assert f"input, {len(data)} bytes:" in report
    assert data[:16].hex(" ") in report
    shown = subprocess.run(
        [sys.executable, "reproduce.py"],
        cwd=crash["folder"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert crash["key"] in shown.stdout.splitlines()


def test_a_system_call(machine: BootedMachine) -> None:
    """Its file is opened once; what it returns is what write(2) does for /dev/null."""
    target = targets.system_call(machine, "write:fd=/dev/null,buf=bytes:0-64,count=len(buf)")
    with Search(machine, target) as search:
        for data in (b"", b"abc", bytes(64)):
            found = search.run_one(data)
            assert (found.fault, found.result) == (None, len(data))
    results = {"write": 7, "read": 0, "ioctl": -errno.ENOTTY, "ioctl:0x1234": -errno.ENOTTY}
    for operation, result in results.items():
        with Search(machine, targets.device(machine, "null", operation)) as search:
            found = search.run_one(b"\x10\x00\x01\x02abc")
            assert (found.fault, found.result) == (None, result & ADDRESS_MASK)


def test_known_oopses_are_told_in_brief(machine: BootedMachine) -> None:
    """They are taken for what they are: reads and writes at one instruction, and who called it."""
    memory, copy, length = machine.alloc(64), machine.function("memcpy"), machine.function("strlen")
    calls = [(copy, memory, 0x10, 8), (copy, 0x18, memory, 8), (length, 0x20), (copy, memory, 0, 8)]
    with machine.rounds([(0, 1)]) as rounds:
        keys: dict[bool, list[str]] = {}
        for brief in (False, True):
            rounds.brief = brief
            done = [rounds.run(lambda each=each: rounds.call(each[0], each[1:])) for each in calls]
            found = [finding_of(b"", each, "?") for each in done]
            keys[brief] = [each.key for each in found if each is not None]
            assert ["before in this run" in str(each.fault) for each in done] == [brief] * 4
    assert keys[True] == keys[False]
    assert [key.partition(" ")[0] for key in keys[True]] == ["read", "write", "read", "read"]
    assert len(set(keys[True])) == 3


@pytest.mark.parametrize("kernel", booted.releases(), ids=lambda each: each[0])
def test_report_descriptors(kernel: tuple[str, Path, Arch], tmp_path: Path) -> None:
    """A mouse is one, and what is cut short is not; data beside the code does not slow it down."""
    _, folder, _ = kernel
    if not list(folder.rglob("hid.ko*")):
        pytest.skip(f"{folder.name} has no hid.ko")
    (tmp_path / "report.py").write_text(REPORT)
    with booted.fresh(folder, folder) as machine:
        machine.load("hid")
        target = targets.harness(machine, f"{tmp_path}/report.py:descriptor")
        with Search(machine, target) as search:
            found = [search.run_one(data) for data in (MOUSE, MOUSE, MOUSE[:-1], b"")]
            assert [each.fault for each in found] == [None] * 4
            assert [each.result for each in found[:2]] == [0, 0]
            assert found[2].result != 0
            assert found[3].result != 0
            assert found[0].blocks
            assert not found[1].blocks  # as all of it was there


@pytest.mark.parametrize("name", comparing.ASKED)
def test_what_a_kernel_compares(machine: BootedMachine, name: str) -> None:
    """Its own functions, by their names, wherever they are called."""
    comparing.check(machine, machine.function(name), name)


class _Found(Exception):
    """What was looked for was found."""


def test_planted_mistakes_are_found(machine: BootedMachine, tmp_path: Path) -> None:
    """From nothing, in a sample that was built for the kernel: what is written one byte too far."""

    def tell(finding: Finding) -> None:
        if finding.kind == "out-of-bounds access" and b"n" in finding.data:
            raise _Found

    machine.load(built_for(machine, "parser", tmp_path))
    machine.sanitize("guard")
    call = "parser:parser_parse", "data=bytes", "size=len(data)"
    with pytest.raises(_Found):
        fuzz(machine, *call, executions=4000, on_finding=tell)
