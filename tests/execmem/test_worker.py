# SPDX-License-Identifier: GPL-2.0-or-later
"""Workers: a guest that ends a process ends none that a user started, and it is told where."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from allocator.errors import ExecmemError
from allocator.types import GIB, MIB
from archs import ALL
from emulator.culprit import find
from emulator.faults import FaultKind
from emulator.process import BlackBox
from execmem import Fault, Machine, isolated
from execmem.sweep import Journal, Options, files_under, sweep, tasks_for
from execmem.worker.child import alone
from execmem.worker.command import _attend
from execmem.worker.watch import Watch
from samples import modules
from tests.archs.facts import cases, facts
from tests.machine.snippets import put, snippet
from tests.support.modules import module

HERE = Path(__file__).parents[2]


def execmem(*words, **more):
    """Run a command as a user does."""
    command = [sys.executable, "-m", "execmem", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=HERE, check=False, **more)


def lethal(arch):
    """Return an instruction that ends the emulator, or skip the test."""
    if not facts(arch).run.lethal:
        pytest.skip(f"no instruction of {arch.name} is known that ends the emulator")
    return bytes.fromhex(next(iter(facts(arch).run.lethal.values()))[0])


def write(folder, arch, code):
    """Write a module whose init executes something harmless, and then `code`."""
    nop = facts(arch).run.nop
    path = folder / "mini.ko"
    path.write_bytes(module(arch.machine, init=bytes.fromhex(nop) + code + facts(arch).link.ret))
    return path, len(bytes.fromhex(nop))


def refused(result, *words):
    """Check that a command ended with one line and exit code 1; return the line."""
    assert (result.returncode, result.stdout) == (1, ""), result
    assert result.stderr.startswith("execmem: ")
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr
    return result.stderr


def test_every_class_of_such_instructions_is_found_out(arch):
    """Each is the culprit of its own block; what came before it is not."""
    lethal(arch)
    head = bytes.fromhex(facts(arch).run.harmless)
    for codes in facts(arch).run.lethal.values():
        for code in map(bytes.fromhex, codes):
            found = find(arch.name, head + code + arch.runs.emulation.ret, 0x1000, alone)
            assert found == (0x1000 + len(head), code, f"(bytes {code.hex(' ')})")
    assert find(arch.name, head + arch.runs.emulation.ret, 0x1000, alone) is None


@pytest.mark.parametrize(("arch", "kind"), cases("run", "lethal"))
def test_an_instruction_that_ends_the_emulator_is_a_fault(arch, kind, tmp_path):
    """`run` and a sweep tell it in the same words, with the instruction's place, and go on."""
    lethal(arch)
    code = bytes.fromhex(facts(arch).run.lethal[kind][0])
    path, before = write(tmp_path, arch, code)
    line = refused(execmem("run", path), "emulator died: SIGABRT")
    assert f" at init_module+{before:#x} [mini] (pc 0x" in line
    assert line.endswith(f": (bytes {code.hex(' ')})\n")
    good = tmp_path / "z.ko"
    good.write_bytes(modules.path(arch.name, "hello").read_bytes())
    options = Options(init=True)
    with closing(Journal(None, options)) as journal:
        rows = list(sweep(tasks_for(files_under([tmp_path])), options, journal, jobs=1))
    assert [row["outcome"] for row in rows] == ["fault", "init-ok"]
    assert f"execmem: {rows[0]['error']}\n" == line


def test_no_command_ends_by_a_signal(arch, tmp_path):
    """Whatever command runs the guest: exit code 1 and one line."""
    path, _ = write(tmp_path, arch, lethal(arch))
    for words in (
        ("load", "--init", path),
        ("run", "--no-init", path, "init_module"),
        ("run", "--instructions", "1000", path),
        ("explain", path, "--html", tmp_path / "page.html"),
        ("trace", path, "--", "mini_work"),
        ("probe", f"{path}:mini_work", "--", "mini_work"),
        ("crypto", "md4", "str:abc", "--module", path),
    ):
        refused(execmem(*words), "emulator died: SIGABRT", "init_module")
    assert not (tmp_path / "page.html").exists()
    result = execmem("sweep", "--init", path, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout.splitlines()[0])["outcome"] == "fault"


def test_a_command_in_a_worker_is_as_before(arch):
    """What a command prints and how it ends is what it was without a worker."""
    result = execmem("run", modules.path(arch.name, "hello"))
    said = "hello: Hello, world!\nhello: init returned 0\n"
    assert (result.returncode, result.stdout, result.stderr) == (0, said, "")


def test_usage_and_refusals_are_as_before(tmp_path):
    """Exit codes 2 and 1; a reader that went away is no error that anybody is told of."""
    assert execmem("run").returncode == 2
    assert execmem("--help").stdout.startswith("Usage: execmem ")
    refused(execmem("run", tmp_path / "absent.ko"), "absent.ko")
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "execmem", "archs"]
    result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, cwd=HERE, check=False)
    os.close(writer)
    assert result.returncode >= 0
    assert result.stderr == b""


def spinning(folder, arch):
    """Start a command whose guest spins, and wait until it does."""
    path = folder / "spin.ko"
    path.write_bytes(module(arch.machine, spins="init"))
    process = subprocess.Popen(
        [sys.executable, "-m", "execmem", "run", path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=HERE,
        start_new_session=True,
    )
    until = time.monotonic() + 60
    while time.monotonic() < until:
        below = children(process.pid)
        if below and used(below[0]) > 1.0:  # more than it takes to start
            return process, below[0]
        time.sleep(0.05)
    pytest.fail("it does not spin")


def children(pid):
    """Return the children of a process."""
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    if not listed.exists():
        pytest.skip("the system lists no children")
    return [int(word) for word in listed.read_text().split()]


def used(pid):
    """Return the CPU seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ended(pid):
    """Return whether a process ends within seconds."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize(
    ("number", "group", "code"),
    [
        (signal.SIGINT, False, 130),
        (signal.SIGTERM, False, -signal.SIGTERM),
        (signal.SIGTERM, True, -signal.SIGTERM),
        (signal.SIGKILL, False, -signal.SIGKILL),
    ],
)
def test_who_ends_a_command_ends_its_worker(number, group, code, tmp_path):
    """Signals reach the worker, and the command ends as it would have without one."""
    process, child = spinning(tmp_path, ALL[0])
    (os.killpg if group else os.kill)(process.pid, number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert out == b""
    assert err.strip() == (b"execmem: interrupted" if number == signal.SIGINT else b"")
    assert ended(child)


def test_a_worker_that_is_killed_is_told(tmp_path):
    """Without last words, the function that was called is what is known."""
    process, child = spinning(tmp_path, ALL[0])
    os.kill(child, signal.SIGKILL)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert err.startswith(b"execmem: emulator died: SIGKILL (out of memory?), somewhere in this")
    assert b" at init_module+0x0 [mini] (pc 0x" in err
    assert err.count(b"\n") == 1


# From Python ---------------------------------------------------------------------------------


def test_what_a_function_returns_or_raises_comes_back():
    """`isolated` is a call: result, keyword arguments and errors are the function's."""
    assert isolated(divmod, 17, 5) == (3, 2)
    assert isolated(sorted, [1, 3, 2], reverse=True) == [3, 2, 1]
    with pytest.raises(ZeroDivisionError):
        isolated(divmod, 1, 0)
    with pytest.raises(ExecmemError, match="cannot be sent"):
        isolated(lambda: lambda: 1)
    with pytest.raises(ExecmemError, match="exit code 3"):
        isolated(os._exit, 3)
    with pytest.raises(ExecmemError, match="the process died of SIGSEGV"):
        isolated(ctypes.string_at, 0)


def test_a_call_in_a_copy_changes_nothing_here(arch):
    """A machine goes along; limits hold in the copy; Faults come back with their fields."""
    machine = Machine(arch)
    machine.seconds = 0.3
    spot = machine.alloc(8)
    count = snippet(machine, "count")
    with pytest.raises(Fault) as found:
        isolated(machine.call, count, spot)
    assert found.value.kind is FaultKind.TIME_LIMIT
    assert machine.read(spot, 8) == bytes(8)
    assert isolated(machine.call, snippet(machine, "one")) == 1
    store = snippet(machine, "store")
    isolated(machine.call, store, spot, 7)
    assert machine.read(spot, 8) == bytes(8)
    machine.call(store, spot, 7)
    assert machine.read(spot, 8) == (7).to_bytes(8, "little")


def test_a_copy_that_dies_is_a_fault(arch):
    """The instruction's address is in the Fault, and the script's machine is as before."""
    code = lethal(arch)
    machine = Machine(arch)
    address = put(machine, code + arch.runs.emulation.ret)
    with pytest.raises(Fault) as found:
        isolated(machine.call, address)
    assert found.value.kind is FaultKind.EMULATOR
    assert found.value.pc == address
    assert machine.call(snippet(machine, "one")) == 1


def caller(arch, name="hosted"):
    """Return a machine and a function in it that calls a function of the kernel."""
    machine = Machine(arch)
    machine.stub(name, lambda: None)
    image = module(arch.machine, undefined=(name,))
    return machine, machine.load(image, init=False)


def test_a_death_in_a_kernel_function_names_it(arch):
    """What the kernel does for a guest is told as what it is."""
    machine, loaded = caller(arch)
    for action, what in (
        (lambda: ctypes.string_at(0), "SIGSEGV, in hosted()"),
        (lambda: os.kill(os.getpid(), signal.SIGFPE), "SIGFPE, in hosted()"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL (out of memory?), somewhere"),
    ):
        machine.stub("hosted", action)
        with pytest.raises(Fault) as found:
            isolated(loaded.call, "mini_work")
        assert found.value.kind is FaultKind.EMULATOR
        assert what in str(found.value)
        assert "mini_work" in found.value.where or "hosted" in found.value.where


def test_a_death_in_a_callback_is_the_callbacks(arch):
    """The instruction is found in what a kernel function calls back, as anywhere else."""
    code = lethal(arch)
    machine, loaded = caller(arch)
    nop = bytes.fromhex(facts(arch).run.nop)
    at = put(machine, nop + code)
    machine.stub("hosted", lambda: machine.kernel.call(at))
    with pytest.raises(Fault) as found:
        isolated(loaded.call, "mini_work")
    assert (found.value.pc, found.value.instruction) == (at + len(nop), f"(bytes {code.hex(' ')})")
    assert "hosted" not in str(found.value)


def test_who_does_not_stop_at_the_limit_is_stopped(arch):
    """Where nothing in the process can end the call, the process is ended soon after."""
    machine, loaded = caller(arch)
    machine.stub("hosted", lambda: time.sleep(60))
    machine.seconds = 0.2
    began = time.monotonic()
    with pytest.raises(Fault) as found:
        isolated(loaded.call, "mini_work")
    assert found.value.kind is FaultKind.TIME_LIMIT
    assert "in hosted()" in str(found.value)
    assert time.monotonic() - began < 10


def _take(memory):
    """Take memory in a worker that has a machine."""
    Machine("x86_64", memory=64 * MIB)
    return len(bytearray(memory))


def _count(cpus):
    """Make a machine of many CPUs, each of which maps a buffer."""
    return len(Machine("x86_64", memory=64 * MIB, cpus=cpus).cpus)


def test_a_worker_takes_no_more_memory_than_it_may():
    """A machine's memory bounds what its host spends besides; beyond is a MemoryError."""
    gc.collect()  # what this process could give back would count as room
    assert isolated(_take, 100 * MIB) == 100 * MIB
    assert isolated(_count, 6) == 6
    with pytest.raises(MemoryError):
        isolated(bytes, 4 * GIB)
    with pytest.raises(MemoryError):
        isolated(_take, 8 * GIB)


@pytest.mark.parametrize("most", range(5, 10))
def test_too_few_files_is_one_line(most):
    """A command that may open next to no files says so, wherever it has none left."""
    text = "from execmem.cli import main; main()"
    code = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({most}, {most})); {text}"
    path = modules.path("x86_64", "hello")
    result = subprocess.run(
        [sys.executable, "-c", code, "run", path], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stderr.startswith("execmem: ")
    assert result.stderr.endswith("Too many open files\n")
    assert result.stderr.count("\n") == 1


def test_what_c_code_says_begins_as_all_errors_do(capfd):
    """The emulator ends a process that has no room for its code, and says so; so do we."""
    shared = BlackBox()
    child = os.fork()
    if not child:
        os.write(shared.descriptors[1], b"no room\n")
        os._exit(1)
    assert _attend(Watch(child, shared), ()) == 1
    assert capfd.readouterr() == ("", "execmem: no room\n")
    shared.close()


def test_too_little_memory_is_one_line(tmp_path):
    """A command that gets no memory says so."""
    text = "from execmem.cli import main; main()"
    code = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({GIB}, {GIB})); {text}"
    path = modules.path("x86_64", "hello")
    result = subprocess.run(
        [sys.executable, "-c", code, "run", path], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stderr == "execmem: out of memory\n"
