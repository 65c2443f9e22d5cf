# SPDX-License-Identifier: GPL-2.0-or-later
"""What a machine can do means the same on the modelled and on a booted kernel: one protocol.

Loading, parameters, symbols, calls, devices, unloading, errors. Tracing and the like are in
`test_interposing.py`, algorithms in `test_crypto.py`. Needs EXECMEM_CORPUS and EXECMEM_KERNELS.
"""

from __future__ import annotations

import errno
import io
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

from archs import Arch
from emulator.faults import BadCall
from kernels.errors import ErrnoError
from loader.errors import LoadError
from loader.files import read_module
from loader.loaded import State
from machine.arguments import Out
from machine.face import Machine
from tests.conftest import folders, of_arch
from tests.support import booted

RELEASE = "6.12"  # of the corpus
SHF_ALLOC = 2
LOOP_CTL_ADD, LOOP_CTL_REMOVE, LOOP_CTL_GET_FREE = 0x4C80, 0x4C81, 0x4C82


@pytest.fixture(params=["modelled", "booted"])
def kind(request: pytest.FixtureRequest) -> str:
    """Return which kernel answers."""
    found: str = request.param
    return found


@pytest.fixture
def machine(kind: str, arch: Arch) -> Iterator[Any]:
    """Return a machine of each kind, under the modules of the corpus."""
    root = of_arch(folders("EXECMEM_CORPUS", "distribution modules"), arch)
    if kind == "modelled":
        yield Machine(arch, root=root)
        return
    found = [f for name, f, a in booted.releases() if a is arch and name.startswith(f"{RELEASE}-")]
    if not found:
        pytest.skip(f"no {RELEASE} of {arch.name} among {os.environ.get('EXECMEM_KERNELS')}")
    with booted.fresh(Path(found[0]), root) as machine:
        yield machine


def file_of(machine: Any, name: str) -> ELFFile:
    """Return a module's file, as pyelftools reads it."""
    return ELFFile(io.BytesIO(read_module(machine.tree.folder / machine.tree.files[name])))


def refused(number: int, call: Any, *args: object) -> None:
    """Expect an errno."""
    with pytest.raises(ErrnoError) as caught:
        call(*args)
    assert caught.value.error == number


def test_dependencies_come_first(machine: Any) -> None:
    """A module comes after those that modules.dep lists, each once, and all are live."""
    listing = (machine.tree.folder / "modules.dep").read_text()
    (line,) = [line for line in listing.splitlines() if "/ext4.ko" in line.partition(":")[0]]
    needed = {
        Path(word).name.partition(".")[0].replace("-", "_") for word in line.split(":")[1].split()
    }
    assert needed
    module = machine.load("ext4")
    assert list(machine.modules)[-1] == module.name == "ext4"
    assert {"ext4", *needed} <= set(machine.modules)  # and what they wish for (softdep)
    assert {each.state for each in machine.modules.values()} == {State.LIVE}
    assert {each.taints for each in machine.modules.values()} == {""}


def test_symbols_and_sections_lie_where_the_file_says(machine: Any) -> None:
    """Symbols are in their sections at their values, sections in regions, which do not overlap."""
    module, file = machine.load("jbd2"), file_of(machine, "jbd2")
    there = {
        index: section.name
        for index, section in enumerate(file.iter_sections())
        if section["sh_flags"] & SHF_ALLOC and section["sh_size"]
    }
    kept = {index: s.name for index, s in module.sections.items() if s.size}
    assert kept.items() <= there.items()
    assert {".text", ".data", ".rodata"} <= set(kept.values())
    table, seen = file.get_section_by_name(".symtab"), 0
    for symbol in table.iter_symbols():
        index = symbol["st_shndx"]
        info = symbol["st_info"]
        if (info["type"], info["bind"]) == ("STT_FUNC", "STB_GLOBAL") and index in module.sections:
            expected = module.sections[index].address + symbol["st_value"]
            assert module.symbols[symbol.name] == expected
            seen += 1
    assert seen > 50
    spans = sorted((r.address, r.address + r.size) for r in module.report.regions.values())
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    for section in module.sections.values():
        if section.type is not None and section.size:
            region = module.report.regions[section.type]
            assert region.address <= section.address
            assert section.address + section.size <= region.address + region.size
    assert not any(kind.is_init for kind in module.regions)  # freed after init
    with pytest.raises(BadCall, match="init memory"):
        module.address_of("init_module")


def test_parameters(machine: Any) -> None:
    """A parameter is in its variable; a bad value is refused, and the module with it."""
    with pytest.raises(LoadError, match=r"22|invalid|EINVAL"):
        machine.load("rfkill", default_state="many")
    assert "rfkill" not in machine.modules
    module = machine.load("rfkill", default_state=0, master_switch_mode=2)
    for variable, value in (("rfkill_default_state", 0), ("rfkill_master_switch_mode", 2)):
        data = machine.read(module.address_of(variable), 4)
        assert int.from_bytes(data, "little") == value


def test_calls(machine: Any) -> None:
    """Numbers, bytes and buffers go in, a typed result comes out; what cannot be passed is refused."""
    module = machine.load("crc16")
    assert module.call("crc16", 0, b"123456789", 9) == 0xBB3D  # CRC-16/ARC, check value
    assert module.call("crc16", 0, "123456789", 9, returns="u16") == 0xBB3D
    at = machine.alloc(b"123456789")
    assert machine.call(module.address_of("crc16"), 0, at, 9) == 0xBB3D
    machine.write(at, b"A")
    assert machine.read(at, 2) == b"A2"
    machine.free(at)
    with pytest.raises(BadCall, match=r"no such symbol.*did you mean crc16"):
        module.call("crc61")
    with pytest.raises(BadCall, match="not a function"):
        module.call("crc16_table")
    with pytest.raises(BadCall, match="64 bits"):
        module.call("crc16", 1 << 64)
    with pytest.raises(BadCall):
        module.call("crc16", 0, b"", 0, returns="struct nothing")
    arc4 = machine.load("libarc4")
    context, out = machine.alloc(2048), Out(8)
    assert arc4.call("arc4_setkey", context, b"Key", 3, returns="int") == 0
    arc4.call("arc4_crypt", context, out, b"Plaintex", 8)
    assert bytes(out).hex() == "bbf316e8d940af0a"  # published with the algorithm


def test_names_of_places(machine: Any) -> None:
    """An address in a module is named as the kernel prints it, and disassembles."""
    module, file = machine.load("crc16"), file_of(machine, "crc16")
    (symbol,) = file.get_section_by_name(".symtab").get_symbol_by_name("crc16")
    at = module.address_of("crc16")
    assert machine.symbolize(at + 4) == f"crc16+0x4/{symbol['st_size']:#x} [crc16]"
    assert machine.disassemble(at)


def test_a_device_by_its_node(machine: Any) -> None:
    """ioctl() of loop-control and rfkill: results and errnos are the drivers' own."""
    machine.load("loop")
    with machine.device("loop-control") as control:
        first = control.ioctl(LOOP_CTL_GET_FREE)
        assert first >= 0
        assert control.ioctl(LOOP_CTL_ADD, first + 40) == first + 40
        refused(errno.EEXIST, control.ioctl, LOOP_CTL_ADD, first + 40)
        refused(errno.ENODEV, control.ioctl, LOOP_CTL_REMOVE, first + 41)
        refused(errno.EINVAL, control.read, 1)
    machine.load("rfkill")
    with machine.device("rfkill") as rfkill:
        command = 1 << 30 | 4 << 16 | ord("R") << 8 | 2  # RFKILL_IOCTL_MAX_SIZE
        assert rfkill.ioctl(command, (9).to_bytes(4, "little")) == 0
        refused(errno.EINVAL, rfkill.ioctl, command, (3).to_bytes(4, "little"))
        refused(errno.EFAULT, rfkill.ioctl, command, 0x123)
        refused(errno.ENOTTY, rfkill.ioctl, command + 40, 0)
        with machine.user((9).to_bytes(4, "little")) as address:
            assert rfkill.ioctl(command, address) == 0
    with pytest.raises(ErrnoError, match="nobody"):
        machine.device("nobody").open()


def test_unloading(machine: Any) -> None:
    """What another module uses stays, and says by whom; what is gone cannot be called."""
    machine.load("lz4")
    library = machine.modules["lz4_compress"]
    with pytest.raises(LoadError, match="in use by lz4"):
        library.unload()
    machine.sleep(1)  # a real kernel tests the algorithms in a thread, which holds the module
    machine.modules["lz4"].unload()
    library.unload()
    assert set(machine.modules) == set()
    assert library.state is State.UNLOADED
    with pytest.raises(BadCall, match="lz4_compress is unloaded"):
        library.call("LZ4_compress_default")
    assert machine.load("lz4_compress") is not library


def test_what_cannot_be_loaded(machine: Any, arch: Arch, tmp_path: Path) -> None:
    """Refused, by name, and nothing is left: no such module, no module at all, a truncated one."""
    with pytest.raises(LoadError, match="nobody_has_this"):
        machine.load("nobody_has_this")
    with pytest.raises(LoadError):
        machine.load(b"\x7fELF" + bytes(100))
    whole = read_module(machine.tree.folder / machine.tree.files["crc16"])
    broken = tmp_path / "crc16.ko"
    broken.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LoadError, match=r"crc16"):
        machine.load(broken)
    assert not machine.modules
    assert machine.load("crc16").report.arch == arch.name


def test_the_same_is_registered(machine: Any, kind: str) -> None:
    """Kinds and names of what modules register are the same words."""
    if kind == "booted":
        machine.note_registrations()
    found = {}
    for name in ("md4", "loop", "blake2b_generic", "ext4"):
        module = machine.load(name)
        records = module.registered if kind == "booted" else machine.registry.find(owner=name)
        found[name] = {(record.kind, record.name) for record in records}
    assert found["md4"] == {("shash", "md4")}
    assert found["blake2b_generic"] == {("shash", f"blake2b-{n}") for n in (160, 256, 384, 512)}
    loop = {("misc device", "loop-control"), ("block major", "loop")}
    assert loop | {("disk", f"loop{n}") for n in range(8)} <= found["loop"]
    assert {("filesystem", f"ext{n}") for n in (2, 3, 4)} <= found["ext4"]
