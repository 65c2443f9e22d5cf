# SPDX-License-Identifier: GPL-2.0-or-later
"""Crypto algorithms of a booted kernel, through its own crypto API (include/crypto/).

The kernel allocates the transform, tests the algorithm first, and does all the work; what it has
only as inline functions (requests and their callbacks) is done here, by its own types.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import ClassVar, Protocol, Self

from archs.layouts import Layouts
from kernels.algorithms import (
    AnyAlgorithm,
    Compresses,
    CryptoError,
    Digests,
    Encrypts,
    Generates,
    Seals,
    check_iv,
)
from kernels.booted.guest import GFP_KERNEL, GFP_ZERO, is_error, signed
from kernels.booted.kernel import BootedKernel
from kernels.registry import Record
from machine.arguments import Argument, Out

_TYPE_MASK = 0xF  # CRYPTO_ALG_TYPE_MASK
_ALLOC = ("__kmalloc_noprof", "__kmalloc")
MOST = 1 << 22  # bytes of contiguous memory that a kernel gives (10 orders of 4 KiB pages)
_MAY_SLEEP, _MAY_BACKLOG = 0x200, 0x400  # CRYPTO_TFM_REQ_*
_PASSED = "passed"
_LATER = (-errno.EINPROGRESS, -errno.EBUSY)


class Owner(Protocol):
    """The machine that an algorithm works in."""

    kernel: BootedKernel

    @property
    def layouts(self) -> Layouts:
        """The layouts of its kernel's structures."""
        ...

    def call(self, address: int, *args: Argument, returns: str = "u64") -> int:
        """Call the function at an address."""
        ...

    def alloc(self, contents: bytes | int) -> int:
        """Return the address of memory."""
        ...

    def free(self, address: int) -> None:
        """Free it."""
        ...

    def read(self, address: int, size: int) -> bytes:
        """Return bytes of memory."""
        ...

    def write(self, address: int, data: bytes) -> None:
        """Store bytes in memory."""
        ...

    def algorithms(self) -> list[Record]:
        """Return what is registered now."""
        ...


class Algorithm(AnyAlgorithm):
    """An algorithm and its transform, which lives until `close`, and its module as long.

    Parameters
    ----------
    machine
        Where it works.
    wanted
        What is asked for: a name, or a driver's.
    kind
        Of what kind.
    known
        What is registered, as far as somebody has just asked.

    Raises
    ------
    CryptoError
        The kernel has none.
    """

    # Kind in the names of functions, and what is passed as type and mask where it is the base's.
    API: ClassVar[str]
    TYPE: ClassVar[int] = 0
    STRUCTURE: ClassVar[str]

    def __init__(
        self, machine: Owner, wanted: str, kind: str, known: Sequence[Record] = ()
    ) -> None:
        self.machine = machine
        self._wanted, self._kind = wanted, kind
        self._object = 0
        mask = _TYPE_MASK if self.TYPE else 0
        function = "crypto_alloc_base" if self.TYPE else f"crypto_alloc_{self.API}"
        found = self._raw(function, wanted, self.TYPE, mask)
        if is_error(found):
            raise CryptoError(wanted, "allocate", -signed(found))
        self._object = found
        self.record = self._registration(known)

    @property
    def name(self) -> str:
        """The algorithm's name."""
        return self.record.name

    @property
    def kind(self) -> str:
        """What kind of algorithm it is, as its registration says."""
        return self.record.kind

    def number(self, field: str) -> int:
        """Return a number that its registration tells; CryptoError where it does not."""
        value = self.record.fields.get(field)
        if not isinstance(value, int):
            raise CryptoError(self._wanted, field, 0, "the kernel does not tell it")
        return value

    @property
    def transform(self) -> int:
        """The address of the transform's structure; CryptoError where it is closed."""
        if not self._object:
            raise CryptoError(self._wanted, "use", 0, "it is closed")
        return self._object

    def close(self) -> None:
        """Let the kernel take the transform down."""
        if self._object:
            self._raw("crypto_destroy_tfm", self._object, self._tfm)
            self._object = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.machine.kernel.board.broken:
            self.close()

    def set_key(self, key: bytes) -> None:
        """Give the transform its key."""
        self._call("setkey", f"crypto_{self.API}_setkey", self.transform, key, len(key))

    # What the kernel has, and what it computed --------------------------------------------------

    @property
    def _tfm(self) -> int:
        """Its struct crypto_tfm."""
        return self.transform + self.machine.layouts.offset_of(self.STRUCTURE, "base")

    def _registration(self, known: Sequence[Record]) -> Record:
        """Return what /proc/crypto says of the algorithm that the transform is of."""
        algorithm = self._get(self._tfm, "crypto_tfm", "__crt_alg")
        member = self.machine.layouts.member("crypto_alg", "cra_driver_name")
        driver = self.machine.read(algorithm + member.offset, member.size).split(b"\0")[0].decode()
        wanted = {"cra_driver_name": driver, "selftest": _PASSED}
        for record in known:
            if wanted.items() <= record.fields.items():
                return record
        for record in self.machine.algorithms():
            if record.fields.get("cra_driver_name") == driver:
                return record
        return Record(
            kind=self._kind,
            name=self._wanted,
            address=algorithm,
            owner="",
            fields={"cra_driver_name": driver},
        )

    def _raw(self, function: str, *args: Argument, returns: str = "u64") -> int:
        address = self.machine.kernel.symbols.get(function)
        if address is None:
            release = self.machine.kernel.release
            raise CryptoError(self._wanted, function, 0, f"Linux {release} has no such function")
        return self.machine.call(address, *args, returns=returns)

    def _call(self, operation: str, function: str, *args: Argument) -> int:
        """Call a function of the kernel; CryptoError where it returns an error."""
        return self._checked(operation, self._raw(function, *args, returns="int"))

    def _checked(self, operation: str, result: int) -> int:
        if result < 0:
            raise CryptoError(self._wanted, operation, -result)
        return result

    # Memory -------------------------------------------------------------------------------------

    def _get(self, address: int, structure: str, path: str) -> int:
        member = self.machine.layouts.member(structure, path)
        return member.read(self.machine.read(address + member.offset, member.size))

    def _put(self, address: int, structure: str, values: Mapping[str, int]) -> None:
        for path, value in values.items():
            member = self.machine.layouts.member(structure, path)
            self.machine.write(address + member.offset, value.to_bytes(member.size, "little"))

    @contextmanager
    def buffer(self, contents: bytes | int) -> Iterator[int]:
        """Give memory that holds `contents`, or that many zeros, for a while."""
        address = self.machine.alloc(contents)
        try:
            yield address
        finally:
            if not self.machine.kernel.board.broken:
                self.machine.free(address)

    @contextmanager
    def listed(self, contents: bytes, room: int = 0) -> Iterator[tuple[int, int]]:
        """Give a scatterlist over `contents` and `room` bytes more, and its memory."""
        size = max(len(contents) + room, 1)
        if size > MOST:
            reason = f"{size:#x} bytes at once, the kernel has {MOST:#x} in one piece"
            raise CryptoError(self._wanted, "list", 0, reason)
        with self.buffer(self.machine.layouts.size_of("scatterlist")) as entry:
            function = self.machine.kernel.find(_ALLOC)
            data = self.machine.call(function, size, GFP_KERNEL | GFP_ZERO)
            if not data:
                raise CryptoError(self._wanted, "list", errno.ENOMEM)
            try:
                self.machine.write(data, contents)
                self._raw("sg_init_one", entry, data, size)
                yield entry, data
            finally:
                if not self.machine.kernel.board.broken:
                    self.machine.free(data)

    @contextmanager
    def request(self, structure: str, **values: int) -> Iterator[int]:
        """Give a request to the transform, as the kernel's inline functions form it."""
        size = self.machine.layouts.size_of(structure)
        more = self._get(self.transform, self.STRUCTURE, "reqsize")
        with self.buffer(size + more) as address:
            self._put(address, structure, {"base.tfm": self._tfm, **values})
            yield address

    def submit(
        self, operation: str, structure: str, request: int, function: str, address: int = 0
    ) -> None:
        """Give a request to a function, and wait where it is done later (crypto_wait_req)."""
        size = self.machine.layouts.size_of("crypto_wait")
        completion = self.machine.layouts.offset_of("crypto_wait", "completion")
        queue = self.machine.layouts.offset_of("completion", "wait")
        with self.buffer(size) as wait, self.buffer(b"execmem\0") as title, self.buffer(8) as lock:
            self._raw("__init_swait_queue_head", wait + completion + queue, title, lock)
            done = self.machine.kernel.symbols["crypto_req_done"]
            members = {"complete": done, "data": wait, "flags": _MAY_SLEEP | _MAY_BACKLOG}
            self._put(
                request, structure, {f"base.{name}": value for name, value in members.items()}
            )
            if address:
                result = self.machine.call(address, request, returns="int")
            else:
                result = self._raw(function, request, returns="int")
            if result in _LATER:
                self._raw("wait_for_completion", wait + completion)
                result = self._get(wait, "crypto_wait", "err")
            self._checked(operation, result)


class Hash(Algorithm, Digests):
    """A hash (shash)."""

    API, STRUCTURE = "shash", "crypto_shash"

    def digest(self, data: bytes, *, key: bytes | None = None, chunk: int | None = None) -> bytes:
        """Return the digest of `data`.

        Parameters
        ----------
        key
            Of an algorithm that takes one.
        chunk
            Bytes that are given to it at once; None: all.
        """
        if key is not None:
            self.set_key(key)
        out = Out(self.number("digestsize"))
        if chunk is None:
            args = (self.transform, bytes(data), len(data), out)
            self._call("digest", "crypto_shash_tfm_digest", *args)
            return bytes(out)
        with self._description() as desc:
            self._begin(desc)
            for at in range(0, len(data), chunk):
                self._update(desc, bytes(data[at : at + chunk]))
            self._final(desc, out)
        return bytes(out)

    @contextmanager
    def _description(self) -> Iterator[int]:
        layouts = self.machine.layouts
        if layouts.has(self.STRUCTURE, "descsize"):
            size = self._get(self.transform, self.STRUCTURE, "descsize")
        else:
            size = self._get(self._algorithm, "shash_alg", "descsize")
        with self.buffer(layouts.size_of("shash_desc") + size) as desc:
            self._put(desc, "shash_desc", {"tfm": self.transform})
            yield desc

    @property
    def _algorithm(self) -> int:
        base = self._get(self._tfm, "crypto_tfm", "__crt_alg")
        return base - self.machine.layouts.offset_of("shash_alg", "base")

    def _begin(self, desc: int) -> None:
        if "crypto_shash_init" in self.machine.kernel.symbols:
            self._call("init", "crypto_shash_init", desc)
            return
        init = self._get(self._algorithm, "shash_alg", "init")
        self._checked("init", self.machine.call(init, desc, returns="int"))

    # Since 6.16 crypto_shash_finup() is all that is no inline function.
    def _update(self, desc: int, piece: bytes) -> None:
        if "crypto_shash_update" in self.machine.kernel.symbols:
            self._call("update", "crypto_shash_update", desc, piece, len(piece))
        else:
            self._call("update", "crypto_shash_finup", desc, piece, len(piece), 0)

    def _final(self, desc: int, out: Out) -> None:
        if "crypto_shash_final" in self.machine.kernel.symbols:
            self._call("final", "crypto_shash_final", desc, out)
        else:
            self._call("final", "crypto_shash_finup", desc, 0, 0, out)


class AsyncHash(Algorithm, Digests):
    """A hash over scatterlists (ahash)."""

    API, STRUCTURE = "ahash", "crypto_ahash"

    def digest(self, data: bytes, *, key: bytes | None = None) -> bytes:
        """Return the digest of `data`."""
        if key is not None:
            self.set_key(key)
        size, form = self.number("digestsize"), "ahash_request"
        with (
            self.listed(data) as (src, _),
            self.listed(b"", size) as (_, out),
            self.request(form, src=src, nbytes=len(data), result=out) as request,
        ):
            self.submit("digest", form, request, "crypto_ahash_digest")
            return self.machine.read(out, size)


class Skcipher(Algorithm, Encrypts):
    """A symmetric cipher over scatterlists (skcipher)."""

    API, STRUCTURE = "skcipher", "crypto_skcipher"

    def encrypt(self, data: bytes, *, key: bytes, iv: bytes = b"") -> bytes:
        """Return `data` encrypted."""
        return self._run("encrypt", data, key, iv)

    def decrypt(self, data: bytes, *, key: bytes, iv: bytes = b"") -> bytes:
        """Return `data` decrypted."""
        return self._run("decrypt", data, key, iv)

    def _run(self, operation: str, data: bytes, key: bytes, iv: bytes) -> bytes:
        check_iv(self, operation, iv, self.number("ivsize"))
        self.set_key(key)
        form = "skcipher_request"
        with (
            self.listed(data) as (src, _),
            self.listed(b"", len(data)) as (dst, out),
            self.buffer(iv) as vector,
            self.request(form, iv=vector, src=src, dst=dst, cryptlen=len(data)) as request,
        ):
            self.submit(operation, form, request, f"crypto_skcipher_{operation}")
            return self.machine.read(out, len(data)) if data else b""


class Aead(Algorithm, Seals):
    """An authenticating cipher (aead): what it returns or takes ends with the tag."""

    API, STRUCTURE = "aead", "crypto_aead"

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
        self._call("setauthsize", "crypto_aead_setauthsize", self.transform, tag)
        form = "aead_request"
        with (
            self.listed(associated + data) as (src, _),
            self.listed(associated, size) as (dst, out),
            self.buffer(iv) as vector,
            self.request(
                form, iv=vector, src=src, dst=dst, cryptlen=len(data), assoclen=len(associated)
            ) as request,
        ):
            self.submit(operation, form, request, f"crypto_aead_{operation}")
            return self.machine.read(out + len(associated), size) if size else b""


class Rng(Algorithm, Generates):
    """A random number generator (rng)."""

    API, STRUCTURE = "rng", "crypto_rng"

    def generate(self, size: int, *, seed: bytes | None = None) -> bytes:
        """Return `size` bytes, after seeding where a seed is given."""
        if seed is not None:
            self._call("seed", "crypto_rng_reset", self.transform, bytes(seed), len(seed))
        base = self._get(self._tfm, "crypto_tfm", "__crt_alg")
        algorithm = base - self.machine.layouts.offset_of("rng_alg", "base")
        generate, out = self._get(algorithm, "rng_alg", "generate"), Out(size)
        result = self.machine.call(generate, self.transform, 0, 0, out, size, returns="int")
        self._checked("generate", result)
        return bytes(out)


class Compressor(Algorithm, Compresses):
    """A compression algorithm (acomp, which has those in the form scomp, too)."""

    API, STRUCTURE = "acomp", "crypto_acomp"

    def run(self, operation: str, data: bytes, room: int) -> bytes:
        """Return what one request makes of `data`."""
        form = "acomp_req"
        function, inline = f"crypto_acomp_{operation}", 0
        if function not in self.machine.kernel.symbols:  # inline before 6.15
            inline = self._get(self.transform, self.STRUCTURE, operation)
        with (
            self.listed(data) as (src, _),
            self.listed(b"", room) as (dst, out),
            self._formed(form, src=src, dst=dst, slen=len(data), dlen=room) as request,
        ):
            self.submit(operation, form, request, function, inline)
            return self.machine.read(out, self._get(request, form, "dlen"))

    @contextmanager
    def _formed(self, form: str, **values: int) -> Iterator[int]:
        if "acomp_request_alloc" not in self.machine.kernel.symbols:  # since 6.15
            with self.request(form, **values) as address:
                yield address
            return
        address = self._raw("acomp_request_alloc", self.transform)
        if not address:
            raise CryptoError(self._wanted, "form a request", errno.ENOMEM)
        try:
            self._put(address, form, values)
            yield address
        finally:
            if not self.machine.kernel.board.broken:
                self._raw("acomp_request_free", address)


class OlderCompressor(Algorithm, Compresses):
    """A compression algorithm in the older form, which went with 6.15."""

    API, TYPE, STRUCTURE = "comp", 2, "crypto_comp"

    def run(self, operation: str, data: bytes, room: int) -> bytes:
        """Return what one call makes of `data`."""
        with self.buffer(room) as dst, self.buffer(room.to_bytes(4, "little")) as size:
            function = f"crypto_comp_{operation}"
            self._call(operation, function, self.transform, bytes(data), len(data), dst, size)
            return self.machine.read(dst, int.from_bytes(self.machine.read(size, 4), "little"))


class Cipher(Algorithm, Encrypts):
    """A block cipher (cipher): block by block, which is no way to keep a secret."""

    API, TYPE, STRUCTURE = "cipher", 1, "crypto_cipher"

    def encrypt(self, data: bytes, *, key: bytes, iv: bytes = b"") -> bytes:
        """Return every block of `data` encrypted."""
        return self._blocks("encrypt", data, key, iv)

    def decrypt(self, data: bytes, *, key: bytes, iv: bytes = b"") -> bytes:
        """Return every block of `data` decrypted."""
        return self._blocks("decrypt", data, key, iv)

    def _blocks(self, operation: str, data: bytes, key: bytes, iv: bytes) -> bytes:
        size = self.number("cra_blocksize")
        check_iv(self, operation, iv, 0)
        if len(data) % size:
            reason = f"not whole blocks of {size} bytes"
            raise CryptoError(self.name, operation, errno.EINVAL, reason)
        self.set_key(key)
        with self.buffer(data) as src, self.buffer(len(data)) as dst:
            for at in range(0, len(data), size):
                self._raw(f"crypto_cipher_{operation}_one", self.transform, dst + at, src + at)
            return self.machine.read(dst, len(data)) if data else b""
