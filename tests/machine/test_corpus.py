# SPDX-License-Identifier: GPL-2.0-or-later
"""Distribution modules do on the emulated CPU what standards and other implementations say.

Needs EXECMEM_CORPUS. The library modules are pure functions, so their results can be held
against published vectors, Python's own checksums, or a model of a few lines.
"""

from __future__ import annotations

import binascii
import errno
import functools
import math
import os
import random
import struct

import pytest

from loader.loaded import State
from machine.arguments import Out
from machine.face import Machine

GFP_KERNEL = 0xCC0
# Where members of structures lie that only modules know (linux/bch.h, linux/textsearch.h).
ECC_BYTES, GET_NEXT_BLOCK = 16, 16
DATA = [b"", b"\0", b"123456789", bytes(range(256)) * 3, random.Random(7).randbytes(1500)]
SOME_TEXT = b"".join(b"%d bottles of beer, %d hexes " % (n, n * n) for n in range(900))


@functools.cache
def _machine(name, root):
    return Machine(name, root=root)


@pytest.fixture
def load(arch, corpus):
    """Return what loads a module of the corpus without its init, or skips where there is none."""

    def loaded(name):
        if not any(corpus.glob(f"lib/modules/*/kernel/**/{name}.ko*")):
            pytest.skip(f"no {name} for {arch.name}")
        machine = _machine(arch.name, corpus)
        return machine.modules.get(name.replace("-", "_")) or machine.load(name, init=False)

    return loaded


def machine_of(module):
    """Return the machine that a module is loaded in."""
    return module._machine


# Checksums -----------------------------------------------------------------------------------


def crc(data, value, *, width, polynomial, reflected):
    """Return a CRC bit by bit, as its definition goes."""
    for byte in data:
        value ^= byte if reflected else byte << width - 8
        for _ in range(8):
            if reflected:
                value = value >> 1 ^ (polynomial if value & 1 else 0)
            else:
                value = value << 1 ^ (polynomial if value >> width - 1 else 0)
                value &= (1 << width) - 1
    return value


@pytest.mark.parametrize("data", DATA, ids=len)
@pytest.mark.parametrize("seed", [0, 0xFFFF, 0x1D0F])
def test_crc_itu_t_is_crc_hqx(load, data, seed):
    """Python has the same CRC, for binhex."""
    got = load("crc-itu-t").call("crc_itu_t", seed, data, len(data), returns="u16")
    assert got == binascii.crc_hqx(data, seed)


@pytest.mark.parametrize("data", DATA, ids=len)
@pytest.mark.parametrize("seed", [0, 0xFFFF])
def test_crc16(load, data, seed):
    """Polynomial x^16 + x^15 + x^2 + 1, lowest bit first."""
    got = load("crc16").call("crc16", seed, data, len(data), returns="u16")
    assert got == crc(data, seed, width=16, polynomial=0xA001, reflected=True)


@pytest.mark.parametrize("data", DATA, ids=len)
def test_crc7(load, data):
    """Polynomial x^7 + x^3 + 1, kept in the upper seven bits."""
    got = load("crc7").call("crc7_be", 0, data, len(data), returns="u8")
    assert got == crc(data, 0, width=8, polynomial=0x09 << 1, reflected=False)


@pytest.mark.parametrize("data", DATA, ids=len)
@pytest.mark.parametrize(
    ("populate", "polynomial", "reflected"),
    [("crc8_populate_msb", 0x07, False), ("crc8_populate_lsb", 0x8C, True)],
)
def test_crc8(load, data, populate, polynomial, reflected):
    """The caller's polynomial, either bit first."""
    module, table = load("crc8"), Out(256)
    module.call(populate, table, polynomial)
    got = module.call("crc8", bytes(table), data, len(data), 0xFF, returns="u8")
    assert got == crc(data, 0xFF, width=8, polynomial=polynomial, reflected=reflected)


# Compression ---------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"x", SOME_TEXT, bytes(70_000), DATA[-1]], ids=len)
@pytest.mark.parametrize(
    ("name", "function", "level", "workspace"),
    [
        ("lz4_compress", "LZ4_compress_default", (), 1 << 15),
        ("lz4hc_compress", "LZ4_compress_HC", (9,), 1 << 19),
    ],
)
def test_lz4_output_is_what_lz4_reads(load, data, name, function, level, workspace):
    """The reference implementation restores what the kernel's compressor wrote."""
    block = pytest.importorskip("lz4.block")
    module = load(name)
    room = len(data) + len(data) // 255 + 16
    out = Out(room)
    size = module.call(function, data, out, len(data), room, *level, Out(workspace), returns="int")
    assert 0 < size <= room
    assert block.decompress(bytes(out)[:size], uncompressed_size=len(data)) == data
    if data is SOME_TEXT:
        assert size < len(data) // 2


# Curves and ciphers --------------------------------------------------------------------------


def x25519(module, scalar, u):
    """Return the product of a scalar and a u-coordinate."""
    out = Out(32)
    module.call("curve25519_generic", out, scalar, u)
    return bytes(out)


@pytest.mark.parametrize(
    ("scalar", "u", "expected"),
    [
        (
            "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
            "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
            "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
        ),
        (
            "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
            "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
            "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957",
        ),
    ],
)
def test_curve25519(load, scalar, u, expected):
    """RFC 7748, 5.2: the two single vectors."""
    got = x25519(load("libcurve25519-generic"), bytes.fromhex(scalar), bytes.fromhex(u))
    assert got.hex() == expected


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"),
        (1000, "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51"),
    ],
)
def test_curve25519_iterated(load, count, expected):
    """RFC 7748, 5.2: the result becomes the scalar, the scalar the point, again and again."""
    if count > 1 and not os.environ.get("EXECMEM_SLOW"):
        pytest.skip("a thousand multiplications take half a minute: set EXECMEM_SLOW")
    module = load("libcurve25519-generic")
    scalar = u = bytes([9]).ljust(32, b"\0")
    for _ in range(count):
        scalar, u = x25519(module, scalar, u), scalar
    assert scalar.hex() == expected


@pytest.mark.parametrize(
    ("key", "stream"),
    [
        ("0102030405", "b2396305f03dc027ccc3524a0a1118a86982944f18fc82d589c403a47a0d0919"),
        (
            "0102030405060708090a0b0c0d0e0f10",
            "9ac7cc9a609d1ef7b2932899cde41b975248c4959014126a6e8a84f11d1a9e1c",
        ),
    ],
)
def test_arc4(load, key, stream):
    """RFC 6229: the key stream is what zeros are encrypted to, in one piece or several."""
    module, key = load("libarc4"), bytes.fromhex(key)
    with_context = machine_of(module)
    context = with_context.alloc(1032)  # struct arc4_ctx: 256 words, x, y
    try:
        assert module.call("arc4_setkey", context, key, len(key), returns="int") == 0
        parts = []
        for size in (1, 15, 16):
            out = Out(size)
            module.call("arc4_crypt", context, out, bytes(size), size)
            parts.append(bytes(out))
    finally:
        with_context.free(context)
    assert b"".join(parts).hex() == stream


@pytest.mark.parametrize(
    ("key", "plain", "cipher"),
    [
        ("133457799bbcdff1", "0123456789abcdef", "85e813540f0ab405"),
        ("7ca110454a1a6e57", "01a1d6d039776742", "690f5b0d9a26939b"),
        ("0131d9619dc1376e", "5cd54ca83def57da", "7a389d10354bd271"),
    ],
)
def test_des(load, key, plain, cipher):
    """Published single-block vectors, there and back."""
    module = load("libdes")
    context, out = Out(128), Out(8)
    assert module.call("des_expand_key", context, bytes.fromhex(key), 8, returns="int") == 0
    module.call("des_encrypt", bytes(context), out, bytes.fromhex(plain))
    assert bytes(out).hex() == cipher
    module.call("des_decrypt", bytes(context), out, bytes.fromhex(cipher))
    assert bytes(out).hex() == plain


def test_des_knows_weak_keys(load):
    """A weak key (FIPS 74) and one of the wrong length are refused."""
    module = load("libdes")
    assert module.call("des_expand_key", Out(128), b"\1" * 8, 8, returns="int") == -126  # ENOKEY
    assert module.call("des_expand_key", Out(128), bytes(8), 7, returns="int") == -errno.EINVAL


def test_triple_des(load):
    """The example of NIST SP 800-67 (and its famous misprint)."""
    module = load("libdes")
    context, out = Out(384), Out(8)
    key = bytes.fromhex("0123456789abcdef23456789abcdef01456789abcdef0123")
    assert module.call("des3_ede_expand_key", context, key, 24, returns="int") == 0
    text, cipher = b"The qufck brown fox jump", ""
    for at in range(0, len(text), 8):
        module.call("des3_ede_encrypt", bytes(context), out, text[at : at + 8])
        cipher += bytes(out).hex()
    assert cipher == "a826fd8ce53b855fcce21c8112256fe668d5c05dd9b6b900"


def test_chacha20(load):
    """RFC 8439, 2.4.2."""
    module = load("libchacha")
    key, nonce = bytes(range(32)), bytes.fromhex("000000000000004a00000000")
    text = (
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the "
        b"future, sunscreen would be it."
    )
    state = b"expand 32-byte k" + key + struct.pack("<I", 1) + nonce
    out = Out(len(text))
    module.call("chacha_crypt_generic", state, out, text, len(text), 20)
    assert bytes(out).hex() == (
        "6e2e359a2568f98041ba0728dd0d6981e97e7aec1d4360c20a27afccfd9fae0b"
        "f91b65c5524733ab8f593dabcd62b3571639d624e65152ab8f530c359f0861d8"
        "07ca0dbf500d6a6156a38e088a22b65e52bc514d16ccf806818ce91ab7793736"
        "5af90bbf74a35be6b40b8eedf2785e42874d"
    )


def test_poly1305(load):
    """RFC 8439, 2.5.2, in pieces that do not end at blocks."""
    module = load("libpoly1305")
    machine = machine_of(module)
    key = bytes.fromhex("85d6be7857556d337f4452fe42d506a80103808afb0db2fd4abff6af4149f51b")
    text, tag = b"Cryptographic Forum Research Group", Out(16)
    context = machine.alloc(512)
    module.call("poly1305_init_generic", context, key)
    for piece in (text[:5], text[5:30], text[30:]):
        module.call("poly1305_update_generic", context, piece, len(piece))
    module.call("poly1305_final_generic", context, tag)
    machine.free(context)
    assert bytes(tag).hex() == "a8061dc1305136c6c22b8baf0c0127a9"


# Error correction ----------------------------------------------------------------------------


def rs_parity(data, roots, polynomial=0x11D):
    """Return the parity symbols: the remainder of the data by the product of (x - alpha^i)."""

    def times(a, b):
        product = 0
        while b:
            product ^= a if b & 1 else 0
            a = a << 1 ^ (polynomial if a & 0x80 else 0)
            b >>= 1
        return product

    generator, alpha = [1], 1
    for _ in range(roots):
        scaled = [times(term, alpha) for term in generator]
        generator = [a ^ b for a, b in zip([*generator, 0], [0, *scaled], strict=True)]
        alpha = times(alpha, 2)
    rest = [0] * roots
    for symbol in data:
        factor = symbol ^ rest[0]
        rest = [a ^ times(factor, b) for a, b in zip([*rest[1:], 0], generator[1:], strict=True)]
    return struct.pack(f"<{roots}H", *rest)


def test_reed_solomon_encodes(load):
    """The parity is that of polynomial division."""
    module = load("reed_solomon")
    if "encode_rs8" not in module.symbols:
        pytest.skip("built without the encoder")
    rs = module.call("init_rs_gfp", 8, 0x11D, 0, 1, 32, GFP_KERNEL)
    parity = Out(64)
    assert module.call("encode_rs8", rs, DATA[2], len(DATA[2]), parity, 0, returns="int") == 0
    assert bytes(parity) == rs_parity(DATA[2], 32)
    module.call("free_rs", rs)


@pytest.mark.parametrize("errors", [0, 1, 16])
def test_reed_solomon_corrects(load, errors):
    """Errors up to half the roots are found and undone."""
    module = load("reed_solomon")
    machine = machine_of(module)
    rs = module.call("init_rs_gfp", 8, 0x11D, 0, 1, 32, GFP_KERNEL)
    chance = random.Random(errors)
    data = chance.randbytes(200)
    parity, damaged = rs_parity(data, 32), bytearray(data)
    for at in chance.sample(range(len(data)), errors):
        damaged[at] ^= chance.randint(1, 255)
    block = machine.alloc(bytes(damaged))
    args = (rs, block, parity, len(data), 0, 0, 0, 0, 0)
    assert module.call("decode_rs8", *args, returns="int") == errors
    assert machine.read(block, len(data)) == data
    machine.free(block)
    module.call("free_rs", rs)


def test_reed_solomon_gives_up(load):
    """More errors than half the roots are found to be too many."""
    module = load("reed_solomon")
    rs = module.call("init_rs_gfp", 8, 0x11D, 0, 1, 4, GFP_KERNEL)
    args = (rs, bytes(range(100)), rs_parity(bytes(100), 4), 100, 0, 0, 0, 0, 0)
    assert module.call("decode_rs8", *args, returns="int") == -errno.EBADMSG
    module.call("free_rs", rs)


@pytest.mark.parametrize("errors", [0, 1, 4])
def test_bch(load, errors):
    """Every flipped bit is located."""
    module = load("bch")
    machine = machine_of(module)
    bch = module.call("bch_init", 13, 4, 0, 0)
    assert bch
    size = machine.kernel.word(bch + ECC_BYTES, 4)
    assert size == (13 * 4 + 7) // 8
    chance = random.Random(errors)
    data, code, places = chance.randbytes(512), Out(size), Out(16)
    module.call("bch_encode", bch, data, len(data), code)
    flipped = sorted(chance.sample(range(8 * len(data)), errors))
    damaged = bytearray(data)
    for bit in flipped:
        damaged[bit // 8] ^= 1 << bit % 8
    got = module.call(
        "bch_decode", bch, bytes(damaged), len(data), bytes(code), 0, 0, places, returns="int"
    )
    assert got == errors
    assert sorted(struct.unpack("<4I", bytes(places))[:errors]) == flipped
    module.call("bch_free", bch)


# Searching, and disks that fail ----------------------------------------------------------------


@pytest.fixture
def started(arch, corpus):
    """Return what loads a module of the corpus and runs its init, or skips where there is none."""

    def loaded(name):
        if not any(corpus.glob(f"lib/modules/*/kernel/**/{name}.ko*")):
            pytest.skip(f"no {name} for {arch.name}")
        machine = _started(arch.name, corpus)
        return machine.modules.get(name) or machine.load(name)

    return loaded


@functools.cache
def _started(name, root):
    return Machine(name, root=root)


@pytest.mark.parametrize("name", ["ts_kmp", "ts_bm"])
@pytest.mark.parametrize("flags", [0, 2])
def test_text_search(started, name, flags):
    """Every place of a pattern is found, in text that comes in pieces; TS_IGNORECASE is 2."""
    module = started(name)
    machine = machine_of(module)
    kernel = machine.kernel
    (record,) = [r for r in machine.registry if r.kind == "text search" and r.owner == name]
    chance = random.Random(5)
    text = bytes(chance.choice(b"abAB") for _ in range(600))
    for size in (1, 2, 5, 9):
        start = chance.randrange(len(text) - size)
        pattern = text[start : start + size]
        # Boyer-Moore looks at one piece at a time (its documentation says so).
        pieces = [text] if name == "ts_bm" else [text[at : at + 97] for at in range(0, 600, 97)]
        assert _search(machine, kernel, record, pattern, pieces, flags) == _places(
            text, pattern, flags
        )


def _places(text, pattern, flags):
    if flags:
        text, pattern = text.lower(), pattern.lower()
    size = len(pattern)
    return [at for at in range(len(text) - size + 1) if text[at : at + size] == pattern]


def _search(machine, kernel, record, pattern, pieces, flags):
    """Return where a registered text search finds a pattern, as textsearch_find() drives it."""
    blocks = [machine.alloc(piece) for piece in pieces]
    ends = [sum(map(len, pieces[:n])) for n in range(len(pieces) + 1)]

    def next_block(consumed, dst, _config, _state):
        for block, piece, end in zip(blocks, pieces, ends, strict=False):
            if end <= consumed < end + len(piece):
                kernel.store(dst, block + consumed - end)
                return len(piece) - (consumed - end)
        return 0

    kernel.supply(
        "search_block", next_block, "unsigned int search_block(u32 c, void **d, void *k, void *s)"
    )
    config = machine.call(record.callbacks["init"], pattern, len(pattern), GFP_KERNEL, flags)
    # struct ts_state: offset, 48 bytes.
    kernel.store(config + GET_NEXT_BLOCK, kernel.address("search_block"))
    state, places, offset = machine.alloc(56), [], 0
    while True:
        machine.write(state, offset.to_bytes(4, "little"))
        found = machine.call(record.callbacks["find"], config, state, returns="u32")
        if found == 0xFFFF_FFFF:
            break
        places.append(found)
        offset = found + 1
    for address in (state, config, *blocks):
        machine.free(address)
    return places


def _gf_multiply(a, b):
    """Return the product in GF(2**8) with the polynomial of RAID 6."""
    product = 0
    while b:
        product ^= a if b & 1 else 0
        a = a << 1 ^ (0x11D if a & 0x80 else 0)
        b >>= 1
    return product


def _parity(disks):
    """Return P and Q of data disks, by their definition."""
    p, q = bytearray(len(disks[0])), bytearray(len(disks[0]))
    for disk in reversed(disks):
        for at, byte in enumerate(disk):
            p[at] ^= byte
            q[at] = _gf_multiply(q[at], 2) ^ byte
    return bytes(p), bytes(q)


def test_raid6_computes_parity_and_recovers_two_disks(started):
    """P and Q are what their definition says; any two lost data disks come back."""
    module = started("raid6_pq")
    machine = machine_of(module)
    chance, size, count = random.Random(3), 256, 5
    data = [chance.randbytes(size) for _ in range(count)]
    parity = _parity(data)
    disks = [machine.alloc(contents) for contents in (*data, bytes(size), bytes(size))]
    table = machine.alloc(struct.pack(f"<{count + 2}Q", *disks))
    generate = machine.kernel.word(module.address_of("raid6_call"))
    machine.call(generate, count + 2, size, table)
    assert tuple(machine.read(disk, size) for disk in disks[-2:]) == parity
    recover = machine.kernel.word(module.address_of("raid6_2data_recov"))
    for one, two in ((0, 1), (1, 4), (2, 3)):
        for lost in (one, two):
            machine.write(disks[lost], chance.randbytes(size))
        machine.call(recover, count + 2, size, one, two, table)
        assert [machine.read(disk, size) for disk in disks[:count]] == data
    recover = machine.kernel.word(module.address_of("raid6_datap_recov"))
    for lost in (3, -2):
        machine.write(disks[lost], chance.randbytes(size))
    machine.call(recover, count + 2, size, 3, table)
    assert [machine.read(disk, size) for disk in disks[:-1]] == [*data, parity[0]]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_xor_of_blocks(started, count):
    """xor_blocks adds up to four sources to the destination."""
    module = started("xor")
    machine = machine_of(module)
    chance, size = random.Random(count), 4096
    blocks = [chance.randbytes(size) for _ in range(count + 1)]
    addresses = [machine.alloc(block) for block in blocks]
    sources = machine.alloc(struct.pack(f"<{count}Q", *addresses[1:]))
    module.call("xor_blocks", count, size, addresses[0], sources)
    expected = functools.reduce(int.__xor__, (int.from_bytes(b, "little") for b in blocks))
    assert machine.read(addresses[0], size) == expected.to_bytes(size, "little")


@pytest.mark.parametrize("data", DATA, ids=len)
def test_libcrc32c(started, data):
    """The module asks the kernel's crypto API; the polynomial is Castagnoli's."""
    got = started("libcrc32c").call("crc32c", 0xFFFF_FFFF, data, len(data), returns="u32")
    assert got == crc(data, 0xFFFF_FFFF, width=32, polynomial=0x82F6_3B78, reflected=True)


def test_gf128mul(load):
    """Multiplication in GF(2**128) as GCM defines it (NIST SP 800-38D, 6.3), bit by bit."""
    module, chance = load("gf128mul"), random.Random(1)
    for _ in range(5):
        x, y = chance.randbytes(16), chance.randbytes(16)
        z, v = 0, int.from_bytes(y, "big")
        for bit in range(128):
            if int.from_bytes(x, "big") >> 127 - bit & 1:
                z ^= v
            v = v >> 1 ^ (0xE1 << 120 if v & 1 else 0)
        machine = machine_of(module)
        at = machine.alloc(x)
        module.call("gf128mul_lle", at, y)
        assert machine.read(at, 16) == z.to_bytes(16, "big")
        machine.free(at)


def test_cordic_turns_an_angle_into_coordinates(load):
    """Cosine and sine of degrees, 16 bits behind the point."""
    module = load("cordic")
    for degrees in (-170, -90, 0, 30, 45, 135, 180):
        # struct cordic_iq, two s32, comes back in one register.
        raw = module.call("cordic_calc_iq", degrees)
        x, y = struct.unpack("<2i", struct.pack("<Q", raw))
        assert abs(x / 65536 - math.cos(math.radians(degrees))) < 1e-3
        assert abs(y / 65536 - math.sin(math.radians(degrees))) < 1e-3


# All of it -----------------------------------------------------------------------------------


def test_every_module_loads_and_unloads(arch, corpus):
    """Each module is linked with what it needs; taking all out again leaves no memory taken."""
    machine = Machine(arch, root=corpus)
    names = sorted(
        path.name.split(".ko")[0] for path in corpus.glob("lib/modules/*/kernel/**/*.ko*")
    )
    assert names
    for name in names:
        if name.replace("-", "_") not in machine.modules:
            module = machine.load(name, init=False)
            assert module.state is State.COMING
            assert module.report.relocations
    assert len(machine.modules) == len(set(names))
    machine.check()


# Modules whose init only computes, allocates, or registers.
WITH_INIT = "ts_bm ts_kmp lru_cache md4 rmd160 michael_mic blake2b_generic".split()


@pytest.mark.parametrize("name", WITH_INIT)
def test_init_and_exit(arch, corpus, name):
    """Init succeeds and exit takes everything back: no object and no memory stays."""
    if not any(corpus.glob(f"lib/modules/*/kernel/**/{name}.ko*")):
        pytest.skip(f"no {name} for {arch.name}")
    machine = Machine(arch, root=corpus)
    before = machine.kernel.heap.live()
    module = machine.load(name)
    assert module.state is State.LIVE
    module.unload()
    assert machine.kernel.heap.live() == before
    machine.check()
