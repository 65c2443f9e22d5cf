# SPDX-License-Identifier: GPL-2.0-or-later
"""Algorithms of distribution modules compute what standards and other implementations say.

Needs EXECMEM_CORPUS. Vectors are those that the algorithms' own specifications publish;
hashlib and zlib are the reference where Python has the algorithm.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import random
import zlib

import lz4.block
import pytest

from kernels.modelled.api import aes
from kernels.modelled.api.algorithms import CryptoError, compute
from kernels.modelled.api.xxhash import xxh64
from kernels.registry import Record
from machine.arguments import Out
from machine.face import Machine
from tests.machine.test_corpus import crc

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


# Hashes --------------------------------------------------------------------------------------

VECTORS = [
    # RFC 1320, A.5
    ("md4", b"", "31d6cfe0d16ae931b73c59d7e0c089c0"),
    ("md4", b"message digest", "d9130a8164549fe818874806e1c7014b"),
    ("md4", b"1234567890" * 8, "e33b4ddc9c38f2199c3e7b164fcc0536"),
    # Dobbertin, Bosselaers, Preneel: RIPEMD-160
    ("rmd160", b"abc", "8eb208f7e05d987a9b044a8e98c6b087f15a0bfc"),
    ("rmd160", b"1234567890" * 8, "9b752e45573d4b39f4dbd3323cab82bf63326bfb"),
    # RFC 6986, 10.1: M1, whose bytes it writes last to first
    (
        "streebog256",
        b"012345678901234567890123456789012345678901234567890123456789012",
        "9d151eefd8590b89daa6ba6cb74af9275dd051026bb149a452fd84e5e57b5500",
    ),
    (
        "streebog512",
        b"012345678901234567890123456789012345678901234567890123456789012",
        (
            "1b54d01a4af5b9d5cc3d86d68d285462b19abc2475222f35c085122be4ba1ffa"
            "00ad30f8767b3a82384c6574f024c311e2a481332b08ef7f41797891c1646f48"
        ),
    ),
]


@pytest.mark.parametrize(("name", "data", "expected"), VECTORS)
def test_published_hashes(crypto, name, data, expected):
    """Hashes give what their specifications list, in one piece and in several."""
    found = crypto(name)
    assert found.digest(data).hex() == expected
    assert found.digest(data, chunk=13).hex() == expected


@pytest.mark.parametrize("data", DATA, ids=len)
@pytest.mark.parametrize("bits", [160, 256, 384, 512])
def test_blake2b(crypto, bits, data):
    """BLAKE2b of every length, with and without a key, is hashlib's."""
    found = crypto(f"blake2b-{bits}")
    model = functools.partial(hashlib.blake2b, data, digest_size=bits // 8)
    assert found.digest(data, key=b"0123456789" * 5) == model(key=b"0123456789" * 5).digest()
    found.close()  # and the next transform has no key
    assert found.digest(data, chunk=777) == model().digest()


@pytest.mark.parametrize("data", DATA, ids=len)
def test_crc32c(crypto, data):
    """crc32c is the Castagnoli polynomial, inverted before and after."""
    expected = crc(data, 0xFFFF_FFFF, width=32, polynomial=0x82F6_3B78, reflected=True)
    assert crypto("crc32c").digest(data) == (~expected & 0xFFFF_FFFF).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("key", "data", "expected"),
    [  # IEEE 802.11, annex on TKIP: test vectors for Michael
        ("0000000000000000", b"", "82925c1ca1d130b8"),
        ("82925c1ca1d130b8", b"M", "434721ca40639b3f"),
        ("434721ca40639b3f", b"Mi", "e8f9becae97e5d29"),
        ("d55e100510128986", b"Michael", "0a942b124ecaa546"),
    ],
)
def test_michael_mic(crypto, key, data, expected):
    """Michael gives the standard's chain of vectors."""
    assert crypto("michael_mic").digest(data, key=bytes.fromhex(key)).hex() == expected


# xxHash specification and its reference implementation's sanity checks, seed 0.
XXH64 = {b"": 0xEF46DB3751D8E999, b"a": 0xD24EC4F1A98C6E5B, b"abc": 0x44BC2CF5AD770999}


@pytest.mark.parametrize("data", DATA, ids=len)
def test_xxhash64(crypto, data):
    """XXH64 in pieces is XXH64 in one, and the published values."""
    found = crypto("xxhash64")
    value = int.from_bytes(found.digest(data), "little")
    assert value == XXH64.get(data, value)
    assert {found.digest(data, chunk=n) for n in (1000, 33)} == {value.to_bytes(8, "little")}
    assert value == xxh64(data, 0)


def test_poly1305(crypto):
    """Poly1305 gives RFC 8439's tag (2.5.2); the key comes as the first two blocks."""
    key = "85d6be7857556d337f4452fe42d506a80103808afb0db2fd4abff6af4149f51b"
    data = bytes.fromhex(key) + b"Cryptographic Forum Research Group"
    found = crypto("poly1305")
    assert found.digest(data).hex() == "a8061dc1305136c6c22b8baf0c0127a9"
    assert found.digest(data, chunk=16).hex() == "a8061dc1305136c6c22b8baf0c0127a9"


# Ciphers -------------------------------------------------------------------------------------


def test_chacha20(crypto):
    """ChaCha20 gives RFC 8439's ciphertext (2.4.2), and the plaintext again."""
    found = crypto("chacha20")
    key = bytes(range(32))
    iv = (1).to_bytes(4, "little") + bytes.fromhex("000000000000004a00000000")
    plain = (
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for "
        b"the future, sunscreen would be it."
    )
    sealed = found.encrypt(plain, key=key, iv=iv)
    assert sealed.hex().startswith("6e2e359a2568f98041ba0728dd0d6981e97e7aec1d4360c2")
    assert sealed.hex().endswith("8eedf2785e42874d")
    assert found.decrypt(sealed, key=key, iv=iv) == plain
    # Pieces of a walk are pages: a long message is its parts, block for block.
    long = random.Random(5).randbytes(3 * 4096 + 100)
    whole = found.encrypt(long, key=key, iv=iv)
    later = (1 + 4096 // 64).to_bytes(4, "little") + iv[4:]
    assert whole[4096:] == found.encrypt(long[4096:], key=key, iv=later)
    with pytest.raises(CryptoError, match="the IV has 3 bytes, expected 16"):
        found.encrypt(b"", key=key, iv=b"123")
    with pytest.raises(CryptoError, match="setkey: -22"):
        found.encrypt(b"", key=b"short", iv=iv)


def test_aegis128(crypto):
    """AEGIS-128 gives its specification's vector, opens what it sealed, and nothing else."""
    found = crypto("aegis128")
    sealed = found.encrypt(bytes(16), key=bytes(16), iv=bytes(16))
    assert sealed.hex() == "951b050fa72b1a2fc16d2e1f01b07d7ea7d2a99773249542f422217ee888d5f1"
    options = {"key": b"K" * 16, "iv": b"I" * 16, "associated": b"header" * 40}
    for data in DATA:
        sealed = found.encrypt(data, **options)
        assert len(sealed) == len(data) + 16
        assert found.decrypt(sealed, **options) == data
    with pytest.raises(CryptoError) as caught:
        found.decrypt(sealed[:-1] + bytes([sealed[-1] ^ 1]), **options)
    assert caught.value.error == errno.EBADMSG
    with pytest.raises(CryptoError, match="shorter than its tag"):
        found.decrypt(b"", **options)
    with pytest.raises(CryptoError, match="setauthsize: -22"):
        found.encrypt(b"", **options, tag_size=17)


def test_ansi_cprng(crypto):
    """The generator gives NIST's X9.31 vector: the seed is V, the key and the date."""
    key = "f3b1666d13607242ed061cabb8d46202"
    seed = bytes.fromhex(
        "80000000000000000000000000000000" + key + "e6b3be782a23fa62d71d4afbb0e922f9"
    )
    found = crypto("ansi_cprng")
    assert found.generate(16, seed=seed).hex() == "59531ed13bb0c05584796685c12f7641"
    assert found.generate(16, seed=seed).hex() == "59531ed13bb0c05584796685c12f7641"


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


@pytest.mark.parametrize("kind", ["scomp", "compress"])
@pytest.mark.parametrize("name", ["deflate", "lz4"])
def test_compression_and_back(crypto, name, kind):
    """Both forms of a compressor undo what they did, and another implementation agrees."""
    found = crypto(name, kind)
    for data in (TEXT, b"x", bytes(100_000)):
        packed = found.compress(data)
        assert found.decompress(packed) == data
        other = zlib.decompress(packed, -11) if name == "deflate" else _lz4(packed, len(data))
        assert other == data
    assert len(found.compress(TEXT)) < len(TEXT) // 2
    with pytest.raises(CryptoError):
        found.compress(TEXT, room=10)
    with pytest.raises(CryptoError):
        found.decompress(b"\xff" * 40, room=4000)


def _lz4(packed, size):
    return lz4.block.decompress(packed, uncompressed_size=size)


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


# Asking ----------------------------------------------------------------------------------------


def test_the_highest_priority_wins(crypto):
    """A name may be a driver's; the name of an algorithm means its best driver."""
    found = crypto("blake2b-256-generic")
    assert found.name == "blake2b-256"
    assert crypto("blake2b-256").record.fields["cra_priority"] >= 100
    assert crypto("lz4").kind == "scomp"


def test_any_kind_computes(crypto):
    """`compute` gives each kind what it takes, and refuses what it cannot do."""
    assert compute(crypto("md4"), b"abc") == crypto("md4").digest(b"abc")
    packed = compute(crypto("deflate"), TEXT)
    assert compute(crypto("deflate"), packed, decrypt=True) == TEXT
    assert len(compute(crypto("ansi_cprng"), bytes(7), key=bytes(range(48)))) == 7
    options = {"key": bytes(16), "iv": bytes(16)}
    sealed = compute(crypto("aegis128"), TEXT, **options)
    assert compute(crypto("aegis128"), sealed, decrypt=True, **options) == TEXT
    with pytest.raises(CryptoError, match="md4: decrypt: this shash cannot do that"):
        compute(crypto("md4"), b"abc", decrypt=True)


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
    with crypto("aegis128") as found:
        found.encrypt(TEXT, key=bytes(16), iv=bytes(16))
    kernel = found.kernel
    before = kernel.heap.live()
    vector = {"key": bytes(16), "iv": bytes(16)}
    for name, options in (("md4", {}), ("deflate", {}), ("aegis128", vector)):
        with crypto(name) as used:
            compute(used, bytes(64), **options)
    assert kernel.heap.live() == before
