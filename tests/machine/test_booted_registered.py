# SPDX-License-Identifier: GPL-2.0-or-later
"""What modules registered with booted kernels, how they taint them, and who holds them."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from archs import Arch
from emulator.faults import BadCall
from execmem.cli import main
from execmem.schema import complaints
from loader.errors import KernelRefused
from loader.files import ModuleFile
from machine.booted.machine import BootedMachine
from machine.booted.module import BootedModule
from machine.booted.registered import algorithms, devices, misc_devices, protocols
from tests.support import booted

KERNELS = booted.some()
SIGNED = b"~Module signature appended~\n"  # MODULE_SIG_STRING, include/linux/module_signature.h


@pytest.fixture(params=KERNELS, ids=[name for name, _, _ in KERNELS])
def kernel(request: pytest.FixtureRequest) -> tuple[str, Path, Arch]:
    """Return name, folder and architecture of each kernel that is at hand."""
    found: tuple[str, Path, Arch] = request.param
    return found


@pytest.fixture
def machine(kernel: tuple[str, Path, Arch]) -> Iterator[BootedMachine]:
    """Return each kernel that is at hand, booted, as it was at first."""
    _, folder, _ = kernel
    with booted.fresh(folder, booted.tree(folder)) as found:
        yield found


def file_of(machine: BootedMachine, name: str) -> Path:
    """Return a module's file, or skip."""
    tree = machine.tree
    if tree is None or name not in tree.files:
        pytest.skip(f"no {name} for {machine.kernel.release}")
    return tree.folder / tree.files[name]


def lines(machine: BootedMachine, path: str) -> list[str]:
    """Return the lines of a file of the guest."""
    with machine.open(path, 0) as file:
        return file.read_all().decode().splitlines()


def kinds(module: BootedModule) -> set[tuple[str, str]]:
    """Return kind and name of what a module registered."""
    return {(record.kind, record.name) for record in module.registered}


# What it registered ------------------------------------------------------------------------------


def test_what_modules_register(machine: BootedMachine) -> None:
    """Devices, majors, disks, file systems and classes: by names that stand in their sources."""
    for name in ("loop", "rfkill", "sunrpc"):
        file_of(machine, name)
    machine.note_registrations()
    # drivers/block/loop.c: misc_register(&loop_misc), __register_blkdev(LOOP_MAJOR, "loop", ...)
    loop = machine.load("loop")
    assert {("misc device", "loop-control"), ("block major", "loop")} <= kinds(loop)
    assert {("disk", f"loop{n}") for n in range(8)} <= kinds(loop)  # CONFIG_BLK_DEV_LOOP_MIN_COUNT
    (major,) = [r for r in loop.registered if r.kind == "block major"]
    assert major.fields["major"] == 7  # include/uapi/linux/major.h
    # net/rfkill/core.c: rfkill_class, rfkill_miscdev
    rfkill = machine.load("rfkill")
    assert {("class", "rfkill"), ("misc device", "rfkill")} <= kinds(rfkill)
    assert not kinds(rfkill) & kinds(loop)
    assert {record.owner for record in rfkill.registered} == {"rfkill"}
    # net/sunrpc/rpc_pipe.c: rpc_pipe_fs_type
    assert ("filesystem", "rpc_pipefs") in kinds(machine.load("sunrpc"))
    assert any(
        line.split() == ["nodev", "rpc_pipefs"] for line in lines(machine, "/proc/filesystems")
    )
    misc = {line.split()[1] for line in lines(machine, "/proc/misc")}
    assert {"loop-control", "rfkill"} <= misc
    assert not any(
        r.name == "loop-control" for r in machine.registered() if r.kind != "misc device"
    )


def test_algorithms_and_drivers_have_owners(machine: BootedMachine) -> None:
    """What the kernel's own lists say of owners: /proc/crypto, and drivers by their module."""
    file_of(machine, "md4")
    machine.note_registrations()
    md4 = machine.load("md4")
    assert kinds(md4) == {("shash", "md4")}
    (record,) = md4.registered
    assert record.fields["digestsize"] == 16
    assert record.fields["cra_blocksize"] == 64
    assert record.fields["cra_driver_name"] == "md4-generic"
    if machine.tree is not None and "button" in machine.tree.files:  # drivers/acpi/button.c
        (driver,) = [r for r in machine.load("button").registered if r.kind.endswith("driver")]
        assert (driver.kind, driver.name) in (
            ("acpi driver", "button"),
            ("platform driver", "acpi-button"),
        )
        with machine.open(f"/sys/bus/{driver.kind.split()[0]}/drivers", 0) as folder:
            assert driver.name in folder.names()
    machine.sleep(1)  # a thread may still test it, and holds it meanwhile
    md4.unload()
    assert not any(each.name == "md4" for each in machine.registered())


def test_a_load_has_what_was_registered_in_it(machine: BootedMachine) -> None:
    """What came before it, or in a load in the middle of it, is not its own."""
    for name in ("loop", "md4"):
        file_of(machine, name)
    machine.note_registrations()
    guest, at = machine.kernel.guest, machine.function("__register_chrdev")
    # Between two loads: a device, and a driver that is refused, since its bus is none.
    assert machine.call(at, 0, 0, 1, b"mine\0", bytes(512), returns="int") > 0
    if machine.layouts.has("device_driver", "p"):
        driver, bus, title = (guest.alloc(1024) for _ in range(3))
        machine.write(title, b"mine\0")
        machine.write(bus, bytes(1024))
        machine.write(driver, bytes(1024))
        for member, value in (("name", title), ("bus", bus), ("p", bus)):
            where = driver + machine.layouts.offset_of("device_driver", member)
            machine.write(where, value.to_bytes(8, "little"))
        assert machine.call(machine.function("driver_register"), driver, returns="int") < 0
    for _ in range(2):
        md4 = machine.load("md4")
        assert kinds(md4) == {("shash", "md4")}  # the second time, too
        machine.sleep(1)
        md4.unload()
    # drivers/block/loop.c: loop_init() has registered loop-control when it asks for its major
    with machine.probe("__register_blkdev", lambda _hit: machine.load("md4")):
        loop = machine.load("loop")
    assert kinds(machine.modules["md4"]) == {("shash", "md4")}
    assert {("misc device", "loop-control"), ("block major", "loop")} <= kinds(loop)
    assert ("shash", "md4") not in kinds(loop)
    assert not any(name == "mine" for module in (md4, loop) for _, name in kinds(module))


def test_nobody_looks_where_nobody_asked(machine: BootedMachine) -> None:
    """Without note_registrations() the kernel is asked for nothing, and that is said."""
    module = machine.load(
        file_of(machine, "crc16" if machine.tree and "crc16" in machine.tree.files else "md4")
    )
    assert module.report.registered is None
    with pytest.raises(BadCall, match=r"was not noted.*note_registrations\(\)"):
        _ = module.registered


def test_traces_do_not_see_it(machine: BootedMachine) -> None:
    """What is called to find it out is the machine's own, which traces do not show."""
    file_of(machine, "md4")
    machine.note_registrations()
    with machine.trace("ksys_read") as seen:
        machine.load("md4")
        machine.registered()
    assert not list(seen.walk())


def test_lists_are_read_as_they_are_written() -> None:
    """Lists of kernels, and what is none: lines that are damaged or empty are left out."""
    (found,) = algorithms(
        "name : x\ndriver: y\nmodule : kernel\ntype : compression\nselftest : passed\n\nfoo\n"
    )
    assert (found.kind, found.name, found.owner) == ("compress", "x", "")
    assert list(algorithms("")) == list(misc_devices("\n \n")) == list(protocols("")) == []
    text = "Character devices:\n  4 /dev/vc/0\n  4 tty\n\nBlock devices:\n259 blkext\n"
    assert [(r.kind, r.name, r.fields["major"]) for r in devices(text)] == [
        ("char device", "/dev/vc/0", 4),
        ("char device", "tty", 4),
        ("block major", "blkext", 259),
    ]
    table = "protocol  size sockets  memory press maxhdr  slab module     cl co\nRAW 1 0 -1 NI 0 yes raw_mod n n\nX\n"
    (row,) = protocols(table)
    assert (row.name, row.owner) == ("RAW", "raw_mod")


# Taints, and who holds it -----------------------------------------------------------------------


def unsigned(path: Path) -> bytes:
    """Return a module's bytes without its signature."""
    image = ModuleFile.read(path).image()
    assert image.endswith(SIGNED)
    size = struct.unpack(">I", image[-len(SIGNED) - 4 : -len(SIGNED)])[0]
    return image[: -len(SIGNED) - 12 - size]


def test_a_module_taints_its_kernel(machine: BootedMachine) -> None:
    """A module without its signature (E), and one of another tree (O): as the kernel says itself."""
    path = file_of(machine, "md4")
    assert machine.tainted == "Not tainted"
    assert machine.taints == ""
    image = unsigned(path)
    module = machine.load(ModuleFile("md4.ko", image))
    assert module.taints == machine.taints == "E"
    assert machine.tainted == "Tainted: G E"
    assert lines(machine, "/sys/module/md4/taint") == ["E"]
    assert any("module verification failed" in line.text for line in machine.log)
    machine.sleep(1)  # a thread may still test it, and holds it meanwhile
    module.unload()
    assert machine.taints == "E"  # once tainted, always
    module = machine.load(ModuleFile("md4.ko", image.replace(b"\0intree=Y\0", b"\0intref=Y\0")))
    assert module.taints == "OE"
    assert lines(machine, "/sys/module/md4/taint") == ["OE"]
    assert int(lines(machine, "/proc/sys/kernel/tainted")[0]) == 1 << 12 | 1 << 13
    assert module.taints == machine.taints_of("md4")


def test_who_uses_a_module_holds_it(machine: BootedMachine) -> None:
    """Dependencies as the kernel notes them, and delete_module() names who is in the way."""
    file_of(machine, "jbd2")
    file_of(machine, "mbcache")
    file_of(machine, "ext4")
    ext4 = machine.load("ext4")
    jbd2 = machine.modules["jbd2"]
    held = Path(machine.tree.folder) if machine.tree else None
    assert held is not None
    with machine.open("/proc/modules", 0) as file:
        rows = {line.split()[0]: line.split() for line in file.read_all().decode().splitlines()}
    assert rows["jbd2"][3].rstrip(",").split(",") == list(jbd2.users) == ["ext4"]
    assert {"jbd2", "mbcache"} <= set(ext4.depends)
    assert int(rows["jbd2"][2]) == jbd2.holding.references
    with pytest.raises(
        KernelRefused, match=r"jbd2: delete_module: -11 \(EAGAIN\), in use by ext4"
    ) as caught:
        jbd2.unload()
    assert (caught.value.errno, caught.value.name) == (11, "EAGAIN")
    ext4.unload()
    assert jbd2.users == ()
    jbd2.unload()
    with pytest.raises(KernelRefused, match=r"delete_module: -2 \(ENOENT\)"):
        machine.unload(jbd2)


# On the command line -----------------------------------------------------------------------------


def test_documents(
    kernel: tuple[str, Path, Arch], machine: BootedMachine, capfd: pytest.CaptureFixture[str]
) -> None:
    """Documents of what boots a kernel say it, and are as documented."""
    _, folder, _ = kernel
    path = file_of(machine, "md4")

    def run(*words: object) -> list[dict[str, object]]:
        with pytest.raises(SystemExit) as done:
            main([str(words[0]), "--kernel", str(folder), "--json", *map(str, words[1:])])
        out, err = capfd.readouterr()
        assert not done.value.code, err
        return (
            [json.loads(line) for line in out.splitlines()]
            if words[0] == "sweep"
            else [json.loads(out)]
        )

    (document,) = run("load", path)
    assert list(complaints("load --kernel", document)) == []
    (document,) = run("run", path)
    assert list(complaints("run --kernel", document)) == []
    assert [(r["kind"], r["name"]) for r in document["registered"]] == [("shash", "md4")]  # type: ignore[attr-defined] # it is a list
    assert document["tainted"] == "Not tainted"
    found = run("trace", "strlen", "--root", folder, "--", "strlen", "str:abc")
    assert list(complaints("trace", found[0])) == []
    found = run("probe", "strlen", "--root", folder, "--", "strlen", "str:abc")
    assert list(complaints("probe", found[0])) == []
    row, last = run("sweep", path, "--init", "--jobs", "1")
    assert list(complaints("sweep", row)) == []
    assert list(complaints("sweep, last line", last)) == []
    assert row["registered"] == [{"kind": "shash", "name": "md4"}]
