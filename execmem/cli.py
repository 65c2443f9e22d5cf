# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: which commands there are, and how it ends.

A command's file under `execmem.commands` is imported when the command is used, so that
help and completion cost no emulator. Exit codes: 0 done, 1 refused with a one-line reason
on stderr, 2 usage, 130 interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from importlib import import_module
from typing import Any, NoReturn

import click

# Command -> its line in the overview; the file has the command's own name.
COMMANDS = {
    "load": "Load modules and show where everything lies.",
    "run": "Run a module's init, or call one of its functions.",
    "crypto": "Hash, encrypt or compress with a module's algorithm.",
    "trace": "Show the tree of calls while a function runs.",
    "coverage": "Show how much of a module a call executes; drcov, lcov.",
    "probe": "Show the registers whenever an instruction is reached.",
    "gdb": "Let gdb debug a module, or functions of its kernel.",
    "relocs": "Show each relocation of a module, before and after.",
    "reach": "Measure how far branches and address formation get.",
    "archs": "Show what each architecture makes different.",
    "kernel": "Show what kernel an image is, and what is known of it.",
    "functions": "List the functions of a kernel or module, with prototypes.",
    "disasm": "Disassemble functions of a module, with names and relocations.",
    "export": "Write a module as it lies in memory, for other tools.",
    "types": "Show structures of a kernel or module, with offsets.",
    "explain": "Write a page to explore: address space, reach, relocations.",
    "serve": "Serve a web page to play with modules, for this machine.",
    "check": "Run relocation cases: link, compare, execute, ask other linkers.",
    "diff": "Compare modules with what a real kernel made of them.",
    "compare": "Compare designs of executable memory on a workload.",
    "kunit": "Run a kernel's KUnit tests, for people and for CI.",
    "fuzz": "Look for inputs that make a module or kernel go wrong.",
    "sweep": "Load many modules in parallel, a line each.",
    "race": "Try every interleaving of CPUs while text is patched.",
    "demo": "Run a demo, or list them.",
    "course": "Work on the course's tasks, which are checked.",
}


@contextmanager
def _told() -> Iterator[None]:
    from execmem.streams import ReaderGone

    try:
        yield
    except BrokenPipeError as error:
        raise ReaderGone from error


class Commands(click.Group):
    """A group whose commands are imported when they are needed."""

    def make_context(self, *args: Any, **more: Any) -> click.Context:
        """Parse; a help text may be what nobody reads to its end."""
        with _told():
            return super().make_context(*args, **more)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; click would end the process where nobody reads what it writes."""
        with _told():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of the overview."""
        return [*COMMANDS, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, or None where there is none of this name."""
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        go_on = ctx.obj
        if go_on is not None:
            ctx.obj = None
            go_on()
        command: click.Command = getattr(import_module(f"execmem.commands.{cmd_name}"), cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the first word names; ask about the nearest where none is."""
        word = args[0]
        if self.get_command(ctx, word) is None and word[:1].isalpha():
            near = get_close_matches(word, self.list_commands(ctx), n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            ctx.fail(f"No such command {word!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the overview without importing a command."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name]) for name in self.list_commands(ctx)])


def _print_version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    """Say which versions these are: a report of a fault needs the emulator's, too."""
    if not wanted or ctx.resilient_parsing:
        return
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as version_of
    from platform import machine, python_version

    import execmem
    from execmem.streams import say
    from loader.build import models

    def version(package: str) -> str:
        try:
            return f"{package} {version_of(package)}"
        except PackageNotFoundError:
            return f"{package} is not installed"

    say(f"execmem {execmem.__version__}")
    say(f"{version('unicorn')}, {version('capstone')}, {version('numpy')}")
    say(f"Python {python_version()} on {machine()}")
    say(f"models {'; '.join(models())}")
    ctx.exit()


@click.group(
    cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80}
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the versions of execmem and of what it runs on, and exit.",
)
def cli() -> None:
    """Load real Linux kernel modules into an emulated x86-64, arm64, riscv64 or mips64el kernel."""


def _go_on_apart() -> None:
    """Go on in a child, now that there is a command to carry out and nothing is imported for it."""
    from execmem.worker.command import go_on_apart

    go_on_apart()


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and end the process; what is refused is one line on stderr.

    The words that this process was started with are carried out in a child of it, so that no
    guest can end it (`execmem.worker`); words that are given, in this process.
    """
    from execmem.streams import INTERRUPTED

    try:
        code = _status(argv)
        if argv is None:  # Python's end gives SIGINT back its meaning: to kill
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.setitimer(signal.ITIMER_REAL, 0)  # an interrupt that was to come again
    except KeyboardInterrupt:  # between two lines
        code = INTERRUPTED
    if argv is None and code == INTERRUPTED:
        _end_at_once(code)
    sys.exit(code)


def _end_at_once(code: int) -> NoReturn:
    """End an interrupted process, and those that work for it, without waiting for anything."""
    children = sys.modules.get("multiprocessing")
    for child in children.active_children() if children is not None else ():
        child.kill()
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _status(argv: Sequence[str] | None) -> int:
    """Run the command line; return the exit code."""
    from execmem import streams

    try:
        streams.prepare()
        words = None if argv is None else list(argv)
        apart = _go_on_apart if argv is None else None
        code = cli.main(args=words, prog_name="execmem", standalone_mode=False, obj=apart)
        sys.stdout.flush()
    except click.ClickException as error:
        streams.complain(*_said(error))
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        if argv is None:  # what was said once need not be said again
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        streams.complain("execmem: interrupted")
        return streams.INTERRUPTED
    except MemoryError:
        streams.complain("execmem: out of memory")
        return 1
    except (BrokenPipeError, streams.ReaderGone):
        # Nothing is wrong with the result.
        streams.drop_output()
        return 0
    except OSError as error:
        streams.complain(f"execmem: {streams.trouble(error)}")
        streams.drop_output()
        return 1
    except Exception as error:
        # Whoever raised one of the family has imported it; a help text has not.
        errors = sys.modules.get("allocator.errors")
        if errors is None or not isinstance(error, errors.ExecmemError):
            raise
        told = str(error)
        first, *more = told.split("\n") if error.multiline else [told]
        streams.complain(f"execmem: {first}", *more)
        return 2 if error.usage else 1
    return code if isinstance(code, int) else 0


def _said(error: click.ClickException) -> Iterator[str]:
    """Yield what click would say of a usage error; its words may come from anywhere."""
    if type(error).__name__ == "NoArgsIsHelpError" and isinstance(error, click.UsageError):
        assert error.ctx is not None  # a command without a word: click 8.2 shows its help so
        yield from error.ctx.get_help().split("\n")
        return
    if isinstance(error, click.UsageError) and error.ctx is not None:
        yield from error.ctx.get_usage().split("\n")
        option = next(iter(error.ctx.help_option_names), None)
        if option is not None:
            yield f"Try '{error.ctx.command_path} {option}' for help."
            yield ""
    yield f"Error: {error.format_message()}"
