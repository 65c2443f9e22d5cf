# SPDX-License-Identifier: GPL-2.0-or-later
"""Where modules of a booted kernel come from, where nobody names a folder for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from archs import Arch
from execmem.cli import main
from loader.depends import open_tree, tree_beside
from loader.errors import NoModule
from loader.files import ModuleFile
from machine.booted.machine import BootedMachine
from tests.support import booted

KERNELS = booted.some()


@pytest.mark.parametrize(("folder", "arch"), [k[1:] for k in KERNELS], ids=[k[0] for k in KERNELS])
def test_a_folder_with_a_kernel_has_its_modules(
    folder: Path, arch: Arch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A kernel's folder has its modules, of its release alone; a file's own tree comes first."""
    machine = BootedMachine(kernel=folder)
    assert machine.arch is arch
    if booted.tree(folder) != folder:
        assert machine.tree is None
        with pytest.raises(NoModule, match="holds lib/modules"):
            machine.load("bridge")
        return
    assert machine.tree is not None
    assert machine.tree.folder.name == machine.kernel.release
    machine.load("bridge")  # its own modules.dep: llc, stp
    assert set(machine.modules) == {"llc", "stp", "bridge"}
    other = tmp_path / "stp.ko"
    found = machine.tree.path("stp")
    assert found is not None
    other.write_bytes(ModuleFile.read(found).image())
    again = BootedMachine(kernel=folder)
    again.load(other)  # a file that lies nowhere: what it needs is in the kernel's folder
    assert set(again.modules) == {"llc", "stp"}
    # The check value of CRC-16/ARC, of the catalogue of parametrised CRC algorithms.
    line = ["run", "crc16", "crc16", "0", "str:123456789", "9", "--kernel", str(folder)]
    for more in ([], ["--modelled"]) if "crc16" in machine.tree.files else ():
        with pytest.raises(SystemExit) as ended:
            main([*line, *more])
        assert ended.value.code == 0
        assert "0xbb3d" in capsys.readouterr().out


def test_folders_that_have_none(tmp_path: Path) -> None:
    """Another release's modules are not taken; those of the folder that it was built in are."""
    assert tree_beside("6.1.0", tmp_path) is None
    assert tree_beside("6.1.0", tmp_path / "vmlinuz") is None
    (tmp_path / "lib/modules/6.2.0").mkdir(parents=True)
    assert tree_beside("6.1.0", tmp_path) is None
    (tmp_path / ".config").touch()
    (tmp_path / "modules.order").touch()
    found = tree_beside("6.1.0", tmp_path)
    assert found is not None
    assert found.folder == open_tree(tmp_path).folder == tmp_path
