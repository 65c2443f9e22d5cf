# SPDX-License-Identifier: GPL-2.0-or-later
"""What was put off runs in order, where somebody waits or nobody calls; waiting for nothing ends."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import archs
import samples.modules
from allocator import ExecmemError
from emulator.faults import Fault, FaultKind
from kernels.modelled.structs import view
from loader.errors import InitFailed
from machine.face import Machine

EACH = pytest.mark.parametrize("arch", archs.ALL, ids=lambda arch: arch.name)
JIFFY = 0.004
WORK, TIMER, DELAYED, WAIT = 32, 40, 88, 40


def _root(arch):
    try:
        return samples.modules.root(arch.name)
    except ExecmemError as error:
        pytest.skip(str(error))


@pytest.fixture
def machine(arch):
    """Return a machine of each architecture that finds the sample modules."""
    return Machine(arch, root=_root(arch))


class Bench:
    """A machine with a guest function that notes its argument, and makers of what calls it."""

    def __init__(self, arch):
        self.machine = Machine(arch)
        self.kernel = self.machine.kernel
        self.ran = []
        self.note = self.callback("bench_note", self.ran.append, "void bench_note(void *what)")
        self.queue = self.kernel.word(self.kernel.address("system_wq"))

    def __call__(self, name, *args):
        """Call a kernel function through the CPU."""
        return self.machine.call(self.kernel.address(name), *args, returns="int")

    def callback(self, name, function, prototype):
        """Return the address of a guest function that Python implements."""
        self.kernel.supply(name, function, prototype)
        return self.kernel.address(name)

    def work(self, func=None):
        """Return an initialised work_struct."""
        at = self.machine.alloc(WORK)
        self.machine.write(at, struct.pack("<QQQQ", 0, at + 8, at + 8, func or self.note))
        return at

    def delayed(self):
        """Return an initialised delayed_work."""
        at = self.machine.alloc(DELAYED)
        self.machine.write(at, struct.pack("<QQQQ", 0, at + 8, at + 8, self.note))
        fire = self.kernel.address("delayed_work_timer_fn")
        self("init_timer_key", at + WORK, fire, 0, 0, 0)
        return at

    def timer(self):
        """Return an initialised timer_list."""
        at = self.machine.alloc(TIMER)
        self("init_timer_key", at, self.note, 0, 0, 0)
        return at

    @property
    def jiffies(self):
        """Return what a module reads as jiffies."""
        return self.kernel.word(self.kernel.address("jiffies"))


@pytest.fixture
def bench(arch):
    """Return a fresh bench of each architecture."""
    return Bench(arch)


# Timers ----------------------------------------------------------------------------------------


@EACH
@settings(max_examples=15, deadline=None)
@given(delays=st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_timers_run_in_the_order_of_their_time(arch, delays):
    """Each runs once its jiffy has come, equal ones in the order of being set, none before."""
    b = Bench(arch)
    timers = [b.timer() for _ in delays]
    start = b.jiffies
    for timer, delay in zip(timers, delays, strict=True):
        assert b("mod_timer", timer, start + delay) == 0
    b.machine.sleep(max(delays) // 2 * JIFFY)
    limit = b.jiffies - start
    expected = [t for d, t in sorted(zip(delays, timers, strict=True), key=lambda x: x[0])]
    soon = [t for t in expected if delays[timers.index(t)] <= limit]
    assert b.ran == soon
    b.machine.sleep(41 * JIFFY)
    assert b.ran == expected


def test_a_timer_is_pending_until_it_runs_or_is_deleted(bench):
    """mod_timer and timer_delete tell whether it was; a timer that was shut down stays down."""
    timer = bench.timer()
    pending = lambda: view(bench.kernel, "timer_list", timer).number("entry.pprev") != 0  # noqa: E731 - timer_pending()
    assert bench("mod_timer", timer, bench.jiffies + 5) == 0
    assert pending()
    assert bench("mod_timer", timer, bench.jiffies + 9) == 1
    assert bench("timer_delete", timer) == 1
    assert bench("timer_delete_sync", timer) == 0
    assert not pending()
    bench.machine.sleep(20 * JIFFY)
    assert bench.ran == []
    bench("mod_timer", timer, bench.jiffies + 2)
    bench.machine.sleep(3 * JIFFY)
    assert bench.ran == [timer]
    assert not pending()
    bench("timer_shutdown_sync", timer)
    assert bench("mod_timer", timer, bench.jiffies) == 0
    bench.machine.sleep(JIFFY)
    assert bench.ran == [timer]


def test_an_hrtimer_that_restarts_itself_is_periodic(bench):
    """HRTIMER_RESTART runs it again at its new time; hrtimer_forward counts what was missed."""
    times = []
    period = 3_000_000

    def fire(timer):
        times.append(view(bench.kernel, "hrtimer", timer).number("node.expires"))
        assert bench("hrtimer_forward", timer, times[-1] + period, period) == 2
        return int(len(times) < 4)

    func = bench.callback("bench_hrtimer", fire, "int bench_hrtimer(struct hrtimer *t)")
    timer = bench.machine.alloc(64)
    bench("hrtimer_init", timer, 1, 1)
    view(bench.kernel, "hrtimer", timer).put("function", func)
    bench("hrtimer_start_range_ns", timer, period, 0, 1)
    assert bench("hrtimer_active", timer) == 1
    bench.machine.sleep(0.1)
    first = times[0]
    assert times == [first + n * 2 * period for n in range(4)]
    assert bench("hrtimer_active", timer) == 0


def test_rounded_jiffies_are_whole_seconds(bench):
    """round_jiffies rounds to HZ, and never into the past; each CPU has jiffies of its own."""
    now = bench.jiffies
    for ahead in (1, 100, 250, 260, 1000):
        got = bench.machine.call(bench.kernel.address("round_jiffies"), now + ahead)
        assert got == now + ahead or got % 250 == 0
        assert got > now
        up = bench.machine.call(bench.kernel.address("round_jiffies_up"), now + ahead)
        assert up >= now + ahead
        for cpu in (0, 1, 2, 63):
            there = bench.machine.call(bench.kernel.address("__round_jiffies"), now + ahead, cpu)
            assert there == now + ahead or (there + 3 * cpu) % 250 == 0
            assert there > now
            assert abs(there - now - ahead) <= 250


# Work ------------------------------------------------------------------------------------------


def test_work_runs_once_in_order_after_the_call(bench):
    """Work is first come, first served, not while it is queued already, and may queue itself."""
    again = []

    def requeue(work):
        bench.ran.append(work)
        if len(again) < 2:
            again.append(work)
            bench("queue_work_on", 0, bench.queue, work)

    func = bench.callback("bench_again", requeue, "void bench_again(void *work)")
    works = [bench.work(), bench.work(func), bench.work()]

    def enqueue():
        assert [bench("queue_work_on", 0, bench.queue, w) for w in works] == [1, 1, 1]
        assert bench("queue_work_on", 0, bench.queue, works[0]) == 0
        assert bench.ran == []  # not yet: the call is still under way

    bench.machine.call(bench.callback("bench_enqueue", enqueue, "void bench_enqueue(void)"))
    assert bench.ran == [*works, works[1], works[1]]


def test_flush_and_cancel(bench):
    """flush_work runs what is before it too; cancel_work takes it out; both tell of it."""
    one, two, three = bench.work(), bench.work(), bench.work()

    def play():
        for work in (one, two, three):
            bench("queue_work_on", 0, bench.queue, work)
        assert bench("flush_work", two) == 1
        assert bench.ran == [one, two]
        assert bench("flush_work", two) == 0
        assert bench("cancel_work_sync", three) == 1
        assert bench("cancel_work_sync", three) == 0
        assert bench("queue_work_on", 0, bench.queue, three) == 1
        bench("__flush_workqueue", bench.queue)
        assert bench.ran == [one, two, three]

    bench.machine.call(bench.callback("bench_play", play, "void bench_play(void)"))
    assert bench.ran == [one, two, three]


def test_delayed_work(bench):
    """It is queued by its timer; modifying moves it, flushing runs it now, cancelling ends it."""
    work, start = bench.delayed(), bench.jiffies
    assert bench("queue_delayed_work_on", 0, bench.queue, work, 5) == 1
    assert bench("queue_delayed_work_on", 0, bench.queue, work, 5) == 0
    assert bench("mod_delayed_work_on", 0, bench.queue, work, 20) == 1
    bench.machine.sleep(10 * JIFFY)
    assert bench.ran == []
    assert bench("flush_delayed_work", work) == 1
    assert bench.ran == [work]
    assert bench.jiffies < start + 20
    bench("queue_delayed_work_on", 0, bench.queue, work, 3)
    assert bench("cancel_delayed_work_sync", work) == 1
    bench.machine.sleep(10 * JIFFY)
    assert bench("queue_delayed_work_on", 0, bench.queue, work, 3) == 1
    bench.machine.sleep(4 * JIFFY)
    assert bench.ran == [work, work]


def test_a_queue_of_its_own_is_drained_when_it_goes(bench):
    """destroy_workqueue runs what is queued, then frees the queue."""
    before = bench.kernel.heap.live()
    queue = bench.machine.call(
        bench.kernel.address("alloc_workqueue"), b"own/%d\0", 0, 1, 7, returns="u64"
    )
    work = bench.work()

    def play():
        bench("queue_work_on", 0, queue, work)
        bench("destroy_workqueue", queue)
        assert bench.ran == [work]

    bench.machine.call(bench.callback("bench_destroy", play, "void bench_destroy(void)"))
    bench.machine.free(work)
    assert bench.kernel.heap.live() == before


def test_a_fault_in_work_is_an_oops(bench):
    """The caller is not hurt; log and `oopses` say what happened, and the rest runs."""
    bad, good = bench.work(func=0x10), bench.work()

    def play():
        bench("queue_work_on", 0, bench.queue, bad)
        bench("queue_work_on", 0, bench.queue, good)

    bench.machine.call(bench.callback("bench_bad", play, "void bench_bad(void)"))
    assert bench.ran == [good]
    (oops,) = bench.kernel.oopses
    assert oops.kind is FaultKind.FETCH
    assert any(line.level == 1 and "system_wq" in line.text for line in bench.machine.log)


def test_work_that_queues_itself_for_ever_stops_nobody(bench):
    """A call ends all the same, and so does whoever waits for something else."""

    def requeue(work):
        bench.ran.append(work)
        bench("queue_work_on", 0, bench.queue, work)

    func = bench.callback("bench_forever", requeue, "void bench_forever(void *work)")
    work, done = bench.work(func), bench.machine.alloc(32)
    bench("queue_work_on", 0, bench.queue, work)
    count = len(bench.ran)
    assert count > 100
    start = bench.kernel.word(bench.kernel.address("jiffies"))
    assert bench("wait_for_completion_timeout", done, 2) == 0
    assert bench.jiffies >= start + 2
    assert bench("cancel_work_sync", work) == 1
    count = len(bench.ran)
    bench("msleep", 1)
    assert len(bench.ran) == count


# Waiting ---------------------------------------------------------------------------------------


def test_a_completion_lets_as_many_go_as_were_completed(bench):
    """Complete counts up, a waiter counts down; complete_all is for ever; timeouts give up."""
    done = bench.machine.alloc(32)
    assert bench("try_wait_for_completion", done) == 0
    bench("complete", done)
    bench("complete", done)
    for _ in range(2):
        bench("wait_for_completion", done)
    start = bench.jiffies
    assert bench("wait_for_completion_timeout", done, 25) == 0
    assert bench.jiffies >= start + 25
    with pytest.raises(Fault) as caught:
        bench("wait_for_completion", done)
    assert "deadlock" in str(caught.value)
    bench("complete_all", done)
    for _ in range(3):
        bench("wait_for_completion", done)
    assert bench("completion_done", done) == 1


def test_waiting_runs_what_brings_the_event(bench):
    """A timer that completes is let run by who waits for it, at its time."""
    done = bench.machine.alloc(32)
    func = bench.callback(
        "bench_complete", lambda _t: bench("complete", done), "void bench_complete(void *t)"
    )
    timer = bench.machine.alloc(TIMER)
    bench("init_timer_key", timer, func, 0, 0, 0)
    start = bench.jiffies
    bench("mod_timer", timer, start + 30)
    left = bench("wait_for_completion_timeout", done, 100)
    assert start + 30 <= bench.jiffies < start + 35
    assert 65 <= left <= 70


def test_sleeping_lets_time_pass_and_others_run(bench):
    """Msleep lasts what it says, and what is due meanwhile runs."""
    timer, start = bench.timer(), bench.jiffies
    bench("mod_timer", timer, start + 10)
    bench("msleep", 100)
    assert bench.ran == [timer]
    assert start + 25 <= bench.jiffies <= start + 27


@EACH
@settings(max_examples=15, deadline=None)
@given(
    kinds=st.lists(st.booleans(), max_size=6),
    count=st.integers(0, 4),
)
def test_wake_up_wakes_all_shared_and_some_exclusive_waiters(arch, kinds, count):
    """Exclusive waiters stand behind the others; only `count` of them are woken, 0 is all."""
    b = Bench(arch)
    woken = []

    def wake(entry, _mode, _flags, _key):
        woken.append(entry)
        return 1

    func = b.callback("bench_wake", wake, "int bench_wake(void *e, int m, int f, void *k)")
    head = b.machine.alloc(24)
    b("__init_waitqueue_head", head, 0, 0)
    entries = []
    for exclusive in kinds:
        entry = b.machine.alloc(WAIT)
        b.machine.write(entry, struct.pack("<QQQQQ", 0, 0, func, 0, 0))
        b("add_wait_queue_exclusive" if exclusive else "add_wait_queue", head, entry)
        entries.append(entry)
    b("__wake_up", head, 3, count, 0)
    # add_wait_queue puts at the front, the exclusive form at the back.
    shared = [e for e, x in zip(entries, kinds, strict=True) if not x][::-1]
    exclusive = [e for e, x in zip(entries, kinds, strict=True) if x]
    assert woken == shared + (exclusive[:count] if count else exclusive)
    for entry in entries:
        b("remove_wait_queue", head, entry)
    waiting = view(b.kernel, "wait_queue_head", head).at("head")
    assert b.kernel.word(waiting) == waiting


# Threads: the sample module `workers` ------------------------------------------------------------


def test_a_thread_answers_whoever_waits(machine):
    """The thread runs on its own stack up to where it waits, again and again."""
    module = machine.load("workers")
    assert [module.call("workers_ask", n) for n in (1, 7, 1 << 40)] == [3, 21, 3 << 40]


def test_a_thread_is_stopped_by_its_module(machine):
    """kthread_stop wakes the thread, waits for its end and returns what it returned."""
    module = machine.load("workers")
    current = machine.kernel.current
    module.call("workers_ask", 5)
    module.unload()
    assert machine.log[-1].text == "workers: the thread returned 1"
    assert machine.kernel.current == current
    assert "workers" not in machine.modules
    assert machine.kernel.oopses == []


def test_a_thread_that_never_ran_is_stopped_too(arch):
    """Its function is not called; -EINTR is what it returns."""
    b = Bench(arch)
    task = b.machine.call(
        b.kernel.address("kthread_create_on_node"), b.note, 0, -1, b"idle\0", returns="u64"
    )
    assert b("kthread_stop", task) == -4
    assert b.ran == []


def test_work_timer_and_delayed_work_of_a_module(machine):
    """Notes are written by the caller, then by work, then in the order of their times."""
    module = machine.load("workers")

    def notes():
        return machine.kernel.string(module.symbols["workers_notes"])

    assert module.call("workers_plan", returns="int") == 0
    assert notes() == b"pw"
    assert module.call("workers_plan", returns="int") == 2
    assert notes() == b"pwpw"
    machine.sleep(7 * JIFFY)
    assert notes() == b"pwpwd"
    machine.sleep(7 * JIFFY)
    assert notes() == b"pwpwdt"


def test_two_runs_are_equal(arch):
    """The same calls give the same log, times and notes."""

    def run():
        machine = Machine(arch, root=_root(arch))
        module = machine.load("workers")
        module.call("workers_plan")
        module.call("workers_ask", 9)
        machine.sleep(1)
        module.unload()
        return [line.text for line in machine.log], machine.kernel.calls

    assert run() == run()


def test_waiting_for_nothing_is_a_deadlock(machine):
    """A call that nobody can wake is stopped with the name of where it waits, and ends there."""
    module = machine.load("workers")
    with pytest.raises(Fault) as caught:
        module.call("workers_hang")
    assert caught.value.kind is FaultKind.PANIC
    assert "deadlock" in str(caught.value)
    assert "workers_hang" in str(caught.value)
    assert module.call("workers_ask", 2) == 6


# Modules that modules ask for ------------------------------------------------------------------


def _ask(machine, name):
    return machine.call(machine.kernel.address("__request_module"), 1, name, returns="int")


def test_the_guest_can_ask_for_a_module(machine):
    """It is loaded with what it needs, once; what is not there is refused with -ENOENT."""
    assert _ask(machine, b"mathuser\0") == 0
    assert list(machine.modules) == ["mathlib", "mathuser"]
    assert _ask(machine, b"math%s\0") != 0
    assert _ask(machine, b"mathlib\0") == 0
    assert list(machine.modules) == ["mathlib", "mathuser"]
    assert _ask(machine, b"absent\0") == -2


def test_a_failed_load_takes_requested_modules_out_too(machine):
    """What an init asked for before it failed goes again, before what it may use."""
    before = machine.kernel.heap.live()

    def ask_then_fail(*_args):
        assert machine.kernel.request_module("mathuser")
        return -12

    machine.stub("kthread_create_on_node", ask_then_fail)
    with pytest.raises(InitFailed):
        machine.load("workers")
    assert machine.modules == {}
    assert machine.kernel.heap.live() == before
    machine.check()
