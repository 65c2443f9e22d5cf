# SPDX-License-Identifier: GPL-2.0-or-later
"""What modules register is recorded as long as it is registered, member by member.

That members lie where types say is held against the distribution's own modules:
their `alias=crypto-NAME` lines were written by the kernel's build, not by its structures.
"""

from __future__ import annotations

import re
import struct

import pytest

from emulator.faults import Fault, FaultKind
from kernels.modelled import structs
from kernels.modelled.structs import view
from kernels.registry import Record, Registry
from loader.elf import parse
from loader.files import read_module
from machine.face import Machine
from samples.modules import root


def test_members_are_read_and_written(arch):
    """A view reads integers by their sign, strings in place or behind a pointer."""
    machine = Machine(arch)
    at = machine.alloc(view(machine.kernel, "platform_device", 0).size)
    found = view(machine.kernel, "platform_device", at)
    found.put("name", machine.alloc(b"somewhere\0"))
    found.put("id", -1)
    found.put("dev.driver_data", -1)
    assert (found.text("name"), found.number("id")) == ("somewhere", -1)
    assert found.number("dev.driver_data") == 0xFFFF_FFFF_FFFF_FFFF
    disk = view(machine.kernel, "gendisk", machine.alloc(4096))
    machine.write(disk.at("disk_name"), b"here\0")
    assert disk.text("disk_name") == "here"


def test_a_structure_is_made_of_its_members(arch):
    """Members stand in the bytes of a structure where a view finds them; the others are zero."""
    machine = Machine(arch)
    made = structs.made(machine.kernel, "kparam_array", {"max": 7, "num": -1})
    found = view(machine.kernel, "kparam_array", machine.alloc(made))
    assert [found.number(m) for m in ("max", "elemsize", "num", "elem")] == [7, 0, 2**64 - 1, 0]


def test_names_are_given_once():
    """The members that are used of a structure stand in one place."""
    with pytest.raises(ValueError, match="struct device is named twice"):
        structs.struct("device", "parent")


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
    driver = bytearray(512)
    ids = struct.pack(
        "<IIIIIIQII", 0x10DE, 0xFFFF_FFFF, -1 % 2**32, -1 % 2**32, 3 << 16, 0xFF0000, 0, 0, 0
    )
    ids += struct.pack("<IIIIIIQII", 0x8086, 0x1234, 0, 0, 0, 0, 0, 0, 0) + bytes(40)
    pointers = {"name": machine.alloc(b"nv\0"), "id_table": machine.alloc(ids), "probe": 0x1000}
    for name, value in pointers.items():
        struct.pack_into("<Q", driver, machine.kernel.layouts.offset_of("pci_driver", name), value)
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
