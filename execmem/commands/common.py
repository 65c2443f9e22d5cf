# SPDX-License-Identifier: GPL-2.0-or-later
"""What commands share: the options of every command that loads modules, and their meaning."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from inspect import cleandoc
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from execmem import notices
from execmem.worker.allowed import ONE_THREAD

if TYPE_CHECKING:
    from archs import Arch
    from execmem.worker.clerk import Outside
    from loader.kernel.image import KernelImage
    from loader.loaded import LoadedModule
    from machine.arguments import Argument
    from machine.machine import ModelledMachine
    from machine.module import Module

SHOWN = 256  # bytes of a buffer
F = TypeVar("F", bound=Callable[..., Any])


@contextmanager
def importing() -> Iterator[None]:
    """Let the garbage collector rest: what imports make stays, however often it is looked at."""
    rests = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if rests:
            gc.enable()


def kernel_option(function: F) -> F:
    """Add --kernel."""
    return click.option(
        "--kernel",
        metavar="PATH",
        help="what modules are for: an image, a package or a tree, as for execmem kernel; "
        "auto: look for the module's own",
    )(function)


def modelled_option(function: F) -> F:
    """Add --modelled, to a command that runs code."""
    return click.option(
        "--modelled",
        is_flag=True,
        help="do not boot --kernel: the modelled kernel answers, with its facts",
    )(function)


def console_option(function: F) -> F:
    """Add --console, to a command that may boot a kernel."""
    return click.option(
        "--console", is_flag=True, help="show what the kernel prints while it boots"
    )(function)


def cpu_option(function: F) -> F:
    """Add --cpu, to a command that may boot a kernel; `boots` refuses it where none is."""
    return click.option(
        "--cpu", default="", metavar="MODEL", help="CPU that --kernel boots on: haswell, a57 ..."
    )(function)


# Of a dask scheduler; one without a port is waited for, and leaves a traceback.
ADDRESS = re.compile(r"(\w+://)?[^/\s]+:\d{1,5}|inproc://.+")
SANDBOX = "give up network, files and privileges before code of a guest runs"
REQUIRE = "refuse where not all of that can be given up"


def json_option(function: F) -> F:
    """Add --json."""
    return click.option("--json", "as_json", is_flag=True, help="print one JSON document")(function)


def archs_option(function: F) -> F:
    """Add --arch, as `names`, to a command that is about all architectures."""
    return click.option(
        "--arch", "names", multiple=True, metavar="ARCH", help="only this one; repeatable"
    )(function)


def workers_option(function: F) -> F:
    """Add --sandbox, --no-sandbox and --require-sandbox to a command whose workers are fenced.

    The command is given `sandbox`: yes, no or require.
    """

    @wraps(function)
    def fenced(*args: Any, sandbox: bool | None, require_sandbox: bool, **options: Any) -> Any:
        if require_sandbox and sandbox is False:
            raise click.UsageError("--require-sandbox contradicts --no-sandbox")
        chosen = "require" if require_sandbox else "no" if sandbox is False else "yes"
        return function(*args, sandbox=chosen, **options)

    option = click.option("--sandbox/--no-sandbox", default=None, help=f"{SANDBOX}; the default")
    require = click.option("--require-sandbox", is_flag=True, help=REQUIRE)
    return cast("F", option(require(fenced)))


def scheduler_address(
    _ctx: click.Context, _param: click.Parameter, value: str | None
) -> str | None:
    """Return the address of a dask scheduler, which must be one."""
    if value is not None and not ADDRESS.fullmatch(value):
        raise click.UsageError(f"--scheduler {value!r}: expected HOST:PORT or tcp://HOST:PORT")
    return value


def sandbox_option(function: F) -> F:
    """Add --sandbox and --require-sandbox to a command that then runs behind the fence."""
    return sandbox_with(None)(function)


def sandbox_with(outside: Callable[[dict[str, Any]], Outside] | None) -> Callable[[F], F]:
    """Add them to a command of which some is done outside; `outside` as of `fence_command`."""

    def add(function: F) -> F:
        @wraps(function)
        def fenced(*args: Any, sandbox: bool, require_sandbox: bool, **options: Any) -> Any:
            if sandbox or require_sandbox:
                os.environ.update(ONE_THREAD)
                with importing():
                    from execmem.fencing import fence_command

                writes = _written(options)
                fence_command(options, whole=require_sandbox, writes=writes, outside=outside)
            return function(*args, **options)

        option = click.option("--sandbox", is_flag=True, help=SANDBOX)
        require = click.option("--require-sandbox", is_flag=True, help=f"--sandbox, and {REQUIRE}")
        return cast("F", option(require(fenced)))

    return add


def _written(options: Mapping[str, Any]) -> Iterator[str]:
    """Yield the files that a command line lets be written."""
    for param in click.get_current_context().command.params:
        name = options.get(param.name or "")
        if isinstance(param.type, WrittenFile) and name is not None:
            yield from (f"{name}{suffix}" for suffix in ("", *param.type.beside))


def boots(options: Mapping[str, Any]) -> bool:
    """Return whether a command line means a booted kernel."""
    booted = options.get("kernel") is not None and not options.get("modelled")
    if options.get("cpu") and not booted:
        raise click.UsageError("--cpu: nothing is booted here; it goes with --kernel")
    return booted


def module_options(function: F) -> F:
    """Add the options of every command that loads modules."""
    for option in reversed(
        (
            click.option("--root", metavar="DIR", help="folder that holds lib/modules/VERSION"),
            click.option("--arch", metavar="ARCH", help="architecture of a module given by name"),
            kernel_option,
            click.option(
                "--design",
                default="default",
                metavar="NAME",
                help="design of executable memory, or ./FILE.py",
            ),
            click.option(
                "--kaslr",
                type=click.IntRange(min=0),
                metavar="SEED",
                help="put kernel and modules at random places",
            ),
            click.option(
                "--seed",
                type=click.IntRange(min=0),
                default=0,
                metavar="N",
                show_default=True,
                help="what random numbers and clocks of the guest follow",
            ),
            click.option(
                "--heap-limit",
                type=click.IntRange(min=1, max=1 << 20),
                metavar="MIB",
                help="what a guest may allocate (512)",
            ),
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
            click.option("--kasan", is_flag=True, help="check accesses to kmalloc memory, leaks"),
            click.option("--with-plt", is_flag=True, help="add PLT and GOT sections"),
            click.option(
                "--force", is_flag=True, help="as modprobe --force: whatever it was built for"
            ),
            click.option(
                "--constructors", is_flag=True, help="run constructors (CONFIG_CONSTRUCTORS)"
            ),
            click.option(
                "--instructions",
                type=click.IntRange(min=0),
                metavar="N",
                help="limit of a load with all it runs, and of a call; 0: none",
            ),
            click.option(
                "--seconds",
                type=click.FloatRange(min=0),
                metavar="S",
                help="limit of a load with all it runs, and of a call (60); 0: none",
            ),
            json_option,
        )
    ):
        function = option(function)
    return function


def examples(*lines: str) -> Callable[[F], F]:
    """End a command's help with examples, line by line (the control character keeps them so)."""

    def add(function: F) -> F:
        listing = "\n".join(f"  {line}" for line in lines)
        text = cleandoc(function.__doc__ or "")  # as Python 3.13 has it from the start
        function.__doc__ = f"{text}\n\n\b\nExamples:\n{listing}"
        return function

    return add


class WrittenFile(click.ParamType):  # type: ignore[type-arg] # only newer ones have a parameter
    """A file to write.

    Parameters
    ----------
    beside
        What is put behind its name for those that are written with it.
    """

    name = "file"

    def __init__(self, *beside: str) -> None:
        self.beside = beside

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name."""
        del param, ctx
        return value


class OutputFile(WrittenFile):
    """A file to write, whose name says no other format than the one that is written."""

    def __init__(self, suffix: str, kinds: Sequence[str]) -> None:
        super().__init__()
        self.suffix, self.kinds = suffix, kinds

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name, or refuse it."""
        from mimetypes import MimeTypes

        kind, packed = MimeTypes(()).guess_type(Path(value).name)
        if packed is not None or not (kind is None or kind in self.kinds):
            self.fail(f"{value!r}: {self._hint(kind, param, ctx)}", param, ctx)
        return value

    def _hint(
        self, kind: str | None, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        option = param.opts[0] if param is not None else "it"
        hint = f"{option} writes {self.suffix[1:].upper()}: name the file *{self.suffix}"
        others = {_KINDS[kind]} if kind in _KINDS else set()
        given = {o for p in ctx.command.params for o in p.opts} if ctx is not None else set()
        for other in sorted((others & given) - {option}):
            hint += f", or use {other}"
        return hint


def result_type(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    """Return the C type of a result, which must be one."""
    from kernels.prototypes import parse

    try:
        found = parse(f"{value} result(void)")
    except ValueError as error:
        raise click.BadParameter(f"{value!r}: {error}") from None
    if found.indirect:
        raise click.BadParameter(f"{value!r}: a structure does not fit a register")
    return value


_KINDS = {"image/svg+xml": "--svg", "image/png": "--png", "text/html": "--html"}
SVG = OutputFile(".svg", ("image/svg+xml",))
PNG = OutputFile(".png", ("image/png",))
HTML = OutputFile(".html", ("text/html",))
DRCOV = OutputFile(".drcov", ("text/plain",))
LCOV = OutputFile(".info", ("text/plain",))
LINES = OutputFile(".jsonl", ("application/json", "text/plain"))


def unknown_option(default: str) -> Callable[[F], F]:
    """Add --unknown with the command's own default."""
    return click.option(
        "--unknown",
        type=click.Choice(["fault", "zero", "trace", "refuse"]),
        default=default,
        show_default=True,
        help="symbols nobody has: stop when called, return 0, say so each time, do not load",
    )


def run_options(function: F) -> F:
    """Add the options of every command that calls a function of a module: on what, and how."""
    for option in reversed(
        (
            module_options,
            modelled_option,
            console_option,
            cpu_option,
            unknown_option("fault"),
            click.option("--no-init", is_flag=True, help="call without running init first"),
            click.option(
                "--returns",
                default="u64",
                callback=result_type,
                metavar="TYPE",
                help="C type of the result",
            ),
        )
    ):
        function = option(function)
    return function


def record_option(function: F) -> F:
    """Add --record; `recording` acts on it."""
    return click.option(
        "--record",
        type=LINES,
        metavar="FILE",
        help="write a trace for execmem compare --workload FILE",
    )(function)


def recording(machine: ModelledMachine, options: dict[str, Any]) -> Callable[[], None]:
    """Record what the machine does from now on, if asked for; return what writes the trace."""
    if options["record"] is None:
        return lambda: None
    from execmem.record import Recorder

    recorder = Recorder(machine)
    return lambda: recorder.save(options["record"])


def _chosen(module: str, options: dict[str, Any]) -> tuple[Arch, str | None, KernelImage | None]:
    """Return what a command line decides: architecture, root, and the kernel where one is given."""
    with importing():
        from archs import arch as arch_by_name
        from archs import archs
        from loader.depends import find_any, open_tree, tree_beside
        from loader.elf import arch_of
        from loader.files import module_name, read_module
        from machine.computer import arch_for, given

    from execmem.own_kernel import own_kernel_of

    root, a_file = options["root"], is_path(module)
    # A command that runs nothing has no --modelled, and needs none.
    kernel, modelled = own_kernel_of(module, options), options.get("modelled", True)
    image = None if kernel is None else given(kernel, modelled=modelled)
    if not root and not a_file and kernel is not None and image is not None:
        beside = tree_beside(image.release, Path(kernel))
        if beside is not None and module_name(module) in beside.files:
            root = str(beside.folder)
    if options["arch"] is not None:
        try:
            chosen = arch_by_name(options["arch"])
        except ValueError as error:
            raise click.UsageError(str(error)) from None
        if not root and not a_file:
            root = sample_root(module, chosen.name)
    elif not root and not a_file:
        chosen = archs()[0] if image is None else image.arch
        root = sample_root(module, chosen.name)
        if image is None:
            notices.assume(f"{module}: the sample module, for {chosen.name} (--arch ARCH: another)")
    else:
        path = Path(module) if a_file else find_any(open_tree(root), module)
        chosen = arch_of(read_module(path), path.name)
    return arch_for(chosen, image), root, image


def loaded_to_read(module: str, options: dict[str, Any]) -> tuple[LoadedModule, str]:
    """Return a module of the command line in memory, its init not run; and which kernel is modelled.

    Where an architecture has no level run, without a machine: relocations need none.
    """
    arch, root, image = _chosen(module, options)
    if arch.run is not None:
        machine = _machine(arch, root, image, options)
        return load_one(machine, module, options, init=False).loaded, machine.models
    from archs import Checks
    from loader.alone import loader_for
    from loader.build import with_kernel
    from loader.depends import open_tree
    from loader.files import ModuleFile

    loader = loader_for(
        arch,
        design=options["design"],
        checks=Checks(options["checks"]),
        errata=tuple(options["errata"]),
        stub_sections=options["with_plt"],
        kaslr=options["kaslr"],
    )
    loader.gate.force, loader.gate.kernel = options["force"], image
    if image is not None:
        facts = with_kernel(None, image)
        loader.gate.facts = lambda: facts
    loader.gate.on_notice = notices.noticed
    if root is None or is_path(module):
        paths = [Path(module)]
    else:
        tree = open_tree(root)
        found = ((name, tree.path(name)) for name in tree.to_load(module))
        paths = [Path(name) if path is None else path for name, path in found]
    for path in paths:
        file = ModuleFile.read(path)
        loaded = loader.form(file.image(), file.name)
    return loaded, ""


def machine_for(module: str, options: dict[str, Any], **more: Any) -> ModelledMachine:
    """Return the machine for a module: its ELF header names the architecture.

    Parameters
    ----------
    more
        Further parameters of the machine.
    """
    return _machine(*_chosen(module, options), options, **more)


def _machine(
    arch: Arch, root: str | None, image: KernelImage | None, options: dict[str, Any], **more: Any
) -> ModelledMachine:
    """Return a machine as the options say."""
    with importing():
        from execmem.modelled import modelled_machine

    machine = modelled_machine(arch, root=root, kernel=image, options=options, **more)
    tree = machine.tree
    if root is not None and tree is not None and not tree.indexed:
        folder, hint = tree.folder, ""
        if folder != Path(root) and folder.parts[-3:-1] == (
            "lib",
            "modules",
        ):  # which may lie in usr
            hint = f" (depmod -b {folder.parents[2]} {folder.name} writes it)"
        notices.assume(f"{folder}: no modules.dep: asking the modules{hint}")
    for stub in options["stubs"]:
        name, _, value = stub.partition("=")
        if not name:
            raise click.UsageError(f"--stub {stub!r}: expected NAME or NAME=VALUE")
        machine.stub(name, _integer(value) if value else 0)
    return machine


def load_one(machine: ModelledMachine, name: str, options: dict[str, Any], *, init: bool) -> Module:
    """Load one module of the command line, unless a dependency brought it already."""
    from loader.files import module_name
    from samples import modules as samples

    already = machine.modules.get(module_name(name))
    if already is not None:
        return already
    what: str | Path = name
    if machine.tree is None and not is_path(name) and module_name(name) in samples.names():
        what = samples.path(machine.arch.name, module_name(name))
    return machine.load(what, init=init, **parameters(options["params"]))


def is_path(module: str) -> bool:
    """Return whether a module is given as a file, and not by name."""
    from loader.files import SUFFIXES, is_file

    return "/" in module or module.endswith(SUFFIXES) or is_file(module)


def sample_root(module: str, arch: str) -> str:
    """Return the samples' tree for a module that is one of them; NoModule where it is none."""
    from allocator.errors import did_you_mean
    from loader.errors import NoModule
    from loader.files import module_name
    from samples import modules as samples

    name = module_name(module)
    if name not in samples.names():
        hint = f"{did_you_mean(name, samples.names())}: give the folder that holds lib/modules (--root)"
        raise NoModule(module, (module,), (), hint, "the samples")
    return str(samples.root(arch))


def parameters(words: Sequence[str]) -> dict[str, object]:
    """Return module parameters by what --param says."""
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


def argument(text: str) -> Argument:
    """Return the value that a word of the command line stands for."""
    from allocator.files import read_regular, reason_of
    from machine.arguments import Out

    kind, colon, rest = text.partition(":")
    if not colon:
        return _integer(text)
    if kind == "str":
        return rest
    try:
        if kind == "hex":
            return bytes.fromhex(rest)
        if kind == "file":
            return read_regular(rest)
        if kind == "out":
            return Out(int(rest, 0))
    except (ValueError, OSError) as error:
        raise click.UsageError(f"{text!r}: {reason_of(error)}") from None
    return _integer(text)


def print_log(out: Any, module: Module) -> None:
    """Show what the kernel logged while a module was loaded."""
    for line in module.report.log:
        out.print(f"| {line.text}")


def shortened(output: str) -> str:
    """Return the hex digits of a buffer as far as a person reads them; --json has them all."""
    if len(output) <= 2 * SHOWN:
        return output
    return f"{output[: 2 * SHOWN]}... ({len(output) // 2} bytes; --json shows all)"
