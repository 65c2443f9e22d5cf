# SPDX-License-Identifier: GPL-2.0-or-later
"""`--kernel auto`: a module's own kernel, where it lies and what it must be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import archs
from execmem.cli import main
from loader.kernel.own import folders_of, own_kernel
from tests.support.checked import Offer, debian, made, version_table
from tests.support.kernels import kernel_file
from tests.support.modules import module as mini_module

Run = Callable[..., tuple[int, str, str]]
RELEASE = "6.9.1-mine"
OFFERS = (Offer("module_layout", crc=0x1234), Offer("_printk", crc=5))


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run the command line; return exit code, stdout and stderr."""

    def call(*words: object) -> tuple[int, str, str]:
        code = 0
        try:
            main([str(word) for word in words])
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 0
        return code, *capfd.readouterr()

    return call


def magic_of(arch: archs.Arch, release: str = RELEASE) -> str:
    """Return the version magic of a kernel."""
    return f"{release} " + debian(arch.machine).partition(" ")[2]


@pytest.fixture
def tree(arch: archs.Arch, tmp_path: Path) -> Path:
    """Return a tree that holds a module, and no kernel."""
    root = tmp_path / "tree"
    folder = root / "lib/modules" / RELEASE / "kernel"
    folder.mkdir(parents=True)
    (folder.parent / "modules.dep").write_text("kernel/one.ko:\n")
    versions = version_table({"module_layout": 0x1234, "_printk": 5})
    one = made(arch.machine, magic=magic_of(arch), uses=["_printk"], extra=[versions])
    (folder / "one.ko").write_bytes(one)
    return root


PLACES = [
    f"tree/boot/vmlinuz-{RELEASE}",
    f"tree/lib/modules/{RELEASE}/vmlinuz",
    f"tree/usr/lib/modules/{RELEASE}/vmlinux",
]


@pytest.mark.parametrize("place", PLACES)
def test_it_is_found_where_it_lies(
    arch: archs.Arch, tree: Path, place: str, tmp_path: Path
) -> None:
    """In boot and beside the modules; only with the module's version magic."""
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(kernel_file(arch, magic_of(arch), OFFERS))
    module = tree / "lib/modules" / RELEASE / "kernel/one.ko"
    nowhere = tmp_path / "here"
    assert own_kernel(magic_of(arch), folders_of(module), here=nowhere).path == path.resolve()
    assert own_kernel(magic_of(arch), [], here=tree).path == path
    other = magic_of(arch).replace("SMP ", "") + " other"
    own = own_kernel(other, folders_of(module), here=nowhere)
    assert own.path is None
    assert any(str(path.resolve()) in text and "version magic" in text for text in own.looked)
    path.write_bytes(b"no kernel at all")
    own = own_kernel(magic_of(arch), folders_of(module), here=nowhere)
    assert own.path is None
    assert any(f"{path.resolve()} (" in text for text in own.looked)


def test_what_is_not_there_is_told_with_where_it_was_looked_for(
    run: Run, tree: Path, tmp_path: Path
) -> None:
    """One line, exit 1: every place."""
    module = tree / "lib/modules" / RELEASE / "kernel/one.ko"
    for words in (("relocs", module), ("load", module), ("load", "one", "--root", tree)):
        code, out, err = run(*words, "--kernel", "auto")
        assert (code, out) == (1, "")
        (line,) = err.splitlines()
        assert f"no kernel of one.ko (Linux {RELEASE}) in " in line
        for place in ("boot", f"lib/modules/{RELEASE}", "*.deb"):
            assert str(tree.resolve() / place) in line
        assert f"/usr/lib/modules/{RELEASE}" in line
    code, _out, err = run("load", "one", "--kernel", "auto")
    assert code == 1
    assert "name a module's file, or the --root" in err
    (tmp_path / "odd.ko").write_bytes(b"no module")
    code, _out, err = run("load", tmp_path / "odd.ko", "--kernel", "auto")
    assert code == 1
    assert len(err.splitlines()) == 1


def test_every_command_takes_it(run: Run, arch: archs.Arch, tree: Path) -> None:
    """With --modelled its facts apply, and what was found is a notice."""
    path = tree / f"boot/vmlinuz-{RELEASE}"
    path.parent.mkdir()
    path.write_bytes(kernel_file(arch, magic_of(arch), OFFERS))
    module = tree / "lib/modules" / RELEASE / "kernel/one.ko"
    words: tuple[object, ...]
    for words in (
        ("relocs", module),
        ("load", module, "--modelled"),
        ("sweep", tree, "--modelled"),
    ):
        code, out, err = run(*words, "--kernel", "auto", "--json")
        assert code == 0, err
        assert f"its kernel is {path}" in out + err
        assert f"with the facts of Linux {RELEASE}" in out


def test_a_stop_names_it(run: Run, arch: archs.Arch, tree: Path) -> None:
    """What the modelled kernel does not have, the module's own has; where that lies is said."""
    module = tree / "needs.ko"
    magic = magic_of(arch)
    module.write_bytes(
        mini_module(arch.machine, "needs", undefined=("of_nobody",), runs=True, vermagic=magic)
    )
    code, _out, err = run("run", module)
    assert code == 1
    assert "auto" not in err
    path = tree / f"boot/vmlinuz-{RELEASE}"
    path.parent.mkdir()
    path.write_bytes(kernel_file(arch, magic, OFFERS))
    code, _out, err = run("run", module)
    assert code == 1
    assert f"hint: this module's kernel is {path.resolve()}: give --kernel auto" in err
    path.write_bytes(kernel_file(arch, magic_of(arch, "6.9.2-other"), OFFERS))
    code, _out, err = run("run", module)
    assert code == 1
    assert "auto" not in err
