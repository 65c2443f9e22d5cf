# SPDX-License-Identifier: GPL-2.0-or-later
"""A computer at rest, as plain data that may come from anybody.

What the emulator saves of a CPU holds addresses of the host, and sizes that it believes. So
a file of someone else's has registers by their names, and they are set one by one, in a computer
that has booted the same kernel; of everything else it must have the form that is there already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from emulator.boards.board import Board
from emulator.hardware.part import Device

_MOST = 1 << 64
_WIDE = 1 << 128  # of a vector register
_FEW = 64  # interrupts, or initialisation words of a chip, that may be there at a time
_LATEST = 1 << 62  # nanoseconds: some hundred years


def rest_of(board: Board) -> dict[str, Any]:
    """Return all of a computer but its memory and its console: what `become` takes."""
    state = board.save()
    return {
        "cpu": dict(board.kept()),
        "registers": dict(state.registers),
        "clock": list(state.clock),
        "devices": [_plain(values) for values in state.devices],
        "pending": list(state.pending),
    }


def become(board: Board, rest: object) -> None:
    """Let a computer that has booted the same kernel rest as another did.

    Raises
    ------
    ValueError
        It is not what `rest_of` returns for such a computer; nothing has changed.
    """
    form = rest_of(board)
    found = _fields(rest, form, "state")
    cpu = _numbers(found["cpu"], form["cpu"], "cpu", _WIDE)
    registers = _numbers(found["registers"], form["registers"], "registers", _MOST)
    now, seed = _list(found["clock"], "clock", 2)
    _number(now, "clock", _LATEST)
    _number(seed, "clock", _MOST)
    given = _list(found["devices"], "devices", len(board.devices))
    devices = [_device(*pair) for pair in zip(board.devices, given, strict=True)]
    pending = [_number(each, "pending", _MOST) for each in _list(found["pending"], "pending")]
    board.keep(cpu)
    board.set_registers(registers)
    board.clock.now, board.clock.seed = now, seed
    for device, values in zip(board.devices, devices, strict=True):
        device.set_state(values)
    board.wires.pending[:] = pending


def _plain(value: object) -> Any:
    """Return what a part of the computer remembers as JSON has it."""
    if attrs.has(type(value)):
        kind: Any = type(value)
        value = {each.name: getattr(value, each.name) for each in attrs.fields(kind)}
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(each) for each in value]
    return value


# What may be there; ValueError ------------------------------------------------------------------


def _device(device: Device, values: object) -> dict[str, Any]:
    """Return what a part shall remember, if that has the types of its fields."""
    title = type(device).__name__
    found = _fields(values, device.state(), title)
    kinds = {field.name: str(field.type) for field in attrs.fields(type(device))}
    return {
        name: _value(value, getattr(device, name), kinds[name], f"{title}.{name}")
        for name, value in found.items()
    }


def _value(value: object, old: object, kind: str, where: str) -> object:
    if kind == "bool":
        if not isinstance(value, bool):
            raise ValueError(f"{where}: not true or false")
        return value
    if kind == "int | None" and value is None:
        return None
    if kind in ("int", "int | None"):
        return _number(value, where, _MOST)
    if kind == "tuple[int, ...]":
        return tuple(_number(each, where, _MOST) for each in _list(value, where))
    if not isinstance(old, tuple):
        raise ValueError(f"{where}: {kind} is not kept in files")  # noqa: TRY004 -- as all else
    found = []
    for each, one in zip(_list(value, where, len(old)), old, strict=True):
        fields = attrs.fields(type(one))
        given = _fields(each, {field.name: None for field in fields}, where)
        found.append(
            {
                field.name: _value(
                    given[field.name], None, str(field.type), f"{where}.{field.name}"
                )
                for field in fields
            }
        )
    return tuple(found)


def _fields(value: object, form: Mapping[str, object], where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or value.keys() != form.keys():
        raise ValueError(f"{where}: not the fields that there are")
    return value


def _list(value: object, where: str, size: int | None = None) -> list[Any]:
    if not isinstance(value, list) or len(value) > _FEW or len(value) != (size or len(value)):
        raise ValueError(f"{where}: no list of so many")
    return value


def _number(value: object, where: str, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < most:
        raise ValueError(f"{where}: no number in range")
    return value


def _numbers(value: object, form: Mapping[str, int], where: str, most: int) -> dict[str, int]:
    found = _fields(value, form, where)
    return {name: _number(each, f"{where}.{name}", most) for name, each in found.items()}
