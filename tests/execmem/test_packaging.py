# SPDX-License-Identifier: GPL-2.0-or-later
"""What is shipped, and that importing it starts at once."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from archs import ALL
from samples.modules import names

HERE = Path(__file__).parents[2]


def test_importing_loads_no_emulator():
    """`import execmem` and `execmem --help` leave unicorn, capstone and numpy alone."""
    code = (
        "import sys, execmem, execmem.cli\n"
        "heavy = {'unicorn', 'capstone', 'numpy', 'elftools', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=HERE)
    assert done.returncode == 0, done.stderr


def test_wheel_holds_the_sample_modules(wheel):
    """The built distribution carries every sample module, their sources, and py.typed."""
    held = zipfile.ZipFile(wheel).namelist()
    for arch in ALL:
        for name in names():
            assert any(h.endswith(f"/{name}.ko") and f"/{arch.name}/" in h for h in held)
    assert "samples/modules/manifest.json" in held
    for package in (
        "allocator",
        "archs",
        "loader",
        "emulator",
        "kernels",
        "machine",
        "samples",
        "execmem",
    ):
        assert f"{package}/py.typed" in held
