# SPDX-License-Identifier: GPL-2.0-or-later
"""Types of booted kernels: structures set up, functions called and results read by names alone."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from emulator.faults import BadCall
from machine.arguments import Out
from machine.booted.machine import BootedMachine
from tests.support import booted

KERNELS = booted.releases()
PAGE = Path(__file__).parents[2] / "docs" / "howto" / "types.md"


@pytest.fixture(params=KERNELS, ids=[name for name, _, _ in KERNELS])
def machine(request: pytest.FixtureRequest) -> Iterator[BootedMachine]:
    """Return each kernel that is at hand, booted, as it was at first."""
    _, folder, _ = request.param
    found = booted.machine(folder, folder if list(folder.rglob("*.ko*")) else None)
    with found.fork():
        yield found


def test_a_parser_is_used_with_types_only(
    machine: BootedMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten lines, those of the page, on 6.1, 6.12 and 7.2: what the kernel's structures say of its text."""
    (script,) = re.findall(r"```text\n(table = .*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert len(script.splitlines()) == 10
    exec(script, {"machine": machine})
    assert capsys.readouterr().out == "1 0 4711 4\n"  # the token, no error, the number, its digits


def test_the_kernels_own_list_of_tasks(machine: BootedMachine) -> None:
    """From process 1 through its list: names and numbers, and the list closes."""
    tasks = machine.type("struct task_struct")["tasks"].offset
    task = machine.view("struct task_struct", machine.functions.find_task_by_vpid(1))
    assert task.pid == 1
    first, names = task.tasks.next, {}
    at = first
    while True:
        each = machine.view("struct task_struct", at - tasks)
        names[each.pid] = each.comm.string_
        assert each.tasks.next.prev == at
        at = each.tasks.next
        if at == first:
            break
    assert names[0].startswith("swapper")
    assert names[2] == "kthreadd"
    assert task.real_parent.pid == 0


def test_functions_have_prototypes(machine: BootedMachine) -> None:
    """Arguments by name and by place, results by type, mistakes by name."""
    crc = machine.functions.get("crc32_le")
    if crc is not None and crc.prototype is not None:
        data = b"the quick brown fox"
        expected = zlib.crc32(data)
        assert crc(0xFFFFFFFF, data, len(data)) ^ 0xFFFFFFFF == expected
        assert crc(crc=0xFFFFFFFF, p=data, len=len(data)) ^ 0xFFFFFFFF == expected
    strings = machine.functions["kstrtoint"]
    assert str(strings) == "int kstrtoint(const char *s, unsigned int base, int *res)"
    result = machine.new("int")
    assert strings("-42", 10, result) == 0
    assert result.value_ == -42
    assert strings("nonsense", 10, result) == -22
    out = Out(4)
    assert strings(s="7", base=10, res=out) == 0
    assert bytes(out) == (7).to_bytes(4, "little")
    with pytest.raises(BadCall, match="takes 3 arguments, not 1"):
        strings("1")
    with pytest.raises(BadCall, match="radix: no such parameter"):
        strings("1", radix=10, res=result)
    with pytest.raises(BadCall, match="base: 0x100000000 does not fit unsigned int"):
        strings("1", 1 << 32, result)
    with pytest.raises(BadCall, match="base is unsigned int, not a pointer"):
        strings("1", "10", result)


def test_a_structure_is_passed_as_a_dict(machine: BootedMachine) -> None:
    """What a pointer points at is made for the call, and read by the guest: CONFIG_HZ comes back."""
    jiffies = machine.functions["timespec64_to_jiffies"]
    one = jiffies({"tv_sec": 1, "tv_nsec": 0})
    assert one == int(machine.image.config["CONFIG_HZ"])
    assert jiffies(value={"tv_sec": 10, "tv_nsec": 0}) == 10 * one


def test_module_functions(machine: BootedMachine) -> None:
    """A module's functions have the prototypes of its own types, and call the guest."""
    tree = machine.tree
    if tree is None or "crc16" not in tree.files:
        pytest.skip(f"no crc16 for {machine.kernel.release}")
    functions = machine.load("crc16").functions
    if functions.crc16.prototype is None:
        pytest.skip("the module has no types")
    assert str(functions.crc16).split("(")[0].endswith("crc16")
    assert functions.crc16(0, b"123456789", 9) == 0xBB3D  # CRC-16/ARC's check value
    with pytest.raises(AttributeError):
        _ = functions.nothing
