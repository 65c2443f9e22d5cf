# SPDX-License-Identifier: GPL-2.0-or-later
"""Stubs, replacements, probes and traces of booted kernels, beside what the source implies.

Long because each way is tried by itself, together with others, and where it is refused.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import unicorn

from emulator.disassembly import Disassembler
from emulator.faults import BadCall, Fault
from execmem.cli import main
from kernels.tracing import Hit, PatchRefused, TracedCall
from loader.files import module_name
from machine.arguments import Argument, Out
from machine.booted import traces
from machine.booted.machine import BootedMachine
from machine.booted.module import BootedModule
from tests.support import booted

KERNELS = booted.some()
GFP_KERNEL = 0xCC0
ENOMEM = -12


@pytest.fixture(params=KERNELS, ids=[name for name, _, _ in KERNELS])
def machine(request: pytest.FixtureRequest) -> Iterator[BootedMachine]:
    """Return each kernel that is at hand, booted, as it was at first."""
    _, folder, _ = request.param
    found = booted.machine(folder, folder if list(folder.rglob("*.ko*")) else None)
    with found.fork():
        yield found
    found.interposing.stop()


@pytest.fixture
def text(machine: BootedMachine) -> int:
    """Return the address of a string in the guest."""
    return machine.alloc(b"hello\0")


def call(machine: BootedMachine, name: str, *args: Argument) -> int:
    """Call a kernel function by its name."""
    return machine.call(machine.function(name), *args)


def loaded(machine: BootedMachine, name: str) -> BootedModule:
    """Load a module from the kernel's folder, or skip."""
    tree = machine.tree
    if tree is None or name not in tree.files:
        pytest.skip(f"no {name} for {machine.kernel.release}")
    return machine.load(name)


# Stubs -----------------------------------------------------------------------------------------


def test_a_constant_stands_in_for_calls_from_outside_and_from_the_kernel(
    machine: BootedMachine, text: int
) -> None:
    """A constant stands in for calls from outside and from the kernel."""
    with machine.stub("strlen", 3) as stub:
        assert call(machine, "strlen", text) == 3
        copy = call(machine, "kstrdup", text, GFP_KERNEL)  # memcpy of strlen() + 1
        assert stub.calls == 2
        assert machine.stubbed == {"strlen": 2}
    assert machine.read(copy, 3) == b"hel"
    assert call(machine, "strlen", text) == 5
    assert machine.stubbed == {}


def test_python_stands_in_and_may_call_the_guest(machine: BootedMachine, text: int) -> None:
    """Python stands in and may call the guest: registers of the call around it are its own."""
    seen = []

    def strlen(string: int) -> int:
        seen.append(string)
        assert call(machine, "strnlen", string, 100) == 5
        other = machine.alloc(b"more")
        machine.free(other)
        return 4

    with machine.stub("strlen", strlen):
        copy = call(machine, "kstrdup", text, GFP_KERNEL)
    assert seen == [text]
    assert machine.read(copy, 4) == b"hell"


def test_arguments_are_what_the_types_say(machine: BootedMachine) -> None:
    """Arguments are what the types say: kernel functions by BTF, others as they are told."""
    seen = []
    with machine.stub("crc32_le", lambda crc, data, size: seen.append((crc, data, size))):
        call(machine, "crc32_le", -1, 0x1234, 7)
    found = machine.interposing.functions
    if found.prototype(found.spot("stub", "crc32_le").function) is None:
        assert seen == [((1 << 64) - 1, 0x1234, 7)]  # an arm64 kernel has it in assembly
    else:
        assert seen == [(0xFFFF_FFFF, 0x1234, 7)]
    seen.clear()
    prototype = "s8 memcmp(s8 a, u8 b, s32 c, s64 d, u16 e, int f, u64 g, s8 h, s32 i, u8 j)"
    with machine.stub("memcmp", lambda *args: seen.append(args) or -1, prototype=prototype):
        returned = call(machine, "memcmp", *[(1 << 64) - n for n in range(1, 11)])
    assert seen == [(-1, 254, -3, -4, 0xFFFB, -6, (1 << 64) - 7, -8, -9, 246)]
    assert returned & 0xFF == 0xFF
    with pytest.raises(BadCall, match=r"has 2 parameters .*, the stub takes 3"):
        machine.stub("kstrdup", lambda a, b, c: a + b + c)
    with pytest.raises(BadCall, match="by value"):
        machine.stub("memcmp", 0, prototype="int memcmp(struct pair x)")


def test_what_follows_dots_is_given_as_slots(machine: BootedMachine) -> None:
    """What follows dots is given as slots, from registers and then the stack."""
    seen = []

    def scnprintf(_buffer: int, size: int, _format: int, more: Iterator[int]) -> int:
        seen.extend([size, *(next(more) for _ in range(8))])
        return 77

    with machine.stub("scnprintf", scnprintf):
        assert call(machine, "scnprintf", 0, 9, "", *range(100, 108)) == 77
    assert seen == [9, *range(100, 108)]


def test_a_failing_allocation_is_not_the_machines_own(machine: BootedMachine, text: int) -> None:
    """A failing allocation is not the machine's own: what it needs for arguments it gets."""
    names = [
        name
        for name in (
            "__kmalloc_node_track_caller_noprof",
            "__kmalloc_node_track_caller",
            "__kmalloc_noprof",
            "__kmalloc",
        )
        if name in machine.kernel.symbols
    ]
    stubs = [machine.stub(name, 0) for name in names]
    assert call(machine, "kstrdup", "words", GFP_KERNEL) == 0
    assert sum(stub.calls for stub in stubs) == 1
    for stub in stubs:
        stub.remove()
        stub.remove()
    assert call(machine, "kstrdup", text, GFP_KERNEL) != 0


def test_the_latest_stub_counts(machine: BootedMachine, text: int) -> None:
    """The latest stub counts, and the earlier one again when it is gone."""
    first = machine.stub("strlen", 1)
    with machine.stub("strlen", lambda _string: 2):
        assert call(machine, "strlen", text) == 2
    assert call(machine, "strlen", text) == 1
    first.remove()
    assert call(machine, "strlen", text) == 5


def test_what_a_handler_raises_comes_out_and_the_machine_goes_on(
    machine: BootedMachine, text: int
) -> None:
    """What a handler raises comes out and the machine goes on."""

    class OwnError(Exception):
        pass

    def raises(_string: int) -> int:
        raise OwnError

    with machine.stub("strlen", raises), pytest.raises(OwnError):
        call(machine, "kstrdup", text, GFP_KERNEL)
    with machine.stub("strlen", lambda _: "5"), pytest.raises(BadCall, match="returned str"):  # type: ignore[arg-type,return-value] # what is refused
        call(machine, "strlen", text)
    assert call(machine, "strlen", text) == 5
    assert machine.syscall("getpid") == 1
    machine.sleep(0.01)


def test_a_fault_in_a_handlers_call_can_be_caught(machine: BootedMachine, text: int) -> None:
    """A fault in a handler's call can be caught, and the call around it returns."""

    def kstrdup(string: int) -> int:  # which has a second parameter
        with pytest.raises(Fault) as caught:
            call(machine, "strlen", 8)
        assert caught.value.address == 8
        return string

    with machine.stub("kstrdup", kstrdup):
        assert call(machine, "kstrdup", text, GFP_KERNEL) == text
    assert call(machine, "kstrdup", text, GFP_KERNEL) != text


def test_a_handler_that_leads_to_itself_ends(machine: BootedMachine, text: int) -> None:
    """A handler that leads to itself ends."""
    deeper = pytest.raises(Fault, match="nest deeper")
    with machine.stub("strlen", lambda string: call(machine, "strlen", string)), deeper:
        call(machine, "strlen", text)
    assert call(machine, "strlen", text) == 5


def test_places_that_are_no_function(machine: BootedMachine) -> None:
    """Places that are no function are refused."""
    text = machine.interposing.functions.text
    outside = (name for name, at in machine.kernel.symbols.every() if at and at not in text)
    for place, reason in (
        (next(outside), "no function"),
        ("strlen+4", "no function begins"),
        (0x1000, "no function"),
    ):
        with pytest.raises(PatchRefused, match=reason):
            machine.stub(place)
    for name in ("nobody_has_this", "strlen+x", "none:strlen", ":x", ""):
        with pytest.raises(BadCall):
            machine.stub(name)


def test_replaced_functions(machine: BootedMachine, text: int) -> None:
    """Replaced functions: calls go to the other with the same arguments."""
    with machine.replace({"strlen": "strnlen"}) as replaced:
        assert call(machine, "strlen", text, 2) == 2
        assert replaced.calls == 1
    assert call(machine, "strlen", text, 2) == 5
    assert replaced.calls == 1
    with pytest.raises(PatchRefused, match="no function begins"):
        machine.replace({"strlen": "strnlen+4"})
    with pytest.raises(BadCall, match="itself"):
        machine.replace({"memcmp": "strnlen", "strlen": "strlen"})
    assert machine.stubbed == {}


# Probes ----------------------------------------------------------------------------------------


def test_registers_at_a_hit(machine: BootedMachine, text: int) -> None:
    """Registers at a hit: at a function's entry they are the arguments, the pc is the place."""
    calling = machine.arch.runs.calling
    with machine.probe("strnlen") as probe:
        call(machine, "strnlen", text, 0x7777)
    (hit,) = probe.hits
    assert hit.arguments[:2] == (text, 0x7777)
    assert tuple(hit.registers[r] for r in calling.arguments) == hit.arguments
    assert hit.registers[calling.program_counter] == hit.address == machine.function("strnlen")
    assert probe.where == "strnlen+0x0"


# WARN of 7.2 (arch/x86/include/asm/bug.h, ASM_UDWARN), whose ModRM byte capstone leaves out.
UDWARN = bytes.fromhex("67480fb93a")


def instructions(machine: BootedMachine, name: str) -> list[int]:
    """Return the instructions of a kernel function, as another program decodes them."""
    start = machine.function(name)
    found = machine.kernel.symbols.around(start)
    assert found is not None
    code, places, at = machine.read(start, found[2]), [], 0
    disassembler = Disassembler(machine.arch)
    while at < len(code):
        end = code.find(UDWARN, at)
        end = len(code) if end < 0 else end
        places += [place for place, _, _ in disassembler.all(code[at:end], start + at)]
        if end < len(code):
            places.append(start + end)
        at = end + len(UDWARN)
    return places


@pytest.mark.parametrize("looks", [False, True], ids=["alone", "handler"])
def test_probes_everywhere_change_nothing(machine: BootedMachine, looks: bool) -> None:
    """Probes everywhere change nothing: each is hit as often as the emulator's own hook says."""

    def printed() -> bytes:
        out = Out(80)
        words = "%s|%-6d|%#x|%c|%pS", "word", -7, 255, ord("x"), machine.function("kfree")
        call(machine, "snprintf", out, 80, *words)
        return bytes(out)

    places = instructions(machine, "vsnprintf")
    executed: Counter[int] = Counter()
    uc = machine.kernel.board.uc
    hook = uc.hook_add(
        unicorn.UC_HOOK_CODE,
        lambda _uc, at, _size, _data: executed.update((at,)),
        None,
        places[0],
        places[-1],
    )
    machine.kernel.board.forget_code()
    expected = printed()
    uc.hook_del(hook)
    machine.kernel.board.forget_code()
    assert expected.startswith(b"word|-7    |0xff|x|kfree+0x0/")
    hits: list[Hit] = []
    probes = [machine.probe(at, hits.append if looks else None, limit=1) for at in places]
    assert printed() == expected
    assert {probe.address: probe.count for probe in probes if probe.count} == executed
    assert sum(executed.values()) > 100
    assert not looks or len(hits) == sum(executed.values())
    for probe in probes:
        assert len(probe.hits) == min(probe.count, 1)
        probe.remove()
    assert printed() == expected
    assert sum(probe.count for probe in probes) == sum(executed.values())


def test_only_beginnings_of_instructions_are_probed(machine: BootedMachine) -> None:
    """Only beginnings of instructions are probed, as another program decodes them."""
    for name in ("vsnprintf", "kstrdup", "strnlen"):
        places = instructions(machine, name)
        for at in range(places[0], places[min(80, len(places) - 1)]):
            if at in places:
                machine.probe(at).remove()
            else:
                with pytest.raises(PatchRefused, match="middle of an instruction") as caught:
                    machine.probe(at)
                begins = max(place for place in places if place < at)
                assert f"one begins at {begins:#x}" in str(caught.value)


def test_handlers_may_change_registers_call_and_remove(machine: BootedMachine, text: int) -> None:
    """Handlers may change registers, call, and remove their probe."""
    second = machine.arch.runs.calling.arguments[1]

    def handler(hit: Hit) -> None:
        assert call(machine, "strlen", hit.arguments[0]) == 5
        machine.cpu.write(second, 2)
        assert machine.cpu.read(second) == 2
        probe.remove()

    probe = machine.probe("strnlen", handler)
    assert call(machine, "strnlen", text, 100) == 2
    assert call(machine, "strnlen", text, 100) == 5
    assert probe.count == 1
    with pytest.raises(BadCall, match="no such register"):
        machine.cpu.read("nonesuch")


def test_time_may_pass_in_a_handler(machine: BootedMachine, text: int) -> None:
    """Time may pass in a handler: what is interrupted at the hit is hit once all the same."""
    jiffies = []

    def handler(hit: Hit) -> None:
        if hit.arguments[0] == text:  # others, which run meanwhile, may come by
            machine.sleep(0.03)
            jiffies.append(machine.time)

    before = machine.time
    with machine.probe("strlen", handler):
        call(machine, "kstrdup", text, GFP_KERNEL)
    assert len(jiffies) == 1
    assert jiffies[0] - before >= 0.03


# Traces ----------------------------------------------------------------------------------------


def tree(calls: list[TracedCall]) -> list[object]:
    """Return names and results as nested lists."""
    return [(call.function, call.result, tree(call.children)) for call in calls]


@pytest.mark.parametrize("looks", [False, True], ids=["alone", "handler"])
def test_calls_nest_as_the_source_has_them(machine: BootedMachine, text: int, looks: bool) -> None:
    """Calls nest as the source has them: kstrdup() is strlen(), an allocation and a copy."""
    events: list[tuple[str, str]] = []
    handlers = {}
    if looks:

        def entry(traced: TracedCall) -> None:
            assert call(machine, "strnlen", text, 3) == 3
            events.append(("in", traced.function))

        handlers = {"on_entry": entry, "on_exit": lambda c: events.append(("out", c.function))}
    with machine.trace("kstrdup", "strlen", **handlers) as trace:  # type: ignore[arg-type] # each has its own
        copy = call(machine, "kstrdup", text, GFP_KERNEL)
    outer = next(each for each in trace.calls if each.function == "kstrdup")
    assert (outer.arguments[:2], outer.result) == ((text, GFP_KERNEL), copy)
    (inner,) = (each for each in outer.children if each.function == "strlen")
    assert (inner.arguments[0], inner.result) == (text, 5)
    assert (machine.symbolize(inner.caller) or "").startswith("kstrdup+")
    assert len(trace.sites) == 2
    if looks:
        assert events == [
            ("in", "kstrdup"),
            ("in", "strlen"),
            ("out", "strlen"),
            ("out", "kstrdup"),
        ]


def test_tasks_that_switch_have_trees_of_their_own(machine: BootedMachine) -> None:
    """Tasks that switch have trees of their own: one sleeps while others are traced."""
    with machine.trace("msleep", "schedule", "schedule_timeout", "do_idle", "kfree") as trace:
        call(machine, "msleep", 20)
    (sleep,) = (each for each in trace.calls if each.function == "msleep")
    assert sleep.result is not None
    names = {each.function for _, each in sleep.walk()}
    assert "schedule" in names
    assert "do_idle" not in names
    assert all(each.result is not None for _, each in sleep.walk())


def test_a_traced_module(machine: BootedMachine) -> None:
    """A traced module: its functions by a glob, its probe, and what calls into the kernel."""
    module = loaded(machine, "libarc4")
    key = bytes(range(16))
    context, out = machine.alloc(2048), machine.alloc(64)
    with module.trace() as trace, module.probe("arc4_crypt") as probe:
        assert module.call("arc4_setkey", context, key, len(key), returns="int") == 0
        module.call("arc4_crypt", context, out, bytes(64), 64)
    assert [each.function for each in trace.calls] == ["arc4_setkey", "arc4_crypt"]
    assert (probe.count, probe.where) == (1, "arc4_crypt+0x0 [libarc4]")
    assert machine.read(out, 64) == _rc4(key, 64)
    with machine.stub("libarc4:arc4_setkey", ENOMEM) as stub:
        assert module.call("arc4_setkey", context, key, 16, returns="int") == ENOMEM
    assert stub.calls == 1


PADDED = [row for row in booted.releases() if list(row[1].rglob("crc16.ko*"))]


@pytest.mark.parametrize("folder", [row[1] for row in PADDED], ids=[row[0] for row in PADDED])
def test_paddings_are_no_functions(folder: Path) -> None:
    """What lies before functions of some kernels has symbols (`__pfx_`), and nobody calls it."""
    machine = booted.machine(folder, folder)
    with machine.fork():
        module = machine.load("crc16")
        functions = {each for each in module.entries if not each.startswith("__pfx_")}
        assert "crc16" in functions
        names = {each.name for each in machine.interposing.functions.matching("crc16")}
        assert names == functions
        # Whoever names one has it.
        for name in set(module.entries) - functions:
            (found,) = machine.interposing.functions.matching(f"crc16:{name}")
            assert found.name == name


def _rc4(key: bytes, size: int) -> bytes:
    """Return the first bytes of RC4's stream, by its definition."""
    state = list(range(256))
    j = 0
    for i in range(256):
        j = (j + state[i] + key[i % len(key)]) & 255
        state[i], state[j] = state[j], state[i]
    out, i, j = bytearray(), 0, 0
    for _ in range(size):
        i = (i + 1) & 255
        j = (j + state[i]) & 255
        state[i], state[j] = state[j], state[i]
        out.append(state[(state[i] + state[j]) & 255])
    return bytes(out)


def test_calls_beyond_the_limit_are_counted(machine: BootedMachine, text: int) -> None:
    """Calls beyond the limit are counted."""
    with machine.trace("strlen", limit=2) as trace:
        for _ in range(5):
            call(machine, "strlen", text)
    assert (trace.recorded, trace.dropped, [c.result for c in trace.calls]) == (2, 3, [5, 5])


def test_what_cannot_be_traced_is_said(machine: BootedMachine) -> None:
    """What cannot be traced is said."""
    with pytest.raises(PatchRefused, match=rf"functions match, and at most {traces.MOST}"):
        machine.trace("*")
    with pytest.raises(PatchRefused, match="no function matches 'nonesuch'"):
        machine.trace("nonesuch")
    with pytest.raises(BadCall, match="no such module"):
        machine.trace("nonesuch:*")


def test_a_call_that_stops_leaves_nothing_behind(machine: BootedMachine, text: int) -> None:
    """A call that stops leaves nothing behind: the next one stands outermost, at depth 0."""
    with machine.trace("kstrdup", "strlen") as trace:
        with pytest.raises(Fault):
            call(machine, "kstrdup", 8, GFP_KERNEL)
        copy = call(machine, "kstrdup", text, GFP_KERNEL)
    calls = [each for each in trace.calls if each.function == "kstrdup"]
    assert [each.result for each in calls] == [None, copy]
    assert [each.result for each in calls[1].children] == [5]


def test_observers_see_what_is_stubbed(machine: BootedMachine, text: int) -> None:
    """Observers see what is stubbed: probe and trace come before whatever stands in."""
    with (
        machine.stub("strlen", 1),
        machine.probe("strlen") as probe,
        machine.trace("strlen") as trace,
    ):
        call(machine, "kstrdup", text, GFP_KERNEL)
    assert probe.count == 1
    assert [each.result for each in trace.calls] == [1]


# Snapshots, modules, the kernel's own watchers -------------------------------------------------


def test_going_back_leaves_who_looks_on(machine: BootedMachine, text: int) -> None:
    """Going back leaves who looks on: what was put there stays, what was taken away too."""
    early = machine.probe("strlen")
    before = machine.snapshot()
    call(machine, "strlen", text)
    late, stub = machine.probe("strlen"), machine.stub("strnlen", 9)
    early.remove()
    machine.restore(before)
    call(machine, "strlen", text)
    assert (early.count, late.count) == (1, 1)
    with machine.fork():
        assert call(machine, "strnlen", text, 3) == 9
        inner = machine.probe("strlen")
        call(machine, "strlen", text)
    call(machine, "strlen", text)
    assert (inner.count, late.count) == (2, 3)
    for each in (inner, late, stub):
        each.remove()
    assert call(machine, "strnlen", text, 3) == 3


def test_calls_under_way_end_where_one_goes_back(machine: BootedMachine, text: int) -> None:
    """Calls under way end where one goes back; and only a handler's own snapshot is taken there."""
    outside = machine.snapshot()

    def handler(_hit: Hit) -> None:
        with machine.fork():
            machine.write(text, b"x\0")
            assert call(machine, "strnlen", text, 9) == 1
        with pytest.raises(BadCall, match="middle"):
            machine.restore(outside)

    with machine.probe("strlen", handler), machine.trace("kstrdup") as trace:
        copy = call(machine, "kstrdup", text, GFP_KERNEL)
    assert machine.read(copy, 6) == b"hello\0"
    # The call was under way when a fork ended: nobody can say any more what became of it.
    assert [each.function for each in trace.calls] == ["kstrdup"]


def test_what_stands_in_a_module_counts_while_it_is_there(machine: BootedMachine) -> None:
    """What stands in a module counts while it is there, and again when one goes back."""
    module = loaded(machine, "libarc4")
    stub, kept = machine.stub("libarc4:arc4_setkey", 7), machine.snapshot()
    place = module.symbols["arc4_setkey"]
    assert module.call("arc4_setkey", 0, 0, 0) == 7
    module.unload()
    again = machine.load("libarc4")
    assert again.symbols["arc4_setkey"] == place  # the same memory, by the kernel's allocator
    context = machine.alloc(2048)
    assert again.call("arc4_setkey", context, b"key", 3) == 0
    machine.restore(kept)
    assert module.call("arc4_setkey", 0, 0, 0) == 7
    stub.remove()
    led = pytest.raises(BadCall, match="calls of strlen are led to it")
    with machine.replace({"strlen": "libarc4:arc4_setkey"}), led:
        module.unload()
    module.unload()


def test_the_kernels_own_watchers_go_on(machine: BootedMachine) -> None:
    """The kernel's own watchers go on: a load is seen, an oops ends its call, with probes there."""
    name = "do_exit"
    probes = [machine.probe(name), machine.probe("do_init_module")]
    with pytest.raises(Fault):
        call(machine, "strlen", 8)
    assert probes[0].count <= 1
    module = loaded(machine, "libarc4")
    assert probes[1].count == 1
    assert module.sections
    for probe in probes:
        probe.remove()
    with pytest.raises(Fault):
        call(machine, "strlen", 8)
    assert machine.syscall("getpid") == 1


def test_a_warning_is_not_a_fault_and_is_told(machine: BootedMachine) -> None:
    """A warning is not a fault and is told: where, and who called it."""
    assert machine.warnings == []
    call(machine, "kobject_put", bytes(64))
    found = machine.warnings
    assert "kobject_put+" in found[0].where
    assert "kobject.c" in found[0].text


# The command line ------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    """Run a command; return its exit code, output and messages."""
    code = 0
    try:
        main([str(word) for word in words])
    except SystemExit as error:
        code = int(error.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(params=KERNELS, ids=[name for name, _, _ in KERNELS])
def folder(request: pytest.FixtureRequest) -> Path:
    """Return the folder of each kernel at hand, booted before."""
    booted.machine(request.param[1])
    found: Path = request.param[1]
    return found


def test_trace_command(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    """The command shows the calls as a tree, and as JSON in the form of the modelled kernel."""
    words = ("--kernel", folder, "--", "kstrdup", "str:abc", "0xcc0")
    code, out, _ = run(capsys, "trace", "vmlinux:kstrdup", "--also", "strlen", "--json", *words)
    document = json.loads(out)
    assert (code, document["module"], document["sites"]) == (0, "vmlinux", 2)
    assert [(c["depth"], c["function"]) for c in document["calls"]] == [
        (0, "kstrdup"),
        (1, "strlen"),
    ]
    assert [c["caller"].split("+")[0] for c in document["calls"]] == ["outside", "kstrdup"]
    assert document["calls"][1]["result"] == "0x3"
    code, out, _ = run(capsys, "trace", "kstrdup", "--args", *words)
    assert code == 0
    assert any(line.split(" = ")[0].endswith(f" 'abc', gfp={0xCC0})") for line in out.splitlines())
    code, _, err = run(capsys, "trace", "*", *words)
    assert (code, err.count("\n")) == (1, 1)
    assert "functions match, and at most" in err


def test_probe_command(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    """The command shows the registers at each hit."""
    words = ("--kernel", folder, "--", "kstrdup", "str:abc", "0xcc0")
    code, out, _ = run(capsys, "probe", "kstrdup", "--json", *words)
    document = json.loads(out)
    assert (code, document["where"], len(document["hits"])) == (0, "kstrdup+0x0", 1)
    assert "0xcc0" in document["hits"][0].values()
    code, out, _ = run(capsys, "probe", "kstrdup", *words)
    assert (code, "reached once" in out, "hit 1" in out) == (0, True, True)
    code, _, err = run(capsys, "probe", "kstrdup+1", *words)
    assert (code, "middle of an instruction" in err) == (1, True)


def test_modules_on_the_command_line(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    """A module is loaded, and its functions watched by the name before the colon."""
    if not any(module_name(path) == "libarc4" for path in folder.rglob("*.ko*")):
        pytest.skip("no libarc4 there")
    words = ("--root", folder, "--kernel", folder, "--", "arc4_setkey", "out:2048", "str:key", "3")
    code, out, _ = run(capsys, "trace", "libarc4:arc4_*", "--json", *words)
    document = json.loads(out)
    assert (code, document["module"], document["result"]) == (0, "libarc4", "0x0")
    assert [c["function"] for c in document["calls"]] == ["arc4_setkey"]
    code, out, _ = run(capsys, "probe", "libarc4:arc4_setkey", "--json", *words)
    assert (code, json.loads(out)["where"]) == (0, "arc4_setkey+0x0 [libarc4]")
