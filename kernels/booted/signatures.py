# SPDX-License-Identifier: GPL-2.0-or-later
"""What functions of a kernel are called with, by its own types."""

from __future__ import annotations

from kernels.prototypes import CType, Param, Prototype
from loader.btf import BadBtf, Btf
from loader.btf_records import Kind, Type

_NUMBERS = (Kind.INT, Kind.ENUM, Kind.ENUM64)
_ADDRESSES = (Kind.PTR, Kind.ARRAY, Kind.FUNC_PROTO)
_REGISTER = 8  # bytes
_INDIRECT = 16  # bytes from which a structure is returned in memory, in all three psABIs


def prototype_of(types: Btf, name: str) -> Prototype | None:
    """Return the prototype of a function of whom the types are; None where none can be used.

    They have none where several functions of the name take different things, or where a
    structure of more than a register, or a floating-point number, is passed by value; nor where
    they say `void name(void)`, as they also do of what is written in assembly (6.1: strlen).
    """
    found: Prototype | None = None
    try:
        for function in types.all(name, Kind.FUNC):
            if function.number not in types.numbers:
                break  # of the kernel, and these are a module's
            declared = types.type(function.target)
            if declared.kind is not Kind.FUNC_PROTO:
                return None
            made = _prototype(types, name, declared)
            if made is None or (found is not None and _slots(made) != _slots(found)):
                return None
            found = found or made
    except BadBtf:
        return None
    return found if found is not None and (found.params or found.result.size) else None


def _prototype(types: Btf, name: str, declared: Type) -> Prototype | None:
    params = []
    for parameter in declared.parameters:
        kind = _kind(types, parameter.type)
        if kind is None or not kind.size:
            return None
        params.append(Param(parameter.name, kind))
    result = _kind(types, declared.target)
    indirect = False
    if result is None:
        indirect = types.size_of(declared.target) > _INDIRECT
        if not indirect:
            return None
        result = CType(size=8, signed=False, pointer=True, text=types.c_type(declared.target))
    return Prototype(
        name=name,
        result=result,
        params=tuple(params),
        variadic=declared.variadic,
        indirect=indirect,
    )


def _kind(types: Btf, number: int) -> CType | None:
    """Return how a value of a type is passed in a register; None where it is not."""
    inner, text = types.resolved(number), types.c_type(number)
    if inner.kind is Kind.VOID:
        return CType(size=0, signed=False, pointer=False, text="void")
    if inner.kind in _ADDRESSES:
        return CType(size=8, signed=False, pointer=True, text=text)
    if inner.kind in _NUMBERS and inner.size <= _REGISTER:
        signed = inner.signed if inner.kind is Kind.INT else inner.flag
        return CType(
            size=inner.size, signed=signed, pointer=False, text=text, boolean=inner.boolean
        )
    if inner.kind in (Kind.STRUCT, Kind.UNION) and 0 < inner.size <= _REGISTER:
        return CType(size=inner.size, signed=False, pointer=False, text=text)
    return None


def _slots(prototype: Prototype) -> tuple[object, ...]:
    """Return what of a prototype a call depends on."""
    kinds = [prototype.result, *(param.type for param in prototype.params)]
    return (
        prototype.variadic,
        prototype.indirect,
        *((kind.size, kind.signed, kind.boolean) for kind in kinds),
    )
