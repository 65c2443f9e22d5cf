# SPDX-License-Identifier: GPL-2.0-or-later
"""Control of runs, held to what the emulator executes when nobody controls it.

The order of instructions is told by a hook of Unicorn's that the control has no part in.
"""

from __future__ import annotations

import itertools
import re
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from unicorn import unicorn_const as uc_const

import archs
from archs import Arch
from emulator.faults import BadCall, Fault, FaultKind
from machine.control import Control, Ended, Resume, Stopped, Why
from machine.face import Machine
from samples.modules import root
from tests.machine.snippets import put
from tests.support import booted

DATA = b"123456789"
BAD = 0x20  # an address in the first page, which nothing is mapped in
KERNELS = booted.some()
SUBJECTS = [("modelled", arch) for arch in archs.ALL] + [("booted", each) for each in KERNELS]


@attrs.frozen
class Subject:
    """A function that looks at each of nine bytes, with nobody between it and the guest."""

    machine: Any
    function: int
    arguments: Callable[[int, int], tuple[int, ...]]  # of an address and a size
    data: int
    result: int

    @property
    def engine(self) -> Any:
        """What executes."""
        kernel = self.machine.kernel
        return kernel.board if hasattr(kernel, "board") else self.machine.cpus[0]

    def call(self, data: int | None = None, **limits: Any) -> int:
        """Call it, for 32 bits of its result."""
        arguments = self.arguments(self.data if data is None else data, len(DATA))
        found: int = self.machine.call(self.function, *arguments, returns="u32", **limits)
        return found

    def under(self, handler: Callable[[Stopped, Control], Resume]) -> int:
        """Call it under control."""
        with self.machine.control(handler):
            return self.call()

    def executed(self) -> list[int]:
        """Return the addresses that the emulator executes, a delay slot with its branch."""
        assert self.call() == self.result  # so that it has looked up all pages: that repeats loads
        found: list[int] = []
        uc = self.engine.uc
        hook = uc.hook_add(uc_const.UC_HOOK_CODE, lambda _uc, at, _size, _data: found.append(at))
        uc.ctl_flush_tb()
        assert self.call() == self.result
        uc.hook_del(hook)
        uc.ctl_flush_tb()
        slots = self.machine.arch.runs.emulation.delay_slots
        if slots is None:
            return found
        late = [slots.before(self.machine.read(at, 4)) for at in found]
        return [at for at, behind in zip(found, [False, *late[:-1]], strict=True) if not behind]


def _name(value: Any) -> str:
    kind, which = value
    return f"{kind}-{which.name if isinstance(which, Arch) else which[0]}"


@pytest.fixture(params=SUBJECTS, ids=_name)
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """Return a function of a module, on each architecture of the modelled kernel, and of booted ones."""
    kind, which = request.param
    if kind == "modelled":
        if not which.run:
            pytest.skip(f"{which.name} has no level 'run'")
        machine = Machine(which, root=root(which.name))
        module = machine.load("checksums")
        at, data = module.symbols["checksums_crc32"], machine.alloc(DATA)
        yield Subject(machine, at, lambda a, n: (a, n, 0), data, zlib.crc32(DATA))
        return
    _, folder, _ = which
    with booted.fresh(Path(folder), booted.tree(Path(folder))) as real:
        module = real.load("crc16")
        at, data = module.symbols["crc16"], real.alloc(DATA)
        yield Subject(real, at, lambda a, n: (0, a, n), data, 0xBB3D)  # CRC-16/ARC


def state(control: Control) -> dict[str, int]:
    """Return all registers."""
    return {name: control.get(name) for name in control.registers}


class Script:
    """A handler that does one thing after the other, and keeps where it was called.

    Parameters
    ----------
    steps
        What to return; a callable is given the control, and returns it. At the end: continue.
    """

    def __init__(self, *steps: Resume | Callable[[Control], Resume]) -> None:
        self.steps = list(steps)
        self.stops: list[Stopped] = []
        self.states: list[dict[str, int]] = []

    def __call__(self, stopped: Stopped, control: Control) -> Resume:
        """Take note of a stop, and do the next thing."""
        self.stops.append(stopped)
        self.states.append(state(control))
        assert stopped.pc == control.pc
        step = self.steps.pop(0) if self.steps else Resume.CONTINUE
        return step if isinstance(step, Resume) else step(control)

    @property
    def seen(self) -> list[tuple[Why, int]]:
        """Why it was called, and where."""
        return [(stop.why, stop.pc) for stop in self.stops]


def test_steps_are_what_is_executed(subject: Subject) -> None:
    """Each step is one instruction more, and none is left out; then it returns what it computes."""
    expected = subject.executed()
    seen: list[Stopped] = []

    def step(stopped: Stopped, _control: Control) -> Resume:
        seen.append(stopped)
        return Resume.STEP

    assert subject.under(step) == subject.result
    assert [stop.pc for stop in seen[:-1]] == expected
    assert {stop.why for stop in seen[1:-1]} == {Why.STEP}
    assert (seen[0].why, seen[0].count, seen[0].function) == (Why.ENTRY, 0, subject.function)
    assert seen[-1].why is Why.RETURNED
    assert seen[-1].result is not None
    assert seen[-1].result & 0xFFFF_FFFF == subject.result
    assert subject.executed() == expected


def test_breakpoint_is_met_each_time_and_once(subject: Subject) -> None:
    """One in a loop stops before each round, one at the entry not a second time."""
    expected = subject.executed()
    often = Counter(expected).most_common(1)[0]
    assert often[1] == len(DATA)
    script = Script(lambda control: (control.break_at(often[0]), Resume.CONTINUE)[1])
    with subject.machine.control(script) as control:
        control.break_at(subject.function)
        assert subject.call() == subject.result
        assert control.breakpoints == {subject.function, often[0]}
    found = [pc for why, pc in script.seen if why is Why.BREAKPOINT]
    assert found == [often[0]] * often[1]
    assert script.seen[0] == (Why.ENTRY, subject.function)
    places = [stop.count for stop in script.stops if stop.why is Why.BREAKPOINT]
    if subject.machine.arch.runs.emulation.delay_slots is None:
        assert places == [at for at, pc in enumerate(expected) if pc == often[0]]


def test_a_breakpoint_that_is_set_while_its_code_runs(subject: Subject) -> None:
    """What stands ahead in the code under way stops, and no longer once it is taken away."""
    expected = subject.executed()
    ahead = next(at for at, times in Counter(expected).items() if times == len(DATA))
    first = expected.index(ahead)
    script = Script(
        *[Resume.STEP] * (first - 1),
        lambda control: (control.break_at(ahead), Resume.CONTINUE)[1],
        Resume.CONTINUE,
        lambda control: (control.unbreak(ahead), Resume.CONTINUE)[1],
    )
    assert subject.under(script) == subject.result
    assert [pc for why, pc in script.seen if why is Why.BREAKPOINT] == [ahead] * 2


def test_going_back_is_undoing(subject: Subject) -> None:
    """A step and a step back, back to a breakpoint, back to a place, back to the beginning."""
    expected = subject.executed()
    often = Counter(expected).most_common(1)[0][0]
    script = Script(
        *[Resume.STEP] * 5,
        Resume.STEP_BACK,
        Resume.STEP,
        lambda control: (control.break_at(often), Resume.CONTINUE)[1],
        Resume.CONTINUE,
        Resume.CONTINUE_BACK,
        lambda control: (setattr(control, "aim", script.stops[3].count), Resume.GO_BACK)[1],
        lambda control: (control.unbreak(often), Resume.CONTINUE)[1],
        Resume.STEP_BACK,
        Resume.STEP,
        Resume.CONTINUE_BACK,
        Resume.STEP_BACK,
    )
    assert subject.under(script) == subject.result
    seen, states = script.seen, script.states
    assert seen[6] == (Why.STEP, seen[4][1])
    assert states[6] == states[4]
    assert states[7] == states[5]
    assert seen[8][0] is seen[9][0] is Why.BREAKPOINT
    assert (seen[10], states[10]) == ((Why.BREAKPOINT, often), states[8])
    assert (script.stops[11].count, states[11]) == (script.stops[3].count, states[3])
    assert seen[12][0] is Why.RETURNED
    assert seen[13] == (Why.STEP, expected[-1])
    assert (seen[14], states[14]) == (seen[12], states[12])
    assert (seen[15], states[15]) == ((Why.BEGINNING, subject.function), states[0])
    assert seen[16] == (Why.BEGINNING, subject.function)
    assert "the call begins here" in script.stops[16].reason
    assert seen[-1] == seen[12]


def test_watched_bytes_stop_behind_the_access(subject: Subject) -> None:
    """One of nine bytes is looked at once; going back stops before that, with the same access."""
    expected = subject.executed()
    script = Script(
        lambda control: (control.watch(subject.data + 3, 1, "r"), Resume.CONTINUE)[1],
        Resume.CONTINUE,
        Resume.CONTINUE_BACK,
        Resume.STEP,
        lambda control: (control.unwatch(subject.data + 3, 1, "r"), Resume.CONTINUE)[1],
    )
    assert subject.under(script) == subject.result
    whys = [Why.ENTRY, Why.WATCHPOINT, Why.RETURNED, Why.WATCHPOINT, Why.WATCHPOINT, Why.RETURNED]
    assert [why for why, _ in script.seen] == whys
    behind, before = script.stops[1], script.stops[3]
    (access,) = behind.accesses
    assert (access.address, access.size, access.kind) == (subject.data + 3, 1, "read")
    assert access.old == access.new == b"4"
    assert before.accesses == behind.accesses
    assert before.pc == access.pc
    assert expected.count(before.pc) == len(DATA)
    assert (before.pc, behind.pc) in list(itertools.pairwise(expected))
    assert before.count == behind.count - 1


def test_what_a_handler_changes(subject: Subject) -> None:
    """Registers, memory and the next instruction; what was changed is changed again on the way."""
    argument = subject.machine.arch.runs.calling.arguments[subject.arguments(1, 2).index(1)]
    other = subject.machine.alloc(bytes(len(DATA)))

    def lead(control: Control) -> Resume:
        control.set(argument, other)
        control.write(other, DATA)
        assert control.read(other, len(DATA)) == DATA
        return Resume.CONTINUE

    def again(control: Control) -> Resume:
        control.pc = subject.function
        return Resume.CONTINUE

    script = Script(lead, Resume.STEP_BACK, Resume.CONTINUE)
    with subject.machine.control(script):
        assert subject.call(BAD) == subject.result
    assert [why for why, _ in script.seen] == [Why.ENTRY, Why.RETURNED, Why.STEP, Why.RETURNED]
    assert script.states[1] == script.states[3]
    counts = Script(Resume.STEP, again)
    subject.under(counts)
    assert counts.stops[-1].count == script.stops[1].count + counts.stops[1].count


def test_a_fault_stops_before_it_comes_out_and_can_be_undone(subject: Subject) -> None:
    """The handler sees it; it may let it come out, or go back and do it otherwise."""
    argument = subject.machine.arch.runs.calling.arguments[subject.arguments(1, 2).index(1)]
    script = Script()
    with subject.machine.control(script), pytest.raises(Fault) as caught:
        subject.call(BAD)
    assert [why for why, _ in script.seen] == [Why.ENTRY, Why.FAULT]
    told = script.stops[1].fault
    assert isinstance(told, Fault)
    assert (told.kind, told.address) == (FaultKind.READ, BAD)
    assert str(told) == str(caught.value)

    def mend(control: Control) -> Resume:
        control.set(argument, subject.data)
        return Resume.CONTINUE

    came = script.stops[1].origin
    assert came is not None

    def to_origin(control: Control) -> Resume:
        control.aim = came
        return Resume.GO_BACK

    looking = Script(Resume.CONTINUE, to_origin)
    if came < script.stops[1].count:
        with subject.machine.control(looking), pytest.raises(Fault):
            subject.call(BAD)
        assert [why for why, _ in looking.seen] == [Why.ENTRY, Why.FAULT, Why.STEP, Why.FAULT]
        assert (looking.stops[2].count, looking.stops[3].origin) == (came, came)
        at = looking.stops[2].pc
    else:
        at = script.stops[1].pc
    name = subject.machine.symbolize(at)
    assert name is not None
    assert re.split("[ /]", name)[0] == re.split("[ /]", caught.value.where)[0]
    assert str(looking.stops[3].fault if looking.stops else told) == str(told)

    mended = Script(Resume.CONTINUE, Resume.CONTINUE_BACK, mend)
    with subject.machine.control(mended):
        assert subject.call(BAD) == subject.result
    assert [why for why, _ in mended.seen] == [Why.ENTRY, Why.FAULT, Why.BEGINNING, Why.RETURNED]
    assert subject.call() == subject.result


def test_limits_do_not_count_who_thinks(subject: Subject) -> None:
    """A handler may take longer than the call; the guest has its time and instructions all the same."""
    count = len(subject.executed())

    def think(_stopped: Stopped, _control: Control) -> Resume:
        time.sleep(0.3)
        return Resume.CONTINUE

    with subject.machine.control(think):
        assert subject.call(seconds=0.25) == subject.result
    script = Script()
    with subject.machine.control(script), pytest.raises(Fault) as caught:
        subject.call(instructions=count // 2)
    assert caught.value.kind is FaultKind.INSTRUCTION_LIMIT
    assert [why for why, _ in script.seen] == [Why.ENTRY, Why.FAULT]
    assert script.stops[1].count == count // 2 or subject.machine.arch.runs.emulation.delay_slots


def test_somebody_asks_it_to_stop(subject: Subject) -> None:
    """`poll` and `interrupt` stop it between two instructions, and it goes on as if nothing were."""
    machine = subject.machine
    slow = machine.arch.runs.emulation.delay_slots is not None
    data = bytes(range(256)) * (40 if slow else 3200)
    arguments = subject.arguments(machine.alloc(data), len(data))
    expected = machine.call(subject.function, *arguments)
    asked = iter([True])
    script = Script(lambda control: (control.interrupt(), Resume.CONTINUE)[1])
    with machine.control(script) as control:
        control.poll = lambda: next(asked, False)
        assert machine.call(subject.function, *arguments) == expected
    assert [why for why, _ in script.seen] == [
        *(Why.ENTRY, Why.INTERRUPTED, Why.INTERRUPTED, Why.RETURNED)
    ]
    first, second, end = (stop.count for stop in script.stops[1:])
    assert 0 == first < second < end


def test_a_handler_ends_a_call_or_leaves(subject: Subject) -> None:
    """`END` comes out as Ended, and the machine goes on; `DETACH` is the last that is heard."""
    script = Script(Resume.STEP, Resume.END)
    with subject.machine.control(script):
        with pytest.raises(Ended):
            subject.call()
        assert subject.call() == subject.result
    leaving = Script(Resume.DETACH)
    with subject.machine.control(leaving) as control:
        control.break_at(subject.function)
        assert subject.call() == subject.call() == subject.result
    assert len(leaving.stops) == 1


def test_control_is_had_once_and_leaves_nothing(subject: Subject) -> None:
    """A second one is refused, by name; without it nothing is counted, and calls are as before."""
    with subject.machine.control(Script()):
        with pytest.raises(BadCall, match="controls this machine already"):
            subject.machine.control(Script()).__enter__()
        assert subject.call() == subject.result
    assert subject.engine.governor is None
    assert subject.call() == subject.result

    def nested(stopped: Stopped, control: Control) -> Resume:
        with pytest.raises(BadCall, match="no such register"):
            control.get("r99")
        with pytest.raises(BadCall):
            control.read(BAD, 4)
        assert subject.call() == subject.result  # which nobody is told of
        return Resume.CONTINUE

    assert subject.under(nested) == subject.result


def test_a_snapshot_is_the_same_after_a_call_under_control(subject: Subject) -> None:
    """Memory after stepping, going back and going on is what it is after a call of nobody's."""
    machine = subject.machine
    if not hasattr(machine, "fork"):
        pytest.skip("the modelled kernel is not kept")
    digests = []
    for script in (None, Script(Resume.STEP, Resume.STEP, Resume.STEP_BACK)):
        with machine.fork():
            if script is None:
                subject.call()
            else:
                subject.under(script)
            digests.append(machine.kernel.board.ram.freeze().digest())
    assert digests[0] == digests[1]


def test_a_breakpoint_in_text_that_init_frees(subject: Subject) -> None:
    """The init of a module that is being loaded stops, where the kernel has put it."""
    machine = subject.machine
    met: list[int] = []
    argument = machine.arch.runs.calling.arguments[0]
    booting = hasattr(machine, "fork")

    def loading(stopped: Stopped, control: Control) -> Resume:
        if stopped.why is Why.ENTRY and booting:
            control.break_at(machine.function("do_one_initcall"))
        elif stopped.why is Why.ENTRY:
            return Resume.STEP
        elif stopped.why is Why.STEP and not met:
            met.append(control.pc)
            return Resume.STEP_BACK
        elif stopped.why is Why.BREAKPOINT and met:
            met.append(stopped.pc)
        elif stopped.why is Why.BREAKPOINT:
            met.append(control.get(argument))
        if met:
            control.break_at(met[0])
        return Resume.CONTINUE

    with machine.control(loading):
        module = machine.load("ts_kmp" if booting else "mathlib")
    assert len(met) == 2
    assert met[0] == met[1]
    assert module.state.value == "live"


def test_code_that_a_handler_writes_is_what_runs(subject: Subject) -> None:
    """A return over the first instruction; going back, the old one again, with a breakpoint on it."""
    code = subject.machine.arch.runs.emulation.ret
    kept: list[bytes] = []

    def shorten(control: Control) -> Resume:
        kept.append(control.read(subject.function, len(code)))
        control.write(subject.function, code)
        assert control.read(subject.function, len(code)) == code
        return Resume.CONTINUE

    def lengthen(control: Control) -> Resume:
        control.write(subject.function, kept[0])
        control.break_at(subject.function)
        return Resume.STEP

    expected = subject.executed()
    script = Script(shorten, Resume.STEP_BACK, lengthen)
    assert subject.under(script) == subject.result
    ret, back, stepped = script.stops[1:4]
    assert (ret.why, back.why, stepped.why) == (Why.RETURNED, Why.STEP, Why.STEP)
    assert ret.count == len(code) // 4 or ret.count == 1
    assert (back.pc, stepped.pc) == (subject.function, expected[1])
    assert subject.executed() != expected or kept[0] != code


def test_nobody_is_called_a_second_time(subject: Subject) -> None:
    """A stub that is Python was called on the way: then there is no going back over it."""
    machine = subject.machine
    if not hasattr(machine, "fork"):
        pytest.skip("the modelled kernel is Python: below")
    called: list[int] = []
    script = Script(Resume.STEP_BACK, Resume.CONTINUE, Resume.STEP_BACK)

    def stub(_first: int) -> int:
        called.append(1)
        return 7

    with machine.stub(subject.function, stub), machine.control(script):
        assert subject.call() == 7
    assert [why for why, _ in script.seen] == [
        *(Why.ENTRY, Why.BEGINNING, Why.RETURNED, Why.BEGINNING)
    ]
    assert "a stub of" in script.stops[3].reason
    assert called == [1]


# A kernel in Python ---------------------------------------------------------------------------


@pytest.fixture
def modelled(arch: Arch) -> Machine:
    """Return a machine with our own modules."""
    return Machine(arch, root=root(arch.name))


def test_stops_nest_where_python_calls_the_guest(modelled: Any) -> None:
    """A breakpoint in a function that a kernel function calls; a step over that ends behind it."""
    module = modelled.load("checksums")
    inner, data = module.symbols["checksums_crc32"], modelled.alloc(DATA)
    modelled.stub("nested", lambda: modelled.call(inner, data, len(DATA), 0) & 0xFFFF)
    outer = modelled.kernel.address("nested")

    def first(control: Control) -> Resume:
        control.break_at(inner)
        return Resume.STEP

    script = Script(first, Resume.STEP, Resume.STEP_BACK, Resume.CONTINUE)
    with modelled.control(script):
        assert modelled.call(outer) == zlib.crc32(DATA) & 0xFFFF
    stops = script.stops
    assert [stop.why for stop in stops] == [
        *(Why.ENTRY, Why.BREAKPOINT, Why.STEP, Why.STEP, Why.RETURNED)
    ]
    assert [stop.depth for stop in stops[:4]] == [1, 2, 2, 2]
    assert stops[1].pc == stops[3].pc == inner


def test_what_python_did_is_not_gone_back_over(modelled: Any) -> None:
    """Where a kernel function was called in between, going back ends there and says its name."""
    script = Script(Resume.STEP, Resume.STEP_BACK, Resume.CONTINUE, Resume.STEP_BACK)
    with modelled.control(script):
        module = modelled.load("hello")
    function = module.symbols["init_module"]
    assert script.seen[:2] == [(Why.ENTRY, function), script.seen[1]]
    assert script.seen[2] == script.seen[0] or script.stops[2].why is Why.STEP
    last = script.stops[4]
    assert last.why is Why.BEGINNING
    assert last.reason.startswith("_printk")
    assert last.reason.endswith("is Python, and what it did is not undone")


def test_calls_that_are_stepped_on_another_cpu(arch: Arch) -> None:
    """A part of one ends without a fault; it begins and returns once, and breakpoints stop it."""
    machine: Any = Machine(arch, root=root(arch.name), cpus=2)
    function = machine.load("checksums").symbols["checksums_crc32"]
    data = machine.alloc(DATA)
    script = Script()
    with machine.control(script) as control:
        assert control.cpus == 2
        thread = machine.start(function, data, len(DATA), 0, cpu=1)
        while not thread.step(7):
            pass
        assert thread.result & 0xFFFF_FFFF == zlib.crc32(DATA)
    assert [(stop.why, stop.cpu) for stop in script.stops] == [*((Why.ENTRY, 1), (Why.RETURNED, 1))]


def test_kernel_functions_that_are_python(modelled: Any) -> None:
    """A breakpoint stops before one, a watched byte that it stores to behind it."""
    entry, source = modelled.kernel.address("strcpy"), modelled.alloc(b"abc\0")
    target = modelled.alloc(8)
    script = Script(lambda control: (control.watch(target + 1, 1, "w"), Resume.CONTINUE)[1])
    with modelled.control(script) as control:
        control.break_at(entry)
        modelled.call(entry, target, source)
    assert [why for why, _ in script.seen] == [Why.ENTRY, Why.WATCHPOINT, Why.RETURNED]
    (access,) = script.stops[1].accesses
    assert (access.kind, access.old, access.new) == ("write", b"\0", b"b")
    assert access.where.startswith("strcpy()")
    printk = modelled.kernel.address("_printk")
    before = Script()
    with modelled.control(before) as control:
        control.break_at(printk)
        modelled.load("hello")
    assert (Why.BREAKPOINT, printk) in before.seen


REPEATED = "4889f3 b90500000090 fc f3aa 4889d8 c3"  # mov rbx,rsi; mov ecx,5; nop; cld; rep stosb
EXCLUSIVE = "1f2003d5 017c5fc8 21040091 017c02c8 a2ffff35 e00301aa c0035fd6"


def test_a_repeated_instruction_is_one() -> None:
    """REP is stepped over as a whole, back to its begin, and its breakpoint is met once."""
    machine = Machine("x86_64")
    code = put(machine, bytes.fromhex(REPEATED))
    memory = machine.alloc(16)
    at = code + 10
    script = Script(
        lambda control: (control.break_at(at), Resume.CONTINUE)[1],
        Resume.STEP,
        lambda control: (control.unbreak(at), Resume.STEP_BACK)[1],
        Resume.STEP,
    )
    with machine.control(script):
        assert machine.call(code, memory, 7) == 7
    assert machine.disassemble(at) == "rep stosb byte ptr [rdi], al"
    assert [pc - code for _, pc in script.seen[:5]] == [0, 10, 12, 10, 12]
    assert [state["rcx"] for state in script.states[1:5]] == [5, 0, 5, 0]
    assert script.states[1] == script.states[3]


def test_an_exclusive_pair_is_stepped_through() -> None:
    """The store between two stops succeeds, as nobody else has stored there."""
    machine = Machine("arm64")
    code = put(machine, bytes.fromhex(EXCLUSIVE))
    memory = machine.alloc((41).to_bytes(8, "little"))
    script = Script(*[Resume.STEP] * 10)
    with machine.control(script):
        assert machine.call(code, memory) == 42
    assert machine.disassemble(code + 4).startswith("ldxr")
    assert machine.disassemble(code + 12).startswith("stxr")
    assert [pc - code for why, pc in script.seen if why is Why.STEP] == [4, 8, 12, 16, 20, 24]
    assert machine.read(memory, 8) == (42).to_bytes(8, "little")
