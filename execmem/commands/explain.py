# SPDX-License-Identifier: GPL-2.0-or-later
"""`execmem explain`: a module as a page to explore."""

from __future__ import annotations

from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import click

from allocator.types import size_text
from execmem.commands.common import (
    HTML,
    boots,
    console_option,
    examples,
    load_one,
    machine_for,
    modelled_option,
    module_options,
    sandbox_option,
    unknown_option,
)
from execmem.streams import say

if TYPE_CHECKING:
    from execmem.explaining.explain import View

VIEWS = ("designs", "poke", "course", "kernel")  # those that ask, and get answers beforehand


@click.command()
@click.argument("modules", nargs=-1, required=True, metavar="MODULE...")
@click.option(
    "--html",
    "target",
    type=HTML,
    metavar="FILE",
    help="the page to write; or --json, what it holds",
)
@click.option(
    "--also", multiple=True, metavar="DESIGN", help="show it in this design too; repeatable"
)
@click.option(
    "--with",
    "beside",
    multiple=True,
    type=click.Choice([*VIEWS, "all"]),
    metavar="VIEW",
    help=f"a view more, with --html: {', '.join(VIEWS)} or all; repeatable",
)
@click.option("--no-init", is_flag=True, help="load without running init")
@module_options
@modelled_option
@console_option
@sandbox_option
@unknown_option("fault")
@examples(
    "execmem explain mathuser --html mathuser.html",
    "execmem explain mathuser --arch x86_64 --with poke --html poke.html",
    "execmem explain ext4 --root TREE --also vmalloc --html ext4.html",
    "execmem explain ext4 --kernel VMLINUZ --root TREE --html ext4.html",
)
def explain(
    modules: tuple[str, ...],
    target: str | None,
    also: tuple[str, ...],
    beside: tuple[str, ...],
    no_init: bool,
    **options: Any,
) -> None:
    """Write a page that shows where modules lie and what holds them there.

    The page stands alone: move a module, watch relocations go out of reach, look at each
    one's numbers, step through the load. Without --root, the name of a sample module shows
    it on every architecture. A relocation case (see execmem check) shows each of its links. With --kernel the kernel boots, and modules lie where it puts them.
    Views that ask for what was not loaded say what would make it available, or have the answers in
    the page: films of designs, interleavings of poke, the course, page tables of the kernel.
    """
    if target is None and not options["as_json"]:
        raise click.UsageError("name the page: --html FILE; or --json, for what it holds")
    booted = boots(options)
    if beside and target is None:
        raise click.UsageError("--with: what a page answers; name it: --html FILE")
    if "kernel" in beside and not booted:
        raise click.UsageError("--with kernel: name one that boots: --kernel PATH")
    from allocator.files import write_file
    from execmem import report
    from execmem.check.reading import is_case_name
    from execmem.comparing.compare import progress_bar
    from execmem.explaining import explain as page

    views = _booted(modules, options, also=also, no_init=no_init) if booted else []
    cases = [name for name in modules if is_case_name(PurePath(name))]
    for name in cases:
        views += _case(name, options, also=also)
    for name in () if booted else (name for name in modules if name not in cases):
        for where in _places(name, options):
            for design in dict.fromkeys((options["design"], *also)):
                chosen = {**options, **where, "design": design}
                machine = machine_for(name, chosen)
                bring = partial(load_one, machine, name, chosen, init=not no_init)
                views.append(page.load(machine, bring))
    with progress_bar() as progress:
        document = page.document(views, progress)
        if beside:
            from execmem.explaining import baked

            archs = list(dict.fromkeys(view.loaded.arch.name for view in views))
            every = [view for view in VIEWS if view != "kernel" or booted]
            wanted = every if "all" in beside else list(beside)
            kernel = options["kernel"] if booted else None
            document |= baked.answers(wanted, archs, kernel=kernel, progress=progress)
    if target is None:
        report.print_json(document)
        return
    text = page.html(document)
    write_file(target, text)
    if options["as_json"]:
        report.print_json({"file": target, "views": page.summary(document)})
        return
    loads = f"{len(views)} loads" if len(views) > 1 else "one load"
    say(f"{target}: {loads}, {size_text(len(text.encode()))}")


def _case(name: str, options: dict[str, Any], *, also: tuple[str, ...]) -> list[View]:
    """Return the links of a relocation case (`execmem check`)."""
    from archs import arch as arch_by_name
    from execmem.check.running import Wanted
    from execmem.explaining import explain_case

    if also or options["kernel"] is not None:
        raise click.UsageError(f"{name} is a case: it says itself where everything lies")
    try:
        archs = () if options["arch"] is None else (arch_by_name(options["arch"]).name,)
        return list(explain_case.views(Path(name), Wanted(archs=archs)))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    except OSError as error:
        raise click.UsageError(f"{name}: {error.strerror}") from None


def _booted(
    modules: tuple[str, ...], options: dict[str, Any], *, also: tuple[str, ...], no_init: bool
) -> list[View]:
    """Return what a booted kernel makes of modules."""
    from execmem.booted import open_machine
    from execmem.diffing.live import Recorder
    from execmem.explaining import explain_booted

    for option, given in (("--also", also), ("--no-init", no_init), ("--param", options["params"])):
        if given:
            raise click.UsageError(
                f"{option}: a booted kernel places what it loads, and runs its init (--modelled: ours)"
            )
    recorder = Recorder(open_machine(modules[0], options))
    return [explain_booted.load(recorder, name) for name in modules]


def _places(name: str, options: dict[str, Any]) -> list[dict[str, str]]:
    """Return where to look: a sample module's name stands for every architecture's."""
    from archs import archs
    from samples import modules as samples

    if options["root"] or Path(name).is_file() or name not in samples.names():
        return [{}]
    if options["arch"] is None and options["kernel"] is not None:
        return [{}]
    names = [options["arch"]] if options["arch"] else [arch.name for arch in archs()]
    return [{"arch": arch, "root": str(samples.root(arch))} for arch in names]
