# SPDX-License-Identifier: GPL-2.0-or-later
"""What a module was built for: each fact, where it is known from, and what contradicts it."""

from __future__ import annotations

import struct

import attrs
import pytest

import archs
from execmem.check.elfwriter import A, Sec, W
from loader.build import Source, assumptions, build_of, build_salt, flavour_of, with_kernel
from loader.elf import parse
from loader.elfview import ElfView
from loader.files import read_module
from loader.versions import SymversExport, TreeFacts
from tests.loader.kernel.test_real import image_in
from tests.support.checked import THIS, Offer, debian, made, this_module
from tests.support.kernels import kernel_image


def module(arch: archs.Arch, **more) -> ElfView:
    """Return a module, read."""
    return parse(made(arch.machine, **more), "one.ko")


def salted(text: str) -> Sec:
    """Return notes as a build leaves them: what LTO was on, then the build salt."""
    data = text.encode() + b"\0"
    notes = struct.pack("<III", 6, 4, 0x101) + b"Linux\0\0\0" + bytes(4)
    notes += struct.pack("<III", 6, len(data), 0x100) + b"Linux\0\0\0" + data
    return Sec(".note.Linux", notes + bytes(-len(notes) % 4), A, align=4)


def test_what_is_modelled_is_assumed(arch: archs.Arch) -> None:
    """With nothing to ask, every fact is the modelled kernel's, and says that it is assumed."""
    build = build_of(None, arch=arch)
    release, _, words = arch.loads.vermagic.partition(" ")
    assert build.release.value == release
    assert build.version.value == (6, 12)
    assert build.preemption.value == ("preempt" if "preempt" in words else "")
    assert build.smp.value
    assert build.title == f"Linux 6.12.107, Debian {release.partition('-')[2]}"
    assert {"release", "version", "smp", "modversions", "module_size"} <= set(build.assumed)
    assert (build.types.value, build.exports.value) == (False, False)


@pytest.mark.parametrize(
    ("release", "flavour", "title"),
    [
        ("6.1.0-50-amd64", "Debian", "Linux 6.1.0-50, Debian amd64"),
        ("7.2.13+deb14-cloud-arm64", "Debian", "Linux 7.2.13, Debian cloud-arm64"),
        ("6.12.9+bpo-rt-amd64", "Debian", None),
        ("6.1.99-android14-11-g01", "Android", "Linux 6.1.99-android14-11-g01 (Android)"),
        ("6.11.4-301.fc41.x86_64", "Fedora", "Linux 6.11.4-301.fc41.x86_64 (Fedora)"),
        ("5.14.0-427.13.1.el9_4.x86_64", "Red Hat Enterprise Linux", None),
        ("5.15.0-200.131.27.el9uek.x86_64", "Oracle Linux", None),
        ("6.8.0-45-generic", "Ubuntu", None),
        ("6.11.1-arch1-1", "Arch Linux", None),
        ("6.6.51+rpt-rpi-v8", "Raspberry Pi OS", None),
        ("6.1.112-122.189.amzn2023.aarch64", "Amazon Linux", None),
        ("6.4.0-150600.21-default", "openSUSE", None),
        ("6.6.73", "unknown", "Linux 6.6.73"),
    ],
)
def test_whose_kernel_it_is(release: str, flavour: str, title: str | None) -> None:
    """Distributions call their kernels by rules; a plain version is nobody's."""
    assert flavour_of(release) == flavour
    build = build_of(module(archs.arch("x86_64"), magic=f"{release} SMP"))
    assert (build.flavour.value, build.release.source) == (flavour, Source.VERMAGIC)
    if title is not None:
        assert build.title == title


def test_a_compiler_tells_whose_kernel_it_is(arch: archs.Arch) -> None:
    """OpenWrt's releases are plain versions; its compiler leaves its name."""
    comment = Sec(".comment", b"\0GCC: (OpenWrt GCC 13.3.0 r28427-6df0e3d02a) 13.3.0\0", 0)
    build = build_of(module(arch, magic="6.6.73 SMP mod_unload", extra=[comment]))
    assert (build.flavour.value, build.flavour.source) == ("OpenWrt", Source.COMMENT)
    assert build.title == "Linux 6.6.73 (OpenWrt)"


def test_notes_name_a_release(arch: archs.Arch) -> None:
    """Where the version magic names none, the salt of the build does; where both do, both count."""
    view = module(arch, magic="nonsense x", extra=[salted("6.1.0-50-arm64")])
    assert build_salt(view) == "6.1.0-50-arm64"
    build = build_of(view)
    assert (build.release.value, build.release.source) == ("6.1.0-50-arm64", Source.NOTE)
    assert (build.version.value, build.conflicts) == ((6, 1), ())
    both = build_of(module(arch, magic="6.5.1-mine SMP", extra=[salted("6.1.0-50-arm64")]))
    assert both.version.value == (6, 5)
    assert both.conflicts == (
        "release: 6.5.1-mine by the version magic, 6.1.0-50-arm64 by the build salt",
    )
    for bad in ("", "salt", "\xff"):
        assert build_salt(module(arch, extra=[salted(bad)])) is None


@pytest.mark.parametrize("cut", range(0, 44, 3))
def test_notes_that_are_cut_off_say_nothing(cut: int) -> None:
    """Sizes in a note may lead anywhere."""
    whole = salted("6.1.0-50-amd64")
    part = attrs.evolve(whole, data=whole.data[:cut])
    assert build_salt(module(archs.arch("x86_64"), extra=[part])) in (
        None,
        "6.1.0-50-amd64"[: max(0, cut - 44)],
    )
    huge = attrs.evolve(whole, data=b"\xff" * 12 + whole.data[:cut])
    assert build_salt(module(archs.arch("x86_64"), extra=[huge])) is None


@pytest.mark.parametrize("size", [4, 16, 64])
def test_the_size_of_a_page(arch: archs.Arch, size: int) -> None:
    """Of several that an architecture has, the release, a section's alignment or the image tells."""
    if len(arch.loads.page_sizes) == 1:
        assert build_of(module(arch, magic=f"6.9.1-{size}k SMP")).page_size.value == 4096
        return
    bytes_ = size << 10
    named = build_of(module(arch, magic=f"6.12.107+deb13-arm64-{size}k SMP")).page_size
    assert (named.value, named.assumed) == (bytes_, size == 4)
    wide = Sec(".data..page_aligned", bytes(8), A | W, align=bytes_)
    aligned = build_of(module(arch, magic="6.9.1 SMP", extra=[wide])).page_size
    assert aligned.value == bytes_
    assert aligned.source is (Source.MODELLED if size == 4 else Source.SECTIONS)
    # Where no header tells, the configuration does.
    config = f"CONFIG_SMP=y\nCONFIG_PAGE_SHIFT={bytes_.bit_length() - 1}\n"
    kernel = kernel_image(arch, "6.9.1 SMP", page=bytes_, config=config)
    assert str(build_of(None, kernel).page_size) == f"{bytes_} (image)"
    misaligned = build_of(
        module(arch, magic="6.9.1 SMP", extra=[attrs.evolve(wide, align=65536)]), kernel
    )
    told = f"pages: {size} KiB by the image, 64 KiB by the sections"
    assert misaligned.conflicts == ((told,) if size != 64 else ())


def test_a_kernel_knows_best(arch: archs.Arch) -> None:
    """Image and configuration come before the module; what contradicts them is said by name."""
    config = "CONFIG_SMP=y\nCONFIG_PREEMPT_RT=y\nCONFIG_HZ=1000\n"
    kernel = kernel_image(arch, "6.9.1-mine SMP preempt_rt mod_unload ", config=config)
    assert kernel.vermagic == "6.9.1-mine SMP preempt_rt mod_unload "
    build = build_of(module(arch, magic="6.8.2-other preempt modversions "), kernel)
    assert (build.release.value, build.version.value) == ("6.9.1-mine", (6, 9))
    assert str(build.smp) == "True (configuration)"
    assert str(build.preemption) == "preempt_rt (configuration)"
    assert str(build.modversions) == "False (configuration)"
    assert set(build.conflicts) == {
        "release: 6.9.1-mine by the image, 6.8.2-other by the version magic",
        "SMP: yes by the configuration, no by the version magic",
        "preemption: 'preempt_rt' by the configuration, 'preempt' by the version magic",
        "MODVERSIONS: no by the configuration, yes by the version magic",
    }
    agreeing = build_of(module(arch, magic=kernel.vermagic), kernel)
    assert agreeing.conflicts == ()
    bare = build_of(None, kernel_image(arch, "6.9.1-mine SMP preempt mod_unload "))
    assert str(bare.preemption) == "preempt (image)"


def test_struct_module_of_the_file(arch: archs.Arch) -> None:
    """Its size is what the file has; of a file that has none the modelled kernel's is assumed."""
    size = arch.loads.layouts.size_of("module") + 64
    build = build_of(module(arch, this=[this_module(arch.machine, size=size)]))
    assert str(build.module_size) == f"{size} (sections)"
    empty = made(arch.machine, this=[Sec(THIS, b"", A | W)])
    assert build_of(parse(empty, "one.ko")).module_size.assumed


def test_what_a_kernel_and_its_tree_export(arch: archs.Arch) -> None:
    """Of the kernel's own the image says it, of its modules the tree's symvers."""
    offers = [Offer("alpha", crc=1), Offer("beta", gpl=True, space="INNER", crc=2)]
    kernel = kernel_image(arch, debian(arch.machine), offers)
    tree = TreeFacts(
        "r", "other magic", 5, {"alpha": 9, "mod": 3},
        {"alpha": SymversExport(9, "vmlinux", True), "mod": SymversExport(3, "some", False)},
    )  # fmt: skip
    found = with_kernel(tree, kernel)
    assert found.vermagic == debian(arch.machine)
    assert dict(found.crcs) == {"alpha": 1, "beta": 2, "mod": 3}
    assert found.exports == {
        "alpha": SymversExport(1, "vmlinux", False),
        "beta": SymversExport(2, "vmlinux", True, "INNER"),
        "mod": SymversExport(3, "some", False),
    }
    assert with_kernel(None, kernel_image(arch, "6.9.1 SMP")).exports is None


def test_real_modules_agree_with_their_kernels(kernels) -> None:
    """Of every kernel that is there, nothing is said in two ways, and nothing is assumed."""
    for folder in kernels.values():
        if not list(folder.glob("boot/vmlinu*")):
            continue
        kernel = image_in(folder)
        for file in sorted(folder.glob("lib/modules/*/kernel/**/*.ko*"))[::7]:
            view = parse(read_module(file), file.name)
            build = build_of(view, kernel)
            assert (build.conflicts, build.assumed) == ((), ()), file.name
            assert build_of(view).release.value == kernel.release
            assert build_salt(view) in (None, kernel.release)
            assert view.modinfo["vermagic"] == kernel.vermagic


@pytest.mark.parametrize(
    ("more", "code", "told"),
    [
        ({"magic": "6.12.107+deb13-arm64-16k SMP mod_unload modversions aarch64"}, "page-size",
         "its kernel has pages of 16 KiB (by its release), modelled are 4 KiB"),
        ({"magic": "6.9.1 SMP preempt_rt"}, "configuration", "CONFIG_PREEMPT_RT=y, modelled is n"),
        ({"magic": "nonsense", "extra": [salted("6.1.0-50-arm64")]}, "built-for",
         "version magic 'nonsense' names no version: taken for 6.1.0-50-arm64, which its notes name"),
        ({"magic": "6.5.1-mine SMP", "extra": [salted("6.1.0-50-arm64")]}, "build-conflict",
         "release: 6.5.1-mine by the version magic, 6.1.0-50-arm64 by the build salt"),
    ],
)  # fmt: skip
def test_what_is_assumed_is_said(more: dict, code: str, told: str) -> None:
    """A page of another size, other locks, two answers, none: each is a notice."""
    view = module(archs.arch("arm64"), **more)
    said = dict(assumptions(build_of(view), view.modinfo["vermagic"], build_salt(view)))
    assert told in said[code]
