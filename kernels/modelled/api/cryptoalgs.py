# SPDX-License-Identifier: GPL-2.0-or-later
"""Algorithms that modules register with the crypto API (include/linux/crypto.h, include/crypto/)."""

from __future__ import annotations

from kernels.modelled.api.registration import member_value, registration
from kernels.modelled.kernel import Kernel
from kernels.modelled.structs import layout, struct, view
from kernels.modelled.table import function

struct(
    "cipher_alg",
    "cia_min_keysize:u32 cia_max_keysize:u32 cia_setkey:fn cia_encrypt:fn cia_decrypt:fn",
)
struct(
    "crypto_alg",
    "cra_list:list cra_users:list cra_flags:u32 cra_blocksize:u32 cra_ctxsize:u32"
    " cra_alignmask:u32 cra_priority:i32 cra_refcnt:u32 cra_name:char[128]"
    " cra_driver_name:char[128] cra_type:ptr cra_u.cipher:cipher_alg cra_init:fn cra_exit:fn"
    " cra_destroy:fn cra_module:ptr",
)
# cra_u is a union; a compression algorithm's arm is declared apart.
struct("compress_alg", "coa_compress:fn coa_decompress:fn")
struct("hash_alg_common", "digestsize:u32 statesize:u32 base:crypto_alg")
struct(
    "shash_alg",
    "init:fn update:fn final:fn finup:fn digest:fn export:fn import:fn setkey:fn init_tfm:fn"
    " exit_tfm:fn clone_tfm:fn descsize:u32 halg:hash_alg_common",
)
struct(
    "ahash_alg",
    "init:fn update:fn final:fn finup:fn digest:fn export:fn import:fn setkey:fn init_tfm:fn"
    " exit_tfm:fn clone_tfm:fn reqsize:u32 halg:hash_alg_common",
)
struct(
    "skcipher_alg_common",
    "min_keysize:u32 max_keysize:u32 ivsize:u32 chunksize:u32 statesize:u32 base:crypto_alg",
)
struct(
    "skcipher_alg",
    "setkey:fn encrypt:fn decrypt:fn export:fn import:fn init:fn exit:fn walksize:u32"
    " co:skcipher_alg_common",
)
struct("lskcipher_alg", "setkey:fn encrypt:fn decrypt:fn init:fn exit:fn co:skcipher_alg_common")
struct(
    "aead_alg",
    "setkey:fn setauthsize:fn encrypt:fn decrypt:fn init:fn exit:fn ivsize:u32 maxauthsize:u32"
    " chunksize:u32 base:crypto_alg",
)
struct("rng_alg", "generate:fn seed:fn set_ent:fn seedsize:u32 base:crypto_alg")
struct("scomp_alg", "alloc_ctx:fn free_ctx:fn compress:fn decompress:fn base:crypto_alg")
struct(
    "acomp_alg",
    "compress:fn decompress:fn dst_free:fn init:fn exit:fn reqsize:u32 base:crypto_alg",
)
struct(
    "akcipher_alg",
    "sign:fn verify:fn encrypt:fn decrypt:fn set_pub_key:fn set_priv_key:fn max_size:fn init:fn"
    " exit:fn base:crypto_alg",
)
struct(
    "kpp_alg",
    "set_secret:fn generate_public_key:fn compute_shared_secret:fn max_size:fn init:fn exit:fn"
    " base:crypto_alg",
)
struct(
    "crypto_template",
    "list:list instances.first:ptr module:ptr create:fn name:char[128]",
)

COMMON = ("cra_driver_name", "cra_priority", "cra_blocksize")
# Kind -> where its crypto_alg is, and what else is of interest.
ALGORITHMS = {
    "shash": ("halg.base", ("halg.digestsize", "descsize")),
    "ahash": ("halg.base", ("halg.digestsize",)),
    "skcipher": ("co.base", ("co.min_keysize", "co.max_keysize", "co.ivsize")),
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
        _enter_alg(k, algs + n * layout("crypto_alg").size)
    return 0


@function("void crypto_unregister_algs(struct crypto_alg *algs, int count)")
def _unregister_algs(k: Kernel, algs: int, count: int) -> None:
    for n in range(count):
        k.spend()
        _unregister_alg(k, algs + n * layout("crypto_alg").size)
