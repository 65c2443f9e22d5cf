# SPDX-License-Identifier: GPL-2.0-or-later
"""CPU models: what a kernel finds, and which of its alternatives it takes for that."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import archs
from allocator.errors import NoSuchName
from archs import Arch
from emulator.boards import board_of
from execmem.cli import main
from machine.booted.machine import BootedMachine
from tests.support import booted

KERNELS = booted.one_of_each()
BOOTING = [arch for arch in archs.archs() if arch.boot is not None]

# A model other than the first; what a kernel says of it: drivers/.../smpboot.c prints the CPUID's
# brand, arch/arm64/kernel/cpu_errata.c the errata by MIDR (843419 is Cortex-A53's).
OTHERS = {
    "x86_64": ("haswell", "Intel Core Processor (Haswell)"),
    "arm64": ("a53", "ARM erratum 843419"),
}
# What differs: a memcpy by ERMS (Haswell), mitigations of Spectre v2 (A72 has it, A53 has not).


@pytest.mark.parametrize("arch", BOOTING)
def test_models_are_known_by_name(arch: Arch) -> None:
    """Each is one of the emulator's; others are refused with the names of these."""
    for name in arch.boots.models:
        assert board_of(arch, 4 << 20, name).cpu == name
    assert board_of(arch, 4 << 20).cpu == arch.boots.models[0]
    with pytest.raises(NoSuchName, match=f"have {', '.join(arch.boots.models)}"):
        board_of(arch, 4 << 20, "8086")


@pytest.mark.parametrize("name", [name for name, _, _ in KERNELS])
def test_what_a_kernel_finds_and_does(name: str) -> None:
    """It names the model, and its own text is another: alternatives follow features."""
    ((_, folder, arch),) = [each for each in KERNELS if each[0] == name]
    if arch.name not in OTHERS:
        pytest.skip("no two of its models differ in what kernels tell")
    if arch.name != "arm64" and not os.environ.get("EXECMEM_LONG"):
        pytest.skip("a boot of another model takes 8 seconds (EXECMEM_LONG)")
    model, said = OTHERS[arch.name]
    usual = booted.machine(folder)
    other = BootedMachine(kernel=folder, cpu=model)
    assert other.kernel.board.cpu == model
    assert any(said in line.text for line in other.log)
    assert not any(said in line.text for line in usual.log)
    start, end = (usual.function(name) for name in ("_stext", "_etext"))
    assert other.read(start, end - start) != usual.read(start, end - start)
    again = BootedMachine(kernel=folder, cpu=model)  # from the cache, which tells them apart
    assert again.kernel.board.cpu == model
    assert again.log == other.log
    assert BootedMachine(kernel=folder, cpu=arch.boots.models[0]).log == usual.log


def test_a_command_refuses_in_one_line(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Where nothing is booted, and where there is no such model."""
    module = str(tmp_path / "x.ko")
    with pytest.raises(SystemExit) as ended:
        main(["run", module, "--cpu", "haswell"])
    assert ended.value.code == 2
    assert "--cpu: nothing is booted here" in capfd.readouterr().err
    if not KERNELS:
        pytest.skip("no kernel is at hand")
    _, folder, _ = KERNELS[0]
    with pytest.raises(SystemExit) as ended:
        main(["run", "x", "--kernel", str(folder), "--cpu", "8086"])
    assert ended.value.code == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "8086" in line]
    assert "computers have" in line
