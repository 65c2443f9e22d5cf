# SPDX-License-Identifier: GPL-2.0-or-later
"""What is shipped, and that importing it starts at once."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

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


def test_wheel_holds_the_sample_modules(tmp_path):
    """The built distribution carries every sample module, their sources, and py.typed."""
    found = pytest.importorskip("setuptools", reason="building a wheel needs setuptools")
    if tuple(map(int, found.__version__.split(".")[:2])) < (70, 1):
        pytest.skip("building a wheel without the wheel package needs setuptools 70.1")
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(HERE, source, ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    done = subprocess.run(
        [*command, "-w", str(tmp_path), str(source)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
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
