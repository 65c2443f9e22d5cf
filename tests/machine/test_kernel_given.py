# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine that is given a kernel: its facts apply to the modelled one, and modules are held to it."""

from __future__ import annotations

import re

import pytest

import archs
from allocator.types import ExecmemType
from archs.arch import LevelMissing
from emulator.faults import Fault
from kernels.errors import BootFailed
from loader.btf_records import Kind
from loader.checks import Refused
from loader.elf import parse
from loader.errors import BadKernel, UnresolvedSymbols
from loader.files import read_module
from loader.layouts import types_of
from machine.face import Machine
from tests.archs.facts import facts
from tests.support.checked import Offer, debian, made, version_table
from tests.support.kernels import SIZE, kernel_file, kernel_image

OFFERS = (
    Offer("module_layout", crc=0x1234),
    Offer("_printk", crc=5),
    Offer("not_modelled", crc=6),
    Offer("free_only", gpl=True, crc=7),
    Offer("inside", space="INNER", crc=8),
)
CRCS = {offer.name: offer.crc for offer in OFFERS}


@pytest.fixture
def magic(arch: archs.Arch) -> str:
    """Return the version magic of a kernel that is not the one modelled."""
    return "6.9.1-mine " + debian(arch.machine).partition(" ")[2]


@pytest.fixture
def machine(arch: archs.Arch, magic: str) -> Machine:
    """Return a machine with that kernel's facts."""
    return Machine(kernel=kernel_image(arch, magic, OFFERS), modelled=True)


def module(machine: Machine, magic: str, *uses: str, crcs: dict | None = None, **more) -> bytes:
    """Return a module for it that uses some of its exports."""
    versions = version_table(
        {"module_layout": 0x1234, **{n: CRCS.get(n, 1) for n in uses}, **(crcs or {})}
    )
    return made(machine.arch.machine, magic=magic, uses=uses, extra=[versions], **more)


def test_what_is_no_real_kernel_does_not_boot(arch: archs.Arch, magic: str) -> None:
    """Without `modelled` it would have to; why it does not is said in one line."""
    with pytest.raises((BootFailed, LevelMissing)) as caught:
        Machine(arch, kernel=kernel_image(arch, magic))
    assert "\n" not in str(caught.value)
    missing = arch.boot is None
    assert ("has no level 'boot'" if missing else "does not boot: none of") in str(caught.value)


def test_it_tells_the_architecture(arch: archs.Arch, magic: str, tmp_path) -> None:
    """An image or its path tells it; another one is refused, as is a machine without either."""
    path = tmp_path / "vmlinuz"
    path.write_bytes(kernel_file(arch, magic))
    machine = Machine(kernel=path, modelled=True)
    assert machine.arch is arch
    assert machine.build.release.value == "6.9.1-mine"
    other = next(a for a in archs.ALL if a is not arch)
    with pytest.raises(BadKernel, match=f"is for {arch.name}, not for {other.name}"):
        Machine(other, kernel=str(path), modelled=True)
    with pytest.raises(ValueError, match="needs an architecture"):
        Machine()
    with pytest.raises(BadKernel, match="nowhere"):
        Machine(kernel=tmp_path / "nowhere", modelled=True)


def test_pages_that_are_not_modelled_are_refused(arch: archs.Arch, magic: str) -> None:
    """By name: of 8 KiB, which only some kernels of mips have."""
    kernel = kernel_image(arch, magic, config="CONFIG_PAGE_SHIFT=13\n")
    if kernel.page_size != 8192:
        pytest.skip(f"{arch.name} has no pages of 8 KiB, or its images say the size elsewhere")
    known = "4 KiB, 16 KiB, 64 KiB"
    with pytest.raises(BadKernel, match=f"pages of 8 KiB; {arch.name} has those of {known}"):
        Machine(kernel=kernel, modelled=True)


def test_it_lies_where_the_image_lies(machine: Machine) -> None:
    """Size and place of the image decide where modules go."""
    base = facts(machine.arch).load.image_base
    lies = machine.memory.address_map.image
    assert (lies.start, lies.end) == (base, base + SIZE)
    assert machine.kernel.image == lies
    usual = machine.arch.loads.address_map()
    ranges = [
        m.range_of(ExecmemType.MODULE_TEXT).range for m in (machine.memory.address_map, usual)
    ]
    moved = machine.arch.loads.image_size - SIZE
    assert usual.image.end - lies.end == moved
    assert {ranges[1].start - ranges[0].start, ranges[1].end - ranges[0].end} <= {0, moved}


def test_what_it_exports_is_known(machine: Machine, magic: str) -> None:
    """A name of its exports is known though nobody models it; calling that stops by its name."""
    machine = Machine(kernel=machine.loader.gate.kernel, modelled=True, unknown="refuse")
    loaded = machine.load(module(machine, magic, "_printk", "not_modelled"))
    assert loaded.report.taints == ""
    with pytest.raises(Fault, match="not_modelled"):
        machine.call(machine.kernel.symbols["not_modelled"])
    with pytest.raises(UnresolvedSymbols, match="no_export"):
        machine.load(module(machine, magic, "no_export", name="two"))
    codes = [notice.code for notice in loaded.report.notices]
    assert codes == ["built-for"]


def test_what_it_does_not_export_is_said(machine: Machine, magic: str) -> None:
    """Another module may have it; that one is not there."""
    loaded = machine.load(module(machine, magic, "kfree", "no_export"), init=False)
    (said,) = [n.text for n in loaded.report.notices if n.code == "not-exported"]
    assert said.startswith("the kernel 6.9.1-mine exports no ")
    assert set(re.findall(r"kfree|no_export", said)) == {"kfree", "no_export"}


def test_modules_are_held_to_it(machine: Machine, magic: str) -> None:
    """Checksums, marks, namespaces and version magic are compared with the image's own."""
    for image, check, told in (
        (module(machine, magic, "_printk", crcs={"_printk": 99}), "symbol-version",
         "the module has CRC 0x00000063, the kernel 6.9.1-mine 0x00000005"),
        (module(machine, magic, crcs={"module_layout": 9}), "module-layout", "the kernel 6.9.1-mine 0x00001234"),
        (module(machine, magic, "free_only", licence="Sold"), "gpl-only", "free_only"),
        (module(machine, magic, "inside"), "namespace", "INNER"),
        (module(machine, "6.9.1-mine other"), "vermagic", "the kernel 6.9.1-mine for '6.9.1-mine "),
    ):  # fmt: skip
        with pytest.raises(Refused, match=re.escape(told)) as caught:
            machine.load(image)
        assert caught.value.check == check
    assert machine.load(module(machine, magic, "free_only"), init=False).report.taints == ""


def test_force_says_what_disagrees(machine: Machine, magic: str) -> None:
    """A module of another kernel that is forced in is one of this kernel, and both are named."""
    machine.force = True
    loaded = machine.load(module(machine, "6.1.0-50-amd64 SMP", "_printk"))
    told = {notice.code: notice.text for notice in loaded.report.notices}
    assert (
        "release: 6.9.1-mine by the image, 6.1.0-50-amd64 by the version magic"
        in told["build-conflict"]
    )
    assert loaded.loaded.view.version == (6, 9)
    odd = machine.load(module(machine, "nonsense", "_printk", name="odd"))
    (said,) = [n.text for n in odd.report.notices if n.code == "built-for"]
    assert "'nonsense' names no version: taken for Linux 6.9.1-mine, which is given" in said
    assert odd.loaded.view.version == (6, 9)


def test_a_sample_in_another_kernel_is_said(machine: Machine) -> None:
    """Samples belong to the modelled kernel; forced into one that is given, they do not."""
    machine.force = True
    for name in ("6.12.0-samples SMP", debian(machine.arch.machine)):
        title = f"one{len(name)}"
        loaded = machine.load(module(machine, name, name=title), init=False)
        told = {notice.code: notice.text for notice in loaded.report.notices}
        assert told["built-for"].startswith(f"built for Linux {name.partition(' ')[0]}")
        assert "another configuration" not in told["built-for"]
        assert "6.9.1-mine by the image" in told["build-conflict"]


def test_its_configuration_counts(arch: archs.Arch, magic: str) -> None:
    """Constructors run where it runs them, and what is modelled otherwise is said."""
    usual = "CONFIG_SMP=y\nCONFIG_MODVERSIONS=y\n"
    some = kernel_image(arch, magic, OFFERS, config=f"{usual}CONFIG_STRICT_MODULE_RWX=y\n")
    plainly = Machine(kernel=some, modelled=True)
    notices = plainly.load(module(plainly, magic, "_printk"), init=False).report.notices
    assert "configuration" not in {notice.code for notice in notices}
    config = "CONFIG_CONSTRUCTORS=y\nCONFIG_HZ=1000\nCONFIG_SMP=y\nCONFIG_MODVERSIONS=y\n"
    machine = Machine(kernel=kernel_image(arch, magic, OFFERS, config=config), modelled=True)
    assert machine.loader.gate.constructors
    notices = machine.load(module(machine, magic, "_printk"), init=False).report.notices
    text = "".join(n.text for n in notices)
    assert "CONFIG_HZ=1000, modelled is 250" in text
    assert "CONFIG_STRICT_MODULE_RWX=n, modelled is y" in text
    plain = Machine(kernel=kernel_image(arch, magic, OFFERS), modelled=True)
    assert not plain.loader.gate.constructors


def test_the_tables_of_old_arm64_kernels() -> None:
    """Before 6.5 modules lie from 128 MiB below the end of the kernel's text (a recorded 6.1 does)."""
    found = archs.arch("arm64").loads.address_map(
        start=0xFFFF_8000_0800_0000, image_size=0x201_0000, text_size=0xD0_0000
    )
    text = found.range_of(ExecmemType.MODULE_TEXT)
    assert text.range.start == 0xFFFF_8000_00D0_0000
    assert text.range.size == 128 << 20
    assert text.fallback is not None
    assert text.fallback.start == text.range.start
    assert text.fallback.size == 2 << 30


def test_modules_load_with_their_own_kernels(kernels, arch) -> None:
    """Of every kernel that is there, with all that its image demands; each with a notice."""
    for folder in kernels.values():
        files = sorted(folder.glob("lib/modules/*/kernel/**/*.ko*"))
        if not list(folder.glob("boot/vmlinu*")) or not files:
            continue
        for file in files[::9]:
            machine = Machine(kernel=folder, modelled=True, unknown="refuse")
            loaded = machine.load(file, init=False)
            codes = {notice.code for notice in loaded.report.notices}
            assert "built-for" in codes, file.name
            assert not codes & {"not-exported", "build-conflict"}, file.name


def test_structures_are_the_kernels_own(kernels, arch) -> None:
    """With an image that has types, struct module of its modules is known whole, and other members."""
    for release, folder in kernels.items():
        files = sorted(folder.glob("lib/modules/*/kernel/**/*.ko*"))
        if not list(folder.glob("boot/vmlinu*")) or not files:
            continue
        machine = Machine(kernel=folder, modelled=True)
        kernel = machine.loader.gate.kernel
        assert kernel is not None
        whole = kernel.btf.find("module", Kind.STRUCT).number
        this = machine.load(files[0], init=False).loaded.this
        assert this.modelled, release
        for member in ("init", "exit", "refcnt", "source_list"):
            assert this.members[member] == kernel.btf.place(whole, member).bytes
        size = kernel.btf.size_of(kernel.btf.find("task_struct", Kind.STRUCT).number)
        assert machine.kernel.layouts.size_of("task_struct") == size


def test_types_of_its_modules_count_while_they_are_there(kernels, arch) -> None:
    """A structure that only a module has is known with it, and gone with it."""
    seen = 0
    for folder in kernels.values():
        files = sorted(folder.glob("lib/modules/*/kernel/**/*.ko*"))
        for file in files if list(folder.glob("boot/vmlinu*")) else ():
            view = parse(read_module(file), file.name)
            if view.modinfo.get("depends"):
                continue
            machine = Machine(kernel=folder, modelled=True)
            layouts, image = machine.kernel.layouts, machine.loader.gate.kernel
            own = types_of(view, image)
            names = [name for name in own.named(Kind.STRUCT) if not layouts.has(name)]
            if not names:
                continue
            module = machine.load(file, init=False)
            assert "types" not in {notice.code for notice in module.report.notices}
            wanted = {name: own.size_of(own.find(name).number) for name in names}
            assert {name: layouts.size_of(name) for name in names} == wanted
            machine.loader.discard(module.loaded)
            assert not any(layouts.has(name) for name in names)
            seen += 1
            break
    assert seen or not any(list(f.glob("boot/vmlinu*")) for f in kernels.values())


def test_damaged_types_of_a_module_are_not_used(kernels, arch) -> None:
    """The module loads, and it is said."""
    for folder in kernels.values():
        file = next(iter(sorted(folder.glob("lib/modules/*/kernel/**/md4.ko*"))), None)
        if file is None or not list(folder.glob("boot/vmlinu*")):
            continue
        image = bytearray(read_module(file))
        section = parse(bytes(image)).section(".BTF")
        image[section.offset : section.offset + 2] = b"??"
        machine = Machine(kernel=folder, modelled=True)
        notices = {n.code: n.text for n in machine.load(bytes(image), init=False).report.notices}
        assert notices["types"].startswith("its own types are not used: ")
        assert "begins with 3f 3f" in notices["types"]
