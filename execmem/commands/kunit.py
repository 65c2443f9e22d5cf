# SPDX-License-Identifier: GPL-2.0-or-later
"""`execmem kunit`: run a kernel's own tests, and say in an exit code what they came to."""

from __future__ import annotations

from typing import Any

import click

from execmem.commands.common import console_option, examples, json_option, sandbox_option

SECONDS = 300.0  # as kunit.py gives a run where nobody says otherwise


@click.command()
@click.argument("modules", nargs=-1, metavar="[MODULE...]")
@click.option(
    "--kernel",
    metavar="PATH",
    help="the kernel: an image, a package, a tree, or where it was built",
)
@click.option("--root", metavar="DIR", help="folder that holds lib/modules/VERSION")
@click.option("--all", "whole_tree", is_flag=True, help="all modules that have tests")
@click.option("--builtin", is_flag=True, help="the tests that are built in, too")
@click.option("--filter-glob", default="", metavar="GLOB", help="kunit.filter_glob: SUITE[.TEST]")
@click.option(
    "--filter", "attributes", default="", metavar="FILTERS", help="kunit.filter: speed>slow"
)
@click.option("--filter-action", default="", metavar="ACTION", help="kunit.filter_action: skip")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0),
    default=SECONDS,
    show_default=True,
    metavar="S",
    help="limit of the boot, and of each module; 0: none",
)
@click.option("--memory", type=click.IntRange(min=64), metavar="MIB", help="of the machine")
@click.option("--command-line", default="", metavar="WORDS", help="more for the kernel")
@console_option
@sandbox_option
@json_option
@examples(
    "execmem kunit --kernel BUILD",
    "execmem kunit BUILD/lib/kunit/kunit-example-test.ko",
    'execmem kunit list-test bitfield_kunit --kernel BUILD --filter-glob "list*"',
    "execmem kunit --all --builtin --kernel BUILD --json",
)
def kunit(modules: tuple[str, ...], **options: Any) -> int:
    """Boot a kernel, run its KUnit tests, and print what they came to as KTAP.

    MODULE is a file or a name under --root, or in the folder where the kernel was built. Each
    is loaded into the machine as it was after its boot, so one that panics or hangs spoils no
    other. Without a MODULE the tests that are built in are run, as the kernel runs them in its
    boot.

    Ends with 0 where all passed or were skipped, with 1 where one failed, crashed or did not
    load, or there was none.
    """
    from execmem import kunit as runs

    return runs.kunit(modules, options)
