# SPDX-License-Identifier: GPL-2.0-or-later
"""The initial file system, read by the tools that others read such files with."""

from __future__ import annotations

import io
import shutil
import subprocess

import pytest
from elftools.elf.elffile import ELFFile

import archs
from kernels.booted.initrd import archive, program


def test_the_program_is_an_elf_file_that_runs_where_it_says(arch: archs.Arch) -> None:
    """The program is an ELF file that runs where it says."""
    boot = arch.boots
    data = program(boot.spin, boot.machine)
    file = ELFFile(io.BytesIO(data))
    (segment,) = file.iter_segments("PT_LOAD")
    start = file.header.e_entry - segment["p_vaddr"]
    assert int.from_bytes(data[18:20], "little") == arch.machine
    assert segment.data()[start : start + len(boot.spin)] == boot.spin
    assert (segment["p_vaddr"] - segment["p_offset"]) % segment["p_align"] == 0


def test_cpio_takes_the_archive(arch: archs.Arch) -> None:
    """Cpio takes the archive."""
    cpio = shutil.which("cpio")
    if cpio is None:
        pytest.skip("cpio is not installed")
    boot = arch.boots
    data = archive(boot.spin, boot.machine)
    listed = subprocess.run([cpio, "-itv"], input=data, capture_output=True, check=True)
    lines = {line.split()[-1]: line for line in listed.stdout.decode().splitlines()}
    assert set(lines) == {"dev", "dev/console", "init"}
    assert lines["dev/console"].startswith("crw")
    assert "5,   1" in lines["dev/console"]
    assert lines["init"].startswith("-rwxr-xr-x")
