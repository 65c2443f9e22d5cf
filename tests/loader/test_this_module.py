# SPDX-License-Identifier: GPL-2.0-or-later
"""struct module in a file: which of its pointers are init and exit, in any build's layout."""

from __future__ import annotations

import json

import pytest

from loader.elf import parse
from loader.errors import BadModule
from loader.gate import Gate
from loader.this_module import MEMBERS, members_of, this_module
from tests.archs.facts import facts
from tests.support.modules import module

NAMES = ("the_init", "the_exit")
PLAIN = (".text.first", ".text.second")
# From the type information of 6.1, 6.12 and 7.2 kernels: size, init and exit.
BUILDS = {
    "6.1.0-50-amd64": (896, 312, 848),
    "6.1.0-50-arm64": (896, 312, 832),
    "7.2.13+deb14-amd64": (1280, 304, 1216),
    "7.2.13+deb14-arm64": (1280, 304, 1192),
    "7.2.13+deb14-riscv64": (1216, 304, 1152),
}


def told(image, arch):
    """Return what is known of the struct module of a module that is loaded without its kernel."""
    view, gate = parse(bytes(image), "mini.ko"), Gate(arch)
    return this_module(view, gate.layouts_of(gate.build_of(view)))


def found(arch, **options):
    """Return what is known of the struct module of a minimal module."""
    known = told(module(arch.machine, **options), arch)
    assert known is not None
    return known


def entries(known):
    """Return where init and exit stand."""
    return {name: at for name, at in known.members.items() if name in ("init", "exit")}


@pytest.mark.parametrize("names", [("init_module", "cleanup_module"), NAMES])
def test_the_modelled_build(arch, names):
    """Size and pointers of 6.12's build: everything is where that has it, whatever the names."""
    known = found(arch, functions=names)
    assert known.modelled
    assert entries(known) == {"init": facts(arch).link.init_at, "exit": facts(arch).link.exit_at}


@pytest.mark.parametrize("only", [0, 1])
def test_one_pointer_of_the_modelled_build(arch, only):
    """A module without exit, or without init, has the other where 6.12 has it."""
    at = (facts(arch).link.init_at, facts(arch).link.exit_at)[only]
    vermagic = arch.loads.vermagic
    known = found(arch, functions=NAMES, texts=PLAIN, entries={at: NAMES[only]}, vermagic=vermagic)
    assert known.modelled


@pytest.mark.parametrize(("build", "shape"), BUILDS.items())
@pytest.mark.parametrize("names", [("init_module", "cleanup_module"), NAMES])
def test_another_build(arch, build, shape, names):
    """In another build's layout the first pointer is init, the second exit; then the count."""
    size, init, exit_ = shape
    pointers = {init: names[0], exit_: names[1]}
    known = found(
        arch,
        vermagic=f"{build} SMP",
        this_size=size,
        entries=pointers,
        functions=names,
        texts=PLAIN,
    )
    assert not known.modelled
    assert entries(known) == {"init": init, "exit": exit_}
    assert known.members["refcnt"] == exit_ + 8
    assert known.members["state"] == 0
    assert "percpu" not in known.members


@pytest.mark.parametrize(("build", "shape"), BUILDS.items())
@pytest.mark.parametrize("only", [0, 1])
@pytest.mark.parametrize("told", ["alias", "section"])
def test_one_pointer_of_another_build(arch, build, shape, only, told):
    """Of one pointer alone, the function's alias tells what it is, or else its section."""
    size, at = shape[0], shape[1 + only]
    names, texts = (NAMES, (".init.text", ".exit.text"))
    if told == "alias":
        names, texts = ("init_module", "cleanup_module"), PLAIN
    known = found(
        arch,
        vermagic=f"{build} SMP",
        this_size=size,
        entries={at: names[only]},
        functions=names,
        texts=texts,
    )
    assert entries(known) == {("init", "exit")[only]: at}


def test_one_pointer_that_nothing_explains(arch):
    """One pointer of another build whose function is called anything is refused, not guessed."""
    options = {"this_size": 896, "entries": {312: NAMES[0]}, "functions": NAMES, "texts": PLAIN}
    with pytest.raises(BadModule, match="whether to init or to exit"):
        found(arch, vermagic="6.1.0 SMP", **options)


def test_three_pointers(arch):
    """Three pointers in another build's struct module are refused: two of them are enough."""
    with pytest.raises(BadModule, match="3 pointers"):
        found(arch, this_size=896, entries={304: "init_module", 312: "mini_work", 848: "mini_work"})


@pytest.mark.parametrize(
    ("vermagic", "modelled"),
    [("{}", True), ("6.12.0-samples SMP", True), ("6.12.5 SMP", False), ("", False)],
)
def test_no_pointers(arch, vermagic, modelled):
    """Where no pointer tells, the build that the module names does, and only the very same."""
    vermagic = vermagic.format(arch.loads.vermagic)
    known = found(arch, entries={}, vermagic=vermagic)
    assert known.modelled == modelled
    assert modelled or not entries(known)


def test_a_name_elsewhere(arch):
    """A struct module of another build without its name where all have it is not known at all."""
    known = found(arch, name="mini", this_size=896, entries={}, info="", vermagic="4.0")
    assert "state" in known.members
    image = bytearray(module(arch.machine, this_size=896, entries={}, vermagic="4.0"))
    at = parse(bytes(image), "mini.ko").section(".gnu.linkonce.this_module").offset
    image[at + 24 : at + 28] = bytes(4)
    assert not told(image, arch).members


def test_offsets_are_those_of_a_kernel(arch, oracle):
    """Every member's offset is what the type information of a 6.12 kernel says."""
    real = json.loads((oracle / "structs.json").read_text())["module"]
    offsets = {name: at for name, at, *_ in real["members"]}
    assert arch.loads.layouts.size_of("module") == real["size"] == facts(arch).link.this_module_size
    assert members_of(arch.loads.layouts, MEMBERS).items() <= offsets.items()


def test_other_kernels_structs(arch, other_recordings):
    """What is taken for granted of other builds is what their type information says."""
    for release, folder in other_recordings.items():
        file = folder / "structs.json"
        if not file.is_file():
            continue
        real = json.loads(file.read_text())["module"]
        offsets = {name: at for name, at, *_ in real["members"]}
        names = ("init_module", "cleanup_module")
        pointers = dict(zip((offsets["init"], offsets["exit"]), names, strict=True))
        known = found(arch, vermagic=f"{release}.0 SMP", this_size=real["size"], entries=pointers)
        assert known.members.items() <= offsets.items(), release
        assert set(known.members) == {"state", "list", "name", "init", "exit", "refcnt"}
