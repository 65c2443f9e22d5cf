# SPDX-License-Identifier: GPL-2.0-or-later
"""The modelled kernel's structures and functions against what kernels of its release say."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

import kernels.modelled.api  # noqa: F401 -- importing it fills the kernel's table
from archs import Anchor
from kernels.modelled import structs
from kernels.modelled.prototypes import CType
from kernels.modelled.table import FUNCTIONS
from tests.support.btf import Type, Types, types

RELEASE = "6.12"
# Structures of modules, which an image does not describe.
OF_MODULES = {"usb_driver", "usb_device_id", "hid_driver", "hid_device_id"}
# Structures that only the kernels of some architectures have.
SOMEWHERE = {"cpuinfo_x86", "pcpu_hot", "kernel_mapping"}
# One name for structures that are alike.
SAME = {"crypto_plain": ("crypto_rng", "crypto_scomp", "crypto_cipher")}
# Written in assembly: what an image says of them is void f(void).
ASSEMBLY = {
    *("memcpy", "memmove", "memset", "__memcpy", "__memmove", "__memset", "strchr"),
    *("__arch_clear_user", "__arch_copy_from_user", "__arch_copy_to_user"),
    *("__asm_copy_from_user", "__asm_copy_to_user", "__clear_user"),
    *("__sw_hweight32", "__sw_hweight64"),
}

DECLARED = [name for name in structs._DECLARED if not name.startswith("test_")]  # not by tests


@pytest.fixture
def btf(kernels: dict) -> Types:
    """Return the types of the modelled kernel on each architecture."""
    found = [folder for release, folder in kernels.items() if release.startswith(RELEASE)]
    if not found:
        pytest.skip(f"EXECMEM_KERNELS has no {RELEASE} for this architecture")
    return types(found[0])


def _found(btf: Types, name: str) -> list[Type]:
    found = [btf.structure(each) for each in SAME.get(name, (name,))]
    if None in found:
        assert name in OF_MODULES | SOMEWHERE, f"the kernel has no struct {name}"
    return [each for each in found if each is not None]


def _agrees(btf: Types, declared: str, kind: Type) -> bool:
    """Return whether a member's declared type is what the kernel says, as far as it is used."""
    if declared == "fn":
        return kind["kind"] == "PTR" and btf.plain(kind["type_id"])["kind"] == "FUNC_PROTO"
    if declared in ("ptr", "str"):
        return kind["kind"] == "PTR"
    if declared == "list":
        return kind.get("name") == "list_head"
    if declared[0] in "ui" and declared[1:].isdigit() and kind["kind"] == "INT":
        return (declared[0] == "i") == (kind["encoding"] == "SIGNED")
    return kind["kind"] != "PTR"


def test_members_lie_where_the_kernel_says(arch, btf):
    """Each declared member has the offset, size and kind that the kernel's own types give it."""
    wrong = []
    for name in DECLARED:
        layout = structs.layout(name, arch.loads.structure_sizes)
        for found in _found(btf, name):
            for title, member in layout.members.items():
                real = btf.member(found, title)
                if real is None:
                    wrong.append(f"{name}.{title}: no such member")
                    continue
                ours, theirs = (member.offset, member.size), (real[0], btf.size(real[1]))
                if ours != theirs:
                    wrong.append(f"{name}.{title}: {ours}, the kernel says {theirs}")
                elif not _agrees(btf, member.type, real[1]):
                    wrong.append(f"{name}.{title}: {member.type}, the kernel says {real[1]}")
    assert not wrong, "\n".join(wrong)


def test_sizes_are_the_kernels(arch, btf):
    """A structure that is declared whole has the size of the kernel's, its last padding too."""
    wrong = []
    for name in DECLARED:
        end = structs.layout(name, arch.loads.structure_sizes).end
        wrong += [
            f"{name}: {end} bytes, the kernel says {btf.size(found)}"
            for found in _found(btf, name)
            if end not in (None, btf.size(found))
        ]
    assert not wrong, "\n".join(wrong)


def test_what_is_allocated_is_enough(btf):
    """Memory that stands for a structure has room for the kernel's."""
    wrong = [
        f"{name}: {size} bytes, the kernel's has {btf.size(found)}"
        for name, sizes in structs._ROOMS.items()
        for found in _found(btf, name)
        for size in sizes
        if size < btf.size(found)
    ]
    assert not wrong, "\n".join(wrong)


def test_struct_module_is_the_kernels(arch, btf):
    """The record of struct module has the size and the offsets of the kernel's."""
    found, ours = btf.structure("module"), arch.loads.module_struct
    assert found is not None
    assert ours.size == btf.size(found)
    assert ours.members == {
        name: place[0] if (place := btf.member(found, name)) else None for name in ours.members
    }


def test_the_canary_stands_where_compiled_code_looks(arch, btf):
    """The stack protector's canary is the member that the kernel has for it."""
    anchor, offset = arch.runs.emulation.canary
    holder = {Anchor.CURRENT: "task_struct", Anchor.PERCPU: "fixed_percpu_data"}[anchor]
    found = btf.structure(holder)
    assert found is not None
    member = btf.member(found, "stack_canary")
    assert member is not None
    assert member[0] == offset


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
