# SPDX-License-Identifier: GPL-2.0-or-later
"""Module parameters: the kernel's types of them (kernel/params.c), and a module's table.

A parameter is a `struct kernel_param` in the section `__param`; it names operations, and
the kernel calls `set` with the text given. The common operations are the kernel's own and
stand here, as real variables that hold real function pointers, because modules also build
parameter types of their own upon them.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

import attrs

from allocator.types import PAGE_SIZE, Memory
from kernels.modelled.api.common import INT_MAX, signed_int, state, text
from kernels.modelled.api.kstrtox import kstrto, kstrtobool
from kernels.modelled.api.memory import duplicate, kfree
from kernels.modelled.kernel import Kernel
from kernels.modelled.structs import HasLayouts, made, offset_of, size_of, view
from kernels.modelled.structs import struct as declare
from kernels.modelled.table import data, function

# include/linux/moduleparam.h
declare("kernel_param", "name ops perm level flags arg")
declare("kernel_param_ops", "flags set get free")
declare("kparam_array", "max elemsize num ops elem")
declare("kparam_string", "maxlen string")
KERNEL_PARAM = size_of("kernel_param")
NAME, ARG = (offset_of("kernel_param", member) for member in ("name", "arg"))
ROOM, STRING = (offset_of("kparam_string", member) for member in ("maxlen", "string"))
SET, GET, FREE = (offset_of("kernel_param_ops", member) for member in ("set", "get", "free"))
FL_NOARG = 1
CHARP_MAX = 1024


@attrs.frozen(kw_only=True)
class ModuleParameter:
    """One entry of a module's parameter table.

    Parameters
    ----------
    name
        As `insmod` takes it.
    address
        Of the struct kernel_param, which its operations are called with.
    ops
        Address of its struct kernel_param_ops.
    arg
        Address of the variable, or of what describes it.
    perm
        Mode of its file in sysfs; 0: none.
    level
        Init level of built-in code; -1 in modules.
    flags
        KERNEL_PARAM_FL_UNSAFE (1) and KERNEL_PARAM_FL_HWPARAM (2).
    """

    name: str
    address: int
    ops: int
    arg: int
    perm: int
    level: int
    flags: int


def parameters(k: HasLayouts, memory: Memory, start: int, size: int) -> tuple[ModuleParameter, ...]:
    """Return the entries of the `__param` table of `size` bytes at `start`.

    AccessError where the table points outside readable memory.
    """
    found = []
    step = KERNEL_PARAM(k)
    table = memory.read(start, size - size % step)
    members = {
        title: k.layouts.member("kernel_param", title)
        for title in ("name", "ops", "arg", "perm", "level", "flags")
    }
    for at in range(0, len(table), step):
        row = {title: member.value(table, at) for title, member in members.items()}
        found.append(
            ModuleParameter(
                name=_name(memory, row["name"]),
                address=start + at,
                ops=row["ops"],
                arg=row["arg"],
                perm=row["perm"],
                level=row["level"],
                flags=row["flags"],
            )
        )
    return tuple(found)


def _name(memory: Memory, address: int) -> str:
    """Return the string at `address`, touching no page beyond its end."""
    parts: list[bytes] = []
    while True:
        piece, nul, _ = memory.read(address, PAGE_SIZE - address % PAGE_SIZE).partition(b"\0")
        parts.append(piece)
        if nul:
            return b"".join(parts).decode("utf-8", "replace")
        address += len(piece)


@attrs.define
class _Charps:
    """Strings that parameters own (kmalloced_params)."""

    owned: set[int] = attrs.field(factory=set)


def _arg(k: Kernel, kp: int) -> int:
    return k.word(kp + ARG(k))


def _put(k: Kernel, buffer: int, shown: bytes) -> int:
    """Store what a parameter's file in sysfs shows; return its length."""
    shown = shown[: k.memory.page_size - 1]
    k.memory.write(buffer, shown + b"\0")
    return len(shown)


def _ops_bytes(k: Kernel, set_: str, get: str, free: str, flags: int = 0) -> bytes:
    """Return a kernel_param_ops of three functions."""
    members = {"set": k.address(set_), "get": k.address(get)}
    members |= {"free": k.address(free)} if free else {}
    return made(k, "kernel_param_ops", {"flags": flags, **members})


def _ops(name: str, set_: str, get: str, *, free: str = "", flags: int = 0) -> None:
    """Declare a kernel_param_ops variable of three functions."""
    data(
        f"param_ops_{name}",
        size_of("kernel_param_ops"),
        fill=lambda k: _ops_bytes(k, set_, get, free, flags),
    )


# Numbers -----------------------------------------------------------------------------------


def _set_number(bits: int, *, signed: bool) -> Callable[[Kernel, int, int], int]:
    convert = kstrto(bits, signed=signed)

    def handler(k: Kernel, value: int, kp: int) -> int:
        return convert(k, value, 0, _arg(k, kp))

    return handler


def _get_number(bits: int, show: Callable[[int], str]) -> Callable[[Kernel, int, int], int]:
    def handler(k: Kernel, buffer: int, kp: int) -> int:
        return _put(k, buffer, f"{show(k.word(_arg(k, kp), bits // 8))}\n".encode())

    return handler


def _signed(bits: int) -> Callable[[int], str]:
    return lambda value: str((value ^ 1 << bits - 1) - (1 << bits - 1))


_NUMBERS: tuple[tuple[str, int, bool, Callable[[int], str]], ...] = (
    ("byte", 8, False, str),
    ("short", 16, True, _signed(16)),
    ("ushort", 16, False, str),
    ("int", 32, True, _signed(32)),
    ("uint", 32, False, str),
    ("long", 64, True, _signed(64)),
    ("ulong", 64, False, str),
    ("ullong", 64, False, str),
    ("hexint", 32, False, "{:#08x}".format),
)
for _kind, _bits, _sign, _show in _NUMBERS:
    function(f"int param_set_{_kind}(const char *val, const struct kernel_param *kp)")(
        _set_number(_bits, signed=_sign)
    )
    function(f"int param_get_{_kind}(char *buffer, const struct kernel_param *kp)")(
        _get_number(_bits, _show)
    )
    _ops(_kind, f"param_set_{_kind}", f"param_get_{_kind}")


@function(
    "int param_set_uint_minmax(const char *val, const struct kernel_param *kp, unsigned int min,"
    " unsigned int max)"
)
def _param_set_uint_minmax(k: Kernel, value: int, kp: int, least: int, most: int) -> int:
    arg = _arg(k, kp)
    before = k.word(arg, 4)
    error = kstrto(32, signed=False)(k, value, 0, arg)
    if not error and not least <= k.word(arg, 4) <= most:
        k.store(arg, before, 4)
        return -errno.EINVAL
    return error


# Booleans ----------------------------------------------------------------------------------


def _boolean(k: Kernel, value: int, at: int) -> int:
    """Store a boolean; a parameter without a value is set."""
    if value:
        return kstrtobool(k, value, at)
    k.store(at, 1, 1)
    return 0


@function("int param_set_bool(const char *val, const struct kernel_param *kp)")
def _param_set_bool(k: Kernel, value: int, kp: int) -> int:
    return _boolean(k, value, _arg(k, kp))


@function("int param_get_bool(char *buffer, const struct kernel_param *kp)")
def _param_get_bool(k: Kernel, buffer: int, kp: int) -> int:
    return _put(k, buffer, b"Y\n" if k.word(_arg(k, kp), 1) else b"N\n")


@function("int param_set_bool_enable_only(const char *val, const struct kernel_param *kp)")
def _param_set_bool_enable_only(k: Kernel, value: int, kp: int) -> int:
    arg = _arg(k, kp)
    before = k.word(arg, 1)
    error = _boolean(k, value, arg)
    if not error and before and not k.word(arg, 1):
        k.store(arg, before, 1)
        return -errno.EROFS
    return error


@function("int param_set_invbool(const char *val, const struct kernel_param *kp)")
def _param_set_invbool(k: Kernel, value: int, kp: int) -> int:
    arg = _arg(k, kp)
    error = _boolean(k, value, arg)
    if not error:
        k.store(arg, not k.word(arg, 1), 1)
    return error


@function("int param_get_invbool(char *buffer, const struct kernel_param *kp)")
def _param_get_invbool(k: Kernel, buffer: int, kp: int) -> int:
    return _put(k, buffer, b"N\n" if k.word(_arg(k, kp), 1) else b"Y\n")


@function("int param_set_bint(const char *val, const struct kernel_param *kp)")
def _param_set_bint(k: Kernel, value: int, kp: int) -> int:
    arg = _arg(k, kp)
    error = _boolean(k, value, arg)
    if not error:
        k.store(arg, k.word(arg, 1), 4)
    return error


_ops("bool", "param_set_bool", "param_get_bool", flags=FL_NOARG)
_ops("bool_enable_only", "param_set_bool_enable_only", "param_get_bool", flags=FL_NOARG)
_ops("invbool", "param_set_invbool", "param_get_invbool")
_ops("bint", "param_set_bint", "param_get_int", flags=FL_NOARG)


# Strings -----------------------------------------------------------------------------------


def _complain(k: Kernel, kp: int, reason: str) -> None:
    """Log why a parameter is refused."""
    k.print(text(k, k.word(kp + NAME(k))) + f": {reason}\n".encode(), 3)


@function("int param_set_charp(const char *val, const struct kernel_param *kp)")
def _param_set_charp(k: Kernel, value: int, kp: int) -> int:
    contents = text(k, value, CHARP_MAX + 1)
    if len(contents) > CHARP_MAX:
        _complain(k, kp, "string parameter too long")
        return -errno.ENOSPC
    arg = _arg(k, kp)
    _param_free_charp(k, arg)
    new = duplicate(k, contents + b"\0", 0)
    if not new:
        return -errno.ENOMEM
    state(k, _Charps).owned.add(new)
    k.store(arg, new)
    return 0


@function("void param_free_charp(void *arg)")
def _param_free_charp(k: Kernel, arg: int) -> None:
    # A default that the module compiled in is not the kernel's to free.
    old, owned = k.word(arg), state(k, _Charps).owned
    if old in owned:
        owned.remove(old)
        kfree(k, old)


@function("int param_get_charp(char *buffer, const struct kernel_param *kp)")
def _param_get_charp(k: Kernel, buffer: int, kp: int) -> int:
    found = k.word(_arg(k, kp))
    return _put(k, buffer, (text(k, found) if found else b"(null)") + b"\n")


@function("int param_set_copystring(const char *val, const struct kernel_param *kp)")
def _param_set_copystring(k: Kernel, value: int, kp: int) -> int:
    arg = _arg(k, kp)
    room, string = k.word(arg + ROOM(k), 4), k.word(arg + STRING(k))
    contents = text(k, value, room)
    if len(contents) == room:
        _complain(k, kp, f"string doesn't fit in {room - 1} chars.")
        return -errno.ENOSPC
    k.memory.write(string, contents + b"\0")
    return 0


@function("int param_get_string(char *buffer, const struct kernel_param *kp)")
def _param_get_string(k: Kernel, buffer: int, kp: int) -> int:
    return _put(k, buffer, text(k, k.word(_arg(k, kp) + STRING(k))) + b"\n")


_ops("charp", "param_set_charp", "param_get_charp", free="param_free_charp")
_ops("string", "param_set_copystring", "param_get_string")


# Arrays ------------------------------------------------------------------------------------


def _element(k: Kernel, kp: int) -> int:
    """Return a copy of a parameter, to point at one element of its array after the other."""
    return duplicate(k, k.memory.read(kp, KERNEL_PARAM(k)), 0)


def _array(k: Kernel, arg: int) -> tuple[int, int, int, int, int]:
    found = view(k, "kparam_array", arg)
    size, number, ops = (found.number(member) for member in ("elemsize", "num", "ops"))
    return found.number("max"), size, number, ops, found.number("elem")


@function("int param_array_set(const char *val, const struct kernel_param *kp)")
def _param_array_set(k: Kernel, value: int, kp: int) -> int:
    most, size, number, ops, first = _array(k, _arg(k, kp))
    if not value:
        _complain(k, kp, "expects arguments")
        return -errno.EINVAL
    setter = k.word(ops + SET(k))
    items = text(k, value).split(b",")
    one, error, done = _element(k, kp), 0, 0
    for index, item in enumerate(items[:most]):
        k.store(one + ARG(k), first + index * size)
        string = duplicate(k, item + b"\0", 0)
        error = signed_int(k.call(setter, string, one))
        kfree(k, string)
        if error:
            break
        done = index + 1
    if not error and len(items) > most:
        _complain(k, kp, f"can only take {most} arguments")
        error = -errno.EINVAL
    if number:
        k.store(number, done, 4)
    kfree(k, one)
    return error


@function("int param_array_get(char *buffer, const struct kernel_param *kp)")
def _param_array_get(k: Kernel, buffer: int, kp: int) -> int:
    most, size, number, ops, first = _array(k, _arg(k, kp))
    getter = k.word(ops + GET(k))
    one, done, error = _element(k, kp), 0, 0
    for index in range(k.word(number, 4) if number else most):
        if index:
            k.memory.write(buffer + done - 1, b",")
        k.store(one + ARG(k), first + index * size)
        error = signed_int(k.call(getter, buffer + done, one))
        if error < 0:
            break
        done += error
    k.memory.write(buffer + done, b"\0")
    kfree(k, one)
    return error if error < 0 else min(done, INT_MAX)


@function("void param_array_free(void *arg)")
def _param_array_free(k: Kernel, arg: int) -> None:
    most, size, number, ops, first = _array(k, arg)
    release = k.word(ops + FREE(k))
    if release:
        for index in range(k.word(number, 4) if number else most):
            k.call(release, first + index * size)


data(
    "param_array_ops",
    size_of("kernel_param_ops"),
    fill=lambda k: _ops_bytes(k, "param_array_set", "param_array_get", "param_array_free"),
)


@function(
    "void kernel_param_lock(struct module *mod)", "void kernel_param_unlock(struct module *mod)"
)
def _kernel_param_lock(_k: Kernel, _module: int) -> None:
    return
