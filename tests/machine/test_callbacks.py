# SPDX-License-Identifier: GPL-2.0-or-later
"""Functions of Python that guest code calls: as arguments, as members, on both kinds of kernels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from emulator.faults import BadCall, Fault
from machine.booted.machine import BootedMachine
from machine.machine import ModelledMachine
from samples.modules import path
from tests.support import booted

KERNELS = booted.some()
VALUES = [(each * 37) % 101 - 50 for each in range(14)]


@pytest.fixture(params=KERNELS, ids=[name for name, _, _ in KERNELS])
def real(request: pytest.FixtureRequest) -> Iterator[BootedMachine]:
    """Return a booted kernel."""
    _, folder, _ = request.param
    with booted.fresh(Path(folder), booted.tree(Path(folder))) as machine:
        yield machine


def ints(machine: Any, values: list[int]) -> Any:
    """Return an array of the guest."""
    made = machine.new(f"int[{len(values)}]")
    for number, value in enumerate(values):
        made[number] = value
    return made


def number(machine: Any, pointer: Any) -> int:
    """Return the int that is at an address."""
    return int.from_bytes(machine.read(int(pointer), 4), "little", signed=True)


def test_the_kernel_sorts_by_a_function_of_python(real: BootedMachine) -> None:
    """Pointers come in, a signed number goes out; the order is Python's own of the same rule."""
    array, calls = ints(real, VALUES), []

    def compare(left: Any, right: Any) -> int:
        calls.append((left, right))
        one, other = number(real, left), number(real, right)
        return (abs(one), one) > (abs(other), other) or -1

    real.functions.sort(array, len(VALUES), 4, compare, None)
    assert list(array) == sorted(VALUES, key=lambda value: (abs(value), value))
    assert len(calls) >= len(VALUES)


def test_a_member_is_a_function_of_python(real: BootedMachine) -> None:
    """A chain of notifiers: who is told what, in the order of priorities, and what they answer."""
    functions, told = real.functions, []

    def first(block: Any, action: int, data: Any) -> int:
        told.append(("first", int(block), action, int(data)))
        return 0x8001  # NOTIFY_STOP_MASK | NOTIFY_OK

    def second(_block: Any, action: int, data: Any) -> int:
        told.append(("second", 0, action, int(data)))
        return 1

    head = real.new("struct raw_notifier_head")
    low = real.new("struct notifier_block", notifier_call=first, priority=1)
    high = real.new("struct notifier_block", notifier_call=second, priority=9)
    for block in (low, high):
        assert functions.raw_notifier_chain_register(head, block) == 0
    assert functions.raw_notifier_call_chain(head, 77, 0x1234) == 0x8001
    assert told == [("second", 0, 77, 0x1234), ("first", low.address_, 77, 0x1234)]
    old = int(low.notifier_call)
    real.free(low.address_)  # and what its member leads to
    with real.callback("notifier_fn_t", first) as again:
        assert again.address == old


def test_what_it_raises_comes_out(real: BootedMachine) -> None:
    """And the machine goes on; so does a call that the function makes."""

    class Stop(Exception):
        pass

    def bad(_left: Any, _right: Any) -> int:
        raise Stop

    array = ints(real, VALUES)
    with pytest.raises(Stop):
        real.functions.sort(array, len(VALUES), 4, bad, None)
    lengths = []

    def nested(left: Any, right: Any) -> int:
        lengths.append(real.functions.kstrtoint("12", 10, real.new("int")))
        one, other = number(real, left), number(real, right)
        return int(one > other) or -1

    real.functions.sort(array, 5, 4, nested, None)
    assert lengths
    assert set(lengths) == {0}


def test_going_back_to_before_there_was_a_place(real: BootedMachine) -> None:
    """Callbacks of what was not yet there are none any more, and new ones can be made."""
    before = real.snapshot()
    kept = real.callback("notifier_fn_t", lambda _b, _a, _d: 5)
    assert real.call(kept.address, 0, 0, 0) == 5
    real.restore(before)
    again = real.callback("notifier_fn_t", lambda _b, _a, _d: 6)
    assert real.call(again.address, 0, 0, 0) == 6
    with again:
        assert again.calls == 1
    with pytest.raises(BadCall, match="freed"):
        _ = again.address


def test_what_is_refused(real: BootedMachine) -> None:
    """Types that are no functions, functions that take something else, results that do not fit."""
    with pytest.raises(BadCall, match="no function"):
        real.callback("int", lambda: 0)
    with pytest.raises(BadCall, match="must take 3 arguments"):
        real.callback("notifier_fn_t", lambda: 0)
    with pytest.raises(BadCall, match="cannot be called"):
        real.callback("notifier_fn_t", 5)  # type: ignore[arg-type]  # that is what it refuses
    for answer, why in ((1 << 40, "does not fit int"), ("no", "returned str")):
        made = real.callback("notifier_fn_t", lambda _b, _a, _d, answer=answer: answer)
        with made, pytest.raises(BadCall, match=why):
            real.call(made.address, 0, 0, 0)
    with pytest.raises(BadCall, match="nor a pointer"):
        real.new("struct list_head", next=lambda: 0)


SAME = [(name, folder) for name, folder, _ in booted.releases() if name.startswith("6.12-")]


@pytest.mark.parametrize("folder", [f for _, f in SAME], ids=[name for name, _ in SAME])
def test_a_module_of_the_modelled_kernel_calls_python(folder: Path) -> None:
    """A table of functions in a module's data: its sort calls what the table leads to."""
    machine = ModelledMachine(kernel=folder, modelled=True, force=True)
    module = machine.load(path(machine.arch.name, "sorting"))
    calls: list[tuple[int, int]] = []

    def compare(left: Any, right: Any) -> int:
        one, other = number(machine, left), number(machine, right)
        calls.append((one, other))
        return (one > other) - (one < other)

    array = ints(machine, VALUES)
    with machine.callback("cmp_func_t", compare) as made:
        table = module.address_of("orders")
        machine.write(table, made.address.to_bytes(8, "little"))
        module.call("sorting_sort", array.address_, len(VALUES))
        assert made.calls == len(calls) > len(VALUES)
    assert list(array) == sorted(VALUES)
    with pytest.raises((Fault, BadCall), match="freed"):
        module.call("sorting_sort", array.address_, len(VALUES))
