# SPDX-License-Identifier: GPL-2.0-or-later
"""What is done with each module, and the row that says what became of it."""

from __future__ import annotations

import errno
import time
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import attrs

from allocator.errors import ExecmemError
from allocator.types import GIB, size_text
from execmem.sweep.tasks import Task, contents
from loader.errors import InitFailed, KernelRefused
from loader.files import ModuleFile, module_name

Row: TypeAlias = dict[str, Any]
SANDBOXES = ("no", "yes", "require")
OUTCOMES = ("ok", "init-ok", "init-error", "fault", "refused")


@attrs.frozen(kw_only=True)
class Options:
    """How each module is worked on.

    Parameters
    ----------
    init
        Run init, and its dependencies' init.
    unknown
        Policy for symbols that nobody has; as `Machine` takes it.
    seconds
        Wall-clock time of one call into the guest.
    design
        Design of executable memory.
    memory
        Bytes that working on a module may take, beside the emulated machine.
    grace
        Further seconds after which a worker that has not answered is given up.
    force
        Load modules whatever they were built for; as `Machine` takes it.
    kernel, modelled
        The kernel that they are for: each goes into it as it was when it had booted; or that
        the modelled one stands in for it, with its facts. Every worker reads it.
    cpu
        The CPU that it is booted on; "": the usual.
    sandbox
        One of `SANDBOXES`: whether workers are fenced (`execmem.worker.fence`), as far as their
        host can or else not at all.
    """

    init: bool = False
    unknown: str = "fault"
    seconds: float = 60.0
    design: str = "default"
    memory: int = GIB
    grace: float = 20.0
    force: bool = False
    kernel: str | None = None
    modelled: bool = False
    cpu: str = ""
    sandbox: str = attrs.field(default="yes", validator=attrs.validators.in_(SANDBOXES))


class Job(Protocol):
    """What a sweep does with each task."""

    def __call__(self, task: Task, options: Options, /) -> Row:
        """Return the task's row."""


def blank(task: Task, outcome: str = "refused", error: str | None = None) -> Row:
    """Return the row of a module of which nothing else is known."""
    return {
        "arch": None,
        "module": module_name(Path(task.file).name),
        "file": task.file,
        "outcome": outcome,
        "error": error,
        "relocations": 0,
        "relocation_types": {},
        "plt_slots": 0,
        "sizes": {},
        "missing": [],
        "registered": [],
        "notices": [],
        "models": None,
        "sandbox": None,
        "seconds": 0.0,
    }


def examine(task: Task, options: Options, /) -> Row:
    """Return what becomes of one module: a row with its outcome."""
    from emulator.faults import Fault

    start = time.monotonic()
    row = blank(task)
    try:
        if options.kernel is not None and not options.modelled:
            from execmem.sweep import booted

            booted.load(task, options.kernel, options.cpu, options.seconds, row)
        else:
            _load(task, options, row)
    except InitFailed as error:
        row |= {"outcome": "init-error", "error": str(error)}
    except KernelRefused as error:
        outcome = "init-error" if error.operation == "init" else "refused"
        row |= {"outcome": outcome, "error": str(error)}
    except Fault as error:
        row |= {"outcome": "fault", "error": str(error)}
    except ExecmemError as error:
        row |= {"outcome": "refused", "error": str(error)}
    except Exception as error:  # noqa: BLE001 -- one module's trouble is one row
        memory = isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
        what = f"more than {size_text(options.memory)} of memory" if memory else repr(error)
        row |= {"outcome": "fault", "error": f"{row['module']}: {what}"}
    row["seconds"] = round(time.monotonic() - start, 3)
    return row


def _load(task: Task, options: Options, row: Row) -> None:
    """Load a task's module into a machine of its own, and fill in the row."""
    from loader.elf import arch_of
    from machine.machine import ModelledMachine

    if task.module is not None:
        file = contents(task.module)
        image = ModuleFile(file.name, file.image())
        arch = arch_of(image.data, image.name)
        row["arch"] = arch.name
    if task.problem or task.module is None:
        raise ExecmemError(task.problem)
    machine = ModelledMachine(
        arch,
        kernel=options.kernel,
        modelled=options.modelled,
        design=options.design,
        unknown=options.unknown,
        force=options.force,
    )
    row["models"] = machine.models
    machine.seconds = options.seconds
    try:
        for needed in task.needed:
            dependency = contents(needed)
            if module_name(dependency.name) not in machine.modules:
                machine.load(dependency, init=options.init)
        module = machine.load(image, init=options.init)
    finally:
        row["missing"] = [name for name, calls in machine.missing.items() if calls]
        row["notices"] = [str(notice) for notice in machine.notices]
    row["registered"] = [
        {"kind": r.kind, "name": r.name} for r in machine.registry.find(owner=module.name)
    ]
    report = module.report
    row["module"] = module.name
    row["relocations"] = sum(report.relocations.values())
    row["relocation_types"] = dict(sorted(report.relocations.items()))
    row["plt_slots"] = report.plt_slots
    row["sizes"] = {kind.name: region.size for kind, region in report.regions.items()}
    row["outcome"] = "init-ok" if options.init else "ok"
    if report.init_fault is not None:
        raise report.init_fault
