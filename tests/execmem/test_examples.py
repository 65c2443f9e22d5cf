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
from pathlib import Path

import pytest

import archs
from execmem.cli import COMMANDS
from samples import DEMOS
from samples.course import LESSONS
from samples.modules import names, path, root
from tests.support import packages
from tests.support.installed import Shell

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
BARS = ("compare", "sweep", "diff", "serve")  # what shows progress
PATIENCE = 2.0  # seconds for it
COLUMNS = 80
# Done; interrupted, and summed up; interrupted while it was still being imported.
ENDED = {0, 130, -signal.SIGINT}


# Where lines are printed --------------------------------------------------------------------------


def of_help(shell: Shell, command: str, folder: Path) -> list[str]:
    """Return the examples of a command's help."""
    shown = shell.run(["execmem", command, "--help"], folder).stdout
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


# Running them ---------------------------------------------------------------------------------


def held(folder: Path) -> set[tuple[str, int, int]]:
    """Return what is in a folder: names, sizes, times."""
    return {
        (str(file), file.lstat().st_size, file.lstat().st_mtime_ns) for file in folder.rglob("*")
    }


def check(shell: Shell, lines: list[str], folder: Path) -> None:
    """Run lines in a folder that holds nothing but what a reader would have.

    One that left nothing behind, wherever it was printed, is not run again.
    """
    prepare(folder)
    left_out, before = [], held(folder)
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
        if shell.mark(words).exists():
            continue
        bar = words[1] in BARS or {"--all", "--random"} & set(words)
        done = shell.run(words, folder, PATIENCE if bar else None)
        assert bar or not done.interrupted, words
        allowed = {*ENDED, 1} if words[1] == "diff" or "--random" in words else ENDED
        assert done.returncode in allowed, f"{text}\n{shlex.join(words)}\n{done.stderr[-1000:]}"
        assert "Traceback" not in done.stderr, text
        if done.returncode == 1:
            assert "execmem:" not in done.stderr, text
        after = held(folder)
        if after == before:
            shell.mark(words).touch()
        before = after
    if left_out and len(left_out) == len(lines):
        pytest.skip("; ".join(left_out))


def test_the_wheel_is_what_runs(shell, tmp_path):
    """The lines below are run by what was installed, not by these sources."""
    code = "import execmem, samples; print(execmem.__file__, samples.__file__)"
    done = subprocess.run(
        [shell.python, "-I", "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    for found in done.stdout.split():
        assert str(shell.python.parents[1]) in found


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_of_help_run(shell, tmp_path, command):
    """Every command's help ends with examples, and they run."""
    lines = of_help(shell, command, tmp_path)
    assert lines
    assert all(text.startswith(f"execmem {command}") for text in lines)
    check(shell, lines, tmp_path)


@pytest.mark.parametrize("name", DEMOS)
def test_what_a_lesson_says_to_try_runs(shell, tmp_path, name):
    """Every lesson says what to try next, and that runs."""
    lines = of_lesson(name)
    assert lines
    check(shell, lines, tmp_path)


def test_lines_run_on_the_newest_python(newest, tmp_path):
    """The first example of each command, and the tutorial, hold for the newest Python, too."""
    lines = [of_help(newest, command, tmp_path)[0] for command in COMMANDS if command != "diff"]
    check(newest, lines + of_page(HERE / "docs" / "tutorial.md"), tmp_path)
