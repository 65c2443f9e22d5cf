# SPDX-License-Identifier: GPL-2.0-or-later
"""Several processes that fuzz, here and on a cluster: the same is found, whatever happens to them."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from execmem.cli import main
from execmem.fuzzing.folder import CRASHES, REPLAY

CALL = ["parser", "parser_parse", "--arch", "arm64"]
CALL += ["--input", "data=bytes:0-64", "--input", "size=len(data)", "--jobs", "2"]
HERE = Path(__file__).parents[2]
DEADLY = """
import os, signal
def harness(machine, data):
    if data[:1] == b"A":
        os.kill(os.getpid(), signal.SIGSEGV)
    return machine.modules["parser"].call("parser_parse", data, len(data))
"""


def run(capfd: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    """Run the command line; its document."""
    with pytest.raises(SystemExit):
        main(["fuzz", *(str(word) for word in words), "--json"])
    found: dict[str, Any] = json.loads(capfd.readouterr().out)
    del found["seconds"]
    return found


def test_two_processes_find_the_same_each_time(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In the same order; so do two of a cluster, one of whose workers is killed meanwhile."""
    (tmp_path / "header").write_bytes(b"PRS\1")
    words = [*CALL, "--executions", 900, "--seed", 3, "--corpus", tmp_path / "header"]
    first = run(capfd, *words)
    assert len(first["corpus"]) > 8
    assert run(capfd, *words) == first
    distributed = pytest.importorskip("distributed", reason="dask.distributed makes the cluster")
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs="CRITICAL"
    ) as cluster:
        os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL)
        assert run(capfd, *words, "--scheduler", cluster.scheduler_address) == first


def test_a_process_that_dies_costs_an_input(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Which is told, and no shorter than it has to be; the others go on, and the same again."""
    (tmp_path / "deadly.py").write_text(DEADLY)
    words = ["parser", "--arch", "arm64", "--harness", f"{tmp_path}/deadly.py:harness"]
    words += ["--jobs", "2", "--executions", "250", "--no-sandbox"]
    found = run(capfd, *words)
    assert [each["kind"] for each in found["crashes"]] == ["emulator died"]
    assert bytes.fromhex(found["crashes"][0]["input"])[:1] == b"A"
    assert "cut it short" not in found["crashes"][0]["text"]
    assert found["executions"] >= 250
    assert len(found["corpus"]) > 3


def test_a_kill_of_several_loses_nothing(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """What was found is there, whole; who goes on finds none of it again, and no process is left."""
    out = tmp_path / "out"
    words = [*CALL, "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "execmem", "fuzz", *words, "--executions", "100000000"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(each for each in sys.path if each)},
    )
    try:
        until = time.monotonic() + 100
        while not list(out.glob(f"{CRASHES}/*/{REPLAY}")) and time.monotonic() < until:
            time.sleep(0.01)
        workers = below(process.pid)
    finally:
        process.kill()
        process.wait()
    before = {path.parent.name for path in out.glob(f"{CRASHES}/*/{REPLAY}")}
    assert before
    found = run(capfd, *words, "--executions", 200)
    assert not {Path(each["folder"]).name for each in found["crashes"]} & before
    assert len(workers) >= 2
    until = time.monotonic() + 20
    while any(map(alive, workers)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(alive, workers))


def below(number: int) -> list[int]:
    """Return the processes that a process has started, and those that they have, by /proc."""
    found = Path(f"/proc/{number}/task/{number}/children").read_text().split()
    return [each for child in map(int, found) for each in (child, *below(child))]


def alive(number: int) -> bool:
    """Return whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_mistakes_of_a_harness_have_a_place(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The line of the user's file, and no process is lost over them."""
    bodies = {
        "return 1 // 0": "ZeroDivisionError",
        "raise SystemExit(3)": "SystemExit: 3",
        "return nonesuch(data)": "NameError",
    }
    for body, said in bodies.items():
        (tmp_path / "mistaken.py").write_text(f"\ndef harness(machine, data):\n    {body}\n")
        with pytest.raises(SystemExit) as ended:
            main(
                ["fuzz", "hello", "--arch", "arm64", "--harness", f"{tmp_path}/mistaken.py:harness"]
            )
        out, err = capfd.readouterr()
        assert (ended.value.code, out, len(err.splitlines())) == (1, "", 1), err
        assert f"{tmp_path}/mistaken.py:3: {said}" in err


def test_what_a_full_disk_does_not_hold_is_told(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The finding that could not be kept is in the document, and the error names the file."""

    def full(path: str, to: Path) -> None:
        if CRASHES in Path(to).parts:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        Path(path).rename(to)

    monkeypatch.setattr("execmem.fuzzing.folder.os.replace", full)
    words = ["checksums", "checksums_crc32", "--arch", "arm64", "--out", str(tmp_path), "--json"]
    for each in ("data=bytes:0-16", "length=int:0-40", "start=0"):
        words += ["--input", each]
    with pytest.raises(SystemExit) as ended:
        main(["fuzz", *words])
    out, err = capfd.readouterr()
    assert ended.value.code == 1
    assert [each["kind"] for each in json.loads(out)["crashes"]] == ["read"]
    assert len(err.splitlines()) == 1
    assert "No space left" in err
