# SPDX-License-Identifier: GPL-2.0-or-later
"""`execmem reach`: how far instructions get, measured."""

from __future__ import annotations

import click

from execmem.commands.common import archs_option, examples, json_option


@click.command()
@archs_option
@json_option
@examples(
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
    from execmem.terminal import console
    from machine.reach import measure

    try:
        chosen = [arch_by_name(name) for name in names] or all_archs()
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    measured = [(arch, found) for arch in chosen for found in measure(arch)]
    if as_json:
        report.print_json({"rows": [report.reach_json(arch, found) for arch, found in measured]})
        return
    report.print_reach(console(), measured)
