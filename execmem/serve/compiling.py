# SPDX-License-Identifier: GPL-2.0-or-later
"""A source that was typed becomes a module, as the samples are built, in a process that is confined.

A compiler needs to start programs, so it cannot work behind the fence of who runs modules. Landlock
lets it read what lies in the system's folders, start programs there, write into one folder, and nothing
else: `#include` and `.incbin` reach no file of anybody. Time, memory and what it writes are limited.
Where a host has no Landlock, nothing is compiled.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs

from allocator.errors import ExecmemError
from allocator.types import GIB, MIB
from archs import Arch, archs
from archs import arch as arch_by_name
from execmem.check.toolchain import gnu
from execmem.streams import say
from execmem.worker.fence import prepare
from samples.modules.build import MODULES, SOURCE, TOOLCHAINS, commands

SECONDS = 20  # of a build
WRITTEN = 16 * MIB  # bytes of each file
LONGEST = 1 << 18  # characters of a source
NAME = "mine"  # what the module is called
LINES = 40  # of what a compiler says
SUFFIXES = {"c": ".c", "assembly": ".S"}
_SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/alternatives")
_TOOLS = ("gcc", "ld", "strip")


class NotBuilt(ExecmemError):
    """A source does not become a module; the text is what the compiler says."""

    multiline = True


@attrs.frozen
class Built:
    """A module that was compiled.

    Parameters
    ----------
    image
        Its bytes.
    said
        What the compiler warned of.
    """

    image: bytes
    said: tuple[str, ...]


def targets() -> tuple[Arch, ...]:
    """Return the architectures that there are compilers for, and a kernel to run modules in."""
    if prepare().get("landlockpy") is None:
        return ()
    return tuple(
        arch
        for arch in archs()
        if arch.run is not None
        and TOOLCHAINS.get(arch.name) is not None
        and all(gnu(arch, tool) for tool in _TOOLS)
    )


def sample(name: str) -> str | None:
    """Return the source of a sample module; None: there is none of this name."""
    return (SOURCE / f"{name}.c").read_text("utf-8") if name in MODULES else None


def build(arch: Arch, kind: str, text: str) -> Built:
    """Compile a source.

    Parameters
    ----------
    kind
        One of `SUFFIXES`.
    text
        What was typed.

    Raises
    ------
    NotBuilt
        The compiler refuses it, in lines of its own; or nothing compiles it here.
    """
    if arch not in targets():
        raise NotBuilt(f"no compiler for {arch.name} that could be confined is installed")
    with TemporaryDirectory(prefix="execmem-") as folder:
        for name in ("module.h", "module.mod.c", "module.lds"):
            shutil.copyfile(SOURCE / name, Path(folder) / name)
        (Path(folder) / f"{NAME}{SUFFIXES[kind]}").write_text(text, "utf-8", "replace")
        words = [sys.executable, "-P", "-m", "execmem.serve.compiling", folder, arch.name, kind]
        path = os.pathsep.join(str(Path(p).absolute()) for p in sys.path)
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"PATH": os.defpath, "PYTHONPATH": path, "LC_ALL": "C", "TMPDIR": folder},
            start_new_session=True,
        )
        try:
            said, _ = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            raise NotBuilt(f"it was not compiled within {SECONDS} seconds") from None
        finally:
            with suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        lines = said.decode("utf-8", "replace").replace(f"{folder}/", "").splitlines()[:LINES]
        if process.returncode:
            raise NotBuilt("\n".join(lines) or f"the compiler ended with {process.returncode}")
        return Built((Path(folder) / f"{NAME}.ko").read_bytes(), tuple(lines))


def _confine(folder: str) -> None:
    """Give up all files but the system's, which are read and executed, and one folder."""
    for name, limit in (
        ("RLIMIT_CPU", SECONDS),
        ("RLIMIT_AS", 2 * GIB),
        ("RLIMIT_FSIZE", WRITTEN),
        ("RLIMIT_CORE", 0),
    ):
        resource.setrlimit(getattr(resource, name), (limit, limit))
    landlock = prepare()["landlockpy"]
    access, scope = landlock.AccessFS, landlock.Scope
    read = access.READ_FILE | access.READ_DIR
    write = access.WRITE_FILE | access.TRUNCATE | access.MAKE_REG | access.REMOVE_FILE
    with landlock.Ruleset(scoped=scope.ABSTRACT_UNIX_SOCKET | scope.SIGNAL) as rules:
        for path in _SYSTEM:
            with suppress(OSError):  # not there
                one = Path(path).is_file()
                rules.allow_path(path, access.READ_FILE if one else read | access.EXECUTE)
        rules.allow_path("/dev/null", access.READ_FILE | access.WRITE_FILE)
        rules.allow_path(folder, read | write)
        rules.restrict()


def main(folder: str, name: str, kind: str) -> int:
    """Build the module in a folder; return the exit code."""
    arch = arch_by_name(name)
    prefix = TOOLCHAINS[name].prefix
    steps = commands(name, NAME, f"{NAME}{SUFFIXES[kind]}")
    programs = {tool: gnu(arch, tool) for tool in _TOOLS}
    try:
        _confine(folder)
    except OSError as error:
        say(f"no Landlock in this kernel or container: {error.strerror}")
        return 1
    for step in steps:
        program = programs[step[0].removeprefix(prefix)]
        assert program is not None
        done = subprocess.run([program, *step[1:]], cwd=folder, check=False)
        if done.returncode:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
