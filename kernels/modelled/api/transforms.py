# SPDX-License-Identifier: GPL-2.0-or-later
"""Algorithms by name, for modules that use each other's (crypto/api.c, shash.c, cipher.c).

A name is looked up among what modules registered; two algorithms that the kernel has built in
and that modules rely on, `aes` as a block cipher and `crc32c`, are there without.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

import attrs

from kernels.modelled.api import aes
from kernels.modelled.api.algorithms import (
    DESC,
    TFM,
    Algorithm,
    Cipher,
    CryptoError,
    Hash,
    algorithm,
    registered,
)
from kernels.modelled.api.common import state, stop, text
from kernels.modelled.api.crypto import crc32c
from kernels.modelled.api.cryptoalgs import ALGORITHMS
from kernels.modelled.kernel import Kernel
from kernels.modelled.structs import view
from kernels.modelled.table import function
from kernels.registry import Record

BLOCK = 16


class BuiltInCrc32c(Hash):
    """CRC-32C: the description holds the sum so far, inverted at the end."""

    def call(self, name: str, *args: int) -> int:
        """Do what the callback of crc32c-generic does."""
        k = self.kernel
        if name == "init":
            k.store(args[0] + DESC(k), 0xFFFF_FFFF, 4)
        elif name == "update":
            k.store(args[0] + DESC(k), crc32c(k, k.word(args[0] + DESC(k), 4), args[1], args[2]), 4)
        elif name == "final":
            k.store(args[1], ~k.word(args[0] + DESC(k), 4), 4)
        return 0


@attrs.define(eq=False)
class BuiltInAes(Cipher):
    """AES, a block at a time."""

    keys: Sequence[bytes] = ()

    def call(self, name: str, *args: int) -> int:
        """Expand a key."""
        if args[2] not in (16, 24, 32):
            raise CryptoError(self.name, name, errno.EINVAL)
        self.keys = aes.expand(self.kernel.memory.read(args[1], args[2]))
        return 0


BUILT_IN: dict[tuple[str, str], tuple[type[Algorithm], dict[str, int]]] = {
    ("shash", "crc32c"): (
        BuiltInCrc32c,
        {"cra_priority": 100, "cra_blocksize": 1, "digestsize": 4, "descsize": 4},
    ),
    ("cipher", "aes"): (BuiltInAes, {"cra_priority": 100, "cra_blocksize": BLOCK}),
}


@attrs.define
class _Transforms:
    """Transforms that modules allocated, by their address; structures of built-in algorithms."""

    live: dict[int, Algorithm] = attrs.field(factory=dict)
    built_in: dict[tuple[str, str], int] = attrs.field(factory=dict)


def _built_in(k: Kernel, kind: str, name: str) -> Algorithm | None:
    """Return an algorithm of the kernel itself, with the structure that inlined code reads."""
    found = BUILT_IN.get((kind, name))
    if found is None:
        return None
    made, fields = found
    addresses = state(k, _Transforms).built_in
    if (kind, name) in addresses:
        address = addresses[kind, name]
        return made(k, Record(kind=kind, name=name, address=address, owner="", fields=fields))
    structure = f"{kind}_alg" if kind in ALGORITHMS else "crypto_alg"
    address = k.heap.alloc(k.layouts.size_of(structure), zero=True)
    if not address:
        return None
    alg = view(k, structure, address)
    base = f"{ALGORITHMS[kind][0]}." if kind in ALGORITHMS else ""
    for member, title in (("cra_name", name), ("cra_driver_name", f"{name}-generic")):
        k.memory.write(alg.at(base + member), title.encode())
    own = ALGORITHMS[kind][1] if kind in ALGORITHMS else ()
    for field, value in fields.items():
        member = next((m for m in own if m.rpartition(".")[2] == field), base + field)
        alg.put(member, value)
    addresses[kind, name] = address
    return made(k, Record(kind=kind, name=name, address=address, owner="", fields=fields))


def _allocate(k: Kernel, kind: str, name: str) -> int:
    """Return the address of a new transform, or an ERR_PTR."""
    record = registered(k, name, kind)
    found = algorithm(k, record) if record is not None else _built_in(k, kind, name)
    if found is None and k.request_module(f"crypto-{name}"):
        record = registered(k, name, kind)
        found = algorithm(k, record) if record is not None else None
    if found is None:
        return -errno.ENOENT
    try:
        address = found.transform
    except CryptoError as error:
        return -error.error
    state(k, _Transforms).live[address] = found
    return address


def _of(k: Kernel, address: int) -> Algorithm:
    """Return the transform at an address."""
    found = state(k, _Transforms).live.get(address)
    if found is None:
        stop(k, f"{address:#x} is no transform")
    return found


def _described(k: Kernel, desc: int) -> Algorithm:
    """Return the hash that a description is of; stop where what is between blocks is the kernel's."""
    found = _of(k, k.word(desc + TFM(k)))
    if isinstance(found, Hash) and found.block_only:
        what = "takes whole blocks only (CRYPTO_AHASH_ALG_BLOCK_ONLY)"
        stop(
            k, f"{found.record.name} {what}: what a kernel then keeps of a message is not modelled"
        )
    return found


def _status(call: Algorithm, name: str, *args: int) -> int:
    """Return what a callback returned, errors too."""
    try:
        return call.call(name, *args)
    except CryptoError as error:
        return -(error.error or errno.ENOSYS)


@function("struct crypto_shash *crypto_alloc_shash(const char *name, u32 type, u32 mask)")
def _alloc_shash(k: Kernel, name: int, _type: int, _mask: int) -> int:
    return _allocate(k, "shash", text(k, name).decode("utf-8", "replace"))


@function("struct crypto_tfm *crypto_alloc_base(const char *name, u32 type, u32 mask)")
def _alloc_base(k: Kernel, name: int, _type: int, _mask: int) -> int:
    return _allocate(k, "cipher", text(k, name).decode("utf-8", "replace"))


@function("int crypto_has_alg(const char *name, u32 type, u32 mask)")
def _has_alg(k: Kernel, name: int, _type: int, _mask: int) -> int:
    return int(registered(k, text(k, name).decode("utf-8", "replace")) is not None)


@function("void crypto_destroy_tfm(void *mem, struct crypto_tfm *tfm)")
def _destroy_tfm(k: Kernel, mem: int, _tfm: int) -> None:
    found = state(k, _Transforms).live.pop(mem, None)
    if found is not None:
        found.close()


@function("int crypto_shash_setkey(struct crypto_shash *tfm, const u8 *key, unsigned int keylen)")
def _shash_setkey(k: Kernel, tfm: int, key: int, size: int) -> int:
    return _status(_of(k, tfm), "setkey", tfm, key, size)


@function("int crypto_shash_init(struct shash_desc *desc)")
def _shash_init(k: Kernel, desc: int) -> int:
    return _status(_described(k, desc), "init", desc)


@function("int crypto_shash_update(struct shash_desc *desc, const u8 *data, unsigned int len)")
def _shash_update(k: Kernel, desc: int, data: int, size: int) -> int:
    return _status(_described(k, desc), "update", desc, data, size)


@function("int crypto_shash_final(struct shash_desc *desc, u8 *out)")
def _shash_final(k: Kernel, desc: int, out: int) -> int:
    return _status(_described(k, desc), "final", desc, out)


@function(
    "int crypto_shash_finup(struct shash_desc *desc, const u8 *data, unsigned int len, u8 *out)"
)
def _shash_finup(k: Kernel, desc: int, data: int, size: int, out: int) -> int:
    return _shash_update(k, desc, data, size) or _shash_final(k, desc, out)


@function(
    "int crypto_shash_digest(struct shash_desc *desc, const u8 *data, unsigned int len, u8 *out)"
)
def _shash_digest(k: Kernel, desc: int, data: int, size: int, out: int) -> int:
    return _shash_init(k, desc) or _shash_finup(k, desc, data, size, out)


@function(
    "int crypto_shash_tfm_digest(struct crypto_shash *tfm, const u8 *data, unsigned int len,"
    " u8 *out)"
)
def _shash_tfm_digest(k: Kernel, tfm: int, data: int, size: int, out: int) -> int:
    found = _of(k, tfm)
    with found.buffer(DESC(k) + found.number("descsize")) as desc:
        k.store(desc + TFM(k), tfm)
        return _shash_digest(k, desc, data, size, out)


@function("int crypto_cipher_setkey(struct crypto_cipher *tfm, const u8 *key, unsigned int len)")
def _cipher_setkey(k: Kernel, tfm: int, key: int, size: int) -> int:
    found = _of(k, tfm)
    return _status(
        found, "setkey" if isinstance(found, BuiltInAes) else "cia_setkey", tfm, key, size
    )


@function("void crypto_cipher_encrypt_one(struct crypto_cipher *tfm, u8 *dst, const u8 *src)")
def _cipher_encrypt_one(k: Kernel, tfm: int, dst: int, src: int) -> None:
    found = _of(k, tfm)
    if isinstance(found, BuiltInAes):
        k.memory.write(dst, aes.encrypt(found.keys, k.memory.read(src, BLOCK)))
    else:
        k.call(found.record.callbacks["cia_encrypt"], tfm, dst, src)


@function("void crypto_cipher_decrypt_one(struct crypto_cipher *tfm, u8 *dst, const u8 *src)")
def _cipher_decrypt_one(k: Kernel, tfm: int, dst: int, src: int) -> None:
    found = _of(k, tfm)
    if isinstance(found, BuiltInAes):
        k.memory.write(dst, aes.decrypt(found.keys, k.memory.read(src, BLOCK)))
    else:
        k.call(found.record.callbacks["cia_decrypt"], tfm, dst, src)
