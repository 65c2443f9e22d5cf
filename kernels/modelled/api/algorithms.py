# SPDX-License-Identifier: GPL-2.0-or-later
"""Algorithms that modules registered, at work: what the kernel's crypto API does around them.

An algorithm is a record of callbacks. To compute something, somebody has to allocate a
transform of the right size, let the algorithm initialise it, give it a key, form a request
with scatterlists, and call. That is done here, once, for Python and for the kernel functions
by which modules use each other's algorithms.

>>> from machine.face import Machine  # doctest: +SKIP
>>> Machine("arm64", root="/path").crypto("md4").digest(b"abc").hex()  # doctest: +SKIP
'a448017aaf21d8525fc10ae87aa6729d'
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, Self

import attrs

from emulator.budget import one_budget
from kernels.algorithms import (
    AnyAlgorithm,
    Compresses,
    CryptoError,
    Digests,
    Encrypts,
    Generates,
    Seals,
    check_iv,
    compute,
)
from kernels.modelled.api import scatterlist
from kernels.modelled.api.cryptoalgs import ALGORITHMS
from kernels.modelled.kernel import Kernel
from kernels.modelled.structs import offset_of, size_of, struct, view
from kernels.prototypes import parse
from kernels.registry import Record

CHUNK = 1 << 20  # bytes given to one call of an update
# include/crypto/internal/hash.h, since 6.16: update() returns how many bytes it did not take.
BLOCK_ONLY, FINAL_NONZERO = 0x0100_0000, 0x0200_0000
_one_budget = one_budget(lambda algorithm: algorithm.kernel.limits)
_INT = parse("int result(void)").result

struct("crypto_shash", "descsize base")
struct("shash_desc", "tfm")
DESC, TFM = size_of("shash_desc"), offset_of("shash_desc", "tfm")
for _name in ("crypto_rng", "crypto_scomp", "crypto_comp", "crypto_cipher"):
    struct(_name, "base")


@attrs.define(eq=False)
class Algorithm(AnyAlgorithm):
    """One registered algorithm and its transform, which lives until `close`.

    Parameters
    ----------
    kernel
        Where it is registered.
    record
        The registration.
    """

    kernel: Kernel
    record: Record
    _tfm: int = attrs.field(default=0, init=False)
    _object: int = attrs.field(default=0, init=False)

    STRUCTURE: ClassVar[str] = "crypto_cipher"  # that holds the transform, as `base`
    CREATE: ClassVar[tuple[str, ...]] = ("cra_init",)  # callbacks, with what they are given
    DESTROY: ClassVar[tuple[str, ...]] = ("cra_exit",)

    @property
    def name(self) -> str:
        """The algorithm's name."""
        return self.record.name

    @property
    def kind(self) -> str:
        """What kind of algorithm it is: `shash`, `skcipher`, `aead` ..."""
        return self.record.kind

    def number(self, field: str) -> int:
        """Return a number that the record holds."""
        value = self.record.fields[field]
        assert isinstance(value, int)
        return value

    @property
    def transform(self) -> int:
        """The address of the structure that callbacks are given; allocated at its first use."""
        if not self._object:
            layouts, alg = self.kernel.layouts, self._alg
            context = view(self.kernel, "crypto_alg", alg).number("cra_ctxsize")
            self._object = self._alloc(layouts.size_of(self.STRUCTURE) + context)
            self._tfm = self._object + layouts.offset_of(self.STRUCTURE, "base")
            tfm = view(self.kernel, "crypto_tfm", self._tfm)
            if layouts.has("crypto_tfm", "refcnt"):  # not in 7.2
                tfm.put("refcnt", 1)
            tfm.put("__crt_alg", alg)
            self._created()
            for name in self.CREATE:
                if name in self.record.callbacks:
                    given = self._tfm if name.startswith("cra_") else self._object
                    self.call(name, given)
        return self._object

    @property
    def _alg(self) -> int:
        found = ALGORITHMS.get(self.kind)  # else it is a struct crypto_alg itself
        offset = self.kernel.layouts.offset_of(f"{self.kind}_alg", found[0]) if found else 0
        return self.record.address + offset

    def _created(self) -> None:
        """Fill in what the structure around the transform has."""

    @_one_budget
    def close(self) -> None:
        """Let the algorithm take its transform down."""
        if self._object:
            for name in self.DESTROY:
                if name in self.record.callbacks:
                    given = self._tfm if name.startswith("cra_") else self._object
                    self.kernel.call(self.record.callbacks[name], given)
            self.kernel.heap.free(self._object)
            self._object = self._tfm = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, name: str, *args: int) -> int:
        """Call a callback; CryptoError where there is none or it returns an error."""
        address = self.record.callbacks.get(name)
        if address is None:
            raise CryptoError(self.name, name, 0, f"this {self.kind} cannot do that")
        result = _INT.from_register(self.kernel.call(address, *args))
        if result < 0:
            raise CryptoError(self.name, name, -result)
        return result

    def _alloc(self, size: int) -> int:
        address = self.kernel.heap.alloc(max(size, 1), zero=True)
        if not address:
            raise CryptoError(self.name, "allocate", errno.ENOMEM)
        return address

    @contextmanager
    def buffer(self, contents: bytes | int) -> Iterator[int]:
        """Give guest memory that holds `contents`, or that many zeros, for a while."""
        size = contents if isinstance(contents, int) else len(contents)
        address = self._alloc(size)
        try:
            if not isinstance(contents, int) and contents:
                self.kernel.memory.write(address, contents)
            yield address
        finally:
            self.kernel.heap.free(address)

    @_one_budget
    def set_key(self, key: bytes) -> None:
        """Give the transform its key."""
        name = next((n for n in ("setkey", "cia_setkey") if n in self.record.callbacks), "setkey")
        with self.buffer(key) as address:
            self.call(name, self.transform, address, len(key))

    @contextmanager
    def listed(self, contents: bytes, room: int = 0) -> Iterator[tuple[int, int]]:
        """Give a scatterlist over `contents` and `room` bytes more, and its memory."""
        size = max(len(contents) + room, 1)
        with (
            self.buffer(contents.ljust(size, b"\0")) as data,
            self.buffer(scatterlist.entry_size(self.kernel)) as sg,
        ):
            scatterlist.set_entry(self.kernel, sg, data, size)
            yield sg, data


class Hash(Algorithm, Digests):
    """A synchronous hash (shash)."""

    STRUCTURE = "crypto_shash"
    CREATE = ("cra_init", "init_tfm")
    DESTROY = ("exit_tfm", "cra_exit")

    def _created(self) -> None:
        if self.kernel.layouts.has(self.STRUCTURE, "descsize"):  # 7.2 asks the algorithm
            view(self.kernel, self.STRUCTURE, self._object).put("descsize", self.number("descsize"))

    @_one_budget
    def digest(self, data: bytes, *, key: bytes | None = None, chunk: int = CHUNK) -> bytes:
        """Return the digest of `data`, given to the algorithm in pieces of `chunk` bytes."""
        if key is not None:
            self.set_key(key)
        transform = self.transform  # may call the guest: before the description exists
        with self.buffer(DESC(self.kernel) + self.number("descsize")) as desc:
            self.kernel.store(desc + TFM(self.kernel), transform)
            self.call("init", desc)
            size, held = self.number("digestsize"), b""
            for at in range(0, len(data), chunk):
                held = self._update(desc, held + data[at : at + chunk])
            with self.buffer(size) as out, self.buffer(held) as rest:
                if self.block_only:
                    self.call("finup", desc, rest, len(held), out)
                else:
                    self.call("final", desc, out)
                return self.kernel.memory.read(out, size)

    def _update(self, desc: int, piece: bytes) -> bytes:
        """Give the algorithm what it takes of a piece; return the rest (crypto_shash_finup)."""
        if not self.block_only:
            with self.buffer(piece) as address:
                self.call("update", desc, address, len(piece))
            return b""
        # Some want to be left a byte for the end, though it completes a block.
        last = 1 if self._flags & FINAL_NONZERO else 0
        if len(piece) < self.number("cra_blocksize") + last:
            return piece
        count = len(piece) - last
        with self.buffer(piece) as address:
            left = self.call("update", desc, address, count)
        return piece[count - left :]

    @property
    def block_only(self) -> bool:
        """Whether it takes whole blocks, and leaves what is between them to the kernel."""
        return bool(self._flags & BLOCK_ONLY)

    @property
    def _flags(self) -> int:
        return view(self.kernel, "crypto_alg", self._alg).number("cra_flags")


class Skcipher(Algorithm, Encrypts):
    """A symmetric cipher over scatterlists (skcipher)."""

    STRUCTURE = "crypto_skcipher"
    CREATE = ("cra_init", "init")
    DESTROY = ("exit", "cra_exit")

    @_one_budget
    def encrypt(self, data: bytes, *, key: bytes, iv: bytes = b"") -> bytes:
        """Return `data` encrypted."""
        return self._run("encrypt", data, key, iv)

    @_one_budget
    def decrypt(self, data: bytes, *, key: bytes, iv: bytes = b"") -> bytes:
        """Return `data` decrypted."""
        return self._run("decrypt", data, key, iv)

    def _run(self, operation: str, data: bytes, key: bytes, iv: bytes) -> bytes:
        check_iv(self, operation, iv, self.number("ivsize"))
        self.set_key(key)
        with (
            self.listed(data) as (src, _),
            self.listed(bytes(len(data))) as (dst, out),
            self.buffer(iv) as vector,
            self._request("skcipher_request", vector, src, dst, len(data)) as request,
        ):
            self.call(operation, request)
            return self.kernel.memory.read(out, len(data)) if data else b""

    @contextmanager
    def _request(self, structure: str, iv: int, src: int, dst: int, size: int) -> Iterator[int]:
        size_here = self.kernel.layouts.size_of(structure)
        extra = view(self.kernel, self.STRUCTURE, self.transform).number("reqsize")
        with self.buffer(size_here + extra) as address:
            request = view(self.kernel, structure, address)
            request.put("base.tfm", self._tfm)
            for member, value in (("iv", iv), ("src", src), ("dst", dst), ("cryptlen", size)):
                request.put(member, value)
            yield address


class Aead(Seals, Skcipher):
    """An authenticating cipher (aead): what it returns or takes ends with the tag."""

    STRUCTURE = "crypto_aead"

    @_one_budget
    def seal(
        self,
        operation: str,
        data: bytes,
        key: bytes,
        iv: bytes,
        associated: bytes,
        tag: int,
        size: int,
    ) -> bytes:
        """Return what one operation makes of `data`; see `Seals.seal`."""
        check_iv(self, operation, iv, self.number("ivsize"))
        self.set_key(key)
        view(self.kernel, "crypto_aead", self.transform).put("authsize", tag)
        if "setauthsize" in self.record.callbacks:
            self.call("setauthsize", self.transform, tag)
        with (
            self.listed(associated + data) as (src, _),
            self.listed(associated, size) as (dst, out),
            self.buffer(iv) as vector,
            self._request("aead_request", vector, src, dst, len(data)) as request,
        ):
            view(self.kernel, "aead_request", request).put("assoclen", len(associated))
            self.call(operation, request)
            return self.kernel.memory.read(out + len(associated), size) if size else b""


class Rng(Algorithm, Generates):
    """A random number generator (rng)."""

    STRUCTURE = "crypto_rng"

    @_one_budget
    def generate(self, size: int, *, seed: bytes | None = None) -> bytes:
        """Return `size` bytes, after seeding where a seed is given."""
        transform = self.transform
        if seed is not None:
            with self.buffer(seed) as address:
                self.call("seed", transform, address, len(seed))
        with self.buffer(size) as out:
            self.call("generate", transform, 0, 0, out, size)
            return self.kernel.memory.read(out, size) if size else b""


class Compressor(Algorithm, Compresses):
    """A compression algorithm as scomp."""

    STRUCTURE = "crypto_scomp"

    @_one_budget
    def compress(self, data: bytes, *, room: int | None = None) -> bytes:
        """Return `data` compressed; at most `room` bytes, by default a little more than given."""
        return super().compress(data, room=room)

    @_one_budget
    def decompress(self, data: bytes, *, room: int | None = None) -> bytes:
        """Return `data` decompressed; at most `room` bytes, by default as much as it takes."""
        return super().decompress(data, room=room)

    def run(self, operation: str, data: bytes, room: int) -> bytes:
        """Return what one callback makes of `data`."""
        transform, more = self.transform, tuple[int, ...]()
        name = operation if self.kind == "scomp" else f"coa_{operation}"
        context = 0
        if self.kind == "scomp":
            context = self.kernel.call(self.record.callbacks["alloc_ctx"], transform)
            if context > (1 << 64) - 4096:
                raise CryptoError(self.name, "alloc_ctx", (1 << 64) - context)
            more = (context,)
        try:
            with self.buffer(data) as src, self.buffer(room) as dst, self.buffer(4) as size:
                self.kernel.store(size, room, 4)
                self.call(name, transform, src, len(data), dst, size, *more)
                return self.kernel.memory.read(dst, self.kernel.word(size, 4))
        finally:
            if context:
                self.kernel.call(self.record.callbacks["free_ctx"], transform, context)


class OlderCompressor(Compressor):
    """A compression algorithm in the older form."""

    STRUCTURE = "crypto_comp"


class Cipher(Algorithm, Encrypts):
    """A block cipher (cipher): block by block, which is no way to keep a secret."""

    STRUCTURE = "crypto_cipher"

    @_one_budget
    def encrypt(self, data: bytes, *, key: bytes, iv: bytes = b"") -> bytes:
        """Return every block of `data` encrypted."""
        return self._blocks("cia_encrypt", data, key, iv)

    @_one_budget
    def decrypt(self, data: bytes, *, key: bytes, iv: bytes = b"") -> bytes:
        """Return every block of `data` decrypted."""
        return self._blocks("cia_decrypt", data, key, iv)

    def _blocks(self, name: str, data: bytes, key: bytes, iv: bytes) -> bytes:
        size = self.number("cra_blocksize")
        check_iv(self, name, iv, 0)
        if len(data) % size:
            raise CryptoError(self.name, name, errno.EINVAL, f"not whole blocks of {size} bytes")
        self.set_key(key)
        with self.buffer(data) as src, self.buffer(len(data)) as dst:
            for at in range(0, len(data), size):
                self.kernel.call(self.record.callbacks[name], self.transform, dst + at, src + at)
            return self.kernel.memory.read(dst, len(data)) if data else b""


CLASSES: dict[str, type[Algorithm]] = {
    "shash": Hash,
    "skcipher": Skcipher,
    "aead": Aead,
    "rng": Rng,
    "scomp": Compressor,
    "compress": OlderCompressor,
    "cipher": Cipher,
}


def registered(k: Kernel, name: str, kind: str | None = None) -> Record | None:
    """Return the registered algorithm of a name, or driver name, that has the highest priority."""
    found = [
        record
        for record in k.registry
        if record.kind in CLASSES
        and kind in (None, record.kind)
        and name in (record.name, record.fields.get("cra_driver_name"))
    ]
    # Of equals, the newer form of a compressor before the older one.
    rank = list(CLASSES)
    return max(
        found,
        key=lambda r: (r.fields.get("cra_priority", 0), -rank.index(r.kind)),
        default=None,
    )


def algorithm(k: Kernel, record: Record) -> Algorithm:
    """Return what computes with a registered algorithm."""
    return CLASSES[record.kind](k, record)


__all__ = ["Algorithm", "CryptoError", "algorithm", "compute", "registered"]
