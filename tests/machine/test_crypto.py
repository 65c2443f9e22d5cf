# SPDX-License-Identifier: GPL-2.0-or-later
"""Algorithms of distribution modules compute what standards and other implementations say.

In the modelled kernel, and in each kernel that boots, through its own crypto API. Needs
EXECMEM_CORPUS, for booted kernels EXECMEM_KERNELS. Vectors are those that the algorithms' own
specifications publish; hashlib and zlib are the reference where Python has the algorithm.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import hmac
import json
import random
import zlib
from collections import Counter

import lz4.block
import pytest

import archs
from emulator.faults import BadCall
from execmem.cli import main
from execmem.schema import complaints
from kernels.algorithms import CryptoError, compute
from kernels.modelled.api.xxhash import xxh64
from loader.errors import KernelRefused
from machine.arguments import Out
from machine.face import Machine
from tests.conftest import folders, of_arch
from tests.machine.test_corpus import crc
from tests.support import booted

DATA = [b"", b"a", b"abc", random.Random(3).randbytes(5000)]
TEXT = b"".join(b"%d bottles of beer, %d hexes " % (n, n * n) for n in range(300))
MODELLED = [arch for arch in archs.archs() if arch.run is not None]
KERNELS = booted.some()


@functools.cache
def _modelled(name, root):
    return Machine(name, root=root)


@pytest.fixture(
    params=[*MODELLED, *KERNELS],
    ids=[f"modelled-{arch.name}" for arch in MODELLED] + [name for name, _, _ in KERNELS],
)
def machine(request):
    """Return a machine with modules: the modelled kernel's, then each booted one's as it was."""
    if isinstance(request.param, archs.Arch):
        root = of_arch(folders("EXECMEM_CORPUS", "distribution modules"), request.param)
        yield _modelled(request.param.name, root)
        return
    _, folder, _ = request.param
    with booted.fresh(folder, booted.tree(folder)) as found:
        yield found


@pytest.fixture
def crypto(machine):
    """Return what looks an algorithm up, or skips where no module at hand has it."""

    def find(name, kind=None):
        try:
            return machine.crypto(name, kind=kind)
        except CryptoError as error:
            if "no such" in str(error):
                pytest.skip(f"no {name} for {machine.models}")
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


@pytest.mark.parametrize("name", dict.fromkeys(name for name, _, _ in VECTORS))
def test_published_hashes(crypto, name):
    """Hashes give what their specifications list, in one piece and in several."""
    found = crypto(name)
    for data, expected in [(data, expected) for title, data, expected in VECTORS if title == name]:
        assert found.digest(data).hex() == expected
        assert found.digest(data, chunk=13).hex() == expected


@pytest.mark.parametrize("bits", [160, 256, 384, 512])
def test_blake2b(crypto, bits):
    """BLAKE2b of every length, with and without a key, is hashlib's."""
    for data in DATA:
        model = functools.partial(hashlib.blake2b, data, digest_size=bits // 8)
        with crypto(f"blake2b-{bits}") as found:
            keyed = found.digest(data, key=b"0123456789" * 5)
        assert keyed == model(key=b"0123456789" * 5).digest()
        with crypto(f"blake2b-{bits}") as found:  # the next transform has no key
            assert found.digest(data, chunk=777) == model().digest()


def test_crc32c(crypto):
    """crc32c is the Castagnoli polynomial, inverted before and after."""
    found = crypto("crc32c")
    for data in DATA:
        expected = crc(data, 0xFFFF_FFFF, width=32, polynomial=0x82F6_3B78, reflected=True)
        assert found.digest(data) == (~expected & 0xFFFF_FFFF).to_bytes(4, "little")


def test_michael_mic(crypto):
    """Michael gives the standard's chain of vectors (IEEE 802.11, annex on TKIP)."""
    found = crypto("michael_mic")
    for key, data, expected in (
        ("0000000000000000", b"", "82925c1ca1d130b8"),
        ("82925c1ca1d130b8", b"M", "434721ca40639b3f"),
        ("434721ca40639b3f", b"Mi", "e8f9becae97e5d29"),
        ("d55e100510128986", b"Michael", "0a942b124ecaa546"),
    ):
        assert found.digest(data, key=bytes.fromhex(key)).hex() == expected


# xxHash specification and its reference implementation's sanity checks, seed 0.
XXH64 = {b"": 0xEF46DB3751D8E999, b"a": 0xD24EC4F1A98C6E5B, b"abc": 0x44BC2CF5AD770999}


def test_xxhash64(crypto):
    """XXH64 in pieces is XXH64 in one, and the published values."""
    found = crypto("xxhash64")
    for data in DATA:
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


# Compression ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["scomp", "compress", "acomp"])
@pytest.mark.parametrize("name", ["deflate", "lz4"])
def test_compression_and_back(crypto, name, kind):
    """Each form of a compressor undoes what it did, and another implementation agrees."""
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


# Booted kernels only ----------------------------------------------------------------------------


@pytest.fixture(params=KERNELS, ids=[name for name, _, _ in KERNELS])
def kernel(request):
    """Return each kernel that is at hand, booted, as it was at first."""
    _, folder, _ = request.param
    with booted.fresh(folder, booted.tree(folder)) as found:
        yield found


def test_what_is_built_in_computes_as_python_does(kernel):
    """Hashes of the kernel's own, and one that it makes of another, which it tested first."""
    data = DATA[-1]
    for name, model in (
        ("sha1", hashlib.sha1),
        ("sha256", hashlib.sha256),
        ("sha512", hashlib.sha512),
        ("sha3-256", hashlib.sha3_256),
        ("md5", hashlib.md5),
    ):
        if name not in {record.name for record in kernel.algorithms()}:
            continue
        with kernel.crypto(name) as found:
            assert found.digest(data) == found.digest(data, chunk=999) == model(data).digest()
            assert found.record.fields["selftest"] == "passed"
    with kernel.crypto("hmac(sha256)") as found:
        assert found.digest(data, key=b"key") == hmac.new(b"key", data, "sha256").digest()
        assert found.record.fields["selftest"] == "passed"


def test_aes_gives_its_standards_examples(kernel):
    """NIST SP 800-38A, F.1.1 and F.2.1: block by block, and chained by what the kernel makes."""
    key = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")
    plain = bytes.fromhex("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51")
    with kernel.crypto("aes", kind="cipher") as found:
        sealed = found.encrypt(plain, key=key)
        assert sealed.hex() == "3ad77bb40d7a3660a89ecaf32466ef97f5d3d58503b9699de785895a96fdbaaf"
        assert found.decrypt(sealed, key=key) == plain
    with kernel.crypto("cbc(aes)") as found:
        options = {"key": key, "iv": bytes(range(16))}
        sealed = found.encrypt(plain, **options)
        assert sealed.hex() == "7649abac8119b246cee98e9b12e9197d5086cb9b507219ee95db113a917678b2"
        assert found.decrypt(sealed, **options) == plain
        assert found.kind in ("skcipher", "lskcipher")  # 6.7 to 6.15 have cbc of the second
    with (
        kernel.crypto("aes", kind="cipher") as found,
        pytest.raises(CryptoError, match="not whole blocks of 16 bytes"),
    ):
        found.encrypt(b"abc", key=key)


def test_what_is_done_later_is_waited_for(kernel):
    """Cryptd gives what it is asked to a workqueue: the request says EINPROGRESS first."""
    if kernel.tree is None or not {"cryptd", "md4"} <= kernel.tree.files.keys():
        pytest.skip(f"no cryptd and md4 for {kernel.models}")
    kernel.load("md4")
    with kernel.crypto("cryptd(md4-generic)") as found:
        assert found.kind == "ahash"
        assert found.digest(b"message digest").hex() == "d9130a8164549fe818874806e1c7014b"


def test_the_list_is_the_kernels_own(kernel):
    """Every algorithm of /proc/crypto is there, with the kernel's own verdict on each."""
    kernel.sleep(1)  # some is tested when it is first asked for, in a thread
    with kernel.open("/proc/crypto", 0) as file:
        lines = file.read_all().decode().splitlines()
    wanted = Counter(line.partition(": ")[2] for line in lines if line.startswith("name "))
    assert Counter(record.name for record in kernel.algorithms()) == wanted
    assert {record.fields["selftest"] for record in kernel.algorithms()} == {"passed"}


def test_what_nobody_has_is_refused_by_name(kernel):
    """What nobody has is refused, with what is like it; an error leaves nothing behind."""
    kernel.sleep(1)
    before = kernel.algorithms()
    with pytest.raises(
        CryptoError, match=r"sha257: look up: -2 \(ENOENT\), no such algorithm"
    ) as caught:
        kernel.crypto("sha257")
    assert "sha256" in str(caught.value)
    with pytest.raises(CryptoError, match=r"sha256: look up: .*no such aead"):
        kernel.crypto("sha256", kind="aead")
    with pytest.raises(CryptoError, match="no kind 'hash'"):
        kernel.crypto("sha256", kind="hash")
    with kernel.crypto("sha256") as found:
        pass
    with pytest.raises(CryptoError, match="it is closed"):
        found.digest(b"")
    assert kernel.algorithms() == before


def test_an_algorithm_in_use_holds_its_module(kernel):
    """A transform holds the module: delete_module() says so until it is closed."""
    if kernel.tree is None or "md4" not in kernel.tree.files:
        pytest.skip(f"no md4 for {kernel.models}")
    with kernel.crypto("md4") as found:
        module = kernel.modules[found.record.owner]
        with pytest.raises(
            KernelRefused, match=r"delete_module: -11 \(EAGAIN\), in use: 1 reference"
        ):
            module.unload()
    module.unload()
    assert "md4" not in {record.name for record in kernel.algorithms()}
    with pytest.raises(BadCall, match="module md4 is"):
        module.holding  # noqa: B018 -- asked for its error


def test_curve25519_of_the_library(kernel):
    """RFC 7748, 5.2, where the library is a module."""
    if kernel.tree is None or "libcurve25519_generic" not in kernel.tree.files:
        pytest.skip(f"no curve25519 module for {kernel.models}")
    module, out = kernel.load("libcurve25519_generic"), Out(32)
    scalar = bytes.fromhex("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4")
    point = bytes.fromhex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c")
    module.call("curve25519_generic", out, scalar, point)
    expected = "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552"
    assert bytes(out).hex() == expected


def test_the_command_line_computes(kernel, capfd):
    """`execmem crypto --kernel` prints what an algorithm gives; JSON has the kernel's verdict."""
    folder = next(
        folder for _, folder, _ in KERNELS if booted.machine(folder, booted.tree(folder)) is kernel
    )

    def run(*words):
        with pytest.raises(SystemExit) as done:
            main([*map(str, words), "--kernel", str(folder)])
        return done.value.code or 0, *capfd.readouterr()

    code, out, err = run("crypto", "sha256", "str:abc", "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["result"] == hashlib.sha256(b"abc").hexdigest()
    assert (document["module"], document["selftest"]) == ("vmlinux", "passed")
    assert list(complaints("crypto --kernel", document)) == []
    code, out, err = run("crypto", "hmac(sha256)", "str:abc", "--key", "str:key")
    assert (code, out.strip()) == (0, hmac.new(b"key", b"abc", "sha256").hexdigest()), err
    code, out, err = run("crypto", "nobody", "str:abc")
    assert (code, out) == (1, "")
    assert "nobody: look up: -2 (ENOENT), no such algorithm" in err
