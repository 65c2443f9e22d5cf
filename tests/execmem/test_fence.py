# SPDX-License-Identifier: GPL-2.0-or-later
"""The fence: what code that got out of the emulator can reach, which is nothing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path

import pytest
from unicorn import Uc

from allocator.types import GIB
from archs import arch
from execmem import Fault, Machine, isolated
from execmem.cli import COMMANDS, cli, main
from execmem.worker import fence as fences
from execmem.worker.fence import EVERYTHING, NETWORK, READING, NotFenced, fence
from execmem.worker.jobs import Worker
from loader.errors import BadKernel
from loader.kernel import dwarf
from samples.modules import path
from tests.archs.facts import facts
from tests.machine.snippets import snippet
from tests.support import planted
from tests.support.modules import module

REFUSED = ("EPERM", "EACCES")


def worker(**options):
    """Return a process that makes planted calls."""
    return closing(Worker(planted.attempt, memory=GIB, seconds=30.0, **options))


@pytest.fixture(scope="module")
def fenced():
    """Give a worker behind the fence; skip where the host has none that is whole."""
    with worker(fenced=True) as found:
        found.give(("socket", {}))
        found.result()
        if not found.fence.whole:
            pytest.skip(f"this host keeps {'; '.join(found.fence.kept)}")
        yield found


@pytest.fixture(scope="module")
def free():
    """Give a worker that nothing keeps from anything."""
    with worker() as found:
        yield found


@pytest.fixture
def place(tmp_path):
    """Give files, a home, listeners, and a process to be attacked."""
    (tmp_path / "there").write_text("contents")
    (tmp_path / "extra").write_text("contents")
    (tmp_path / "moved").write_text("contents")
    home = tmp_path / "home"
    home.mkdir()
    victim = subprocess.Popen(["sleep", "60"])
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        where = Path(os.path.relpath(tmp_path)) / "socket"  # a path of 108 bytes at most
        unix.bind(str(where if len(str(where)) < 100 else tmp_path / "socket"))
        unix.listen()
        yield {
            "folder": str(tmp_path),
            "home": str(home),
            "port": tcp.getsockname()[1],
            "victim": victim.pid,
            "control": False,
        }
        tcp.setblocking(False)
        unix.setblocking(False)
    victim.kill()
    victim.wait()


def state(folder):
    """Return what is in a folder: path, mode, contents."""
    return {
        path.relative_to(folder): (
            path.lstat().st_mode,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in sorted(Path(folder).rglob("*"))
    }


@pytest.mark.parametrize("call", planted.CALLS)
def test_a_planted_call_is_refused(fenced, free, place, call):
    """What an unfenced process of the same user may do, a fenced one may not."""
    before = state(place["folder"])
    fenced.give((call, place))
    answer, reason = fenced.result()
    assert reason == ""
    assert answer[0] < 0, answer
    assert answer[1] in REFUSED
    assert state(place["folder"]) == before
    os.kill(place["victim"], 0)  # it is there
    free.give((call, {**place, "control": True}))
    (result, error), reason = free.result()
    assert reason == ""
    if result < 0 and error in (*REFUSED, "ENOSYS"):
        pytest.skip(f"the host refuses it to everybody like us: {error}")


def test_what_a_machine_needs_is_left():
    """Threads, memory that is written and executed, files in memory, its own signals."""
    with closing(Worker(planted.own, memory=GIB, seconds=30.0, fenced=True)) as found:
        found.give({})
        assert found.result() == (["thread", True], "")


def test_what_is_named_may_be_read(tmp_path):
    """A file and a folder that are named can be read, and what is beside them cannot."""
    for name in ("file", "beside", "folder/inside"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("contents")
    call = "open a file that is not its own"
    (tmp_path / "folder/there").write_text("contents")
    (tmp_path / "there").write_text("contents")
    with worker(fenced=True, readable=[tmp_path / "folder", tmp_path / "absent"]) as found:
        found.give((call, {"folder": str(tmp_path / "folder")}))
        assert found.result()[0][0] >= 0
        found.give((call, {"folder": str(tmp_path)}))
        answer = found.result()[0]
        if READING not in found.fence.removed:
            pytest.skip(f"this host keeps {'; '.join(found.fence.kept)}")
        assert answer == [-1, "EACCES"]


# Hosts that lack something -----------------------------------------------------------------------


def partly(lacking, call, place):
    """Fence this process with what is left of the libraries, and make a call; for a copy."""
    found = {name: module for name, module in fences.prepare().items() if name not in lacking}
    fences.prepare = lambda: found
    return fence(), planted.attempt((call, place))


@pytest.mark.parametrize(
    ("lacking", "call", "works", "kept"),
    [
        ("pyseccomp", "socket", True, NETWORK),
        ("pyseccomp", "open to write", False, None),
        ("pyseccomp", "kill another", False, None),
        ("landlockpy", "open a file that is not its own", True, READING),
        ("landlockpy", "open to write", False, None),
        ("landlockpy", "socket", False, None),
        ("landlockpy pyseccomp", "open to write", True, fences.WRITING),
        ("landlockpy pyseccomp", "mount", False, None),
    ],
)
def test_what_a_host_keeps_is_said(lacking, call, works, kept, place):
    """Where a library is missing, what is closed is what is said to be."""
    told, (result, error) = isolated(partly, lacking.split(), call, place)
    if len(lacking.split()) == 1 and len(told.removed) < 3:
        pytest.skip(f"this host keeps {'; '.join(told.kept)}")
    assert (result >= 0) == works
    assert works or error in REFUSED
    named = {line.partition(" (")[0]: line for line in told.kept}
    assert {*named, *told.removed} == set(EVERYTHING)
    assert not set(named) & set(told.removed)
    if kept is not None:
        assert any(name in named[kept] for name in lacking.split())


def test_a_fence_that_must_be_whole_is_refused(tmp_path, monkeypatch):
    """Where a host keeps something, a worker that is to be fenced entirely does nothing."""
    (tmp_path / "pyseccomp.py").write_text("raise ImportError")
    monkeypatch.syspath_prepend(tmp_path)
    with worker(fenced=True, whole=True) as found:
        found.give(("creat", {"folder": str(tmp_path)}))
        with pytest.raises(NotFenced, match=r"no whole sandbox here: network \(no seccomp: pip "):
            found.result()
    assert list(tmp_path.glob("made")) == []


def types_behind(readable, contents):
    """Fence this process, and ask for types that a program would make; for a copy."""
    dwarf.shutil.which = lambda _: "/usr/bin/true"
    fence(readable)
    return dwarf.Debug(lambda: contents).types("kernel")


def computed(machine, folder):
    """Fence this process, in which a machine is, and let it compute; for a copy."""
    told = fence()
    machine.seconds = 0.2
    with pytest.raises(Fault, match="time limit"):
        machine.call(snippet(machine, "spin"))
    return told, planted.attempt(("open a file that is not its own", {"folder": str(folder)}))


def test_a_machine_goes_on_behind_the_fence(fenced, tmp_path):
    """What watches its time is fenced, too, and watches on."""
    machine = Machine("arm64")
    (tmp_path / "there").write_text("contents")
    told, (result, error) = isolated(computed, machine, tmp_path)
    assert told.whole, told.kept
    assert (result, error in REFUSED) == (-1, True)


def test_types_that_are_kept_are_read_behind_the_fence(tmp_path, monkeypatch):
    """What a program made of debugging information before is read; it is not started any more."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    dwarf.folder().mkdir(parents=True)
    name = hashlib.sha256(b"known").hexdigest()[:40]
    (dwarf.folder() / f"{name}.btf").write_bytes(b"types")
    assert isolated(types_behind, [dwarf.folder()], b"known") == b"types"
    with pytest.raises(BadKernel, match="debugging information: pahole: "):
        isolated(types_behind, [dwarf.folder()], b"unknown")


# A worker that is not ours any more --------------------------------------------------------------


def hostile(how):
    """Do to the other side what a guest would that has this process."""
    (pipe,) = (fd for fd in range(3, 64) if _name(fd).startswith("socket:"))
    box = next(fd for fd in range(3, 64) if "memfd:box" in _name(fd))
    if how == "shrink":
        with suppress(OSError):
            os.ftruncate(box, 0)
    elif how == "far":
        os.lseek(1, 1 << 60, os.SEEK_SET)
        os.abort()
    elif how == "words":
        os.pwrite(box, b"\xff" * 60000, 2048)
        os.abort()
    elif how == "closed":
        os.close(pipe)
        while True:
            pass
    elif how == "stalled":
        os.write(pipe, b"\0\0")
        while True:
            pass
    elif how == "pickle":
        os.write(pipe, b"\0\0\0\x04cos\n")
    elif how == "huge":
        os.write(pipe, b"\x7f\xff\xff\xff")
    elif how == "deep":
        os.write(pipe, (200_000).to_bytes(4, "big") + b"[" * 200_000)
    return "done"


def _name(descriptor):
    try:
        return str(Path(f"/proc/self/fd/{descriptor}").readlink())
    except OSError:
        return ""


@pytest.fixture(scope="module")
def lost():
    """Give a worker that is lost and made anew, job by job."""
    with (
        pytest.MonkeyPatch.context() as patch,
        closing(Worker(hostile, memory=GIB, seconds=30.0, fenced=True)) as found,
    ):
        patch.setattr("execmem.worker.jobs.STALLED", 1)
        patch.setattr("execmem.worker.jobs.GRACE", 0.2)
        yield found


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("shrink", ""),
        ("far", "the process died of SIGABRT"),
        ("words", "the process died of SIGABRT"),
        ("closed", "the process died of SIGKILL"),
        ("stalled", "the process died of SIGKILL"),
        ("pickle", "the process died of SIGKILL"),
        ("huge", "the process died of SIGKILL"),
        ("deep", "the process died of SIGKILL"),
        ("nothing", ""),
    ],
)
def test_a_hostile_worker_costs_its_job(lost, how, why):
    """Whatever it sends or does to what is shared, it is one job, and the next one is done."""
    lost.give(how)
    answer, reason = lost.result()
    assert (answer, reason) == ("done", "") if not why else (answer is None and why in reason)


# Commands ----------------------------------------------------------------------------------------

EVIL = """
import socket
from pathlib import Path

from allocator.designs import Vmalloc

def tried(what, *args):
    try:
        what(*args)
    except OSError as error:
        return type(error).__name__
    return "done"

class Evil(Vmalloc):
    name = "evil"

    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        folder = Path(__file__).parent
        print(
            tried((folder / "made").write_text, "x"),
            tried((folder / "there").read_text),
            tried(socket.socket),
            *[tried(Path(name).read_bytes) for name in (__file__, "/proc/self/status")],
        )
"""


def command(*words, **more):
    """Run a command in a process of its own; return what subprocess does."""
    return subprocess.run(
        [sys.executable, "-m", "execmem", *map(str, words)],
        check=False,
        capture_output=True,
        text=True,
        **more,
    )


@pytest.fixture
def evil(tmp_path):
    """Give a design of which everybody sees what it can do, beside a file that nobody named."""
    (tmp_path / "evil.py").write_text(EVIL)
    (tmp_path / "there").write_text("contents")
    return tmp_path / "evil.py"


BEHIND = {
    "run": ["mathuser", "mathuser_lcm", 21, 6],
    "coverage": ["mathuser", "mathuser_lcm", 21, 6],
    "gdb": ["mathuser", "mathuser_lcm", 21, 6, "--batch", "{folder}/script"],
    "export": ["mathuser", "--elf", "{folder}/out.elf"],
}


@pytest.mark.parametrize("name", BEHIND)
def test_a_command_behind_the_fence(fenced, evil, name):
    """What it works on comes to the same, and it can do nothing else; without, it can."""
    if name == "gdb" and shutil.which("gdb-multiarch") is None:
        pytest.skip("gdb-multiarch is not installed")
    (evil.parent / "script").write_text("detach\n")
    words = [name, *(str(word).format(folder=evil.parent) for word in BEHIND[name])]
    words += ["--design", evil]
    plain = command(*words)
    assert plain.stdout.splitlines()[0] == "done done done done done"
    (evil.parent / "made").unlink()
    done = command(*words, "--require-sandbox")
    assert (done.returncode, done.stderr) == (0, plain.stderr)
    first, *rest = done.stdout.splitlines()
    assert first == "PermissionError PermissionError PermissionError done done"
    expected = [line for line in plain.stdout.splitlines() if not line.startswith("done done")]
    assert [line for line in rest if not line.startswith("PermissionError ")] == expected
    assert not (evil.parent / "made").exists()


WRITTEN = {
    "load": ["load", "hello", "--svg", "out.svg"],
    "run": ["run", "hello", "--record", "out.jsonl"],
    "export": ["export", "hello", "--elf", "out", "--core", "out.core", "--bin", "out.bin"],
}


@pytest.mark.parametrize("words", WRITTEN.values(), ids=WRITTEN)
def test_what_is_named_is_written(tmp_path, fenced, words):
    """The same as without a fence, in its place and whole, and nothing lies beside it."""
    found = []
    for number, more in enumerate([[], ["--require-sandbox"]]):
        folder = tmp_path / str(number)
        folder.mkdir()
        here = {"env": {**os.environ, "PYTHONPATH": str(Path.cwd())}, "cwd": folder}
        done = command(*words, "--arch", "arm64", *more, **here)
        assert done.returncode == 0, done.stderr
        found.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert found[0] == found[1]
    assert found[1].keys() >= {word for word in words if word.startswith("out")}


def test_what_cannot_be_written_is_said_first(tmp_path, fenced):
    """Before anything is loaded, in one line; what was there is there, where the command fails."""
    place = tmp_path / "missing" / "out"
    done = command("export", "hello", "--elf", place, "--require-sandbox")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [f"execmem: {place}: No such file or directory"]
    kept = tmp_path / "kept"
    kept.write_text("before")
    done = command("export", "hello", "--elf", kept, "--debug", "/nothing", "--require-sandbox")
    assert done.returncode == 1
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


def test_only_a_process_of_ours_is_fenced(capsys):
    """One that somebody's script runs in is not ours to fence."""
    with pytest.raises(SystemExit) as done:
        main(["run", "hello", "--sandbox"])
    assert done.value.code == 2
    assert "this process is a script's; start execmem as a program" in capsys.readouterr().err


# Commands that run nothing of a guest, and what shows it.
QUIET = {
    "archs": [],
    "relocs": [path("x86_64", "hello")],
    "disasm": [path("x86_64", "mathuser"), "mathuser_lcm"],
    "functions": [path("x86_64", "hello")],
    "types": [path("x86_64", "hello"), "module"],
}
# Commands whose guest code is this program's, or runs in processes that are always behind a fence.
OURS = {"demo", "reach", "course", "serve"}


def test_who_has_a_fence():
    """Every command that runs code of a guest: a new one takes part, or is listed with a reason."""
    context = cli.make_context("execmem", [], resilient_parsing=True)
    options = {
        name: {option for param in cli.get_command(context, name).params for option in param.opts}
        for name in COMMANDS
    }
    fenced = {name for name, given in options.items() if "--sandbox" in given}
    assert fenced == COMMANDS.keys() - QUIET.keys() - OURS
    assert all("--require-sandbox" in options[name] for name in fenced)
    for name in {*QUIET, *OURS}:  # what only commands have that run what is given to them
        assert not options[name] & {"--modelled", "--console", "--cpu", "--returns", "--init"}


@pytest.mark.parametrize("name", QUIET)
def test_who_needs_none(name, monkeypatch, capsys):
    """Not one instruction is executed."""
    started = []
    monkeypatch.setattr(Uc, "emu_start", lambda *_args, **_more: started.append(name))
    with pytest.raises(SystemExit) as done:
        main([name, *map(str, QUIET[name])])
    said = capsys.readouterr()
    assert (done.value.code in (0, 1), started) == (True, []), said.err


def test_cases_are_executed_behind_the_fence(fenced, tmp_path, capsys, monkeypatch):
    """Not by the process that asks assemblers and linkers; and a death is what a case came to."""
    arm64 = arch("arm64")
    (lethal,) = {bytes.fromhex(facts(arm64).run.lethal[next(iter(facts(arm64).run.lethal))][0])}
    words = ", ".join(hex(byte) for byte in lethal)
    case = tmp_path / "lethal.s"
    head = "// execmem: arch arm64\n// execmem: linkers none\n"
    case.write_text(f"{head}// execmem: run f = 0\n.globl f\nf: .byte {words}\n ret\n")
    good = tmp_path / "good.s"
    good.write_text(f"{head}// execmem: run g = 7\n.globl g\ng: mov x0, #7\n ret\n")
    done = command("check", tmp_path, "--require-sandbox", "--jobs", "1", "--verbose")
    if "needs aarch64" in done.stdout:
        pytest.skip("no assembler for arm64")
    assert done.returncode == 1
    assert "emulator died: SIGABRT" in done.stdout
    assert "1 passed" in done.stdout or "run g = 7" in done.stdout


def test_a_command_says_what_a_host_keeps(tmp_path):
    """Each thing once, in JSON, too; or it is refused."""
    (tmp_path / "pyseccomp.py").write_text("raise ImportError")
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    words = ["run", "hello", "--arch", "arm64", "--json"]
    lacking = {"env": {**os.environ, "PYTHONPATH": path}}
    done = command(*words, "--sandbox", **lacking)
    notice = "the sandbox does not take away: network (no seccomp: pip install pyseccomp"
    assert (done.returncode, done.stderr.count(notice)) == (0, 1)
    assert sum(notice in each for each in json.loads(done.stdout)["notices"]) == 1
    done = command(*words, "--require-sandbox", **lacking)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("execmem: no whole sandbox here: network (no seccomp")
    assert done.stderr.count("\n") == 1


def test_a_command_dies_and_ends_behind_the_fence(fenced, tmp_path):
    """A guest that ends the emulator is a Fault; who reads what a command prints may go."""
    arm64 = arch("arm64")
    lethal = bytes.fromhex(next(iter(facts(arm64).run.lethal.values()))[0])
    path = tmp_path / "mini.ko"
    path.write_bytes(module(arm64.machine, init=lethal + facts(arm64).link.ret))
    done = command("run", path, "--require-sandbox")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("execmem: emulator died: SIGABRT")
    assert done.stderr.endswith(f"(bytes {lethal.hex(' ')})\n")
    gone = subprocess.run(
        f"{sys.executable} -m execmem load hello --arch arm64 --require-sandbox | true",
        shell=True,
        check=True,
        capture_output=True,
    )
    assert (gone.stdout, gone.stderr) == (b"", b"")
