# SPDX-License-Identifier: GPL-2.0-or-later
"""The project as a wheel that is installed, made once for all test processes of a run."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs
import pytest

HERE = Path(__file__).parents[2]
LONGEST = 120.0  # seconds, for what may not be interrupted, and for what was


@attrs.frozen
class Ended:
    """How a command ended; `interrupted`: it had to be told to."""

    returncode: int
    stdout: str
    stderr: str
    interrupted: bool = False


@attrs.define
class Shell:
    """Runs command lines with what an interpreter has installed.

    The first line of each command is a process from its start. Further ones are forked from a
    process that has imported what most of them import.

    Parameters
    ----------
    python
        The interpreter.
    done
        A folder of all test processes: what stands there need not be run again.
    """

    python: Path
    done: Path
    begun: set[str] = attrs.field(init=False, factory=set)
    template: subprocess.Popen[bytes] | None = attrs.field(init=False, default=None)

    def mark(self, words: Sequence[str]) -> Path:
        """Return the file that says that a line was run, and left nothing behind."""
        return (
            self.done / hashlib.sha256("\0".join((str(self.python), *words)).encode()).hexdigest()
        )

    def run(self, words: Sequence[str], folder: Path, patience: float | None = None) -> Ended:
        """Run a command line in a folder; with `patience`, interrupt it after so many seconds."""
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        environment["XDG_STATE_HOME"] = str(folder / "state")
        # Who is fenced is asked for the threads that libraries begin when they are imported.
        apart = words[1] not in self.begun or "sandbox" in "".join(words)
        if "--help" not in words:
            self.begun.add(words[1])
        run = self._start if apart else self._fork
        if words[1] != "serve":
            return run(words, folder, environment, patience)
        with (self.done.parent / "serve.lock").open("w") as lock:  # it listens at one port
            fcntl.flock(lock, fcntl.LOCK_EX)
            return run(words, folder, environment, patience)

    def _start(
        self, words: Sequence[str], folder: Path, env: dict[str, str], patience: float | None
    ) -> Ended:
        process = subprocess.Popen(
            [self.python, "-m", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            cwd=folder,
            env=env,
            start_new_session=True,
        )
        late = False
        seconds = patience or LONGEST
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGKILL):
            try:
                out, err = process.communicate(timeout=seconds)
                break
            except subprocess.TimeoutExpired:
                late, seconds = True, LONGEST
                os.killpg(process.pid, number)
        else:
            out, err = process.communicate()
        return Ended(process.returncode, out, err, late)

    def _fork(
        self, words: Sequence[str], folder: Path, env: dict[str, str], patience: float | None
    ) -> Ended:
        if self.template is None:
            self.template = subprocess.Popen(
                [self.python, "-P", Path(__file__).with_name("starting.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
            )
        out, err = self.done.parent / f"out-{os.getpid()}", self.done.parent / f"err-{os.getpid()}"
        request = {"words": words, "cwd": str(folder), "env": env, "out": str(out), "err": str(err)}
        assert self.template.stdin is not None
        self.template.stdin.write(json.dumps(request).encode() + b"\n")
        child = self._answer(None)
        assert child
        code = self._answer(patience or LONGEST)
        late = code is None
        if code is None:
            for number in (signal.SIGINT, signal.SIGINT, signal.SIGKILL):
                os.killpg(child, number)
                code = self._answer(LONGEST)
                if code is not None:
                    break
        assert code is not None
        return Ended(code, out.read_text("utf-8"), err.read_text("utf-8"), late)

    def _answer(self, seconds: float | None) -> int | None:
        """Return the number that the template tells, or None where it tells none for so long."""
        assert self.template is not None
        assert self.template.stdout is not None
        if not select.select([self.template.stdout], [], [], seconds)[0]:
            return None
        return int(self.template.stdout.readline())  # unbuffered: no second line is taken with it

    def close(self) -> None:
        """End the process that was forked from."""
        if self.template is not None:
            with self.template:
                assert self.template.stdin is not None
                self.template.stdin.close()


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder that the first test process of a run fills, and the others find filled."""
    base = factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = shared / name
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "made").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            (folder / "made").touch()
    return folder


def environment(interpreter: str | Path, folder: Path) -> Path:
    """Return the interpreter of a new virtual environment, without pip."""
    venv = folder / "venv"
    subprocess.run([interpreter, "-m", "venv", "--without-pip", venv], check=True)
    return venv / "bin" / "python"


def install(python: Path, *more: str | Path) -> subprocess.CompletedProcess[str]:
    """Install something for an interpreter of a virtual environment; it compiles what it imports."""
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-compile"]
    return subprocess.run(
        [*pip, "--disable-pip-version-check", *map(str, more)],
        check=False,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel of this project."""
    found = pytest.importorskip("setuptools", reason="building a wheel needs setuptools")
    if tuple(map(int, found.__version__.split(".")[:2])) < (70, 1):
        pytest.skip("building a wheel without the wheel package needs setuptools 70.1")
    pytest.importorskip("pip", reason="pip builds wheels")

    def build(folder: Path) -> None:
        ignored = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
        shutil.copytree(HERE, folder / "source", ignore=ignored)
        pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
        done = subprocess.run(
            [*pip, "-w", str(folder), str(folder / "source")],
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr

    (made,) = once(tmp_path_factory, "wheel", build).glob("*.whl")
    return made


@pytest.fixture(scope="session")
def shell(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """Return this Python with the wheel installed, and what it needs, as it is here."""

    def fill(folder: Path) -> None:
        python = environment(sys.executable, folder)
        (site,) = python.parents[1].glob("lib/python*/site-packages")
        # A path and no more: what is installed editably here is not found there.
        (site / "needed.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
        done = install(python, "--no-index", "--no-deps", wheel)
        assert done.returncode == 0, done.stderr
        (folder / "done").mkdir()

    folder = once(tmp_path_factory, "installed", fill)
    found = Shell(folder / "venv" / "bin" / "python", folder / "done")
    yield found
    found.close()


@pytest.fixture(scope="session")
def newest(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """Return the newest other Python there is, with the wheel and all that it needs installed."""
    for minor in range(30, sys.version_info.minor, -1):
        name = f"python3.{minor}"
        places = [shutil.which(name), *Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/{name}")]
        for interpreter in filter(None, places):
            told = [interpreter, "-c", "import venv"]
            if subprocess.run(told, check=False, capture_output=True).returncode == 0:
                folder = tmp_path_factory.mktemp("newest")
                python = environment(interpreter, folder)
                done = install(python, f"{wheel}[archives]")
                if done.returncode:
                    pytest.skip(f"nothing can be installed for {name}: {done.stderr[-200:]}")
                (folder / "done").mkdir()
                found = Shell(python, folder / "done")
                yield found
                found.close()
                return
    pytest.skip("no newer Python is installed")
