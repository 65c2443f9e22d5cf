# SPDX-License-Identifier: GPL-2.0-or-later
"""Does what the RUN lines of LLVM's tests say, up to objects, in a folder that goes away.

Programs are started with words that are known here and no others, never by a shell; what writes
files writes them in that folder.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import attrs

import archs
from allocator.errors import ExecmemError, printable
from archs import Arch
from execmem.check import toolchain
from execmem.check.outcome import Verdict

LARGEST = 1 << 28  # bytes of a file that is read
_ELF, _CLASS64, _LITTLE = b"\x7fELF", 2, 1
# First bytes of what is no ELF file.
_OTHERS: Mapping[bytes, str] = {
    b"\xcf\xfa\xed\xfe": "a Mach-O object",
    b"\xce\xfa\xed\xfe": "a Mach-O object",
    b"\xca\xfe\xba\xbe": "a Mach-O universal file",
    b"!<arch>\n": "an archive",
    b"\x64\x86": "a COFF object",
    b"\x64\xaa": "a COFF object",
    b"\x4c\x01": "a COFF object",
    b"\0\0\xff\xff": "a COFF object",
    b"BC\xc0\xde": "LLVM bitcode",
}
_SYSTEMS = (
    (re.compile(r"apple|darwin|macos|ios"), "a Mach-O object"),
    (re.compile(r"windows|win32|msvc|mingw|cygwin|coff"), "a COFF object"),
)


class Stopped(ExecmemError):
    """A command was not carried out.

    Parameters
    ----------
    verdict
        FOREIGN: what it makes is no module; SKIPPED: it is not understood, or needs what is not here.
    reason
        One line.
    arch
        Name of the architecture that it is about, where that is known.
    """

    def __init__(self, verdict: Verdict, reason: str, arch: str = "") -> None:
        super().__init__(printable(reason))
        self.verdict, self.reason, self.arch = verdict, reason, arch


@attrs.frozen
class Options:
    """Words that a program is told: options and their values (empty: none), and the rest.

    `unknown` are options that nobody here understands.
    """

    given: tuple[tuple[str, str], ...]
    rest: tuple[str, ...]
    unknown: tuple[str, ...] = ()

    def understood(self, program: str) -> Options:
        """Return these; Stopped where one is not understood."""
        if self.unknown:
            what = f"{program}: the option {self.unknown[0]} is not understood here"
            raise Stopped(Verdict.SKIPPED, what)
        return self

    def last(self, *names: str) -> str | None:
        """Return the value of the last of some options; None where none is there."""
        return next((value for name, value in reversed(self.given) if name in names), None)

    def every(self, *names: str) -> list[str]:
        """Return the values of some options."""
        return [value for name, value in self.given if name in names]

    def has(self, *names: str) -> bool:
        """Return whether one of some options is there."""
        return any(name in names for name, _ in self.given)


def options(words: Sequence[str], valued: frozenset[str], plain: frozenset[str]) -> Options:
    """Read the words behind a program's name, as LLVM's programs do: `-o x`, `-o=x`, `--o x`.

    Stopped where a value is missing.
    """
    given: list[tuple[str, str]] = []
    rest: list[str] = []
    unknown: list[str] = []
    left = iter(words[1:])
    for word in left:
        if not word.startswith("-") or word == "-":
            rest.append(word)
            continue
        name, equals, value = word.lstrip("-").partition("=")
        short = next((n for n in _JOINED if n in valued and name.startswith(n)), None)
        if name in valued:
            if not equals:
                value = next(left, "")
            if not value:
                raise Stopped(Verdict.SKIPPED, f"{words[0]}: {word} has no value")
        elif short is not None and name not in plain:
            name, value = short, word.lstrip("-")[len(short) :]
        elif name not in plain:
            unknown.append(word)
            continue
        given.append((name, value))
    return Options(tuple(given), tuple(rest), tuple(unknown))


_JOINED = ("D", "I", "L", "l", "hidden-l", "weak-l")  # whose values stand right behind


_MC_VALUED = frozenset(
    (
        *("triple", "arch", "mattr", "mcpu", "filetype", "o", "defsym", "I", "target-abi"),
        *("riscv-asm-relax-branches", "dwarf-version", "code-model", "relocation-model"),
    )
)
_MC_PLAIN = frozenset(
    (
        *("position-independent", "x86-relax-relocations", "relax-relocations", "g", "n"),
        *("large-code-model", "save-temp-labels", "no-exec-stack", "crel", "mno-fixup"),
    )
)
_YAML_VALUED = frozenset(("o", "D", "docnum", "E"))
_CLANG_VALUED = frozenset(("o", "target", "I", "D", "x", "mcmodel", "march", "mabi"))
_CLANG_PLAIN = frozenset(
    (
        *("c", "fPIC", "fpic", "fno-pic", "O0", "O1", "O2", "O3", "Os", "g", "nostdlib"),
        *("ffreestanding", "fno-common", "fcommon", "fno-asynchronous-unwind-tables"),
        *("fno-exceptions", "mno-relax", "mrelax", "w", "ffunction-sections", "fdata-sections"),
    )
)


@attrs.define
class Workshop:
    """Where one test's commands are carried out.

    Parameters
    ----------
    source
        The test.
    folder
        Where files may be written.
    failed
        Files that were not made, and why.
    """

    source: Path
    folder: Path
    failed: dict[Path, Stopped] = attrs.field(factory=dict)
    _here: Path = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.folder = self.folder.resolve()
        self._here = self.folder

    @property
    def substitutions(self) -> Mapping[str, str]:
        """What stands for `%s` and its like."""
        source, folder = self.source.resolve(), str(self.source.resolve().parent)
        stem = str(self.folder / f"{source.name}.tmp")
        return {
            "s": str(source),
            "S": folder,
            "p": folder,
            "t": stem,
            "T": str(self.folder),
            "basename_t": f"{source.name}.tmp",
            "%": "%",
        }

    def path(self, word: str) -> Path:
        """Return the path that a word names."""
        if "\0" in word:
            raise Stopped(Verdict.SKIPPED, "a path has a NUL in it")
        try:
            return (self._here / word).resolve()
        except (OSError, RuntimeError):  # too long, or links that lead in a circle
            raise Stopped(Verdict.SKIPPED, f"{word[:80]} is no path") from None

    def own(self, word: str) -> Path:
        """Return a path where something may be written; Stopped outside of the folder."""
        path = self.path(word)
        if not path.is_relative_to(self.folder):
            raise Stopped(Verdict.SKIPPED, f"{word} is outside of the test's own folder")
        return path

    def made(self, word: str) -> bytes:
        """Return a file's bytes; Stopped where it was not made, with the reason."""
        path = self.path(word)
        if path in self.failed:
            raise self.failed[path]
        try:
            if path.stat().st_size > LARGEST:
                raise Stopped(Verdict.SKIPPED, f"{path.name} is larger than {LARGEST:#x} bytes")
            return path.read_bytes()
        except OSError as error:
            reason = error.strerror or "cannot be read"
            raise Stopped(Verdict.SKIPPED, f"{path.name}: {reason}") from None

    # Commands ----------------------------------------------------------------------------------

    def carry_out(self, words: Sequence[str]) -> None:
        """Carry out a command.

        Stopped where it is not understood or does not succeed; files that it makes are noted.
        """
        name = Path(words[0]).name
        known: Mapping[str, Callable[[Sequence[str]], None]] = {
            "rm": self._rm,
            "mkdir": self._mkdir,
            "cd": self._cd,
            "cp": self._cp,
            "llvm-mc": self._llvm_mc,
            "yaml2obj": self._yaml2obj,
            "clang": self._clang,
            "split-file": self._split_file,
            "echo": self._nothing,
            "test": self._test,
        }
        try:
            known.get(name, self._unknown)(words)
        except Stopped as stopped:
            stopped.arch = stopped.arch or _meant(words)
            self._note(words, stopped)
            raise
        except OSError as error:
            failed = Stopped(Verdict.SKIPPED, f"{name}: {error.strerror or error}")
            self._note(words, failed)
            raise failed from None

    def _note(self, words: Sequence[str], stopped: Stopped) -> None:
        """Remember why the file behind -o is not there."""
        for first, second in pairwise(words):
            if first in ("-o", "--o"):
                self.failed[self.path(second)] = stopped
        for word in words:
            if word.startswith(("-o=", "--o=")):
                self.failed[self.path(word.partition("=")[2])] = stopped

    def _nothing(self, words: Sequence[str]) -> None:
        """Do what leaves nothing behind."""

    def _unknown(self, words: Sequence[str]) -> None:
        name = Path(words[0]).name
        if name in ("llvm-ar", "llvm-lib"):
            raise Stopped(Verdict.FOREIGN, f"an archive, which {name} makes")
        raise Stopped(Verdict.SKIPPED, f"{name} is not carried out here")

    def _test(self, words: Sequence[str]) -> None:
        raise Stopped(
            Verdict.FOREIGN, f"what `{' '.join(words[:2])}` looks for is JITLink's to write"
        )

    def _plain(self, words: Sequence[str], known: str) -> list[str]:
        """Return what a command is about, when its options are among known letters."""
        rest = []
        for word in words[1:]:
            if not word.startswith("-"):
                rest.append(word)
            elif not set(word[1:]) <= set(known):
                raise Stopped(Verdict.SKIPPED, f"{words[0]}: {word} is not understood here")
        return rest

    def _rm(self, words: Sequence[str]) -> None:
        for word in self._plain(words, "rfR"):
            path = self.own(word)
            if path == self.folder:
                raise Stopped(Verdict.SKIPPED, "rm is told to take away the test's own folder")
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _mkdir(self, words: Sequence[str]) -> None:
        for word in self._plain(words, "p"):
            self.own(word).mkdir(parents=True, exist_ok=True)

    def _cd(self, words: Sequence[str]) -> None:
        (word,) = self._plain(words, "") or ("",)
        path = self.own(word)
        if not path.is_dir():
            raise Stopped(Verdict.SKIPPED, f"cd: there is no folder {path.name}")
        self._here = path

    def _cp(self, words: Sequence[str]) -> None:
        *sources, goal = self._plain(words, "frp") or ("",)
        target = self.own(goal)
        for word in sources:
            held = self.made(word)
            where = target / Path(word).name if target.is_dir() else target
            where.write_bytes(held)

    def _split_file(self, words: Sequence[str]) -> None:
        source, goal = (*self._plain(words, ""), "", "")[:2]
        text = self.made(source).decode("utf-8", "replace")
        folder = self.own(goal)
        folder.mkdir(parents=True, exist_ok=True)
        parts = re.split(r"^(?://|;|#|\.)?-{3} (\S+)[^\n]*\n", text, flags=re.MULTILINE)
        for name, held in zip(parts[1::2], parts[2::2], strict=True):
            path = self.own(str(folder / name))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(held, "utf-8")

    def _llvm_mc(self, words: Sequence[str]) -> None:
        told = options(words, _MC_VALUED, _MC_PLAIN)
        triple = told.last("triple", "arch") or ""
        native(triple)
        told.understood(words[0])
        if told.last("filetype") != "obj":
            raise Stopped(Verdict.SKIPPED, "llvm-mc is asked for other than an object")
        source, out = self._ends(words[0], told)
        program = toolchain.llvm("llvm-mc")
        if program is None:
            command = [*_instead(told, triple, self), "-o", str(out), str(source)]
            self._start(command, out, strict=True)
            return
        command = []
        for name, value in told.given:
            if name == "o":
                continue
            text = str(self.path(value)) if name == "I" else value
            command.append(f"-{name}={text}" if text else f"-{name}")
        rest = [f"-I={self.source.resolve().parent}", "-o", str(out), str(source)]
        try:
            self._start([program, *command, *rest], out)
        except Stopped as stopped:
            renamed = [_RENAMED.get(word, word) for word in command]
            if renamed == command or "Unknown command line argument" not in stopped.reason:
                raise
            self._start([program, *renamed, *rest], out)

    def _yaml2obj(self, words: Sequence[str]) -> None:
        told = options(words, _YAML_VALUED, frozenset()).understood(words[0])
        source, out = self._ends(words[0], told)
        program = toolchain.llvm("yaml2obj")
        if program is None:
            raise Stopped(Verdict.SKIPPED, "yaml2obj is not installed (it comes with LLVM)")
        more = [f"-D{value}" for value in told.every("D")]
        more += [f"--docnum={value}" for value in told.every("docnum")]
        self._start([program, *more, "-o", str(out), str(source)], out)

    def _clang(self, words: Sequence[str]) -> None:
        told = options(words, _CLANG_VALUED, _CLANG_PLAIN)
        native(told.last("target") or "")
        told.understood(words[0])
        source, out = self._ends(words[0], told)
        program = toolchain.llvm("clang")
        if program is None:
            raise Stopped(Verdict.SKIPPED, "clang is not installed")
        command = [program]
        for name, value in told.given:
            if name in ("I", "D"):
                command.append(f"-{name}{value}")
            elif name == "target":
                command.append(f"--target={value}")
            elif name == "x":
                command += ["-x", value]
            elif name != "o":
                command.append(f"-{name}={value}" if value else f"-{name}")
        self._start([*command, "-o", str(out), str(source)], out)

    def _ends(self, name: str, told: Options) -> tuple[Path, Path]:
        """Return the one file that is read, and the one that is written."""
        out = told.last("o")
        if out is None or len(told.rest) != 1:
            raise Stopped(Verdict.SKIPPED, f"{name} is understood with one file and -o only")
        source = self.path(told.rest[0])
        self.made(told.rest[0])
        return source, self.own(out)

    def _start(self, command: Sequence[str], out: Path, *, strict: bool = False) -> None:
        """Start a program; Stopped where it makes no file, with the first line that it says.

        Strictly, a warning is enough: another assembler leaves out what it does not know.
        """
        name = Path(command[0]).name
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                cwd=self._here,
                timeout=toolchain.TIMEOUT,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            raise Stopped(Verdict.SKIPPED, f"{name} takes over {toolchain.TIMEOUT} s") from None
        warned = strict and "warning" in done.stderr.lower()
        if done.returncode or warned or not out.is_file():
            said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            telling = [line for line in said if re.search("error|warning", line, re.IGNORECASE)]
            said = telling or said or ["no reason given"]
            first = said[0].replace(str(self.source.resolve()), self.source.name)
            version = toolchain.version_of(command[0])
            raise Stopped(Verdict.SKIPPED, f"{name} ({version}) does not make it: {first}")


def native(triple: str) -> Arch:
    """Return the architecture of a triple; Stopped where modules are made for no such thing."""
    for pattern, what in _SYSTEMS:
        if pattern.search(triple):
            raise Stopped(Verdict.FOREIGN, f"{what} ({triple})")
    machine = triple.partition("-")[0]
    try:
        found = archs.arch(_MACHINES.get(machine, machine))
    except ValueError:
        what = f"code of {machine or 'no architecture'}, of which no modules are known here"
        raise Stopped(Verdict.FOREIGN, what) from None
    if triple.endswith(("n32", "x32", "ilp32")):
        raise Stopped(Verdict.FOREIGN, f"an object of 32-bit addresses ({triple})")
    return found


def _meant(words: Sequence[str]) -> str:
    """Return the architecture that a command's triple names; empty where it names none."""
    try:
        told = options(words, frozenset(("triple", "target", "o")), frozenset())
        return native(told.last("triple", "target") or "").name
    except Stopped:
        return ""


# What LLVM calls machines that are other ones than archs.arch() takes their names for.
_MACHINES: Mapping[str, str] = {
    "mips64": "mips64-big-endian",
    "riscv": "",
    "mips64r6el": "mips64el",
    "mipsisa64r6el": "mips64el",
}


def kind(image: bytes, name: str) -> str:
    """Return what is wrong with an object for a module, by its first bytes; empty for nothing."""
    for start, what in _OTHERS.items():
        if image.startswith(start):
            return what
    if image[:4] != _ELF or len(image) < 20:
        return f"{name} is no object file"
    if image[4] != _CLASS64:
        return "an object of 32-bit addresses"
    return "a big-endian object" if image[5] != _LITTLE else ""


# Words of -mattr that other assemblers have under other names.
_EXTENSIONS = frozenset(("+m", "+a", "+f", "+d", "+c", "+zca", "+relax"))

# Options that some versions of llvm-mc lack, and what says the same to those (LLVM 21: exact-asm
# is a feature; LLVM 19: what is for x86 says so).
_RENAMED: Mapping[str, str] = {
    "-riscv-asm-relax-branches=0": "-mattr=+exact-asm",
    "-x86-relax-relocations=false": "-relax-relocations=false",
    "-relax-relocations=false": "-x86-relax-relocations=false",
}

# Without llvm-mc ----------------------------------------------------------------------------------


def _instead(told: Options, triple: str, shop: Workshop) -> Iterator[str]:
    """Yield a command of clang or of GNU as that does what llvm-mc was told."""
    arch = native(triple)
    nothing = {"triple", "arch", "filetype", "o", "position-independent", "large-code-model"}
    equal = nothing | {"defsym", "I", "x86-relax-relocations", "relax-relocations", "mattr"}
    missing = "llvm-mc is not installed"
    for name, _ in told.given:
        if name not in equal:
            raise Stopped(Verdict.SKIPPED, f"{missing}, and no other assembler has its -{name}")
    symbols = [f"--defsym={value}" for value in told.every("defsym")]
    folders = [str(shop.path(value)) for value in told.every("I")]
    # Of which only the assembler of x86 has another kind.
    plainly = told.last("x86-relax-relocations", "relax-relocations") == "false"
    plainly = plainly and triple.startswith("x86_64")
    extensions = [word for text in told.every("mattr") for word in text.split(",")]
    letters = "".join(word[1:] for word in extensions if len(word) == 2)
    letters += "c" if "+zca" in extensions else ""
    if not set(extensions) <= _EXTENSIONS:
        raise Stopped(Verdict.SKIPPED, f"{missing}, and no other assembler has its -mattr")
    march = []
    if triple.startswith(
        "riscv"
    ):  # of which others take the C extension and relaxation for granted
        march = [f"-march=rv64ima{''.join(c for c in 'fdc' if c in letters)}"]
        march += ["-mrelax" if "+relax" in extensions else "-mno-relax"]
    clang, gnu = toolchain.llvm("clang"), toolchain.gnu(arch, "as")
    if clang is not None:
        yield from (clang, f"--target={triple}", "-c", "-x", "assembler", *march)
        yield from (f"-Wa,{word.replace('=', ',')}" for word in symbols)
        yield from (f"-I{folder}" for folder in folders)
        if plainly:
            yield "-Wa,-mrelax-relocations=no"
    elif gnu is not None:
        yield from (gnu, *march, *(word for s in symbols for word in s.split("=", 1)))
        yield from (word for folder in folders for word in ("-I", folder))
        if plainly:
            yield "-mrelax-relocations=no"
    else:
        raise Stopped(
            Verdict.SKIPPED, f"{missing}, nor clang, nor the GNU assembler of {arch.name}"
        )
