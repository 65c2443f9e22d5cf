# SPDX-License-Identifier: GPL-2.0-or-later
"""What modules register is recorded as long as it is registered, member by member.

That members lie where the declarations say is held against the distribution's own modules:
their `alias=crypto-NAME` lines were written by the kernel's build, not by its structures.
"""

from __future__ import annotations

import re
import struct

import pytest

from emulator.faults import Fault, FaultKind
from kernels.modelled.structs import layout, packed, view
from kernels.modelled.structs import struct as declare
from kernels.registry import Record, Registry
from loader.elf import parse
from loader.files import read_module
from machine.machine import Machine
from samples.modules import root

declare("test_inner", "a:u8 b:u32")
declare("test_part", "a:u8 @24 b.c:u32 ...")
declare("test_whole", "a:u8 @24 b.c:u32 @36 @40")
declare("test_around", "y:u8 part:test_part z:u8")
declare("test_outer", "x:u8 inner:test_inner y:u16 s:str name:char[5] z:u64")


def test_members_lie_by_the_rules_of_c():
    """Each member is aligned to its own size, a structure to its strictest member."""
    found = layout("test_outer")
    # As Python's struct module lays out with native alignment.
    assert [found.members[m].offset for m in ("inner", "y", "s", "name", "z")] == [
        4,
        12,
        16,
        24,
        32,
    ]
    assert found.members["inner.b"].offset == 8
    assert found.size == struct.calcsize("@B3xBxxxIHP5sQ")
    with pytest.raises(ValueError, match="declared twice"):
        declare("test_inner", "a:u8")


def test_members_that_are_left_out_keep_the_places_of_others(arch):
    """@N places what follows, `...` leaves the size open, which the architecture may know."""
    found = layout("test_part")
    assert {name: member.offset for name, member in found.members.items()} == {"a": 0, "b.c": 24}
    assert found.end is None
    with pytest.raises(ValueError, match="test_part is declared in part"):
        assert found.size
    assert layout("test_whole").size == 40
    assert layout("test_part", (("test_part", 56),)).size == 56
    assert layout("test_around", (("test_part", 56),)).members["z"].offset == 60
    sizes = dict(arch.loads.structure_sizes)
    device = layout("platform_device", arch.loads.structure_sizes).members["dev"]
    assert device.size == sizes["device"]
    assert packed("test_whole").unpack(struct.pack("<B23xI12x", 7, 9)) == (7, 9)


def test_members_are_read_and_written(arch):
    """A view reads integers by their sign, strings in place or behind a pointer."""
    machine = Machine(arch)
    at = machine.alloc(64)
    name = machine.alloc(b"somewhere\0")
    found = view(machine.kernel, "test_outer", at)
    found.put("s", name)
    machine.write(found.at("name"), b"here\0")
    found.put("z", -1)
    assert (found.text("s"), found.text("name")) == ("somewhere", "here")
    assert found.number("z") == 0xFFFF_FFFF_FFFF_FFFF


def record(kind, name, address, owner):
    """Return a record without more."""
    return Record(kind=kind, name=name, address=address, owner=owner)


def test_records_come_and_go():
    """A structure may be registered twice; a mark brings everything back; owners are forgotten."""
    registry = Registry()
    registry.add(record("shash", "md4", 1, "md4"))
    registry.add(record("class", "a", 1, "x"))
    mark = registry.mark()
    registry.add(record("shash", "md4", 1, "other"))
    registry.add(record("class", "b", 2, "x"))
    assert [r.name for r in registry.find("class")] == ["a", "b"]
    assert registry.at("shash", 1).owner == "other"
    assert [r.name for r in registry.forget("x")] == ["a", "b"]
    assert registry.remove("shash", 1).owner == "other"
    assert registry.remove("shash", 7) is None
    assert [(r.kind, r.owner) for r in registry] == [("shash", "md4")]
    assert len(registry) == 1
    registry.roll_back(mark)
    assert len(registry) == 2
    assert [(r.kind, r.owner) for r in registry] == [("shash", "md4"), ("class", "x")]


def call(machine, name, *args):
    """Call a kernel function."""
    return machine.call(machine.kernel.address(name), *args)


def test_a_driver_is_recorded_with_its_ids(arch):
    """A PCI driver's record has its name, the ids it matches and its callbacks, until it goes."""
    machine = Machine(arch)
    fields = layout("pci_driver").members
    driver = bytearray(512)
    ids = struct.pack(
        "<IIIIIIQII", 0x10DE, 0xFFFF_FFFF, -1 % 2**32, -1 % 2**32, 3 << 16, 0xFF0000, 0, 0, 0
    )
    ids += struct.pack("<IIIIIIQII", 0x8086, 0x1234, 0, 0, 0, 0, 0, 0, 0) + bytes(40)
    pointers = {"name": machine.alloc(b"nv\0"), "id_table": machine.alloc(ids), "probe": 0x1000}
    for name, value in pointers.items():
        struct.pack_into("<Q", driver, fields[name].offset, value)
    at = machine.alloc(bytes(driver))
    assert call(machine, "__pci_register_driver", at, 0) == 0
    (found,) = machine.registry.find("pci driver")
    assert (found.name, found.address) == ("nv", at)
    assert found.fields["ids"] == ("10de:* class 030000/ff0000", "8086:1234")
    assert found.callbacks == {"probe": 0x1000}
    call(machine, "pci_unregister_driver", at)
    assert not list(machine.registry)


def test_arguments_come_where_the_kernels_prototypes_have_them(arch):
    """Tables with a name of their own, and notifiers of a name space, are recorded as they are."""
    machine = Machine(arch)
    name, block = machine.alloc(b"noise\0"), machine.alloc(struct.pack("<QQi4x", 0x1000, 0, 7))
    table = machine.alloc(struct.pack("<QQiHxxQQQQ", name, 0, 4, 0o644, 0, 0, 0, 0))
    call(machine, "__register_sysctl_init", machine.alloc(b"kernel\0"), table, name, 1)
    (found,) = machine.registry.find("sysctl")
    assert (found.name, found.fields["names"]) == ("kernel", ("noise",))
    net = machine.kernel.address("init_net")
    assert call(machine, "register_fib_notifier", net, block, 0, 0) == 0
    (found,) = machine.registry.find("fib notifier")
    assert (found.address, found.fields, found.callbacks) == (
        block,
        {"priority": 7},
        {"notifier_call": 0x1000},
    )
    assert call(machine, "unregister_fib_notifier", net, block) == 0
    assert not list(machine.registry.find("fib notifier"))


def test_a_packet_type_is_recorded_with_its_function(arch):
    """What is called for a packet is the pointer at byte 16 of struct packet_type."""
    machine = Machine(arch)
    packet = machine.alloc(
        struct.pack(">H", 0x88CC) + bytes(14) + struct.pack("<Q", 0x1000) + bytes(48)
    )
    call(machine, "dev_add_pack", packet)
    (found,) = machine.registry.find("packet type")
    assert (found.name, found.callbacks) == ("0x88cc", {"func": 0x1000})


def test_dynamic_numbers_differ(arch):
    """Character devices without a major number get one each, and give it back."""
    machine = Machine(arch)
    dev, name = machine.alloc(8), machine.alloc(b"lirc\0")
    numbers = []
    for _ in range(2):
        assert call(machine, "alloc_chrdev_region", dev, 0, 4, name) == 0
        numbers.append(machine.kernel.word(dev, 4) >> 20)
    assert len(set(numbers)) == 2
    assert [r.fields["major"] for r in machine.registry.find("char device")] == numbers
    call(machine, "unregister_chrdev_region", numbers[0] << 20, 4)
    assert [r.fields["major"] for r in machine.registry] == numbers[1:]
    assert machine.read(name, 4) == b"lirc"


def test_a_failed_load_registers_nothing(arch):
    """What an init registered before it failed is not registered afterwards."""
    machine = Machine(arch, root=root(arch.name))

    def register():
        machine.kernel.register("class", 0x1234, "left behind")
        raise Fault(FaultKind.PANIC, 0, "here")

    machine.stub("_printk", register)
    with pytest.raises(Fault):
        machine.load("hello")
    assert not len(machine.registry)


def test_what_a_module_leaves_goes_with_it(arch):
    """A record whose owner is unloaded is taken out."""
    machine = Machine(arch, root=root(arch.name))
    module = machine.load("hello")
    machine.kernel.register("class", module.symbols["hello_greet"])
    (found,) = machine.registry
    assert found.owner == "hello"
    assert found.name == "hello_greet"
    module.unload()
    assert not len(machine.registry)


def test_the_distribution_algorithms_are_what_their_aliases_say(arch, corpus):
    """Algorithms have the names that the module's aliases announce, and callbacks inside it."""
    kinds = set()
    for path in sorted(corpus.glob("lib/modules/*/kernel/crypto/*.ko*")):
        aliases = {
            text.removeprefix("crypto-") for text in parse(read_module(path), path.name).aliases
        }
        machine = Machine(arch, root=corpus)
        module = machine.load(path)
        found = [r for r in machine.registry.find(owner=module.name) if r.kind in KINDS]
        assert not found or aliases & {entry.name for entry in found}, path.name
        for entry in found:
            names = entry.name, entry.fields["cra_driver_name"]
            assert all(re.fullmatch(r"[a-z0-9_()-]+", name) for name in names), path.name
            inside = {module.loaded.region_at(a) is not None for a in entry.callbacks.values()}
            assert inside == {True}
            kinds.add(entry.kind)
    assert {"shash", "aead", "rng", "scomp", "compress"} <= kinds


KINDS = frozenset("shash ahash skcipher aead rng scomp compress cipher".split())
