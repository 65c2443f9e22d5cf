# SPDX-License-Identifier: GPL-2.0-or-later
"""Sweeps: a row for every module, whatever the module does, in the order of the modules."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from allocator.errors import ExecmemError
from allocator.types import GIB
from archs import archs
from execmem.cli import main
from execmem.sweep import Journal, Options, examine, files_under, sweep, tasks_for
from execmem.sweep.summary import SLOWEST, Summary
from execmem.sweep.tasks import Task
from execmem.worker.jobs import Worker
from loader.elf import parse
from loader.files import ModuleFile, module_name
from machine.face import Machine
from samples import modules
from tests.machine.snippets import code
from tests.support import packages, poison
from tests.support.modules import module

SAMPLES = modules.root("x86_64").parent
HERE = Path(__file__).parents[2]


def rows_of(paths, options=None, **more):
    """Return the rows of a sweep without what differs from run to run."""
    options = options or Options()
    with closing(Journal(None, options)) as journal:
        return bare(sweep(tasks_for(files_under(paths)), options, journal, **more))


def bare(rows):
    """Return rows without seconds."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def sample(arch, name):
    """Return the path of a sample module."""
    return next(SAMPLES.glob(f"{arch}/lib/modules/*/kernel/{name}.ko"))


def copies(folder, names):
    """Put copies of a small module into a folder under other names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copy(sample("arm64", "mathlib"), folder / f"{name}.ko")
    return folder


@pytest.fixture
def unraisable(monkeypatch):
    """Return what Python could only print."""
    found = []
    monkeypatch.setattr(sys, "unraisablehook", found.append)
    return found


def test_every_sample_has_its_row():
    """Two sweeps give the same rows, in the order of the files, and what `load` would give."""
    names = ("failing", "hello", "mathlib", "mathuser")
    files = [*(sample("arm64", name) for name in names), sample("x86_64", "hello")]
    rows = rows_of(files, Options(init=True), jobs=2)
    assert [row["module"] for row in rows] == [module_name(path.name) for path in files]
    assert [row["file"] for row in rows] == [str(path) for path in files]
    for row in rows:
        expected = "init-error" if row["module"] == "failing" else "init-ok"
        assert row["outcome"] == expected, row
        assert row["arch"] in row["file"]
        assert row["relocations"] > 0 or expected == "init-error"
    assert rows == rows_of(files, Options(init=True), jobs=1)


def test_a_row_says_what_the_module_is():
    """Relocation types, PLT slots and sizes are those of the module in a machine of its own."""
    path = sample("arm64", "mathuser")
    (row,) = rows_of([path], jobs=1)
    report = Machine("arm64").load(path, init=False).report
    assert row["relocation_types"] == report.relocations
    assert row["relocations"] == sum(report.relocations.values())
    assert row["plt_slots"] == report.plt_slots
    assert row["sizes"] == {kind.name: region.size for kind, region in report.regions.items()}


def test_an_interrupt_while_workers_are_ended_comes_out(tmp_path, monkeypatch, unraisable):
    """A sweep that is given up ends its workers then, and not when its memory is freed."""

    def ended():
        raise KeyboardInterrupt

    with closing(Journal(None, options := Options())) as journal:
        tasks = tasks_for(files_under([copies(tmp_path, "ab")]))
        rows = sweep(tasks, options, journal, jobs=1)
        next(rows)
        close = Worker.close
        with monkeypatch.context() as patched:
            patched.setattr(Worker, "close", lambda self: (close(self), ended()))
            with pytest.raises(KeyboardInterrupt):
                rows.close()
    assert not unraisable


def test_archives_give_what_a_folder_gives(tmp_path):
    """A tree, and the tree as tarball, .deb and .rpm, differ in nothing but the files' names."""
    pytest.importorskip("unix_ar", reason="unix-ar reads Debian packages")
    pytest.importorskip("rpmfile", reason="rpmfile reads RPMs")
    root = modules.root("riscv64")
    files = [sample("riscv64", name) for name in ("mathlib", "mathuser")]
    held = [(str(path.relative_to(root)), path.read_bytes()) for path in files]
    options = Options(init=True)
    expected = [row | {"file": None} for row in rows_of(files, options, jobs=1)]
    assert [row["outcome"] for row in expected] == ["init-ok", "init-ok"]
    names = []
    for name, make in (
        ("a.tar.xz", packages.tarball),
        ("b.deb", packages.deb),
        ("c.rpm", packages.rpm),
    ):
        path = tmp_path / name
        path.write_bytes(make(held, ".xz"))
        names += [f"{path}:{inner}" for inner, _ in held]
    rows = rows_of([tmp_path], options, jobs=1)
    assert [row["file"] for row in rows] == names
    assert [row | {"file": None} for row in rows] == 3 * expected


def test_a_poisoned_module_costs_its_own_row(tmp_path):
    """Workers that die or hang are replaced; the modules around them are done all the same."""
    names = ["a", "crashes", "exits", "hangs", "lies", "z"]
    copies(tmp_path, names)
    options = Options(seconds=1.0, grace=3.0)
    rows = rows_of([tmp_path], options, jobs=1, job=poison.poisoned)
    assert [row["module"] for row in rows] == ["mathlib", *names[1:5], "mathlib"]
    assert [row["outcome"] for row in rows] == ["ok", *4 * ["fault"], "ok"]
    assert rows[1]["error"] == "the process died of SIGSEGV"
    assert "exit code 7" in rows[2]["error"]
    assert rows[3]["error"] == "no answer within 4 seconds"
    assert rows[4]["error"] == "the worker's answer is no row: a guest may have spoken for it"


def hog(size):
    """Take memory and say how much; for a worker."""
    try:
        return len(bytearray(size))
    except MemoryError:
        return 0


def hog_beside_a_machine(size):
    """Take memory when there is a machine; for a worker."""
    kept = Machine("x86_64")
    return hog(size) if kept.cpu else 0


def spin(_):
    """Never return; for a worker."""
    while True:
        pass


def test_a_worker_limits_itself():
    """Memory beyond the limit is refused to a job; CPU time ends it where nobody watches."""
    worker = Worker(hog, memory=GIB // 4, seconds=60.0)
    worker.give(GIB // 8)
    assert worker.result() == (GIB // 8, "")
    worker.give(16 * GIB)
    assert worker.result() == (0, "")
    worker.close()
    worker = Worker(hog_beside_a_machine, memory=GIB // 4, seconds=60.0)
    worker.give(GIB // 2)
    assert worker.result() == (0, "")
    worker.close()
    worker = Worker(spin, memory=GIB, seconds=0.5)
    worker.give(None)
    assert worker.process.wait(60) == -signal.SIGXCPU
    worker.close()


def test_too_little_memory_is_a_fault_of_the_module():
    """A module that needs more memory than it may have is a row."""
    huge = ModuleFile("huge.ko", bytes(1 << 20))

    def grow(self):
        raise MemoryError

    task = Task("huge.ko", huge)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModuleFile, "image", grow)
        row = examine(task, Options(memory=GIB))
    assert (row["outcome"], row["error"]) == ("fault", "huge: more than 1 GiB of memory")


def test_what_is_no_module_is_refused(tmp_path):
    """Files that cannot be read as modules are refused with the reason; so are archives."""
    (tmp_path / "text.ko").write_text("not a module")
    (tmp_path / "empty.ko.xz").write_bytes(b"")
    (tmp_path / "bad.tar").write_bytes(b"not a tarball" * 99)
    (tmp_path / "ignored.txt").write_text("no module's name")
    rows = rows_of([tmp_path], jobs=1)
    assert [(Path(row["file"]).name, row["outcome"], row["arch"]) for row in rows] == [
        ("bad.tar", "refused", None),
        ("empty.ko.xz", "refused", None),
        ("text.ko", "refused", None),
    ]
    assert all(row["error"] for row in rows)
    with pytest.raises(ExecmemError, match="no such file or folder"):
        files_under([tmp_path / "nowhere"])


def test_a_dependency_that_is_not_there_is_refused(tmp_path):
    """A tree whose modules.dep names a module that it lacks."""
    shutil.copytree(modules.root("x86_64"), tmp_path / "tree")
    (index,) = (tmp_path / "tree").glob("lib/modules/*/modules.dep")
    index.write_text("kernel/hello.ko: kernel/absent.ko\n")
    (row,) = rows_of([index.parent / "kernel/hello.ko"], jobs=1)
    assert (row["outcome"], row["arch"]) == ("refused", "x86_64")
    assert "hello.ko: missing dependency: absent" in row["error"]


def test_an_endless_init_is_a_fault(arch, tmp_path):
    """An init that does not end stops at its time."""
    image = bytearray(module(arch.machine))
    view = parse(bytes(image), "spins")
    section, body = view.section(".init.text"), code(arch, "spin")
    image[section.offset : section.offset + len(body)] = body  # instead of the module's init
    for table in view.tables:
        if table.target.name == ".init.text":  # and no relocation there: all R_*_NONE
            at, size = table.section.offset, table.section.size
            image[at : at + size] = bytes(size)
    row = examine(
        Task("spins.ko", ModuleFile("spins.ko", bytes(image))), Options(init=True, seconds=0.2)
    )
    assert row["outcome"] == "fault"
    assert "0.2 seconds" in row["error"]


# Interrupted ------------------------------------------------------------------------------------


def lines(path):
    """Return what a finished file holds without times."""
    *rows, last = map(json.loads, path.read_text().splitlines())
    summary = {k: v for k, v in last["summary"].items() if k not in ("seconds", "slowest")}
    return bare(rows), summary


def command(*words):
    """Return a sweep as a process of its own."""
    return [sys.executable, "-m", "execmem", "sweep", *map(str, words), "--json", "--jobs", "1"]


def test_a_sweep_that_is_killed_goes_on(tmp_path):
    """Killed at any moment and resumed, the result is the same, and no row is made twice."""
    folder = copies(tmp_path / "modules", [f"m{n:02}" for n in range(8)])
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    subprocess.run(command(folder, "--output", whole), check=True, capture_output=True, cwd=HERE)
    kept = {}
    for want in (2, 5):
        words = command(folder, "--output", cut, *["--resume"] * (want > 2))
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, cwd=HERE)
        while not cut.exists() or cut.read_bytes().count(b"\n") <= want:
            assert process.poll() is None, "it was done before it could be killed"
            time.sleep(0.01)
        process.kill()
        process.wait()
        after = [json.loads(line) for line in cut.read_bytes().split(b"\n")[1:-1]]
        assert [row for row in after if row["file"] in kept] == list(kept.values())
        kept = {row["file"]: row for row in after}
        assert len(kept) == len(after)
    with cut.open("ab") as file:
        file.write(b'{"arch": "arm64", "fi')  # as if the kill had torn a line
    done = subprocess.run(
        command(folder, "--output", cut, "--resume"), check=True, capture_output=True, cwd=HERE
    )
    assert lines(cut) == lines(whole)
    finished = [json.loads(line) for line in cut.read_bytes().splitlines()[:-1]]
    assert [row for row in finished if row["file"] in kept] == sorted(
        kept.values(), key=lambda row: row["file"]
    ), "a row was made again"
    assert bare(map(json.loads, done.stdout.splitlines()[:-1])) == lines(whole)[0]
    assert list(tmp_path.glob(".*")) == [], "no temporary file is left"


def test_what_output_refuses(tmp_path, capsys):
    """A file that exists, one of something else, one with other options; --resume alone."""
    folder = copies(tmp_path / "modules", ["a"])
    (tmp_path / "text").write_text("hello\n")
    for words, code_, text in (
        (["--output", str(tmp_path / "text")], 1, "exists; --resume continues it"),
        (["--output", str(tmp_path / "text"), "--resume"], 1, "line 1 is not a sweep's"),
        (["--output", str(tmp_path / "no/file")], 1, "No such file or directory"),
        (["--output", str(tmp_path / "out")], 0, ""),
        (["--output", str(tmp_path / "out"), "--resume", "--init"], 1, "other options: --init"),
        (["--resume"], 2, "--resume needs --output"),
        (["--jobs", "1", "--scheduler", "tcp://x:1"], 2, "a cluster has its own"),
    ):
        before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
        with pytest.raises(SystemExit) as done:
            main(["sweep", str(folder), *words])
        assert (done.value.code or 0) == code_
        assert text in capsys.readouterr().err
        if code_:
            after = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
            assert after == before, "a refused sweep leaves everything as it was"


def test_rows_say_whether_they_were_made_behind_the_fence(tmp_path, monkeypatch, capsys):
    """Each row says it, and the options; what was made without is not continued with it."""
    folder, out = copies(tmp_path / "modules", ["a"]), tmp_path / "out"
    with closing(Worker(len, memory=GIB, seconds=60.0, fenced=True)) as worker:
        worker.give("")
        worker.result()
    words = ["sweep", str(folder), "--jobs", "1", "--output", str(out)]
    with pytest.raises(SystemExit):
        main([*words, "--no-sandbox"])
    (row,), _ = lines(out)
    assert (row["sandbox"], row["options"]["sandbox"], row["notices"]) == (None, "no", [])
    with pytest.raises(SystemExit):
        main([*words, "--resume"])
    assert "other options: --sandbox" in capsys.readouterr().err
    out.unlink()
    with pytest.raises(SystemExit):
        main(words)
    (row,), _ = lines(out)
    assert row["options"]["sandbox"] == "yes"
    assert row["sandbox"] == ("whole" if worker.fence.whole else "partial")
    # A host that lacks something: said once; or nothing is done.
    (tmp_path / "lacks").mkdir()
    (tmp_path / "lacks/landlockpy.py").write_text("raise ImportError")
    monkeypatch.syspath_prepend(tmp_path / "lacks")
    out.unlink()
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(words)
    (row,), _ = lines(out)
    assert row["sandbox"] == "partial"
    notice = "the sandbox does not take away: reading files (no Landlock: pip install landlockpy)"
    assert notice in row["notices"][0]
    assert capsys.readouterr().err.count(notice) == 1
    out.unlink()
    with pytest.raises(SystemExit) as done:
        main([*words, "--require-sandbox"])
    assert done.value.code == 1
    assert "no whole sandbox here: reading files" in capsys.readouterr().err
    with pytest.raises(SystemExit) as done:
        main([*words, "--require-sandbox", "--no-sandbox"])
    assert done.value.code == 2


def test_a_file_can_hold_several_sweeps(tmp_path):
    """Resuming with other paths adds their rows, and the summary counts all."""
    out = tmp_path / "out.jsonl"
    for name in ("a", "b"):
        folder = copies(tmp_path / name, [name])
        with pytest.raises(SystemExit):
            main(["sweep", str(folder), "--output", str(out), "--resume", "--jobs", "1"])
    rows, summary = lines(out)
    assert [Path(row["file"]).name for row in rows] == ["a.ko", "b.ko"]
    assert summary["modules"] == 2


# Summary ----------------------------------------------------------------------------------------


def test_the_summary_is_what_the_rows_say():
    """Counts, sums, the slowest and grouped errors agree with the rows."""
    rows = rows_of(
        [sample(arch.name, name) for arch in archs() for name in ("failing", "tables")],
        Options(init=True),
    )
    timed = [row | {"seconds": float(number % 17)} for number, row in enumerate(rows)]
    summary = Summary()
    for row in timed:
        summary.add(row)
    told = summary.document(1.0)["summary"]
    assert told["modules"] == len(rows) == sum(told["outcomes"].values())
    assert told["outcomes"] == dict.fromkeys(told["outcomes"], 0) | Counter(
        row["outcome"] for row in rows
    )
    assert told["relocations"] == sum(row["relocations"] for row in rows)
    for key, column in (("relocation_types", "relocation_types"), ("sizes", "sizes")):
        expected = Counter()
        for row in rows:
            expected.update(row[column])
        assert told[key] == expected
    assert [each["seconds"] for each in told["slowest"]] == sorted(
        (row["seconds"] for row in timed), reverse=True
    )[:SLOWEST]
    (group,) = told["errors"]
    assert group["count"] == len(archs()), "failing fails alike on every architecture"
    assert group["first"].endswith("failing.ko")


def test_the_command(capsys):
    """JSON lines end with the summary; the table with its counts; unknown paths are refused."""
    folder = str(SAMPLES / "riscv64")
    with pytest.raises(SystemExit) as done:
        main(["sweep", folder, "--init", "--json", "--jobs", "1"])
    assert not done.value.code
    *rows, last = map(json.loads, capsys.readouterr().out.splitlines())
    keys = {"arch", "module", "outcome", "error", "relocations", "seconds"}
    assert all(keys <= set(row) for row in rows)
    summary = last["summary"]
    assert summary["modules"] == len(rows) == sum(summary["outcomes"].values())
    assert summary["outcomes"]["init-error"] == 1
    assert summary["archs"] == {"riscv64": len(rows)}
    with pytest.raises(SystemExit):
        main(["sweep", folder, "--jobs", "1"])
    out = capsys.readouterr().out.splitlines()
    assert f"summary: {len(rows)} modules: {len(rows)} ok" in out
    assert out[0].split() == ["riscv64", "ok", "branches"]
    assert max(map(len, out)) <= 80
    types = " ".join(out[len(rows) + 1 :]).partition(" memory:")[0]
    assert re.fullmatch(r"relocations:( +R_RISCV_\w+ \(\d+\),){8} \.\.\.", types)
    slowest = next(line for line in out if line.startswith("slowest: "))
    assert re.fullmatch(r"slowest: (\w+ \(\d+\.\d s\)(, )?){3}", slowest)
    with pytest.raises(SystemExit) as refused:
        main(["sweep", "/nonexistent"])
    assert refused.value.code == 1
    assert capsys.readouterr().err == "execmem: /nonexistent: no such file or folder\n"


# Clusters ---------------------------------------------------------------------------------------


def test_a_cluster_gives_the_rows_of_this_machine(tmp_path, monkeypatch):
    """Row for row, with a worker of the cluster killed in the middle and a poisoned module."""
    distributed = pytest.importorskip("distributed", reason="dask.distributed makes the cluster")
    monkeypatch.setenv("PYTHONPATH", str(HERE))  # for the workers
    copies(tmp_path, ["crashes", *(f"m{n:02}" for n in range(12))])
    files = files_under([tmp_path, sample("x86_64", "hello")])
    options = Options(init=True)
    expected = rows_of(files, options, job=poison.poisoned)
    assert expected[0]["outcome"] == "fault"
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs="CRITICAL"
    ) as cluster:
        found, killed = [], None
        with closing(Journal(None, options)) as journal:
            tasks = tasks_for(files)
            for row in sweep(
                tasks, options, journal, scheduler=cluster.scheduler_address, job=poison.poisoned
            ):
                found.append(row)
                if killed is None and len(found) == 4:
                    killed = next(iter(cluster.workers.values())).pid
                    os.kill(killed, signal.SIGKILL)
        assert killed is not None
    assert bare(found) == expected


def test_a_cluster_that_is_not_there_is_refused(monkeypatch):
    """One line, after a while."""
    pytest.importorskip("distributed", reason="dask.distributed makes the cluster")
    monkeypatch.setattr("execmem.worker.cluster.CONNECT", 0.2)
    with pytest.raises(ExecmemError, match="no cluster answers"):
        rows_of([SAMPLES / "x86_64"], scheduler="tcp://127.0.0.1:1")


# Cut anywhere -----------------------------------------------------------------------------------


@pytest.mark.parametrize("finished", [True, False])
def test_a_journal_cut_anywhere_can_be_continued(tmp_path, finished):
    """Wherever a file of rows ends, whole rows are kept, and the result is as in one go."""
    options = Options(init=True, seconds=5.0)
    rows = [
        {"file": f"m{n}.ko", "module": f"m{n}", "error": "\u00e9" * n or None, "sizes": {"TEXT": n}}
        for n in range(5)
    ]
    order, summary = [row["file"] for row in rows], {"summary": {"modules": len(rows)}}

    def complete(path, *, resume):
        with closing(Journal(path, options, resume=resume)) as journal:
            kept = list(journal)
            for row in rows:
                if row["file"] not in journal:
                    journal.add(row)
            journal.finish(order, {"summary": dict(summary["summary"])})
        return kept

    whole = tmp_path / "whole"
    complete(whole, resume=False)
    if finished:
        data = whole.read_bytes()
    else:
        with closing(Journal(tmp_path / "part", options)) as journal:
            for row in rows[:3]:
                journal.add(row)
        data = (tmp_path / "part").read_bytes()
    cut = tmp_path / "cut"
    ends = {at + near for at, byte in enumerate(data) if byte == 0x0A for near in range(-2, 4)}
    for size in range(len(data) + 1):
        if size % 7 and size not in ends:
            continue
        cut.write_bytes(data[:size])
        lines_left = data[:size].split(b"\n")[:-1]
        assert complete(cut, resume=True) == [
            found["file"] for found in map(json.loads, lines_left) if "file" in found
        ]
        assert cut.read_bytes() == whole.read_bytes(), size
        if size % 40 == 0:
            cut.write_bytes(data[:size])
            other = Options(init=False, seconds=5.0)
            if lines_left:
                with pytest.raises(ExecmemError, match=r"other options: --init$"):
                    Journal(cut, other, resume=True)
                assert cut.read_bytes() == data[:size]


def test_a_journal_is_a_file(tmp_path):
    """A pipe, a folder or a device cannot be continued, and no line of something else can."""
    os.mkfifo(tmp_path / "fifo")
    for name, reason in (("fifo", "is a pipe"), (".", "Is a directory"), ("/dev/null", "a device")):
        with pytest.raises(ExecmemError, match=reason):
            Journal(tmp_path / name, Options(), resume=True)
    for line in (
        b"[]\n",
        b"1\n",
        b"{}\n",
        b'{"file": "a"}\n',
        b'{"options": 1}\n',
        b"[" * 9999 + b"\n",
    ):
        (tmp_path / "text").write_bytes(line)
        with pytest.raises(ExecmemError, match="line 1 is not a sweep's"):
            Journal(tmp_path / "text", Options(), resume=True)
        assert (tmp_path / "text").read_bytes() == line


def test_a_full_disk_ends_a_sweep_with_one_line(capsys):
    """Rows that cannot be kept are not worked on."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    journal = Journal(None, Options())
    journal._file.close()
    journal._file = Path("/dev/full").open("r+b", buffering=0)  # noqa: SIM115 -- closed below
    with pytest.raises(ExecmemError, match="No space left on device"):
        journal.add({"file": "a"})
    journal.close()
