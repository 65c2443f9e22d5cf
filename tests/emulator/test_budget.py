# SPDX-License-Identifier: GPL-2.0-or-later
"""A call from outside has one budget: whatever it brings takes from it, and ends with it."""

from __future__ import annotations

import struct

import pytest

from emulator.budget import Budget, Limits
from emulator.cpu import TICK
from emulator.faults import Fault, FaultKind
from machine.face import Machine
from tests.archs.facts import facts, needs
from tests.machine.snippets import snippet
from tests.support.modules import module

LIMIT = 100_000


@pytest.fixture
def machine(arch):
    """Return a machine of each architecture."""
    return Machine(arch)


def kernel(machine, name, *args, **limits):
    """Call a kernel function."""
    return machine.call(machine.kernel.address(name), *args, **limits)


def stopped(action, kind=FaultKind.INSTRUCTION_LIMIT):
    """Return the fault of a limit that an action ends in, which says how to raise it."""
    with pytest.raises(Fault) as caught:
        action()
    assert caught.value.kind is kind
    option = "--instructions" if kind is FaultKind.INSTRUCTION_LIMIT else "--seconds"
    assert option in caught.value.hint
    assert str(caught.value).endswith(f"hint: {caught.value.hint}")
    return caught.value


@pytest.fixture
def executed(machine):
    """Return a list that gets the address of each instruction that a guest executes."""
    found = []
    machine.cpu.each_instruction(found.append)
    return found


# A budget ----------------------------------------------------------------------------------------


def test_a_part_has_no_more_than_the_whole():
    """The tighter limit counts, and what a part takes the whole has paid."""
    whole = Budget.of(100, 10.0)
    part = whole.part(1000, 5.0)
    assert (part.left, part.instructions, part.seconds) == (100, 100, 5.0)
    part.take(30)
    small = whole.part(10, None)
    small.take(10)
    assert (small.left, small.instructions, small.seconds) == (0, 10, 10.0)
    assert whole.left == 60
    assert whole.part(None, 20.0).deadline == whole.deadline


def test_limits_of_a_call_from_outside_are_given_once():
    """Inside of a budget the defaults are what that one has left."""
    limits = Limits(instructions=50, seconds=None)
    with limits.whole() as outer:
        outer.take(20)
        with limits.whole() as inner:
            assert inner.left == 30
        with limits.whole(10) as inner:
            assert inner.left == 10
        with limits.apart(5.0) as _:
            assert limits.budget.left is None
    assert limits.budget.left is None
    assert limits.depth == 0


# What takes from it --------------------------------------------------------------------------------


@pytest.mark.parametrize("spins", ["init", "exit"])
def test_init_and_exit(machine, spins, executed):
    """An init or an exit that never returns ends at the machine's limit; the module is gone."""
    machine.instructions = LIMIT
    image = module(machine.arch.machine, spins=spins, undefined=())
    if spins == "init":
        stopped(lambda: machine.load(image))
    else:
        loaded = machine.load(image)
        executed.clear()
        stopped(loaded.unload)
    assert len(executed) <= LIMIT
    assert not machine.modules
    machine.check()


def test_timers_together(machine, executed):
    """Timers that spin have what the call that lets them expire has left, all together."""
    spin, jiffies = snippet(machine, "spin"), machine.kernel.word(machine.kernel.address("jiffies"))
    for _ in range(50):
        timer = machine.alloc(64)
        kernel(machine, "init_timer_key", timer, spin, 0, 0, 0)
        kernel(machine, "mod_timer", timer, jiffies + 1)
    machine.instructions = LIMIT
    executed.clear()
    stopped(lambda: machine.sleep(1.0))
    assert len(executed) <= LIMIT
    assert machine.kernel.oopses == []


def test_deferred_work_of_a_call(machine, executed):
    """A limit that work runs into is the call's Fault, no oops, and nothing runs on after it."""
    ran = []
    machine.kernel.supply("note", ran.append, "void note(void *work)")
    queue, note = machine.kernel.address("system_wq"), machine.kernel.address("note")

    def begin():
        for func in (snippet(machine, "spin"), note):
            work = machine.alloc(32)
            machine.write(work, struct.pack("<QQQQ", 0, work + 8, work + 8, func))
            kernel(machine, "queue_work_on", 0, machine.kernel.word(queue), work)

    machine.stub("begin", begin)
    stopped(lambda: kernel(machine, "begin", instructions=LIMIT))
    assert len(executed) <= LIMIT
    assert (machine.kernel.oopses, ran) == ([], [])
    machine.idle()  # the next call from outside, with a budget of its own
    assert len(ran) == 1
    machine.idle()
    assert len(ran) == 1


def test_a_kernel_thread(machine, executed):
    """A thread that never waits ends with the call that let it run; it does not run again."""
    name = machine.alloc(b"spinner\0")
    task = kernel(machine, "kthread_create_on_node", snippet(machine, "spin"), 0, 0, name)
    executed.clear()
    machine.instructions = LIMIT
    stopped(lambda: kernel(machine, "wake_up_process", task))
    assert len(executed) <= LIMIT
    executed.clear()
    machine.idle()
    assert executed == []


def test_an_rcu_callback(machine, executed):
    """What was given to call_rcu takes from the budget of who waits for it."""
    head = machine.alloc(16)
    machine.instructions = LIMIT
    stopped(lambda: kernel(machine, "call_rcu", head, snippet(machine, "spin")))
    assert len(executed) <= LIMIT


def test_nested_calls_pay_from_the_same(machine, executed):
    """Callbacks that each take nearly all there is do not multiply it."""
    count, counter = snippet(machine, "count"), machine.alloc(8)
    calls = []

    def again():
        calls.append(1)
        with pytest.raises(Fault):
            machine.call(count, counter, instructions=LIMIT // 10)
        return 0

    machine.stub("again", again)
    loop = snippet(machine, "loop")
    stopped(lambda: machine.call(loop, machine.kernel.address("again"), instructions=LIMIT))
    assert len(executed) <= LIMIT
    assert len(calls) == 10


def test_the_kernels_own_work_counts(machine):
    """A list that leads to itself ends where only instructions are limited, too."""
    head, node = machine.alloc(16), machine.alloc(16)
    machine.write(head, struct.pack("<QQ", node, node))
    machine.write(node, struct.pack("<QQ", node, node))
    machine.kernel.supply("walk", lambda: _walk(machine.kernel, head))
    fault = stopped(lambda: kernel(machine, "walk", instructions=1000, seconds=None))
    assert fault.reason == "1000 instructions, in walk()"


def _walk(k, head):
    from kernels.modelled.api.common import nodes

    return sum(1 for _ in nodes(k, head))


def test_several_calls_can_have_one_budget(machine, executed):
    """What a `with` block calls takes from one budget, as one call would."""
    spin = snippet(machine, "spin")
    with machine.budget(instructions=LIMIT) as budget:
        for _ in range(3):
            stopped(lambda: machine.call(spin, instructions=LIMIT // 2))
        assert budget.left == 0
    assert len(executed) == LIMIT
    assert machine.call(snippet(machine, "one"), instructions=10) == 1


def test_time_is_one_budget_too(machine):
    """When time is over nothing is begun: three nested spins have the time of one."""
    spin = snippet(machine, "spin")
    with machine.budget(seconds=0.2) as budget:
        stopped(lambda: machine.call(spin), FaultKind.TIME_LIMIT)
        assert budget.late
        one = snippet(machine, "one")
        executed = []
        machine.cpu.each_instruction(executed.append)
        stopped(lambda: machine.call(one), FaultKind.TIME_LIMIT)
        assert executed == []


def test_a_thread_by_steps(arch):
    """Each step of a call on another CPU is a call from outside, with the machine's time."""
    machine = Machine(arch, cpus=2)
    machine.seconds = 0.1
    thread = machine.start(snippet(machine, "spin"), cpu=1)
    assert not thread.step(1000)
    stopped(lambda: thread.step(1 << 40), FaultKind.TIME_LIMIT)
    assert thread.done


def test_counting_goes_on_across_ticks(machine):
    """Each instruction is paid once, however often the CPU is interrupted."""
    counter, code = machine.alloc(8), snippet(machine, "count")
    with pytest.raises(Fault):
        machine.call(code, counter, instructions=3 * TICK + 1)
    per_round = facts(machine.arch).run.rounds
    assert machine.kernel.word(counter) in (
        (3 * TICK) // per_round,
        (3 * TICK) // per_round + 1,
    )


def test_what_the_kernel_stores_for_itself_is_not_the_guests(machine):
    """Text is patched whole though the budget is spent: nothing is left half done."""
    needs(machine.arch, "patch")
    spin = snippet(machine, "spin")
    with machine.budget(instructions=100):
        stopped(lambda: machine.call(spin))
        machine.poke(spin, facts(machine.arch).link.spin)
    assert machine.read(spin, 2) == facts(machine.arch).link.spin[:2]
