# SPDX-License-Identifier: GPL-2.0-or-later
"""Booted kernels on the command line: opening one with its progress, and what is shown of modules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from allocator.types import Hex, size_text
from emulator.faults import Fault
from execmem import findings, notices, report
from execmem.own_kernel import own_kernel_of
from execmem.ptdump import CHANGES, chosen
from execmem.streams import say
from execmem.terminal import Meter, console
from kernels.algorithms import compute
from kernels.booted.reports import Report
from kernels.registry import Record
from loader.elf import arch_of
from loader.files import SUFFIXES, is_file, module_name, read_module
from loader.kernel.dwarf import PACKAGE
from machine.arguments import Argument, Out
from machine.booted.functions import VMLINUX
from machine.booted.machine import BootedMachine
from machine.booted.module import BootedModule

# Options that shape the modelled kernel, or a loader of ours -> what they are when not given.
_OWN = {
    "design": "default",
    "no_text_poke": False,
    "seed": 0,
    "heap_limit": None,
    "checks": "hardware",
    "errata": (),
    "kasan": False,
    "with_plt": False,
    "force": False,
    "constructors": False,
    "record": None,
    "svg": None,
    "png": None,
}
_NO_TYPES = (
    "prototypes are not known, and modules' regions by their sections only (CONFIG_DEBUG_INFO_BTF, or an ELF vmlinux"
    f" with DWARF and {PACKAGE})"
)
_SPELLED = {"errata": "--erratum"}


def open_machine(module: str, options: Mapping[str, Any], **more: Any) -> BootedMachine:
    """Return a machine whose kernel is booted, with its progress on a terminal.

    Parameters
    ----------
    module
        A module of the command line, which must be for the kernel's architecture.
    options
        The command's.
    more
        Further parameters of the machine.
    """
    for name, default in _OWN.items():
        if options.get(name, default) != default:
            spelled = _SPELLED.get(name, f"--{name.replace('_', '-')}")
            raise click.UsageError(
                f"{spelled}: a booted kernel decides that itself (--modelled: ours does)"
            )
    kernel, arch = own_kernel_of(module, options), options.get("arch")
    assert kernel is not None  # else nothing is booted
    if arch is None and (is_file(module) or module.endswith(SUFFIXES)):
        arch = arch_of(read_module(module), Path(module).name).name
    with Meter() as meter:
        title, lines, whole = "", 0, bytearray()

        def on_boot(release: str) -> None:
            nonlocal title
            title = f"booting Linux {release}"
            meter.show(title, 0)

        def on_console(data: bytes) -> None:
            nonlocal lines
            lines += data.count(b"\n")
            if options.get("console"):
                meter.hide()
                whole.extend(data)
                *told, rest = whole.decode("utf-8", "backslashreplace").split("\n")
                whole[:] = rest.encode("utf-8", "backslashreplace")
                for line in told:
                    say(line.rstrip("\r"), err=True)
            else:
                meter.show(title, lines)

        machine = BootedMachine(
            arch,
            kernel=kernel,
            root=options.get("root"),
            cpu=options.get("cpu", ""),
            kaslr=options.get("kaslr"),
            on_boot=on_boot,
            on_console=on_console,
            **more,
        )
    if machine.kernel.standing.types is None:
        notices.assume(f"Linux {machine.kernel.release}: no types: {_NO_TYPES}")
    for limit in ("instructions", "seconds"):
        if options.get(limit) is not None:
            setattr(machine, limit, options[limit] or None)
    for stub in options.get("stubs", ()):
        name, _, value = stub.partition("=")
        try:
            number = int(value or "0", 0)
        except ValueError:
            raise click.UsageError(f"--stub {stub!r}: expected NAME or NAME=VALUE") from None
        machine.stub(name, number)
    return machine


def module_json(machine: BootedMachine, module: BootedModule) -> dict[str, Any]:
    """Return the machine-readable form of a loaded module."""
    loaded = module.report
    return {
        "name": module.name,
        "arch": loaded.arch,
        "kernel": loaded.kernel,
        "state": module.state.value,
        "regions": [
            {
                "type": kind.name,
                "address": Hex(region.address),
                "size": region.size,
                "freed": kind not in module.regions,
            }
            for kind, region in loaded.regions.items()
        ],
        "sections": [
            {
                "index": index,
                "name": section.name,
                "type": section.type.name if section.type else "PERCPU",
                "address": Hex(section.address),
                "size": section.size,
            }
            for index, section in sorted(loaded.sections.items())
        ],
        "relocations": dict(loaded.relocations),
        "depends": list(module.depends),
        "registered": registered_json(loaded.registered),
        "init_result": Hex(loaded.init_result),
        "log": [line.text for line in loaded.log],
        "reports": [report_json(each) for each in loaded.reports],
        "taints": module.taints,
        "models": machine.models,
    }


def registered_json(records: tuple[Record, ...] | None) -> list[dict[str, Any]] | None:
    """Return what a module registered as JSON wants it; None where nobody looked.

    The kernel's lists tell no addresses, so none of structures and callbacks.
    """
    if records is None:
        return None
    return [{"kind": r.kind, "name": r.name, "owner": r.owner, **r.fields} for r in records]


def print_registered(out: Console, module: BootedModule) -> None:
    """Show what a module registered: kind, name, what else is known."""
    rows = [
        (
            record.kind,
            record.name,
            " ".join(f"{n}={v}" for n, v in record.fields.items() if v != ""),
        )
        for record in module.report.registered or ()
    ]
    if rows:
        out.print(report.table(("registered", "name", "what the kernel lists of it"), rows))


def tell(found: Iterable[Report]) -> None:
    """Say what a kernel found wrong, on stderr: it goes on, so a log is easily overlooked."""
    for each in found:
        notices.assume(f"the kernel reports {each}")


def load(modules: tuple[str, ...], options: Mapping[str, Any], params: dict[str, object]) -> None:
    """Load modules into a booted kernel, and show where it put them."""
    machine = open_machine(modules[0], options)
    machine.note_registrations()
    wanted = options.get("ptdump")
    before = list(machine.page_tables().lines()) if wanted == CHANGES else None
    loaded = [load_one(machine, name, params) for name in modules]
    tables = [] if wanted is None else list(chosen(machine.page_tables().lines(), before))
    if options["as_json"]:
        everything = machine.modules.values()
        document: dict[str, Any] = {"modules": [module_json(machine, m) for m in everything]}
        report.print_json(document | ({} if wanted is None else {"page_tables": tables}))
        return
    out = console()
    for number, module in enumerate(loaded):
        if number:
            out.print()
        out.print(f"{module.name} ({module.report.arch}, {machine.models})")
        rows = [
            (
                kind.name,
                f"{region.address:#x}",
                size_text(region.size),
                "" if kind in module.regions else "freed",
            )
            for kind, region in module.report.regions.items()
        ]
        out.print(report.table(("region", "address", "size", ""), rows, right="size"))
        print_registered(out, module)
        for line in module.report.log:
            out.print(f"| {line.text}")
        tell(module.report.reports)
    for text in tables:
        say(text)


def run(
    module: str,
    function: str | None,
    values: list[Argument],
    *,
    returns: str,
    options: Mapping[str, Any],
    params: dict[str, object],
) -> None:
    """Load a module into a booted kernel, and call one of its functions."""
    machine = open_machine(module, options)
    checks = findings.begin(machine, options["sanitize"])
    if function is None:
        machine.note_registrations()
    before = len(machine.log)
    loaded = load_one(machine, module, params)
    result = None
    fault: Fault | None = None
    if function is not None:
        try:
            result = loaded.call(function, *values, returns=returns)
        except Fault as error:
            fault = error
    said = machine.log[before:]
    reported = machine.kernel.reports_since(before)
    if fault is None:
        tell(reported)
    outputs = [bytes(value).hex() for value in values if isinstance(value, Out)]
    if fault is not None:
        for line in said:
            say(line.text, err=True)
        raise fault
    document = module_json(machine, loaded) if options["as_json"] else {}
    if checks is not None:
        loaded.unload()
    if options["as_json"]:
        report.print_json(
            document
            | {
                "function": function,
                "result": None if result is None else Hex(result),
                "outputs": outputs,
                "tainted": machine.tainted,
                "log": [line.text for line in said],
                "reports": [report_json(each) for each in reported],
                "findings": findings.as_json(checks),
                "notices": notices.texts(),
            }
        )
        return
    for line in said:
        say(line.text)
    if function is None:
        say(f"{loaded.name}: {machine.models} has loaded it")
        print_registered(console(), loaded)
    else:
        say(f"{function} = {result:#x} ({result})")
    for output in outputs:
        say(f"out: {output}")
    findings.show(checks)


def crypto(
    algorithm: str,
    data: bytes,
    module: str | None,
    *,
    options: Mapping[str, Any],
    params: dict[str, object],
    **how: Any,
) -> None:
    """Let a booted kernel's algorithm compute, and show what it gives.

    `how` is what else `kernels.algorithms.compute` takes.
    """
    machine = open_machine(module or "", options)
    if module is not None:
        load_one(machine, module, params)
    before = len(machine.log)
    with machine.crypto(algorithm) as found:
        result = compute(found, data, **how)
        record = found.record
    if options["as_json"]:
        report.print_json(
            {
                "algorithm": record.name,
                "driver": record.fields.get("cra_driver_name", ""),
                "kind": record.kind,
                "module": record.owner or VMLINUX,
                "selftest": record.fields.get("selftest", ""),
                "arch": machine.arch.name,
                "models": machine.models,
                "result": result.hex(),
                "log": [line.text for line in machine.log[before:]],
                "notices": notices.texts(),
            }
        )
        return
    say(result.hex())


def load_one(machine: BootedMachine, module: str, params: dict[str, object]) -> BootedModule:
    """Return a module that is loaded, with those that it depends on; once, if it is there."""
    already = machine.modules.get(module_name(module))
    return already if already is not None else machine.load(module, **params)  # type: ignore[arg-type] # `init` is none of them


def report_json(found: Report) -> dict[str, Any]:
    """Return what a kernel found wrong, as JSON wants it."""
    return {
        "name": found.name,
        "checker": found.checker,
        "text": found.text,
        "where": found.where,
        "address": None if found.address is None else Hex(found.address),
        "backtrace": list(found.backtrace),
        "sources": list(found.sources),
    }
