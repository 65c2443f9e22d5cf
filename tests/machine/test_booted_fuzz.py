# SPDX-License-Identifier: GPL-2.0-or-later
"""Fuzzing on booted kernels: inputs by prototypes, faults of the kernel's own, the machine as it was."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from execmem import fuzz
from execmem.fuzzing import targets
from execmem.fuzzing.engine import Search
from execmem.fuzzing.inputs import BadInput
from machine.booted.machine import BootedMachine
from tests.support import booted

KERNELS = [each for each in booted.releases() if each[0].startswith("6.12")]
PAGE = Path(__file__).parents[2] / "docs" / "howto" / "fuzz.md"
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


def test_the_harness_of_the_page(machine: BootedMachine, tmp_path: Path) -> None:
    """Structures by their members; what is matched is what the patterns say."""
    (script,) = re.findall(r"```text\n(def setup.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    (tmp_path / "options.py").write_text(script)
    target = targets.harness(machine, f"{tmp_path}/options.py:options")
    texts = {b"size=42": 1, b"mode=17": 2, b"name=x": 3, b"size=no": 0, b"": 0}
    with Search(machine, target) as search:
        rounds = {text: search.run_one(text) for text in texts}
    assert [found.fault for found in rounds.values()] == [None] * len(texts)
    assert {text: found.result for text, found in rounds.items()} == texts


def test_a_system_call(machine: BootedMachine) -> None:
    """Its file is opened once; what it returns is what write(2) does for /dev/null."""
    target = targets.system_call(machine, "write:fd=/dev/null,buf=bytes:0-64,count=len(buf)")
    with Search(machine, target) as search:
        for data in (b"", b"abc", bytes(64)):
            found = search.run_one(data)
            assert (found.fault, found.result) == (None, len(data))
