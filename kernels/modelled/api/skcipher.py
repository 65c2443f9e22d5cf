# SPDX-License-Identifier: GPL-2.0-or-later
"""Walks of the crypto API (crypto/skcipher.c): a request's data, a piece at a time.

The kernel maps pages and falls back to a bounce buffer where pieces are too small. Here every
piece goes through the buffer: the algorithm cannot tell, and what it has not processed does
not reach the destination.
"""

from __future__ import annotations

import attrs

from kernels.modelled.api import scatterlist
from kernels.modelled.api.common import state
from kernels.modelled.kernel import Kernel
from kernels.modelled.structs import StructView, struct, view
from kernels.modelled.table import function

struct("crypto_tfm", "refcnt node exit __crt_alg")
struct("crypto_async_request", "list complete data tfm flags")
struct("skcipher_request", "cryptlen iv src dst base")
struct("aead_request", "base assoclen cryptlen iv src dst")
struct("crypto_skcipher", "reqsize base")
struct("crypto_aead", "authsize reqsize base")
struct(
    "skcipher_walk",
    "src.virt.addr dst.virt.addr nbytes total iv ivsize flags blocksize stride alignmask",
)


@attrs.define
class _Walk:
    """Where a walk is: its lists, the byte that comes next, and the bounce buffer."""

    src: int
    dst: int
    at: int
    buffer: int


@attrs.define
class _Walks:
    """Walks under way, by the address of their structure."""

    live: dict[int, _Walk] = attrs.field(factory=dict)


def _algorithm(k: Kernel, request: StructView, structure: str, base: str) -> StructView:
    """Return the algorithm that a request is for."""
    tfm = view(k, "crypto_tfm", request.number("base.tfm"))
    return view(k, structure, tfm.number("__crt_alg") - k.layouts.offset_of(structure, base))


def _start(k: Kernel, address: int, request: StructView, skip: int, total: int) -> int:
    walk = view(k, "skcipher_walk", address)
    for member in ("nbytes", "flags"):
        walk.put(member, 0)
    walk.put("total", total)
    walk.put("iv", request.number("iv"))
    if not total:
        return 0
    buffer = k.heap.alloc(k.memory.page_size)
    if not buffer:
        return -12  # ENOMEM
    found = _Walk(request.number("src"), request.number("dst"), skip, buffer)
    state(k, _Walks).live[address] = found
    _next(k, walk, found)
    return 0


def _next(k: Kernel, walk: StructView, found: _Walk) -> None:
    """Put the next piece into the buffer: at most a page, whole blocks unless it is the last."""
    count = min(walk.number("total"), k.memory.page_size)
    k.memory.write(found.buffer, scatterlist.read(k, found.src, found.at, count))
    walk.put("src.virt.addr", found.buffer)
    walk.put("dst.virt.addr", found.buffer)
    walk.put("nbytes", count)


@function(
    "int skcipher_walk_virt(struct skcipher_walk *walk, struct skcipher_request *req, bool atomic)"
)
def _walk_virt(k: Kernel, address: int, req: int, _atomic: int) -> int:
    request = view(k, "skcipher_request", req)
    walk, alg = (
        view(k, "skcipher_walk", address),
        _algorithm(k, request, "skcipher_alg", "base"),
    )
    walk.put("ivsize", alg.number("ivsize"))
    walk.put("blocksize", alg.number("base.cra_blocksize"))
    walk.put("stride", alg.number("walksize") or alg.number("chunksize") or 1)
    walk.put("alignmask", alg.number("base.cra_alignmask"))
    return _start(k, address, request, 0, request.number("cryptlen"))


def _walk_aead(k: Kernel, address: int, req: int, *, decrypts: bool) -> int:
    request = view(k, "aead_request", req)
    tfm = request.number("base.tfm")
    walk, alg = view(k, "skcipher_walk", address), _algorithm(k, request, "aead_alg", "base")
    aead = view(k, "crypto_aead", tfm - k.layouts.offset_of("crypto_aead", "base"))
    walk.put("ivsize", alg.number("ivsize"))
    walk.put("blocksize", alg.number("base.cra_blocksize"))
    walk.put("stride", alg.number("chunksize") or 1)
    walk.put("alignmask", alg.number("base.cra_alignmask"))
    total = request.number("cryptlen") - decrypts * aead.number("authsize")
    return _start(k, address, request, request.number("assoclen"), total)


@function(
    "int skcipher_walk_aead_encrypt(struct skcipher_walk *walk, struct aead_request *req,"
    " bool atomic)"
)
def _walk_aead_encrypt(k: Kernel, address: int, req: int, _atomic: int) -> int:
    return _walk_aead(k, address, req, decrypts=False)


@function(
    "int skcipher_walk_aead_decrypt(struct skcipher_walk *walk, struct aead_request *req,"
    " bool atomic)"
)
def _walk_aead_decrypt(k: Kernel, address: int, req: int, _atomic: int) -> int:
    return _walk_aead(k, address, req, decrypts=True)


@function("int skcipher_walk_done(struct skcipher_walk *walk, int err)")
def _walk_done(k: Kernel, address: int, left: int) -> int:
    """Take over what was processed; `left` bytes of the piece were not, or it is an error."""
    walk, walks = view(k, "skcipher_walk", address), state(k, _Walks)
    found = walks.live.get(address)
    if found is None:
        return left
    total = 0
    if left >= 0:
        done = walk.number("nbytes") - left
        scatterlist.write(k, found.dst, found.at, k.memory.read(found.buffer, done))
        found.at += done
        total = walk.number("total") - done
        if not done:  # the rest is no whole block
            total, left = 0, -22  # EINVAL
    walk.put("total", total)
    if total:
        _next(k, walk, found)
        return 0
    walk.put("nbytes", 0)
    k.heap.free(found.buffer)
    del walks.live[address]
    return min(left, 0)
