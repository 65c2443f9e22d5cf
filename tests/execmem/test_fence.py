# SPDX-License-Identifier: GPL-2.0-or-later
"""The fence: what code that got out of the emulator can reach, which is nothing."""

from __future__ import annotations

import os
import socket
import subprocess
from contextlib import closing, suppress
from pathlib import Path

import pytest

from allocator.types import GIB
from execmem import isolated
from execmem.worker import fence as fences
from execmem.worker.fence import EVERYTHING, NETWORK, READING, NotFenced, fence
from execmem.worker.jobs import Worker
from tests.support import planted

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
