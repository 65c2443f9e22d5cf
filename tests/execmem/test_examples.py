# SPDX-License-Identifier: GPL-2.0-or-later
"""Every command line that is printed somewhere is run: by the installed wheel, in an empty folder.

Lines come from the examples of `--help`, from what the lessons say to try next, and from the
README and the pages of `docs` (blocks marked `sh`, lines after a `$`, code in a sentence). The
lines of one page are run in one folder, one after the other, as they are printed, but for
words in capitals, which stand for something of the reader's:

    TREE         the samples' tree; where the line names a module that is none of ours, a
                 distribution's (EXECMEM_CORPUS), for `kernel` a kernel's (EXECMEM_KERNELS)
    DIR          recordings of real kernels (EXECMEM_ORACLE)
    MODULE, FUNCTION, ARG..., PATH..., FILE, NAME, VERSION, VMLINUZ     see `WORDS` and `line`

Files that a reader would have (`hello.ko`, a package, a tarball) are there. A line that needs
what is not on this machine is left out, and said. What shows progress may be interrupted: after
some seconds it is, and must end with what was done.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import archs
from execmem.cli import COMMANDS
from samples import DEMOS
from samples.course import LESSONS
from samples.modules import names, path, root
from tests.support import packages

HERE = Path(__file__).parents[2]
PAGES = sorted(
    page
    for page in (HERE / "README.md", HERE / "CONTRIBUTING.md", *HERE.glob("docs/**/*.md"))
    # Written from the help texts, and from the lessons, whose lines are run below.
    if page.name not in ("commands.md", "lessons.md")
)
WORDS = {
    "MODULE": "patchable",
    "MODULE:FUNCTION": "patchable:patchable_divide",
    "FUNCTION": "patchable_digits",
    "ARG...": "321",
    "ARG": "321",
    "PATH...": "TREE",
    "PATH": "VMLINUZ",
    "KERNEL": "VMLINUZ",
    "FILE": "page.html",
    "NAME": "tour",
}
WRITERS = {"--html", "--output", "--png", "--record", "--svg"}  # lines below may need the file
PATIENCE = 2.0  # seconds for what may be interrupted
LONGEST = 120.0
COLUMNS = 80
# Done; interrupted, and summed up; interrupted while it was still being imported.
ENDED = {0, 130, -signal.SIGINT}


# Where lines are printed --------------------------------------------------------------------------


def of_help(python: Path, command: str) -> list[str]:
    """Return the examples of a command's help."""
    shown = run(python, ["execmem", command, "--help"], HERE / "docs").stdout
    _, _, examples = shown.partition("Examples:")
    found = [line.strip() for line in examples.partition("\nOptions:")[0].splitlines()]
    assert "\b" not in shown
    assert "\\b" not in shown
    assert max(map(len, shown.splitlines())) <= COLUMNS
    assert not re.search(r"^ {5,}execmem ", shown, re.MULTILINE)
    return [line for line in found if line]


def of_lesson(name: str) -> list[str]:
    """Return what a lesson says to try next."""
    return list(LESSONS[name].commands())


def of_page(page: Path) -> list[str]:
    """Return the command lines of a document."""
    found, fence = [], None
    for text in page.read_text("utf-8").splitlines():
        line = text.strip()
        if line.startswith("```"):
            fence = None if fence is not None else line[3:].split(" ")[0]
        elif fence is not None:
            told = re.match(r"\$ (execmem .*)" if fence != "sh" else r"(?:\$ )?(execmem .*)", line)
            found += [told[1]] if told else []
        else:
            found += re.findall(r"`(execmem [^`]*)`", line)
    return found


# What they become -----------------------------------------------------------------------------


def folders(variable: str) -> list[Path]:
    """Return the folders that a variable of the environment names."""
    return [Path(part) for part in os.environ.get(variable, "").split(os.pathsep) if part]


def of_arch(folder: Path, arch: archs.Arch) -> Path | None:
    """Return an architecture's part of a folder."""
    candidates = [folder / name for name in (arch.name, *arch.aliases)]
    return next((path for path in candidates if path.is_dir()), None)


def line(text: str) -> list[str] | str:
    """Return the words of a command line, or what it would need."""
    words = shlex.split(text, comments=True)
    words = shlex.split(" ".join(shlex.quote(w) if w not in WORDS else WORDS[w] for w in words))
    for word, what in (
        ("ADDRESS", "a cluster"),
        ("BUILD", "a kernel that was built with KUnit tests"),
        ("VMCORE", "a crash dump"),
        ("CRASH", "a finding of a fuzzer"),
        ("evil.ko", "a module that ends emulators"),
    ):
        if any(each.split("/")[0] == word for each in words):
            return what
    chosen = words[words.index("--arch") + 1] if "--arch" in words else "x86_64"
    arch = archs.arch(chosen)
    named = words[2].partition(":")[0] if len(words) > 2 else ""
    if words[1] == "gdb" and ("--batch" not in words or shutil.which("gdb-multiarch") is None):
        return "gdb-multiarch, which connects"
    if "VMLINUZ" in words or words[1] == "kernel" or "--kernel" in words:
        kernels = [k for f in folders("EXECMEM_KERNELS") for k in sorted(f.glob("*-amd64"))]
        kernels = [kernel for kernel in kernels if list(kernel.glob("boot/vmlinuz*"))]
        if not kernels or named == "running":
            return "a kernel (EXECMEM_KERNELS)"
        image = next(kernels[0].glob("boot/vmlinuz*"))
        swaps = {"TREE": str(kernels[0]), "VMLINUZ": str(image)}
        if words[1] != "kernel" and words[2] in names():  # samples are of another kernel
            swaps[words[2]] = str(next(kernels[0].rglob("crc16.ko*")))
        return [swaps.get(word, word) for word in words]
    if any("TREE" in word for word in words):
        tree: Path | None = root(arch.name)
        ours = words[1] in ("load", "sweep", "compare") and not named.isalnum()
        if not (ours or named in names()):
            trees = [of_arch(folder, arch) for folder in folders("EXECMEM_CORPUS")]
            tree = next((found for found in trees if found), None)
        if tree is None:
            return "a distribution's modules (EXECMEM_CORPUS)"
        words = [word.replace("TREE", str(tree)) for word in words]
        version = next((tree / "lib" / "modules").iterdir()).name
        words = [word.replace("/VERSION/", f"/{version}/") for word in words]
    if "DIR" in words:
        oracles = folders("EXECMEM_ORACLE")
        if not oracles:
            return "recordings of real kernels (EXECMEM_ORACLE)"
        words = [str(oracles[0]) if word == "DIR" else word for word in words]
    return words


def prepare(folder: Path) -> None:
    """Put what a reader would have into an empty folder."""
    shutil.copy(path("x86_64", "hello"), folder / "hello.ko")
    shutil.copy(path("x86_64", "mathuser"), folder / "mine.ko")
    shutil.copy(path("x86_64", "mathlib"), folder / "mathlib.ko")
    (folder / "script.gdb").write_text("stepi\nbacktrace\ndetach\n")
    image = path("x86_64", "hello").read_bytes()
    files = {"lib/modules/6.12.0/kernel/hello.ko": image}
    kernels = [k for f in folders("EXECMEM_KERNELS") for k in sorted(f.glob("*-amd64/boot"))]
    for image_file in [f for kernel in kernels[:1] for f in kernel.glob("vmlinuz*")][:1]:
        files[f"boot/{image_file.name}"] = image_file.read_bytes()
    for name in ("linux-image.deb", "linux-image-6.12.deb"):
        (folder / name).write_bytes(packages.deb(files.items()))
    (folder / "kernel-modules.rpm").write_bytes(packages.rpm(list(files.items())))
    (folder / "modules.tar.zst").write_bytes(packages.tarball(files.items(), ".zst"))
    import lzma

    (folder / "a.ko.xz").write_bytes(lzma.compress(image))
    text = (HERE / "docs" / "howto" / "design.md").read_text("utf-8")
    design = re.search(r'^```python title="mine.py"\n(.*?)^```', text, re.MULTILINE | re.DOTALL)
    assert design is not None
    (folder / "mine.py").write_text(design[1])
    text = (HERE / "docs" / "howto" / "check.md").read_text("utf-8")
    case = re.search(r"^```asm\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert case is not None
    shutil.copy(HERE / "docs" / "solutions" / "one-plt-arm64.toml", folder / "answer.toml")
    (folder / "cases").mkdir()
    for name in ("call.s", "case.s", "cases/call.s"):
        (folder / name).write_text(case[1])


ran: set[tuple[str, ...]] = set()  # with an interpreter, wherever it was printed


# Running them ---------------------------------------------------------------------------------


def run(python: Path, words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command line with an interpreter's execmem; interrupt what may be, after some time."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["XDG_STATE_HOME"] = str(folder / "state")
    process = subprocess.Popen(
        [python, "-m", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        cwd=folder,
        env=environment,
        start_new_session=True,
    )
    bar = words[1] in ("compare", "sweep", "diff", "serve") or {"--all", "--random"} & set(words)
    try:
        out, err = process.communicate(timeout=PATIENCE if bar else LONGEST)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=LONGEST)
        assert bar, words
        assert process.returncode in ENDED, (words, err)  # it may have been as good as done
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def check(python: Path, lines: list[str], folder: Path) -> None:
    """Run lines in a folder that holds nothing but what a reader would have."""
    prepare(folder)
    left_out = []
    for text in dict.fromkeys(lines):
        bare = shlex.split(text, comments=True)
        if bare[1] not in COMMANDS:
            assert bare[1] in ("-h", "--help", "--version", "->"), text
            continue
        if len(bare) == 2 and bare[1] not in ("archs", "reach", "demo", "course", "compare"):
            continue  # the command's name, in a sentence
        words = line(text)
        if isinstance(words, str):
            left_out.append(f"{text}: {words}")
            continue
        once = (str(python), *words)
        if once in ran and not WRITERS & set(words):
            continue
        ran.add(once)
        done = run(python, words, folder)
        allowed = {*ENDED, 1} if words[1] == "diff" or "--random" in words else ENDED
        assert done.returncode in allowed, f"{text}\n{shlex.join(words)}\n{done.stderr[-1000:]}"
        assert "Traceback" not in done.stderr, text
        if done.returncode == 1:
            assert "execmem:" not in done.stderr, text
    if left_out and len(left_out) == len(lines):
        pytest.skip("; ".join(left_out))


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """Return the wheel of this project."""
    pytest.importorskip("setuptools", reason="building a wheel needs setuptools")
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(HERE, folder / "source", ignore=ignored)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    done = subprocess.run(
        [*pip, "-w", str(folder), str(folder / "source")],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip(f"no wheel can be built here: {done.stderr.strip()[-200:]}")
    (found,) = folder.glob("*.whl")
    return found


def environment(interpreter: str | Path, folder: Path) -> Path:
    """Return the interpreter of a new virtual environment, without pip."""
    venv = folder / "venv"
    subprocess.run([interpreter, "-m", "venv", "--without-pip", venv], check=True)
    return venv / "bin" / "python"


def install(python: Path, *more: str | Path) -> subprocess.CompletedProcess[str]:
    """Install something for an interpreter of a virtual environment."""
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q"]
    return subprocess.run(
        [*pip, "--disable-pip-version-check", *map(str, more)],
        check=False,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="session")
def this_python(wheel, tmp_path_factory):
    """Return this Python with the wheel installed, and what it needs, as it is here."""
    python = environment(sys.executable, tmp_path_factory.mktemp("this"))
    (site,) = python.parents[1].glob("lib/python*/site-packages")
    # A path and no more: what is installed editably here is not found there.
    (site / "needed.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    done = install(python, "--no-index", "--no-deps", wheel)
    assert done.returncode == 0, done.stderr
    return python


@pytest.fixture(scope="session")
def newest_python(wheel, tmp_path_factory):
    """Return the newest other Python there is, with the wheel and all that it needs installed."""
    for minor in range(30, sys.version_info.minor, -1):
        name = f"python3.{minor}"
        places = [shutil.which(name), *Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/{name}")]
        for interpreter in filter(None, places):
            told = [interpreter, "-c", "import venv"]
            if subprocess.run(told, check=False, capture_output=True).returncode == 0:
                python = environment(interpreter, tmp_path_factory.mktemp("newest"))
                done = install(python, f"{wheel}[archives]")
                if done.returncode:
                    pytest.skip(f"nothing can be installed for {name}: {done.stderr[-200:]}")
                return python
    pytest.skip("no newer Python is installed")


def test_the_wheel_is_what_runs(this_python, tmp_path):
    """The lines below are run by what was installed, not by these sources."""
    code = "import execmem, samples; print(execmem.__file__, samples.__file__)"
    done = subprocess.run(
        [this_python, "-I", "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    for found in done.stdout.split():
        assert str(this_python.parents[1]) in found


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_of_help_run(this_python, tmp_path, command):
    """Every command's help ends with examples, and they run."""
    lines = of_help(this_python, command)
    assert lines
    assert all(text.startswith(f"execmem {command}") for text in lines)
    check(this_python, lines, tmp_path)


@pytest.mark.parametrize("name", DEMOS)
def test_what_a_lesson_says_to_try_runs(this_python, tmp_path, name):
    """Every lesson says what to try next, and that runs."""
    lines = of_lesson(name)
    assert lines
    check(this_python, lines, tmp_path)


def test_lines_run_on_the_newest_python(newest_python, tmp_path):
    """The first example of each command, and the tutorial, hold for the newest Python, too."""
    lines = [of_help(newest_python, command)[0] for command in COMMANDS if command != "diff"]
    check(newest_python, lines + of_page(HERE / "docs" / "tutorial.md"), tmp_path)
