# SPDX-License-Identifier: GPL-2.0-or-later
"""The modelled kernel with the types of a kernel that was given, and without any."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import archs
import kernels as package
from emulator.faults import Fault, FaultKind
from kernels.modelled.api.algorithms import algorithm
from kernels.modelled.structs import USED
from loader.loaded import State
from machine.face import Machine
from tests.support.checked import Offer, debian, made, version_table
from tests.support.kernels import kernel_image

# RFC 1320, A.5
MD4 = {b"": "31d6cfe0d16ae931b73c59d7e0c089c0", b"abc": "a448017aaf21d8525fc10ae87aa6729d"}
RELEASE = "6.9.1-mine"


def test_md4_of_other_kernels(kernels: dict[str, Path]) -> None:
    """A module of another kernel registers by that kernel's shash_alg, and computes."""
    others = [folder for folder in kernels.values() if list(folder.rglob("md4.ko*"))]
    if not others:
        pytest.skip("EXECMEM_KERNELS has no md4 of another kernel for this architecture")
    for folder in others:
        machine = Machine(kernel=next(folder.glob("boot/vmlinu*")), modelled=True, root=folder)
        loaded = machine.load(next(folder.rglob("md4.ko*")))
        assert loaded.report.init_result == 0, folder.name
        (record,) = machine.registry.find("shash")
        assert record.name == "md4"
        assert record.fields == {
            "cra_driver_name": "md4-generic",
            "cra_priority": 0,
            "cra_blocksize": 64,
            "digestsize": 16,
            "descsize": 88,  # struct md4_ctx of crypto/md4.c
        }
        assert set(record.callbacks) == {"init", "update", "final"}
        with algorithm(machine.kernel, record) as md4:
            assert {data: md4.digest(data).hex() for data in MD4} == MD4
        assert machine.kernel.layouts.release == machine.build.release.value


@pytest.fixture
def bare(arch: archs.Arch) -> Machine:
    """Return a machine whose kernel was given, and has no types."""
    magic = f"{RELEASE} {debian(arch.machine).partition(' ')[2]}"
    offers = (Offer("module_layout", crc=1), Offer("misc_register", crc=2))
    return Machine(kernel=kernel_image(arch, magic, offers), modelled=True)


def test_what_types_lack_stops_by_name(bare: Machine) -> None:
    """A kernel function that needs them stops the guest, and says what would help."""
    with pytest.raises(Fault) as caught:
        bare.call(bare.kernel.address("crypto_register_alg"), bare.alloc(512))
    assert caught.value.kind is FaultKind.UNKNOWN_STRUCTURE
    assert caught.value.reason == f"crypto_alg of {RELEASE} is not known"
    assert caught.value.hint == "give an image built with CONFIG_DEBUG_INFO_BTF"


def test_variables_of_unknown_structures_are_not_there(bare: Machine) -> None:
    """They are as variables that nobody has: no zeros stand in for them."""
    at = bare.kernel.address("init_net", called=False)
    assert not bare.kernel.knows("init_net")
    assert "init_net" in bare.missing
    assert bare.kernel.unknown_at(at) == "init_net"


def test_loading_goes_on(bare: Machine) -> None:
    """Modules are loaded, taken out again, and what needs no structure works."""
    magic = f"{RELEASE} {debian(bare.arch.machine).partition(' ')[2]}"
    versions = version_table({"module_layout": 1, "misc_register": 2})
    image = made(bare.arch.machine, magic=magic, uses=("misc_register",), extra=[versions])
    loaded = bare.load(image)
    assert loaded.loaded.state is State.LIVE
    bare.unload(loaded)
    assert bare.call(bare.kernel.address("strlen"), bare.alloc(b"four\0")) == 4


def test_nothing_is_declared_by_hand() -> None:
    """Files name structures and members; no offset, size or type stands beside a name."""
    assert len(USED) > 100
    for name, members in USED.items():
        for word in (name, *members):
            assert re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", word), (name, word)
    folder = Path(package.__file__).parent / "modelled"
    for path in folder.rglob("*.py"):
        text = path.read_text()
        for call in re.findall(r'(?:declare|struct|offset_of|size_of)\(\s*"([^)]*)\)', text):
            assert not re.search(r"@\d|:|\d{3}", call), f"{path.name}: {call}"


def test_every_member_that_is_read_is_named() -> None:
    """What views are asked for is in the names that tables are made of."""
    named = {part for members in USED.values() for member in members for part in member.split(".")}
    folder = Path(package.__file__).parent / "modelled"
    for path in (*folder.rglob("*.py"), folder.parents[1] / "machine" / "device.py"):
        for member in re.findall(r'\.(?:number|put|at|text)\("([a-z_.]+)"', path.read_text()):
            assert set(member.split(".")) <= named, f"{path.name}: {member}"
