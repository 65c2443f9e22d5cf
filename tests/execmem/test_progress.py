# SPDX-License-Identifier: GPL-2.0-or-later
"""Rows and bars on a terminal of 80 columns: a pseudo-terminal, and what would be seen on it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from archs import ALL
from samples.modules import names, path, root

HERE = Path(__file__).parents[2]
COLUMNS = 80
BAR = "\N{BOX DRAWINGS HEAVY HORIZONTAL}"
INTERRUPTED = 130


class Terminal:
    """A command on a terminal of its own.

    Parameters
    ----------
    rows_to
        Where stdout goes instead; stderr stays on the terminal.
    """

    def __init__(self, *words, cwd, rows_to=None):
        self.end, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
        env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "execmem", *map(str, words)],
            stdin=other,
            stdout=rows_to or other,
            stderr=other,
            cwd=cwd,
            env={**env, "TERM": "xterm", "PYTHONPATH": str(HERE)},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(2, termios.TIOCSCTTY, 0),  # noqa: PLW1509 -- one thread
        )
        os.close(other)
        self.written = b""

    def read(self, until=None, timeout=60.0):
        """Read until something was written, or to the end."""
        ends = time.monotonic() + timeout
        while until is None or until not in self.written:
            assert time.monotonic() < ends, self.written[-500:]
            try:
                chunk = os.read(self.end, 65536)
            except OSError:  # the command's end is closed
                break
            if not chunk:
                break
            self.written += chunk
        return self.written

    def control_c(self):
        """Press Ctrl-C, as the terminal's driver sends it: to everybody in the foreground."""
        os.write(self.end, b"\x03")

    def ended(self):
        """Read to the end; return the exit code and the lines that are seen."""
        self.read()
        os.close(self.end)
        return self.process.wait(), self.lines()

    def lines(self):
        """Return the lines as they stand: a cursor, CR, LF and erasing are all there is."""
        lines, line, at = [], "", 0
        text = self.written.decode()
        assert not re.sub(r"\x1b\[K|\x1b\[\d*(?:;\d+)*m|\r|\n", "", text).count("\x1b"), text
        for piece in re.findall(r"\x1b\[K|\x1b\[[\d;]*m|\r|\n|[^\x1b\r\n]+", text):
            if piece == "\n":
                lines, line, at = [*lines, line.rstrip()], "", 0
            elif piece == "\r":
                at = 0
            elif piece == "\x1b[K":
                line = line[:at]
            elif not piece.startswith("\x1b"):
                line = line[:at].ljust(at) + piece + line[at + len(piece) :]
                at += len(piece)
        return [*lines, line.rstrip()]

    def bars(self):
        """Return what was drawn to be overwritten: it must fit a line."""
        return re.findall(r"\r([^\r\n\x1b]+)\x1b\[K", self.written.decode())


def many(folder, arch, copies=1):
    """Return files of modules."""
    found = []
    for number in range(copies):
        for name in names():
            found.append(folder / f"{name}{number or ''}.ko")
            shutil.copy(path(arch.name, name), found[-1])
    return found


def test_a_sweep_on_a_terminal(tmp_path):
    """Every row is a line of its own, whole; the bar fits its line, and is gone at the end."""
    many(tmp_path, ALL[0])
    terminal = Terminal("sweep", ".", "--init", "--jobs", "1", cwd=tmp_path)
    code, lines = terminal.ended()
    assert code == 0
    plain = subprocess.run(
        [sys.executable, "-m", "execmem", "sweep", ".", "--init", "--jobs", "1"],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(HERE)},
    ).stdout.splitlines()
    plain = [line for line in plain if not line.startswith("slowest: ")]
    assert [line for line in lines if line and not line.startswith("slowest: ")] == plain
    bars = terminal.bars()
    assert bars
    assert all(len(bar) < COLUMNS for bar in bars)
    assert all(bar.startswith("modules ") for bar in bars)
    assert any(BAR in bar for bar in bars)


def test_rows_go_where_they_are_sent(tmp_path):
    """With stdout in a file the rows are there, and only the bar is on the terminal."""
    many(tmp_path, ALL[0])
    with (tmp_path / "rows").open("w") as rows:
        terminal = Terminal("sweep", ".", "--jobs", "1", cwd=tmp_path, rows_to=rows)
        code, lines = terminal.ended()
    assert code == 0
    assert [line for line in lines if line] == []
    assert terminal.bars()
    written = (tmp_path / "rows").read_text()
    assert "\x1b" not in written
    assert sum(line.startswith("x86_64 ") for line in written.splitlines()) == len(names())


def test_control_c_keeps_the_rows_and_sums_up(tmp_path):
    """Ctrl-C ends a sweep with the summary of what was done; --resume does the rest."""
    files = many(tmp_path, ALL[0], copies=4)
    words = ("sweep", ".", "--init", "--jobs", "1", "--output", "rows.jsonl")
    terminal = Terminal(*words, cwd=tmp_path)
    terminal.read(until=b" init-ok ")
    terminal.control_c()
    code, lines = terminal.ended()
    assert code == INTERRUPTED, lines
    done = [line for line in lines if re.match(r"\S+ +(init-ok|init-error|ok|fault) ", line)]
    (summary,) = [line for line in lines if line.startswith("summary: ")]
    assert summary.startswith(f"summary: {len(done)} modules: ")
    assert 0 < len(done) < len(files)
    assert lines[-2:] == ["execmem: interrupted", ""]
    assert "--resume goes on with what rows.jsonl does not hold" in lines
    assert not any("Traceback" in line or BAR in line for line in lines)
    code, lines = Terminal(*words, "--resume", cwd=tmp_path).ended()
    assert code == 0
    assert any(line.startswith(f"summary: {len(files)} modules: ") for line in lines)


def test_compare_on_a_terminal(tmp_path):
    """The bar says which design runs, and is gone when the tables come."""
    words = "compare --workload server --arch arm64 --design default --design per_type".split()
    terminal = Terminal(*words, cwd=tmp_path)
    code, lines = terminal.ended()
    assert code == 0
    assert any(bar.startswith("arm64 ") for bar in terminal.bars())
    assert all(len(bar) < COLUMNS for bar in terminal.bars())
    assert not any(BAR in line for line in lines)
    assert all(len(line) <= COLUMNS for line in lines)


def test_control_c_keeps_the_runs_that_are_done(tmp_path):
    """Ctrl-C ends a comparison with the tables of the runs that are done."""
    terminal = Terminal("compare", "--workload", "churn", "--arch", "riscv64", cwd=tmp_path)
    terminal.read(until=b"two_block")  # the third: two are done
    terminal.control_c()
    code, lines = terminal.ended()
    assert code == INTERRUPTED, lines
    assert any(line.startswith("vmalloc ") for line in lines)
    assert any(re.match(r"\d of \d runs are done", line) for line in lines)
    assert lines[-2:] == ["execmem: interrupted", ""]
    assert not any("Traceback" in line or BAR in line for line in lines)


def test_load_all_on_a_terminal(tmp_path):
    """The bar of each design is gone before its tables are printed."""
    words = ("load", "--all", "--root", root(ALL[0].name), "--design", "default,vmalloc")
    terminal = Terminal(*words, cwd=tmp_path)
    code, lines = terminal.ended()
    assert code == 0
    assert any(bar.startswith("strata ") for bar in terminal.bars())
    assert all(len(line) <= COLUMNS for line in lines)
    assert not any(BAR in line for line in lines)


def test_diff_on_a_terminal(tmp_path, arch, oracle):
    """The bar of a comparison with recordings fits, is gone at the end, and Ctrl-C sums up."""
    words = ("diff", "--oracle", oracle.parent, "--arch", arch.name, "--jobs", "2")
    terminal = Terminal(*words, cwd=tmp_path)
    terminal.read(until=BAR.encode(), timeout=120)
    terminal.control_c()
    code, lines = terminal.ended()
    assert code == INTERRUPTED, lines
    assert any(re.match(r"\d+ of \d+ comparisons are done", line) for line in lines)
    assert not any("Traceback" in line or "Process " in line or BAR in line for line in lines)
    assert all(len(bar) < COLUMNS for bar in terminal.bars())


def test_a_dumb_terminal_has_no_bar(capsys, monkeypatch):
    """Where lines cannot be taken away, none is drawn."""
    from execmem.terminal import Meter

    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Meter() as meter:
        meter.show("modules", 1, 2)
    assert capsys.readouterr() == ("", "")


@pytest.fixture(autouse=True)
def _no_leftovers():
    """Leave Ctrl-C to pytest as it was."""
    before = signal.getsignal(signal.SIGINT)
    yield
    assert signal.getsignal(signal.SIGINT) is before
