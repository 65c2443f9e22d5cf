# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine of the modelled kernel that a command's options ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from execmem import notices
from kernels.modelled.heap import LIMIT as HEAP_LIMIT
from machine.machine import ModelledMachine


def modelled_machine(
    arch: Any, *, root: Any, kernel: Any, options: Mapping[str, Any], **more: Any
) -> ModelledMachine:
    """Return a machine whose kernel is Python; what it notices is told as of any command.

    Parameters
    ----------
    arch, root, kernel
        As of `Machine`.
    options
        Those of a command that loads modules.
    more
        Further parameters of the machine.
    """
    limit = options["heap_limit"]
    machine = ModelledMachine(
        arch,
        kernel=kernel,
        modelled=True,
        design=options["design"],
        text_poke=False if options["no_text_poke"] else None,
        kaslr=options["kaslr"],
        root=root,
        unknown=options["unknown"],
        checks=options["checks"],
        errata=options["errata"],
        stub_sections=options["with_plt"],
        kasan=options["kasan"],
        seed=options["seed"],
        heap_limit=HEAP_LIMIT if limit is None else limit << 20,
        force=options["force"],
        constructors=options["constructors"],
        **more,
    )
    notices.listen(machine)
    for each in ("instructions", "seconds"):
        if options[each] is not None:
            setattr(machine, each, options[each] or None)
    return machine
