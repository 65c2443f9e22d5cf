# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: thin wrappers that parse words, call the packages and show reports.

Exit codes: 0 done, 1 refused with a one-line reason on stderr, 2 usage.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from machine.machine import Argument, Machine
    from machine.module import Module

F = TypeVar("F", bound=Callable[..., Any])


def _options(function: F) -> F:
    """Add the options of every command that loads modules."""
    for option in reversed(
        (
            click.option("--root", metavar="DIR", help="folder that holds lib/modules/VERSION"),
            click.option("--arch", metavar="ARCH", help="architecture of a module given by name"),
            click.option(
                "--design", default="default", metavar="NAME", help="design of executable memory"
            ),
            click.option("--kaslr", type=int, metavar="SEED", help="randomise as this boot would"),
            click.option("--no-text-poke", is_flag=True, help="do without text_poke"),
            click.option(
                "--param", "params", multiple=True, metavar="NAME=VALUE", help="module parameter"
            ),
            click.option(
                "--stub",
                "stubs",
                multiple=True,
                metavar="NAME[=VALUE]",
                help="let a kernel function return VALUE (0)",
            ),
            click.option(
                "--checks",
                type=click.Choice(["hardware", "kernel"]),
                default="hardware",
                show_default=True,
                help="strictness of relocation",
            ),
            click.option(
                "--erratum", "errata", multiple=True, metavar="NUMBER", help="work around it"
            ),
            click.option("--with-plt", is_flag=True, help="add PLT and GOT sections"),
            click.option("--json", "as_json", is_flag=True, help="print one JSON document"),
        )
    ):
        function = option(function)
    return function


def _examples(*lines: str) -> Callable[[F], F]:
    """End a command's help with examples, line by line (the control character keeps them so)."""

    def add(function: F) -> F:
        listing = "\n".join(f"      {line}" for line in lines)
        text = (function.__doc__ or "").rstrip()
        function.__doc__ = f"{text}\n\n    \b\n    Examples:\n{listing}"
        return function

    return add


def _unknown(default: str) -> Callable[[F], F]:
    return click.option(
        "--unknown",
        type=click.Choice(["fault", "refuse"]),
        default=default,
        show_default=True,
        help="symbols nobody has: stop when called, or refuse to load",
    )


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.version_option(package_name="execmem")
def cli() -> None:
    """Load real Linux kernel modules into an emulated x86-64, arm64 or riscv64 kernel."""


@cli.command()
@click.argument("modules", nargs=-1, required=True, metavar="MODULE...")
@_options
@_unknown("refuse")
@click.option("--init", is_flag=True, help="run the modules' init too")
@_examples(
    "execmem load hello.ko --param who=you",
    "execmem load ext4 --root /path/to/tree --json",
)
def load(modules: tuple[str, ...], init: bool, **options: Any) -> None:
    """Load modules with their dependencies and show where everything lies.

    MODULE is a file (.ko, .ko.xz, .ko.gz, .ko.zst) or a name under --root.
    """
    from execmem import report

    machine = _machine(modules[0], options)
    loaded = [_load(machine, name, options, init=init) for name in modules]
    if options["as_json"]:
        everything = machine.modules.values()
        report.print_json({"modules": [report.module_json(machine, m) for m in everything]})
        return
    out = report.console()
    for number, module in enumerate(loaded):
        if number:
            out.print()
        report.print_module(out, machine, module)
        _print_log(out, module)


@cli.command()
@click.argument("module", metavar="MODULE")
@click.argument("function", required=False, metavar="[FUNCTION")
@click.argument("args", nargs=-1, metavar="[ARG...]]")
@_options
@_unknown("fault")
@click.option("--no-init", is_flag=True, help="call without running init first")
@click.option("--returns", default="u64", metavar="TYPE", help="C type of the result")
@click.option("--instructions", type=int, metavar="N", help="limit of the call; 0: none")
@click.option("--seconds", type=float, metavar="S", help="limit of the call; 0: none")
@_examples(
    "execmem run hello.ko --param who=you",
    "execmem run crc16 crc16 0 str:123456789 9 --root /path/to/tree --arch arm64",
)
def run(
    module: str,
    function: str | None,
    args: tuple[str, ...],
    no_init: bool,
    returns: str,
    instructions: int | None,
    seconds: float | None,
    **options: Any,
) -> None:
    """Run a module's init, or call one of its functions.

    An ARG is an integer (10, 0x10, -1), str:TEXT, hex:BYTES, file:PATH or out:SIZE (a
    buffer that is shown afterwards).
    """
    from execmem import report
    from machine.machine import Out

    values = [_argument(text) for text in args]
    machine = _machine(module, options)
    loaded = _load(machine, module, options, init=not no_init)
    fault = loaded.report.init_fault
    if fault is not None and function is None:
        raise fault
    if fault is not None:
        click.echo(f"{loaded.name}: init stopped: {fault}", err=True)
    result = None
    first = len(machine.log)
    if function is not None:
        limits: dict[str, Any] = {}
        if instructions is not None:
            limits["instructions"] = instructions or None
        if seconds is not None:
            limits["seconds"] = seconds or None
        result = loaded.call(function, *values, returns=returns, **limits)
        machine.kernel.flush_log()
    outputs = [bytes(value).hex() for value in values if isinstance(value, Out)]
    if options["as_json"]:
        document = report.module_json(machine, loaded) | {
            "function": function,
            "result": result,
            "outputs": outputs,
            "log": [line.text for line in machine.log],
        }
        report.print_json(document)
        return
    for line in machine.log[:first] if function is None else machine.log:
        click.echo(line.text)
    if function is None:
        said = "has no init" if loaded.report.init_result is None else "init returned 0"
        if loaded.report.init_result:
            said = f"init returned {loaded.report.init_result}"
        click.echo(f"{loaded.name}: {said if not no_init else 'init was not run'}")
        return
    assert result is not None
    click.echo(f"{function} = {result:#x} ({result})")
    for output in outputs:
        click.echo(f"out: {output}")


@cli.command()
@click.argument("module", metavar="MODULE")
@click.option("--section", metavar="GLOB", help="only places in these sections")
@click.option("--type", "kind", metavar="GLOB", help="only these types: R_X86_64_PC32, pc*")
@click.option("--symbol", metavar="GLOB", help="only against these symbols")
@click.option("--limit", type=click.IntRange(min=0), metavar="N", help="show at most N")
@_options
@_unknown("fault")
@_examples(
    "execmem relocs hello.ko --section .text --type call*",
    'execmem relocs ext4 --symbol "jbd2_*" --limit 3 --root /path/to/tree',
)
def relocs(
    module: str,
    section: str | None,
    kind: str | None,
    symbol: str | None,
    limit: int | None,
    **options: Any,
) -> None:
    """Show each relocation of a module: place, formula, value, before and after.

    The module is loaded with its dependencies, without running init. A GLOB is a name or
    a shell pattern (*, ?, [abc]).
    """
    from execmem import relocs, report
    from loader.listing import Listing

    machine = _machine(module, options)
    loaded = _load(machine, module, options, init=False).loaded
    listing = Listing.of(loaded)
    if kind is not None and not listing.types(kind):
        raise click.UsageError(f"--type {kind!r}: {machine.arch.name} has no such relocation")
    names = {table.target.name for table in listing.tables}
    if section is not None and not any(fnmatchcase(name, section) for name in names):
        shown = ", ".join(sorted(names)[:12]) + (", ..." if len(names) > 12 else "")
        raise click.UsageError(f"--section {section!r}: there are relocations in {shown or 'none'}")
    selection = listing.select(section=section, kind=kind, symbol=symbol)
    code = relocs.Code(listing)
    if options["as_json"]:
        head = {"module": loaded.name, "arch": machine.arch.name}
        report.print_json(head | relocs.as_json(code, selection, limit))
        return
    relocs.show(report.console(), code, selection, limit)


@cli.command()
@click.option("--arch", "names", multiple=True, metavar="ARCH", help="only this one; repeatable")
@click.option("--json", "as_json", is_flag=True, help="print one JSON document")
@_examples(
    "execmem reach",
    "execmem reach --arch riscv64 --json",
)
def reach(names: tuple[str, ...], as_json: bool) -> None:
    """Measure how far branches and address-forming instructions get.

    Each is executed in the guest at its limits and one step past them, and shown beside
    what the psABI says. Displacements count from the instruction's own address.
    """
    from archs import arch as arch_by_name
    from archs import archs as all_archs
    from execmem import report
    from machine.reach import measure

    try:
        chosen = [arch_by_name(name) for name in names] or all_archs()
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    measured = [(arch, found) for arch in chosen for found in measure(arch)]
    if as_json:
        report.print_json({"rows": [report.reach_json(arch, found) for arch, found in measured]})
        return
    report.print_reach(report.console(), measured)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="print one JSON document")
@_examples(
    "execmem archs",
    "execmem archs --json",
)
def archs(as_json: bool) -> None:
    """Show what each architecture makes different."""
    from archs import archs as all_archs
    from execmem import report

    if as_json:
        report.print_json({"archs": [report.arch_json(a) for a in all_archs()]})
        return
    report.print_archs(report.console(), all_archs())


@cli.command()
@click.option("--design", "designs", multiple=True, metavar="NAME", help="only this; repeatable")
@click.option(
    "--workload", default="server", show_default=True, metavar="W", help="a name or a path"
)
@click.option("--arch", "names", multiple=True, metavar="ARCH", help="only this one; repeatable")
@click.option("--kaslr", type=int, metavar="SEED", help="randomise as this boot would")
@click.option("--no-text-poke", is_flag=True, help="do without text_poke")
@click.option("--check", is_flag=True, help="verify every invariant of memory after each run")
@click.option("--svg", metavar="FILE", help="write a chart")
@click.option("--png", metavar="FILE", help="write a chart; needs matplotlib")
@click.option("--record", metavar="FILE", help="write the workload as a trace (one ARCH)")
@click.option("--json", "as_json", is_flag=True, help="print one JSON document")
def compare(
    designs: tuple[str, ...],
    workload: str,
    names: tuple[str, ...],
    kaslr: int | None,
    no_text_poke: bool,
    check: bool,
    svg: str | None,
    png: str | None,
    record: str | None,
    as_json: bool,
) -> None:
    r"""Compare designs of executable memory on a workload.

    W is debian (every module of Debian 6.12), debian-alphabetical, desktop, server, churn,
    bpf, bpf-512, bpf-1024, bpf-2048, probes or no-modules; or a folder of modules; or a
    trace that --record wrote.

    \b
    Examples:
      execmem compare
      execmem compare --workload debian --arch arm64 --svg debian.svg
      execmem compare --workload churn --arch x86_64 --record churn.jsonl
    """
    from allocator.workloads import write_trace
    from archs import arch as arch_by_name
    from execmem import compare, report

    try:
        chosen = [arch_by_name(name) for name in names]
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    using = compare.known_designs(designs)
    pairs = compare.workloads(workload, chosen)
    if record is not None:
        if len(pairs) != 1:
            raise click.UsageError("--record writes the trace of one architecture: give one --arch")
        write_trace(record, pairs[0][1])
    with compare.progress_bar() as progress:
        runs = compare.compare(
            pairs,
            using,
            kaslr=kaslr,
            text_poke=not no_text_poke,
            check=check,
            progress=progress,
        )
    if svg is not None:
        compare.save(svg, lambda: Path(svg).write_text(compare.svg(runs), "utf-8"))
    if png is not None:
        compare.png(png, runs)
    if as_json:
        report.print_json({"runs": [found.as_json() for found in runs]})
        return
    compare.show(report.console(), runs)


@cli.command()
@click.argument("name", required=False, metavar="[NAME]")
@click.option("--json", "as_json", is_flag=True, help="print one JSON document")
@_examples(
    "execmem demo",
    "execmem demo tour",
)
def demo(name: str | None, as_json: bool) -> None:
    """Run a demo, or list them."""
    from execmem import report
    from samples import DEMOS, story_of

    if name is None:
        if as_json:
            listing = [{"name": n, "title": title} for n, title in DEMOS.items()]
            report.print_json({"demos": listing})
            return
        report.console().print(report.table(("demo", "what it shows"), DEMOS.items()))
        return
    if name not in DEMOS:
        raise click.UsageError(f"no demo {name!r}; there are {', '.join(DEMOS)}")
    story = story_of(name)
    if as_json:
        report.print_json(story.as_json())
        return
    report.print_story(report.console(), story)


def _machine(module: str, options: dict[str, Any]) -> Machine:
    """Return the machine for a module: its ELF header names the architecture."""
    from archs import arch as arch_by_name
    from loader.depends import find, open_tree
    from loader.elf import arch_of
    from loader.files import SUFFIXES, read_module
    from machine.machine import Machine

    root = options["root"]
    if options["arch"] is not None:
        try:
            chosen = arch_by_name(options["arch"])
        except ValueError as error:
            raise click.UsageError(str(error)) from None
    else:
        given = Path(module)
        is_file = "/" in module or module.endswith(SUFFIXES) or given.is_file()
        path = given if is_file else find(open_tree(root) if root else None, module)
        chosen = arch_of(read_module(path), path.name)
    machine = Machine(
        chosen,
        design=options["design"],
        text_poke=False if options["no_text_poke"] else None,
        kaslr=options["kaslr"],
        root=root,
        unknown=options["unknown"],
        checks=options["checks"],
        errata=options["errata"],
        stub_sections=options["with_plt"],
    )
    for stub in options["stubs"]:
        name, _, value = stub.partition("=")
        machine.stub(name, _integer(value) if value else 0)
    return machine


def _load(machine: Machine, name: str, options: dict[str, Any], *, init: bool) -> Module:
    """Load one module of the command line, unless a dependency brought it already."""
    from loader.files import module_name

    already = machine.modules.get(module_name(name))
    if already is not None:
        return already
    return machine.load(name, init=init, **_parameters(options["params"]))


def _parameters(words: Sequence[str]) -> dict[str, object]:
    params: dict[str, object] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name:
            raise click.UsageError(f"--param {word!r}: expected NAME=VALUE")
        params[name] = value if equals else True
    return params


def _integer(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise click.UsageError(
            f"{text!r} is no argument: expected an integer, str:, hex:, file: or out:"
        ) from None


def _argument(text: str) -> Argument:
    """Return the value that a word of the command line stands for."""
    from machine.machine import Out

    kind, colon, rest = text.partition(":")
    if not colon:
        return _integer(text)
    if kind == "str":
        return rest
    try:
        if kind == "hex":
            return bytes.fromhex(rest)
        if kind == "file":
            return Path(rest).read_bytes()
        if kind == "out":
            return Out(int(rest, 0))
    except (ValueError, OSError) as error:
        raise click.UsageError(f"{text!r}: {error}") from None
    return _integer(text)


def _print_log(out: Any, module: Module) -> None:
    from rich.markup import escape

    for line in module.report.log:
        out.print(escape(f"| {line.text}"))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; whatever execmem refuses becomes one line and exit code 1."""
    from allocator.errors import ExecmemError

    try:
        cli.main(args=None if argv is None else list(argv), prog_name="execmem")
    except ExecmemError as error:
        click.echo(f"execmem: {error}", err=True)
        sys.exit(1)
    except BrokenPipeError:
        # The reader went away (a pager that was quit): nothing is wrong with the result.
        sys.stderr.close()
        sys.exit(0)
