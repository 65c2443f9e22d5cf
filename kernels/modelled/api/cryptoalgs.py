# SPDX-License-Identifier: GPL-2.0-or-later
"""Algorithms that modules register with the crypto API (include/linux/crypto.h, include/crypto/)."""

from __future__ import annotations

from kernels.modelled.api.registration import member_value, registration
from kernels.modelled.kernel import Kernel
from kernels.modelled.structs import struct, view
from kernels.modelled.table import function

struct(
    "cipher_alg",
    "cia_min_keysize cia_max_keysize cia_setkey cia_encrypt cia_decrypt",
)
struct(
    "crypto_alg",
    "cra_flags cra_blocksize cra_ctxsize cra_alignmask cra_priority cra_name cra_driver_name"
    " cra_u.cipher cra_init cra_exit cra_destroy",
)
# cra_u is a union; a compression algorithm's arm is declared apart.
struct("compress_alg", "coa_compress coa_decompress")
struct("hash_alg_common", "digestsize base")
struct(
    "shash_alg",
    "init update final finup digest export import setkey init_tfm exit_tfm clone_tfm descsize digestsize base",
)
struct(
    "ahash_alg",
    "init update final finup digest export import setkey init_tfm exit_tfm clone_tfm reqsize halg",
)
struct("skcipher_alg_common", "min_keysize max_keysize ivsize base")
struct(
    "skcipher_alg",
    "setkey encrypt decrypt export import init exit walksize"
    " min_keysize max_keysize ivsize chunksize base",
)
struct("lskcipher_alg", "setkey encrypt decrypt init exit co")
struct(
    "aead_alg",
    "setkey setauthsize encrypt decrypt init exit ivsize maxauthsize chunksize base",
)
struct("rng_alg", "generate seed set_ent seedsize base")
struct("scomp_alg", "alloc_ctx free_ctx compress decompress base")
struct(
    "acomp_alg",
    "compress decompress dst_free init exit reqsize base",
)
struct(
    "akcipher_alg",
    "sign verify encrypt decrypt set_pub_key set_priv_key max_size init exit base",
)
struct(
    "kpp_alg",
    "set_secret generate_public_key compute_shared_secret max_size init exit base",
)
struct("crypto_template", "list module create name")

COMMON = ("cra_driver_name", "cra_priority", "cra_blocksize")
# Kind -> where its crypto_alg is, and what else is of interest.
ALGORITHMS = {
    "shash": ("base", ("digestsize", "descsize")),
    "ahash": ("halg.base", ("halg.digestsize",)),
    "skcipher": ("base", ("min_keysize", "max_keysize", "ivsize")),
    "lskcipher": ("co.base", ("co.min_keysize", "co.max_keysize", "co.ivsize")),
    "aead": ("base", ("ivsize", "maxauthsize")),
    "rng": ("base", ("seedsize",)),
    "scomp": ("base", ()),
    "acomp": ("base", ()),
    "akcipher": ("base", ()),
    "kpp": ("base", ()),
}

for _kind, (_base, _fields) in ALGORITHMS.items():
    _many = f"{_kind}es" if _kind.endswith("h") else f"{_kind}s"
    _declared = [f"{_kind}(struct {_kind}_alg *alg)"]
    if _kind not in ("akcipher", "kpp"):
        _declared.append(f"{_many}(struct {_kind}_alg *algs, int count)")
    registration(
        _kind,
        f"{_kind}_alg",
        tuple(f"int crypto_register_{text}" for text in _declared),
        tuple(f"void crypto_unregister_{text}" for text in _declared),
        name=f"{_base}.cra_name",
        fields=(*(f"{_base}.{field}" for field in COMMON), *_fields),
    )

registration(
    "crypto template",
    "crypto_template",
    "int crypto_register_template(struct crypto_template *tmpl)",
    "void crypto_unregister_template(struct crypto_template *tmpl)",
)

ALG_TYPE_MASK = 0xF
# CRYPTO_ALG_TYPE_*: of those that come as a bare struct crypto_alg.
BARE = {1: "cipher", 2: "compress"}


def _bare(k: Kernel, alg: int) -> str:
    return BARE.get(view(k, "crypto_alg", alg).number("cra_flags") & ALG_TYPE_MASK, "algorithm")


def _enter_alg(k: Kernel, alg: int) -> None:
    kind = _bare(k, alg)
    fields = (
        *COMMON,
        *(("cra_u.cipher.cia_min_keysize", "cra_u.cipher.cia_max_keysize") * (kind == "cipher")),
    )
    found = view(k, "crypto_alg", alg)
    callbacks = found.functions()
    if kind == "compress":
        callbacks = {n: a for n, a in callbacks.items() if not n.startswith("cia_")}
        callbacks |= view(k, "compress_alg", found.at("cra_u.cipher")).functions()
    values = {member.rpartition(".")[2]: member_value(found, member) for member in fields}
    k.register(kind, alg, found.text("cra_name"), fields=values, callbacks=callbacks)


@function("int crypto_register_alg(struct crypto_alg *alg)")
def _register_alg(k: Kernel, alg: int) -> int:
    _enter_alg(k, alg)
    return 0


@function("void crypto_unregister_alg(struct crypto_alg *alg)")
def _unregister_alg(k: Kernel, alg: int) -> None:
    k.registry.remove(_bare(k, alg), alg)


@function("int crypto_register_algs(struct crypto_alg *algs, int count)")
def _register_algs(k: Kernel, algs: int, count: int) -> int:
    for n in range(count):
        _enter_alg(k, algs + n * k.layouts.size_of("crypto_alg"))
    return 0


@function("void crypto_unregister_algs(struct crypto_alg *algs, int count)")
def _unregister_algs(k: Kernel, algs: int, count: int) -> None:
    for n in range(count):
        k.spend()
        _unregister_alg(k, algs + n * k.layouts.size_of("crypto_alg"))
