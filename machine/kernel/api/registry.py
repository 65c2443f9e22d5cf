# SPDX-License-Identifier: GPL-2.0-or-later
"""Subsystems that modules register with and that nobody uses here.

Registering succeeds and is forgotten: what a module offers is called by name. Static keys
(kernel/jump_label.c) count in guest memory; flipping their branches is text patching, and
the branches stay as they are.
"""

from __future__ import annotations

from machine.kernel.kernel import Kernel
from machine.kernel.table import function

_KINDS = "aead ahash akcipher alg kpp rng scomp shash skcipher template".split()
_KINDS_OF_MANY = "aeads ahashes algs rngs shashes skciphers".split()


@function(
    *(f"int crypto_register_{kind}(void *alg)" for kind in _KINDS),
    *(f"void crypto_unregister_{kind}(void *alg)" for kind in _KINDS),
    "int textsearch_register(struct ts_ops *ops)",
    "int textsearch_unregister(struct ts_ops *ops)",
)
def _register(_k: Kernel, _what: int) -> int:
    return 0


@function(
    *(f"int crypto_register_{kind}(void *algs, int count)" for kind in _KINDS_OF_MANY),
    *(f"void crypto_unregister_{kind}(void *algs, int count)" for kind in _KINDS_OF_MANY),
)
def _register_many(_k: Kernel, _what: int, _count: int) -> int:
    return 0


@function("bool try_module_get(struct module *module)")
def _try_module_get(_k: Kernel, _module: int) -> int:
    return 1


@function("void __module_get(struct module *module)", "void module_put(struct module *module)")
def _module_reference(_k: Kernel, _module: int) -> None:
    return


# struct static_key: the count of enablers is its first int; -1 means "being enabled".


@function("int static_key_count(struct static_key *key)")
def _static_key_count(k: Kernel, key: int) -> int:
    return k.word(key, 4)


@function("void static_key_enable(struct static_key *key)")
def _static_key_enable(k: Kernel, key: int) -> None:
    k.store(key, max(k.word(key, 4), 1), 4)


@function("void static_key_disable(struct static_key *key)")
def _static_key_disable(k: Kernel, key: int) -> None:
    k.store(key, 0, 4)
