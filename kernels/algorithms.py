# SPDX-License-Identifier: GPL-2.0-or-later
"""Crypto algorithms at work, whatever kernel has them: what each kind can do, and what is wrong."""

from __future__ import annotations

import abc
import errno

from kernels.errors import ErrnoError

MOST = 1 << 28  # bytes that decompressing may come to


class CryptoError(ErrnoError):
    """An algorithm refused what it was given, or there is no such algorithm."""


class AnyAlgorithm(abc.ABC):
    """An algorithm of any kind."""

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """The algorithm's name."""

    @property
    @abc.abstractmethod
    def kind(self) -> str:
        """What kind of algorithm it is: `shash`, `skcipher`, `aead` ..."""

    @abc.abstractmethod
    def number(self, field: str) -> int:
        """Return a number that its registration tells."""


class Digests(AnyAlgorithm):
    """What hashes."""

    @abc.abstractmethod
    def digest(self, data: bytes, *, key: bytes | None = None) -> bytes:
        """Return the digest of `data`."""


class Encrypts(AnyAlgorithm):
    """What encrypts."""

    @abc.abstractmethod
    def encrypt(self, data: bytes, *, key: bytes, iv: bytes = b"") -> bytes:
        """Return `data` encrypted."""

    @abc.abstractmethod
    def decrypt(self, data: bytes, *, key: bytes, iv: bytes = b"") -> bytes:
        """Return `data` decrypted."""


class Seals(AnyAlgorithm):
    """What encrypts and authenticates: what it returns or takes ends with the tag."""

    @abc.abstractmethod
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
        """Return the `size` bytes that `encrypt` or `decrypt` makes of `data`."""

    def encrypt(
        self,
        data: bytes,
        *,
        key: bytes,
        iv: bytes = b"",
        associated: bytes = b"",
        tag_size: int | None = None,
    ) -> bytes:
        """Return `data` encrypted, and the tag behind it."""
        tag = self.number("maxauthsize") if tag_size is None else tag_size
        return self.seal("encrypt", data, key, iv, associated, tag, len(data) + tag)

    def decrypt(
        self,
        data: bytes,
        *,
        key: bytes,
        iv: bytes = b"",
        associated: bytes = b"",
        tag_size: int | None = None,
    ) -> bytes:
        """Return `data` without its tag, decrypted; CryptoError (EBADMSG) where the tag is wrong."""
        tag = self.number("maxauthsize") if tag_size is None else tag_size
        if len(data) < tag:
            raise CryptoError(self.name, "decrypt", errno.EINVAL, f"shorter than its tag of {tag}")
        return self.seal("decrypt", data, key, iv, associated, tag, len(data) - tag)


class Generates(AnyAlgorithm):
    """What draws random numbers."""

    @abc.abstractmethod
    def generate(self, size: int, *, seed: bytes | None = None) -> bytes:
        """Return `size` bytes, after seeding where a seed is given."""


class Compresses(AnyAlgorithm):
    """What compresses."""

    @abc.abstractmethod
    def run(self, operation: str, data: bytes, room: int) -> bytes:
        """Return what `compress` or `decompress` makes of `data`, of at most `room` bytes."""

    def compress(self, data: bytes, *, room: int | None = None) -> bytes:
        """Return `data` compressed; at most `room` bytes, by default a little more than given."""
        return self.run(
            "compress", data, len(data) + len(data) // 8 + 512 if room is None else room
        )

    def decompress(self, data: bytes, *, room: int | None = None) -> bytes:
        """Return `data` decompressed; at most `room` bytes, by default as much as it takes."""
        most = max(4 * len(data), 4096) if room is None else room
        while True:
            try:
                return self.run("decompress", data, most)
            except CryptoError:
                # No room, or no compressed data: only more room tells.
                if room is not None or most >= min(MOST, 1024 * len(data) + 4096):
                    raise
                most *= 4


def compute(
    what: AnyAlgorithm,
    data: bytes,
    *,
    key: bytes | None = None,
    iv: bytes = b"",
    associated: bytes = b"",
    tag_size: int | None = None,
    decrypt: bool = False,
) -> bytes:
    """Return what an algorithm of any kind makes of `data`.

    Parameters
    ----------
    key
        The key; the seed of a random number generator.
    iv, associated, tag_size
        For ciphers that have them.
    decrypt
        Decrypt, or decompress.
    """
    if isinstance(what, Compresses):
        return what.decompress(data) if decrypt else what.compress(data)
    if isinstance(what, Seals):
        seal = what.decrypt if decrypt else what.encrypt
        return seal(data, key=key or b"", iv=iv, associated=associated, tag_size=tag_size)
    if isinstance(what, Encrypts):
        run = what.decrypt if decrypt else what.encrypt
        return run(data, key=key or b"", iv=iv)
    if decrypt:
        raise CryptoError(what.name, "decrypt", 0, f"this {what.kind} cannot do that")
    if isinstance(what, Generates):
        return what.generate(len(data), seed=key)
    assert isinstance(what, Digests)
    return what.digest(data, key=key)


def check_iv(what: AnyAlgorithm, operation: str, iv: bytes, size: int) -> None:
    """Raise CryptoError where an initialisation vector has not the size that it must have."""
    if len(iv) != size:
        reason = f"the IV has {len(iv)} bytes, expected {size}"
        raise CryptoError(what.name, operation, errno.EINVAL, reason)
