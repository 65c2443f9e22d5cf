# SPDX-License-Identifier: GPL-2.0-or-later
"""The modelled kernel's structures and functions against what kernels of its release say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import kernels.modelled.api  # noqa: F401 -- importing it fills the kernel's table
from archs.layouts import HERE, As, Layouts, Member
from kernels.modelled import structs, tables
from kernels.modelled.api.cpu import SYSTEM_RUNNING
from kernels.modelled.table import FUNCTIONS
from kernels.prototypes import CType
from loader.kernel.find import read_kernel
from tests.archs.facts import facts
from tests.support.btf import Type, Types, types

RELEASE = "6.12"
# Structures of modules, which an image does not describe.
OF_MODULES = {"usb_driver", "usb_device_id", "hid_driver", "hid_device_id"}
# Structures that only the kernels of some architectures have.
SOMEWHERE = {"cpuinfo_x86", "fixed_percpu_data", "pcpu_hot", "kernel_mapping"}
# Written in assembly: what an image says of them is void f(void).
ASSEMBLY = {
    *("memcpy", "memmove", "memset", "__memcpy", "__memmove", "__memset", "strchr"),
    *("__arch_clear_user", "__arch_copy_from_user", "__arch_copy_to_user"),
    *("__asm_copy_from_user", "__asm_copy_to_user", "__clear_user"),
    *("__sw_hweight32", "__sw_hweight64"),
}


@pytest.fixture
def btf(kernels: dict) -> Types:
    """Return the types of the modelled kernel on each architecture."""
    found = [folder for release, folder in kernels.items() if release.startswith(RELEASE)]
    if not found:
        pytest.skip(f"EXECMEM_KERNELS has no {RELEASE} for this architecture")
    return types(found[0])


def _wrong(layouts: Layouts, btf: Types) -> Iterator[str]:
    """Yield what of the names in the code is not as the kernel says."""
    for name, members in structs.USED.items():
        found = btf.structure(name)
        if found is None:
            if layouts.has(name) and name not in OF_MODULES:
                yield f"struct {name}: the kernel has none"
            continue
        if layouts.size_of(name) != btf.size(found):
            yield f"{name}: {layouts.size_of(name)} bytes, the kernel says {btf.size(found)}"
        for title in members:
            real = btf.member(found, title)
            if real is None:
                if layouts.has(name, title):
                    yield f"{name}.{title}: no such member"
                continue
            ours = layouts.member(name, title)
            if (ours.offset, ours.size) != (real[0], btf.size(real[1])):
                yield f"{name}.{title}: {ours}, the kernel says {real}"
            elif not _agrees(btf, ours, real[1]):
                yield f"{name}.{title}: {ours.kind}, the kernel says {real[1]}"


def _agrees(btf: Types, ours: Member, kind: Type) -> bool:
    """Return whether a member is read as what the kernel says it is."""
    if kind["kind"] == "PTR":
        behind = btf.plain(kind["type_id"])
        if behind["kind"] == "FUNC_PROTO":
            return ours.kind is As.FUNCTION
        return ours.kind is (As.STRING if behind.get("name") == "char" else As.POINTER)
    if kind["kind"] == "INT":
        return ours.kind is (As.SIGNED if kind["encoding"] == "SIGNED" else As.UNSIGNED)
    if kind["kind"] in ("STRUCT", "UNION"):
        return ours.kind is As.STRUCTURE and ours.tag in ("", kind["name"])
    return ours.kind not in (As.FUNCTION, As.POINTER, As.STRING, As.STRUCTURE)


def test_members_lie_where_the_kernel_says(arch, btf):
    """What the table says of each name in the code is what the kernel's own types say."""
    assert len(structs.USED) > 100
    assert list(_wrong(arch.loads.layouts, btf)) == []


def test_given_types_are_read_rightly(some_kernels):
    """What is read of the types of any kernel is what bpftool reads of them."""
    if not some_kernels:
        pytest.skip("EXECMEM_KERNELS has no kernel for this architecture")
    for folder in some_kernels.values():
        image = next(p for p in sorted((folder / "boot").glob("vmlinu*")))
        assert list(_wrong(tables.read_layouts(image), types(folder))) == [], folder.name


def test_tables_are_generated(arch, kernels, btf):
    """The table is what its script makes of the kernel that it names, byte for byte."""
    committed = (HERE / f"{arch.name}.json").read_text()
    folder = next(folder for release, folder in kernels.items() if release.startswith(RELEASE))
    image = next(p for p in sorted((folder / "boot").glob("vmlinu*")))
    made = tables.table(tables.read_layouts(image))
    lines = committed.splitlines()
    described = [
        text for text in lines if not text.startswith(tuple(f' "{n}"' for n in OF_MODULES))
    ]
    assert made.splitlines() == described


def test_tables_name_their_kernel(arch):
    """A table is of the kernel that is modelled, and lacks only what it does not have."""
    layouts = arch.loads.layouts
    known = facts(arch).load
    assert layouts.release == (known.types_of or arch.loads.vermagic.partition(" ")[0])
    names = {*SOMEWHERE, *known.lacks}
    assert {name for name in structs.USED if not layouts.has(name)} <= names
    lacking = [f"{n}.{m}" for n, ms in structs.USED.items() for m in ms if not layouts.has(n, m)]
    assert {n for n in lacking if n.partition(".")[0] not in names} <= names


def test_lists_are_two_pointers(kernels):
    """What links lists in one store takes it for granted."""
    for folder in kernels.values():
        found = types(folder)
        head = found.structure("list_head")
        assert head is not None
        places = [found.member(head, name) for name in ("next", "prev")]
        assert [place[0] for place in places] == [0, 8]


# What code reads without names, since its type alone says where it lies: in 6.1 as in 7.2.
FIXED = {
    "llist_node": {"next": 0},
    "hlist_node": {"next": 0, "pprev": 8},
    "static_key": {"enabled": 0},
    "timespec64": {"tv_sec": 0, "tv_nsec": 8},
    "va_format": {"fmt": 0, "va": 8},
    "resource": {"start": 0, "end": 8, "name": 16, "flags": 24},
    "range": {"start": 0, "end": 8},
}


def test_what_is_read_without_names(kernels):
    """Each is the same in every kernel that is there; so modules of any build may use it."""
    for release, folder in kernels.items():
        found = types(folder)
        for name, members in FIXED.items():
            structure = found.structure(name)
            assert structure is not None, (release, name)
            places = {title: found.member(structure, title)[0] for title in members}
            assert places == members, (release, name)


def _differs(btf: Types, ours: CType, number: int) -> str:
    """Return how a type in a prototype differs from the kernel's; empty where it does not."""
    real = btf.plain(number)
    kind, size = real["kind"], btf.size(real)
    if ours.text == "va_list":
        # An array that decays, a void *, and on arm64 a structure, passed by reference.
        return "" if kind == "PTR" or real.get("name") == "__va_list" else str(real)
    if (kind == "PTR") != ours.pointer or (size != ours.size and kind != "PTR"):
        return f"{ours.text} of {ours.size} bytes, the kernel says {real}"
    if kind in ("INT", "ENUM") and (real["encoding"] == "SIGNED") != ours.signed:
        return f"{ours.text}, the kernel says {real['encoding']} {real.get('name')}"
    return ""


def test_prototypes_are_the_kernels(btf):
    """Each function of the table takes and returns what the kernel's own types say."""
    described = [name for name in FUNCTIONS if btf.function(name) is not None]
    assert len(described) > 900
    _compare(btf, described)


def test_prototypes_of_later_kernels(btf, kernels):
    """Functions that 6.12 does not have yet are those of the kernels that have them."""
    later = [release for release in kernels if release.startswith("7.")]
    if not later:
        pytest.skip("EXECMEM_KERNELS has no later kernel for this architecture")
    there = types(kernels[later[-1]])
    lacked = [name for name in FUNCTIONS if btf.function(name) is None and there.function(name)]
    assert lacked
    _compare(there, lacked)


def _compare(btf: Types, names: Iterable[str]) -> None:
    """Assert that functions of the table have the kernel's prototypes."""
    wrong = []
    for name in names:
        real, ours = btf.function(name), FUNCTIONS[name].prototype
        assert real is not None
        if name in ASSEMBLY and not real["params"]:
            continue
        params = list(real["params"])
        variadic = bool(params) and params[-1]["type_id"] == 0
        del params[len(params) - variadic :]
        if variadic != ours.variadic:
            wrong.append(f"{name}: variadic is {ours.variadic}")
        if len(params) != len(ours.params):
            wrong.append(f"{name}: {len(ours.params)} parameters of {[p['name'] for p in params]}")
            continue
        pairs = [
            (p.type, q["type_id"], q["name"]) for p, q in zip(ours.params, params, strict=True)
        ]
        if not ours.indirect:
            pairs.append((ours.result, real["ret_type_id"], "result"))
        else:
            assert btf.plain(real["ret_type_id"])["kind"] == "STRUCT", name
        for kind, number, title in pairs:
            if reason := _differs(btf, kind, number):
                wrong.append(f"{name}, {title}: {reason}")
    assert not wrong, "\n".join(wrong)


def test_constants_are_those_of_every_kernel(kernels: dict[str, Path]) -> None:
    """What enumerations say is the same in all of them, and what the modelled kernel takes."""
    for folder in kernels.values():
        btf = read_kernel(folder).btf
        states = None if btf is None else btf.find("system_states")
        assert states is not None
        values = {entry.name: entry.value for entry in states.entries}
        assert values["SYSTEM_RUNNING"] == SYSTEM_RUNNING
