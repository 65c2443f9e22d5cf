# SPDX-License-Identifier: GPL-2.0-or-later
"""Fuzzing on booted kernels: inputs by prototypes, faults of the kernel's own, the machine as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from execmem import fuzz
from execmem.fuzzing.inputs import BadInput
from machine.booted.machine import BootedMachine
from tests.support import booted

KERNELS = [each for each in booted.releases() if each[0].startswith("6.12")]
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
