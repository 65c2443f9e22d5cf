# SPDX-License-Identifier: GPL-2.0-or-later
"""What happens to executable memory, as values: the steps that a workload is made of.

Modules come and go as a whole, with sizes instead of contents; every other consumer takes
and gives back single allocations under a key of its own. Each operation is also one line
of a trace (JSON, one object a line), so that what ran once can be run again elsewhere:

    {"trace": 1, "arch": "arm64", "workload": "server", "memory": 2147483648}
    {"op": "load", "module": "mii", "regions": {"TEXT": [4024, 64], ...}, ...}
    {"op": "alloc", "key": "bpf-7", "type": "TEXT", "size": 320, "align": 8, ...}
    {"op": "free", "key": "bpf-7"}
    {"op": "load", "module": "slow", ..., "settled": false}
    {"op": "settle", "module": "slow"}
    {"op": "patch", "module": "mii", "sites": 12}
    {"op": "unload", "module": "mii"}
    {"op": "quiet"}
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

import attrs

from allocator.errors import ExecmemError
from allocator.files import read_regular, reason_of, write_file
from allocator.types import GIB, LARGE_PAGE_SIZE, PAGE_SIZE, Consumer, MemType, size_text

TRACE_VERSION = 1
MAX_MEMORY = 64 * GIB  # bytes; the host keeps a byte per frame


@attrs.frozen
class Region:
    """Memory of one type that a module needs: bytes, and an alignment in bytes."""

    type: MemType
    size: int
    align: int = 1


@attrs.frozen(kw_only=True)
class Module:
    """A module reduced to numbers.

    Parameters
    ----------
    regions
        In the order in which they are allocated; empty types are left out.
    plt_slots
        PLT entries reserved in core and in init text, the worst case.
    calls
        Call sites that lead to the kernel, to other modules, and within the module.
    depends
        Modules whose text it calls.
    together
        Whether its kernel has core and init in an area each (before Linux 6.4); designs that
        keep types apart do so here too.
    """

    name: str
    regions: tuple[Region, ...]
    plt_slots: tuple[int, int] = (0, 0)
    calls: tuple[int, int, int] = (0, 0, 0)
    depends: tuple[str, ...] = ()
    together: bool = False


@attrs.frozen
class Load:
    """Load a module: allocate, write, finish, run init; settle it, unless that comes later."""

    module: Module
    settled: bool = True


@attrs.frozen
class Settle:
    """Seal a module's RO_AFTER_INIT and free its init memory; nothing where its load failed."""

    module: str


@attrs.frozen
class Unload:
    """Free what a module holds; nothing where its load had failed."""

    module: str


@attrs.frozen(kw_only=True)
class Alloc:
    """Allocate, write and finish memory of a consumer; `align` in bytes."""

    key: str
    size: int
    consumer: Consumer
    type: MemType = MemType.TEXT
    align: int = 1


@attrs.frozen
class Seal:
    """Seal the RO_AFTER_INIT memory that `Alloc` took under this key."""

    key: str


@attrs.frozen
class Free:
    """Free what `Alloc` took under this key; nothing where it had failed."""

    key: str


@attrs.frozen
class Pages:
    """Let the rest of the kernel take this many 4 KiB frames and keep them."""

    count: int


@attrs.frozen
class Patch:
    """Write at so many places of a module's text, spread evenly, in one batch of text_poke.

    So does ftrace when it switches a module's functions, and a live patch a few of them.
    """

    module: str
    sites: int


@attrs.frozen
class Quiet:
    """Let some time pass in which nobody asks for memory (`Execmem.quiet`)."""


Operation: TypeAlias = Load | Settle | Unload | Alloc | Seal | Free | Pages | Patch | Quiet

# Operations that name a module or a key, and nothing else.
_BY_MODULE: dict[str, type[Settle | Unload]] = {"settle": Settle, "unload": Unload}
_BY_KEY: dict[str, type[Seal | Free]] = {"seal": Seal, "free": Free}


@attrs.frozen(kw_only=True)
class Workload:
    """A named sequence of operations.

    Parameters
    ----------
    arch
        Name of the architecture whose sizes it holds.
    memory
        Bytes of physical memory that a run has; untouched memory costs nothing.
    """

    name: str
    arch: str
    operations: tuple[Operation, ...]
    memory: int = 2 * GIB


class TraceError(ExecmemError):
    """A trace that cannot be read: the file, the line and what is wrong with it."""


def to_json(operation: Operation) -> dict[str, Any]:
    """Return the line of a trace that stands for an operation."""
    if isinstance(operation, Load):
        module = operation.module
        more = {"together": True} if operation.module.together else {}
        return {
            "op": "load",
            "module": module.name,
            "regions": {r.type.name: [r.size, r.align] for r in module.regions},
            "plt_slots": list(module.plt_slots),
            "calls": list(module.calls),
            "depends": list(module.depends),
        } | (more if operation.settled else {**more, "settled": False})
    if isinstance(operation, Alloc):
        return {
            "op": "alloc",
            "key": operation.key,
            "type": operation.type.name,
            "size": operation.size,
            "align": operation.align,
            "consumer": operation.consumer.value,
        }
    if isinstance(operation, Pages):
        return {"op": "pages", "count": operation.count}
    return {"op": type(operation).__name__.lower()} | attrs.asdict(operation)


def from_json(line: Any) -> Operation:
    """Return the operation that a line of a trace stands for; ValueError when it is none."""
    try:
        kind = line["op"]
        if kind == "load":
            core, init = line.get("plt_slots", (0, 0))
            kernel, modules, own = line.get("calls", (0, 0, 0))
            regions = [
                Region(MemType[name], _natural(size, least=1), _power(align))
                for name, (size, align) in line["regions"].items()
            ]
            module = Module(
                name=_text(line["module"]),
                regions=tuple(regions),
                plt_slots=(_natural(core), _natural(init)),
                calls=(_natural(kernel), _natural(modules), _natural(own)),
                depends=tuple(_text(name) for name in line.get("depends", ())),
                together=_flag(line.get("together", False)),
            )
            return Load(module, settled=_flag(line.get("settled", True)))
        if kind in _BY_MODULE:
            return _BY_MODULE[kind](_text(line["module"]))
        if kind in _BY_KEY:
            return _BY_KEY[kind](_text(line["key"]))
        if kind == "alloc":
            return Alloc(
                key=_text(line["key"]),
                size=_natural(line["size"], least=1),
                consumer=Consumer(line["consumer"]),
                type=MemType[line.get("type", "TEXT")],
                align=_power(line.get("align", 1)),
            )
        if kind == "patch":
            return Patch(_text(line["module"]), _natural(line["sites"], least=1))
        if kind == "quiet":
            return Quiet()
        if kind == "pages":
            return Pages(_natural(line["count"], least=1))
    except KeyError as error:
        raise ValueError(f"{error.args[0]!r} is missing or unknown") from None
    except (TypeError, AttributeError):
        # Also for a line that is a list or a number: it has no "op".
        raise ValueError("a field has the wrong type") from None
    raise ValueError(f"no operation {kind!r}")


def write_trace(path: str | Path, workload: Workload) -> None:
    """Write a workload as a trace; ExecmemError when the file cannot be written."""
    head = {
        "trace": TRACE_VERSION,
        "arch": workload.arch,
        "workload": workload.name,
        "memory": workload.memory,
    }
    lines: Iterable[dict[str, Any]] = (head, *map(to_json, workload.operations))
    write_file(path, "".join(json.dumps(line) + "\n" for line in lines))


def read_trace(path: str | Path) -> Workload:
    """Return the workload that a trace recorded.

    Raises
    ------
    TraceError
        The file cannot be read, or a line is not what it should be.
    """
    name = Path(path).name
    try:
        lines = read_regular(path).decode("utf-8").splitlines()
    except (OSError, ValueError) as error:
        reason = "not a text file" if isinstance(error, UnicodeDecodeError) else reason_of(error)
        raise TraceError(f"{path}: {reason}") from None
    head: dict[str, Any] = {}
    operations: list[Operation] = []
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line)
            if number > 1:
                operations.append(from_json(value))
            else:
                head = _head(value)
        except (json.JSONDecodeError, RecursionError):
            raise TraceError(f"{name}, line {number}: not JSON") from None
        except ValueError as error:
            raise TraceError(f"{name}, line {number}: {error}") from None
    if not head:
        raise TraceError(f"{name}: an empty file is no trace")
    return Workload(
        name=head["workload"],
        arch=head["arch"],
        operations=tuple(operations),
        memory=head["memory"],
    )


def _head(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or value.get("trace") != TRACE_VERSION:
        raise ValueError(f'a trace begins with {{"trace": {TRACE_VERSION}, ...}}')
    for key in ("arch", "workload"):
        _text(value.get(key))
    memory = _natural(value.setdefault("memory", 2 * GIB), least=LARGE_PAGE_SIZE)
    if memory % PAGE_SIZE or memory > MAX_MEMORY:
        raise ValueError(f"{memory!r} is not whole pages of at most {size_text(MAX_MEMORY)}")
    return value


def _natural(value: Any, *, least: int = 0) -> int:
    # bool is an int to Python, but `true` is no number to the person who wrote the trace.
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 1 << 48:
        raise ValueError(f"{value!r} is not an integer from {least} to 2**48")
    return value


def _power(value: Any) -> int:
    number = _natural(value, least=1)
    if number & (number - 1):
        raise ValueError(f"{value!r} is not a power of two")
    return number


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither true nor false")  # noqa: TRY004 -- as above
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a string")  # noqa: TRY004 -- bad data, not a bad call
    return value
