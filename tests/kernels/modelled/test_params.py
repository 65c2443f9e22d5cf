# SPDX-License-Identifier: GPL-2.0-or-later
"""Module parameters."""

from __future__ import annotations

import errno
import struct

import pytest

from kernels.modelled.api.params import parameters
from kernels.modelled.structs import view
from machine.arguments import Out


class Param:
    """A struct kernel_param in guest memory, set and shown through its operations."""

    def __init__(self, guest, ops, arg, name=b"knob"):
        self.guest = guest
        self.ops = guest.symbol(ops)
        self.name = guest.machine.alloc(name + b"\0")
        row = struct.pack("<QQQHbBxxxxQ", self.name, 0, self.ops, 0o644, -1, 0, arg)
        self.address = guest.machine.alloc(row)

    def set(self, text):
        """Return the error of setting it; None: without a value."""
        value = 0 if text is None else text
        call = self.guest.machine.call
        return call(
            view(self.guest.kernel, "kernel_param_ops", self.ops).number("set"),
            value,
            self.address,
            returns="int",
        )

    def get(self):
        """Return what its file in sysfs shows."""
        buffer = Out(4096)
        call = self.guest.machine.call
        size = call(
            view(self.guest.kernel, "kernel_param_ops", self.ops).number("get"),
            buffer,
            self.address,
            returns="int",
        )
        return bytes(buffer)[:size].decode()


@pytest.mark.parametrize(
    ("kind", "text", "shown"),
    [
        ("byte", "255", "255\n"),
        ("byte", "256", errno.ERANGE),
        ("short", "-32768", "-32768\n"),
        ("ushort", "0xffff", "65535\n"),
        ("int", "-5", "-5\n"),
        ("int", "2147483648", errno.ERANGE),
        ("int", "five", errno.EINVAL),
        ("uint", "4294967295", "4294967295\n"),
        ("long", "-1", "-1\n"),
        ("ulong", "0x8000000000000000", "9223372036854775808\n"),
        ("ullong", "1\n", "1\n"),
        ("hexint", "31", "0x00001f\n"),
        ("bool", "on", "Y\n"),
        ("bool", None, "Y\n"),
        ("bool", "maybe", errno.EINVAL),
        ("bool_enable_only", "y", "Y\n"),
        ("invbool", "y", "N\n"),
        ("invbool", "n", "Y\n"),
        ("bint", "y", "1\n"),
    ],
)
def test_parameter_types(guest, kind, text, shown):
    """Each type takes what its range holds and shows it as sysfs does."""
    with guest.memory(8) as variable:
        param = Param(guest, f"param_ops_{kind}", variable)
        if isinstance(shown, int):
            assert param.set(text) == -shown
            assert guest.word(variable) == 0
        else:
            assert param.set(text) == 0
            if kind != "invbool":
                assert param.get() == shown
            else:
                assert guest.word(variable, 1) == (shown == "Y\n")
                assert param.get() == ("Y\n" if shown == "N\n" else "N\n")


def test_a_switch_that_only_goes_on(guest):
    """bool_enable_only refuses to go back."""
    with guest.memory(8) as variable:
        param = Param(guest, "param_ops_bool_enable_only", variable)
        assert [param.set(text) for text in "n1n"] == [0, 0, -errno.EROFS]
        assert guest.word(variable, 1) == 1


def test_string_parameters(guest):
    """A charp keeps a copy of its own and frees the one before; string fills a buffer or refuses."""
    default = guest.machine.alloc(b"default\0")
    with guest.memory(default.to_bytes(8, "little"), 8, 16) as (pointer, buffer, kps):
        param = Param(guest, "param_ops_charp", pointer)
        assert param.get() == "default\n"
        assert param.set("one") == 0
        live = guest.kernel.heap.live().keys()
        assert default in live
        assert param.set("two") == 0
        assert len(guest.kernel.heap.live()) == len(live)
        assert param.get() == "two\n"
        assert param.set("x" * 1025) == -errno.ENOSPC
        guest.machine.write(kps, struct.pack("<IxxxxQ", 4, buffer))
        fixed = Param(guest, "param_ops_string", kps)
        assert fixed.set("abc") == 0
        assert fixed.get() == "abc\n"
        assert fixed.set("abcd") == -errno.ENOSPC


def test_array_parameters(guest):
    """An array takes as many elements as it has room for, and counts them."""
    with guest.memory(16, 4, 32) as (elements, number, array):
        ops = guest.symbol("param_ops_int")
        guest.machine.write(array, struct.pack("<IIQQQ", 3, 4, number, ops, elements))
        param = Param(guest, "param_array_ops", array)
        assert param.set("1,-2,0x10") == 0
        assert struct.unpack("<4i", guest.machine.read(elements, 16)) == (1, -2, 16, 0)
        assert guest.word(number, 4) == 3
        assert param.get() == "1,-2,16\n"
        assert param.set("7") == 0
        assert param.get() == "7\n"
        assert param.set("1,2,3,4") == -errno.EINVAL
        assert guest.machine.log[-1].text == "knob: can only take 3 arguments"
        assert param.set("1,x") == -errno.EINVAL
        assert param.set(None) == -errno.EINVAL


def test_the_parameter_table_can_be_read(guest):
    """Every row of a __param section becomes a Parameter."""
    with guest.memory(b"alpha", b"beta") as (alpha, beta):
        rows = struct.pack("<QQQHbBxxxxQ", alpha, 0, 0x10, 0o644, -1, 1, 0x20)
        rows += struct.pack("<QQQHbBxxxxQ", beta, 0, 0x30, 0, 2, 0, 0x40)
        with guest.memory(rows) as table:
            one, two = parameters(guest.kernel, guest.machine.memory, table, len(rows))
    assert (one.name, one.address, one.ops, one.arg) == ("alpha", table, 0x10, 0x20)
    assert (one.perm, one.level, one.flags) == (0o644, -1, 1)
    assert (two.name, two.address, two.level) == ("beta", table + 40, 2)
