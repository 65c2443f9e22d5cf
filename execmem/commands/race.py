# SPDX-License-Identifier: GPL-2.0-or-later
"""`execmem race`: interleavings of CPUs that patch text and CPUs that execute it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from execmem.commands.common import archs_option, examples, json_option, sandbox_option

STATIC_KEY = "bpf_stats_enabled_key"

if TYPE_CHECKING:
    from machine.racing.lifetimes import Lifetime
    from machine.racing.scenarios import Scenario


class _Code(click.ParamType[bytes]):
    """Bytes in hex."""

    name = "HEX"

    def convert(
        self, value: str | bytes, param: click.Parameter | None, ctx: click.Context | None
    ) -> bytes:
        """Return the bytes."""
        try:
            return value if isinstance(value, bytes) else bytes.fromhex(value)
        except ValueError:
            self.fail(f"{value!r} is no bytes in hex", param, ctx)


@click.command()
@click.argument("mistake", required=False, metavar="[MISTAKE]")
@archs_option
@click.option("--old", type=_Code(), help="instructions that stand at a site")
@click.option("--new", type=_Code(), help="what they are replaced by")
@click.option(
    "--offset",
    type=click.IntRange(min=0),
    default=0,
    metavar="BYTES",
    help="where in a page they stand (0)",
)
@click.option("--force", is_flag=True, help="store --new granule by granule, be it safe or not")
@click.option(
    "--kernel",
    metavar="PATH",
    help="what a kernel does that is booted: an image, a package or a tree",
)
@click.option(
    "--key",
    default=STATIC_KEY,
    metavar="NAME",
    help=f"the static key that --kernel turns on and off ({STATIC_KEY})",
)
@click.option(
    "--cpus",
    type=click.IntRange(2, 4),
    default=2,
    metavar="N",
    help="CPUs: one patches, the others execute (2)",
)
@click.option(
    "--visits",
    type=click.IntRange(1, 8),
    default=2,
    metavar="N",
    help="how often each of them comes by (2)",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=1_000_000,
    metavar="STATES",
    help="give up after so many states (1000000)",
)
@click.option(
    "--graph", is_flag=True, help="with --json: every state of one ARCH, to be walked through"
)
@sandbox_option
@json_option
@examples(
    "execmem race unsorted",
    "execmem race no-sync --arch riscv64 --json",
    "execmem race --arch arm64",
    "execmem race --arch x86_64 --old 0f1f440000 --new e9fb000000",
    "execmem race --kernel VMLINUZ",
)
def race(
    mistake: str | None,
    names: tuple[str, ...],
    old: bytes | None,
    new: bytes | None,
    offset: int,
    force: bool,
    kernel: str | None,
    key: str,
    cpus: int,
    visits: int,
    limit: int,
    graph: bool,
    as_json: bool,
) -> None:
    """Try every interleaving of CPUs while text is patched, and show the one that goes wrong.

    Without an argument: what the machine does itself when it patches (`docs/text-poke.md`), for
    every instruction that the kernel replaces and every cut by a page's end, and when memory is
    loaded, poked, sealed and unloaded on two CPUs at once; nothing may go wrong.
    MISTAKE plants one into it, which must be found: `unsorted` is that of Linux 6.16-rc1, `no-sync` leaves
    out a synchronisation, and so on. The steps that lead there are printed, with as few changes of
    CPU as possible. --old and --new: instructions of your own. --kernel: the kernel is booted
    and turns a static key on and off; what it does then is searched, at two of the key's sites.

    Exit code 1: something went wrong without a mistake, a mistake was not found, or --limit was
    reached before.
    """
    from archs import arch as arch_by_name
    from archs import archs as all_archs
    from execmem import raced

    own = old is not None or new is not None
    if own and (old is None or new is None or mistake is not None or len(names) != 1):
        raise click.UsageError("--old and --new go together, with one --arch and no MISTAKE")
    if kernel is not None and (own or mistake is not None or names):
        raise click.UsageError("--kernel tells what is patched, by one CPU, and what executes")
    if kernel is None and key != STATIC_KEY:
        raise click.UsageError("--key goes with --kernel")
    if not own and (force or offset):
        raise click.UsageError("--force and --offset go with --old and --new")
    try:
        chosen = [arch_by_name(name) for name in names]
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if graph:
        if len(chosen) != 1 or own or mistake is not None or not as_json:
            raise click.UsageError(
                "--graph goes with one --arch and --json, and tells all mistakes"
            )
        raced.show_graph(chosen[0])
        return
    bounds = raced.Bounds(executors=cpus - 1, visits=visits, limit=limit)
    scenarios: Iterable[Scenario | Lifetime]
    if kernel is not None:
        scenarios = raced.of_kernel(kernel, key, bounds)
    elif old is not None and new is not None:
        scenarios = raced.given(chosen[0], old, new, offset, force, bounds)
    else:
        able = chosen or [arch for arch in all_archs() if arch.live_patch is not None]
        scenarios = raced.scenarios(able, mistake, bounds)
    if not raced.show(
        scenarios, bounds, one_by_one=own or bool(kernel or mistake), as_json=as_json
    ):
        click.get_current_context().exit(1)
