# SPDX-License-Identifier: GPL-2.0-or-later
"""What only follows from an init that stopped for want of a symbol says so first."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from emulator.faults import Fault, FaultKind
from execmem.check.elfwriter import FUNC, LOCAL, OBJECT, A, Sec, Sym, X
from execmem.cli import main
from execmem.sweep.summary import kind_of
from kernels.modelled.api import locks, rcu, sched, timers, workqueue
from kernels.modelled.api.time import jiffies
from loader.errors import InitFailed
from loader.files import ModuleFile
from loader.loaded import State
from machine.face import Machine
from tests.machine.snippets import snippet
from tests.support.modules import calls as call_code
from tests.support.modules import module

LACKED = "nobody_has_this"


class Bench:
    """A machine, memory for a lock, and modules that are loaded by what their init calls."""

    def __init__(self, arch):
        self.arch = arch
        self.machine = Machine(arch, unknown="fault")
        self.kernel = self.machine.kernel
        self.lock = self.machine.alloc(64)

    def does(self, name, function):
        """Let the kernel function `name` do something in Python."""
        self.machine.stub(name, function)

    def load(self, name, *calls, later="", symbols=(), **more):
        """Load a module whose init calls kernel functions; NAME_later calls another one."""
        extra = ()
        if later:
            code, relas = call_code(self.arch.machine, later, keep=True)
            extra = (Sec(".text.later", code, A | X, align=16, relas=relas),)
            symbols = (Sym(f"{name}_later", ".text.later", 0, len(code), FUNC), Sym(later))
        image = module(
            self.arch.machine,
            name,
            undefined=calls,
            extra=extra,
            symbols=symbols,
            runs=True,
            **more,
        )
        return self.machine.load(ModuleFile(f"{name}.ko", image))

    def stopped(self, name, *calls, **more):
        """Load a module whose init stops and return why: it stays, or is gone again."""
        try:
            return self.load(name, *calls, **more).report.init_fault
        except Fault as fault:
            return fault

    def symbol(self, name, symbol):
        """Return the address of a symbol of a module, also while its init runs."""
        return self.machine.loader.modules[name].symbols[symbol]


@pytest.fixture
def bench(arch):
    """Return a machine of each architecture."""
    return Bench(arch)


LOCKS = {
    "mutex": ("mutex_lock", "mutex_lock"),
    "spinlock": ("spin_lock", "spin_lock"),
    "rw_semaphore": ("_down_write", "_down_read"),
    "rwlock": ("_read_lock", "_write_lock"),
}


@pytest.mark.parametrize("what", LOCKS)
@pytest.mark.parametrize("depends", ["first", ""], ids=["dependent", "stranger"])
def test_a_lock_that_a_stopped_init_holds(bench, what, depends):
    """Who waits for it in vain is told of the symbol first, then of the lock and who took it."""
    take, again = (getattr(locks, name) for name in LOCKS[what])
    bench.does("take", lambda: take(bench.kernel, bench.lock) or 0)
    bench.does("take_too", lambda: again(bench.kernel, bench.lock) or 0)
    first = bench.load("first", "take", LACKED, exported=("first_help",))
    assert first.state is State.COMING
    assert first.report.init_fault.symbol == LACKED
    assert first.report.init_fault.cause is None
    fault = bench.stopped("second", "take_too", depends=depends)
    assert fault.kind is FaultKind.PANIC
    assert (fault.cause.module, fault.cause.fault) == ("first", first.report.init_fault)
    start = f"stopped first: first: '{LACKED}' is not in the modelled kernel, at first_work+0x"
    assert str(fault).startswith(start)
    said = str(fault).partition("; then: ")[2]
    assert said.startswith(f"panic: deadlock: {what} ")
    assert f"at {bench.lock:#x} is held already since first_work+0x" in said
    assert f"--stub {LACKED}" in str(fault)
    assert kind_of(str(fault)).startswith(f"'{LACKED}' is not in the modelled kernel")


def test_a_lock_is_called_by_its_name(bench):
    """A lock that is a variable of a module is named as it is there, and so is who holds it."""
    lock = Sym("first_mutex", ".bss", 0, 32, OBJECT, LOCAL)
    take = lambda: locks.mutex_lock(bench.kernel, bench.symbol("first", "first_mutex"))  # noqa: E731
    bench.does("take", take)
    bench.load("first", "take", symbols=[lock])
    fault = bench.stopped("second", "take")
    address = bench.symbol("first", "first_mutex")
    assert f"mutex 'first_mutex' of first at {address:#x} is held already since " in str(fault)
    assert fault.cause is None  # the holder's init returned: it just never gave it back
    assert "since first_work+0x" in str(fault)


def test_a_holder_that_is_gone_is_still_named(bench):
    """A module whose own fault left a lock held is unloaded, and named to who waits for it."""
    bench.does("take", lambda: locks.mutex_lock(bench.kernel, bench.lock))
    fault = bench.stopped("broken", "take", "take")
    assert "broken" not in bench.machine.modules
    again = bench.stopped("other", "take")
    assert (again.cause.module, again.cause.fault) == ("broken", fault)
    assert str(again).startswith("stopped first: broken: panic: deadlock: mutex ")
    assert "since broken_work+0x" in str(again).partition("; then: ")[2]


def test_readers_that_a_stopped_init_left(bench):
    """Who waits for RCU readers in vain is told what stopped them."""
    bench.load("first", "__rcu_read_lock", LACKED)
    fault = bench.stopped("second", "synchronize_rcu")
    assert fault.cause.fault.symbol == LACKED
    assert "waits for readers inside rcu_read_lock, entered at first_work+0x" in str(fault)


def test_rtnl_is_held_as_any_mutex(bench):
    """The networking lock excludes, is tried, and names who holds it."""
    bench.load("first", "rtnl_lock", LACKED)
    rtnl = bench.kernel.address
    assert bench.machine.call(rtnl("rtnl_is_locked"), returns="int") == 1
    assert bench.machine.call(rtnl("rtnl_trylock"), returns="int") == 0
    fault = bench.stopped("second", "rtnl_lock")
    assert fault.cause.fault.symbol == LACKED
    assert "deadlock: rtnl_mutex is held already since first_work+0x" in str(fault)
    bench.machine.call(rtnl("rtnl_unlock"))
    assert bench.machine.call(rtnl("rtnl_trylock"), returns="int") == 1
    bench.machine.call(rtnl("rtnl_unlock"))
    with pytest.raises(Fault, match="unlock of rtnl_mutex"):
        bench.machine.call(rtnl("rtnl_unlock"))


def test_a_thread_that_stopped_leaves_its_locks_held(bench):
    """Who waits for a lock of a thread that faulted is told of that fault first."""
    kernel = bench.kernel

    def broken(argument):
        locks.mutex_lock(kernel, bench.lock)
        locks.mutex_lock(kernel, bench.lock)

    def start():
        sched.wake(kernel, sched.create_thread(kernel, "broken", kernel.address("broken"), 0))

    kernel.supply("broken", broken, "int broken(void *argument)")
    bench.does("start", start)
    bench.does("take", lambda: locks.mutex_lock(kernel, bench.lock))
    assert bench.load("first", "start").state is State.LIVE
    (oops,) = kernel.oopses
    fault = bench.stopped("second", "take")
    assert fault.cause.fault is oops
    assert str(fault).startswith("stopped first: panic: deadlock: mutex")


def test_a_variable_that_is_missing_counts_as_missing(bench):
    """An init that reads a variable that nobody has says its name, and so does `missing`."""
    kernel = bench.kernel
    at = kernel.address(LACKED)
    with pytest.raises(Fault) as caught:
        bench.machine.call(snippet(bench.machine, "load"), at + 8)
    assert caught.value.symbol == LACKED
    assert bench.machine.missing == {LACKED: 1}


def test_whatever_stops_a_dependent_follows(bench):
    """Any fault, error or missing symbol in what depends on a stopped module cites the first."""
    first = bench.load("first", LACKED, exported=("first_help",)).report.init_fault
    second = bench.stopped("second", "and_not_this", depends="first", exported=("second_help",))
    assert (second.symbol, second.cause.fault) == ("and_not_this", first)
    assert str(second).startswith(f"stopped first: first: '{LACKED}' is not in")
    assert "; then: unknown kernel symbol: 'and_not_this' at second_work" in str(second)
    third = bench.stopped("third", "nor_this", depends="second")
    assert third.cause.fault is first  # not second, which only followed
    bench.machine.stub("fails", -5)
    kernel = bench.kernel
    bench.does("waits", lambda: sched.block(kernel, lambda: False))
    waiting = bench.stopped("fourth", "waits", depends="first")
    assert waiting.cause.fault is first
    assert "waits for what nobody is left to bring" in str(waiting)
    with pytest.raises(InitFailed) as caught:
        bench.load("fifth", "fails", depends="second")
    assert caught.value.cause.fault is first
    assert str(caught.value).startswith(f"stopped first: first: '{LACKED}'")
    assert str(caught.value).endswith("fifth: init returned -5 (EIO); the module was unloaded")
    with pytest.raises(Fault) as called:
        bench.machine.modules["first"].call("first_work")
    assert called.value.cause.fault is first


def test_what_has_nothing_to_do_with_it_does_not_follow(bench):
    """A fault of a stranger cites nothing; neither does one after the module is there at last."""
    bench.load("first", LACKED, exported=("first_help",))
    stranger = bench.stopped("stranger", "nor_this")
    assert stranger.cause is None
    assert str(stranger).startswith("unknown kernel symbol: 'nor_this' at stranger_work")
    bench.machine.unload(bench.machine.modules["first"])
    bench.machine.stub(LACKED)
    assert bench.load("first", LACKED, exported=("first_help",)).state is State.LIVE
    assert bench.stopped("second", "nor_that", depends="first").cause is None


def test_nothing_of_a_stopped_module_runs_on(bench):
    """Its timers, work, tasklets, threads and RCU callbacks do not; those of others do."""
    kernel, ran = bench.kernel, []
    bench.does("note", lambda: ran.append(kernel.caller()))
    queue = kernel.word(kernel.address("system_wq"))
    places = [bench.machine.alloc(128) for _ in range(6)]

    def put_off():
        name = kernel.caller().partition("_")[0]
        target = bench.symbol(name, f"{name}_later")
        timer, work, delayed, tasklet, head, high = places
        timers._init_timer_key(kernel, timer, target, 0, 0, 0)
        timers.arm(kernel, timer, jiffies(kernel) + 1)
        kernel.memory.write(work, struct.pack("<4Q", 0, work + 8, work + 8, target))
        workqueue.queue_work(kernel, 0, queue, work)
        kernel.memory.write(delayed, struct.pack("<4Q", 0, delayed + 8, delayed + 8, target))
        fire = kernel.address("delayed_work_timer_fn")
        timers._init_timer_key(kernel, delayed + 32, fire, 0, 0, 0)
        workqueue._queue_delayed_work(kernel, 0, queue, delayed, 1)
        workqueue._tasklet_setup(kernel, tasklet, target)
        workqueue._tasklet_schedule(kernel, tasklet)
        rcu._call_rcu(kernel, head, target)
        timers._hrtimer_setup(kernel, high, target, 0, 0)
        timers._arm_hrtimer(kernel, high, 1)
        sched.wake(kernel, sched.create_thread(kernel, "worker", target, 0))

    bench.does("put_off", put_off)
    assert bench.load("first", "put_off", LACKED, later="note").state is State.COMING
    bench.machine.sleep(1)
    assert (ran, kernel.oopses) == ([], [])
    assert kernel.word(places[1]) & workqueue.PENDING == 0
    assert bench.load("second", "put_off", later="note").state is State.LIVE
    bench.machine.sleep(1)
    assert len(ran) == 7
    assert all(place.startswith("second_later+") for place in ran)
    assert not kernel.oopses


def test_a_mutex_that_a_thread_holds_is_waited_for(bench):
    """Who waits for a mutex lets the thread that has it go on until it gives it back."""
    kernel, order = bench.kernel, []

    def thread(argument):
        if "slept" not in order:
            if "took" not in order:
                locks.mutex_lock(kernel, bench.lock)
                order.append("took")
                thread.until = sched.now(kernel) + 10**9
            if sched.now(kernel) < thread.until:
                sched.block(kernel, lambda: sched.now(kernel) >= thread.until, thread.until)
            order.append("slept")
        order.append("gave")
        locks._mutex_unlock(kernel, bench.lock)
        return 0

    kernel.supply("bench_thread", thread, "int bench_thread(void *argument)")

    def wait():
        sched.wake(kernel, sched.create_thread(kernel, "holder", kernel.address("bench_thread"), 0))
        sched.block(kernel, lambda: "took" in order)
        locks.mutex_lock(kernel, bench.lock)
        order.append("got")

    bench.does("wait", wait)
    bench.load("patient", "wait")
    assert order == ["took", "slept", "gave", "got"]


def test_commands_lead_with_the_cause(bench, tmp_path, capsys):
    """`run`, `load --init` and `sweep --init` name the missing symbol before what it led to."""
    machine = bench.arch.machine
    for name, calls, depends in (
        ("first", ("__rcu_read_lock", LACKED), ""),
        ("second", ("synchronize_rcu",), "first"),
    ):
        image = module(machine, name, undefined=calls, depends=depends, runs=True)
        (tmp_path / f"{name}.ko").write_bytes(image)
    (tmp_path / "modules.dep").write_text("first.ko:\nsecond.ko: first.ko\n")
    start = f"stopped first: first: '{LACKED}' is not in the modelled kernel"
    for words in (("run",), ("load", "--init", "--unknown", "fault")):
        with pytest.raises(SystemExit) as ended:
            main([*words, str(tmp_path / "second.ko")])
        assert ended.value.code == 1
        errors = capsys.readouterr().err.splitlines()
        assert any(line.startswith(f"execmem: {start}") for line in errors)
        assert "deadlock" in errors[-1] or "deadlock" in errors[-2]
    with pytest.raises(SystemExit):
        main(["sweep", "--init", "--json", str(tmp_path)])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    row = next(row for row in rows if row.get("module") == "second")
    assert (row["outcome"], row["missing"]) == ("fault", [LACKED])
    assert row["error"].startswith(start)
    (error,) = (e for e in rows[-1]["summary"]["errors"] if "is not in the modelled" in e["error"])
    assert (error["count"], Path(error["first"]).name) == (1, "second.ko")
