# SPDX-License-Identifier: GPL-2.0-or-later
"""Algorithms of distribution modules compute what standards and other implementations say.

Needs EXECMEM_CORPUS. Vectors are those that the algorithms' own specifications publish;
hashlib and zlib are the reference where Python has the algorithm.
"""

from __future__ import annotations

import functools
import random

import lz4.block
import pytest

from kernels.modelled.api import aes
from kernels.modelled.api.algorithms import CryptoError, compute
from kernels.registry import Record
from machine.arguments import Out
from machine.face import Machine

DATA = [b"", b"a", b"abc", random.Random(3).randbytes(5000)]
TEXT = b"".join(b"%d bottles of beer, %d hexes " % (n, n * n) for n in range(300))


@functools.cache
def _machine(name, root):
    return Machine(name, root=root)


@pytest.fixture
def crypto(arch, corpus):
    """Return what looks an algorithm up, or skips where the corpus has no module for it."""

    def find(name, kind=None):
        try:
            return _machine(arch.name, corpus).crypto(name, kind=kind)
        except CryptoError as error:
            if "no such" in str(error):
                pytest.skip(f"no {name} for {arch.name}")
            raise

    return find


def test_aes_built_in():
    """The built-in cipher gives FIPS 197's examples (appendix C) both ways."""
    plain = bytes.fromhex("00112233445566778899aabbccddeeff")
    for size, expected in (
        (16, "69c4e0d86a7b0430d8cdb78070b4c55a"),
        (24, "dda97ca4864cdfe06eaf70a0ec0d7191"),
        (32, "8ea2b7ca516745bfeafc49904b496089"),
    ):
        keys = aes.expand(bytes(range(size)))
        assert aes.encrypt(keys, plain).hex() == expected
        assert aes.decrypt(keys, bytes.fromhex(expected)) == plain


# Compression ---------------------------------------------------------------------------------


def test_lz4_blocks(arch):
    """The built-in LZ4 decompressor takes blocks with room to spare, and refuses what is damaged."""
    machine = Machine(arch)

    def unpack(packed, room):
        out = Out(max(room, 1))
        size = machine.call(
            machine.kernel.address("LZ4_decompress_safe"),
            packed,
            out,
            len(packed),
            room,
            returns="int",
        )
        return bytes(out.data[:size]) if size >= 0 else None

    # Written by hand after the format's description: literals, a copy from five bytes back, and
    # the eight literals that must follow a copy at the least.
    by_hand = b"\x50hello\x05\x00" + b"\x80, world!"
    assert unpack(by_hand, 100) == unpack(by_hand, 17) == b"hello" + b"hell" + b", world!"
    assert unpack(by_hand, 16) is None
    assert unpack(by_hand[:-1], 100) is None
    assert unpack(b"\x10a\x05\x00", 100) is None  # back beyond the start
    assert unpack(b"\0", 0) == b""
    for data in (*DATA, TEXT, bytes(1000)):
        packed = lz4.block.compress(data, store_size=False)
        assert unpack(packed, len(data)) == data
        assert unpack(packed, len(data) + 1000) == data
        if data:
            assert unpack(packed, len(data) - 1) is None
            assert unpack(packed[:-1], len(data)) is None


def test_nobody_has_it(arch):
    """Without a module the error says so, and without any algorithm what to do."""
    machine = Machine(arch)
    with pytest.raises(CryptoError, match="md4: look up: no such algorithm; load its module"):
        machine.crypto("md4")
    fields = {"cra_driver_name": "mine-generic"}
    machine.registry.add(Record(kind="shash", name="mine", address=1, owner="", fields=fields))
    with pytest.raises(CryptoError, match="no such aead; registered are mine"):
        machine.crypto("mine", kind="aead")


def test_nothing_is_left_behind(crypto):
    """An algorithm that was closed has freed everything that it and we allocated."""
    vector = {"key": bytes(16), "iv": bytes(16)}
    live = []
    for _ in range(2):  # the first time their modules are loaded
        for name, options in (("md4", {}), ("deflate", {}), ("aegis128", vector)):
            with crypto(name) as used:
                compute(used, bytes(64), **options)
        live.append(used.kernel.heap.live())
    assert live[0] == live[1]
