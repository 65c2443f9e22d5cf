# SPDX-License-Identifier: GPL-2.0-or-later
"""Queues of crypto requests (crypto/algapi.c), for algorithms that do their work later."""

from __future__ import annotations

from kernels.modelled.api import skcipher  # noqa: F401 -- declares the request
from kernels.modelled.api.common import empty_list, errno, last_node, list_del_init, list_insert
from kernels.modelled.kernel import Kernel
from kernels.modelled.structs import struct, view
from kernels.modelled.table import function

MAY_BACKLOG = 0x400  # CRYPTO_TFM_REQ_MAY_BACKLOG

struct("crypto_queue", "list backlog qlen max_qlen")


@function("void crypto_init_queue(struct crypto_queue *queue, unsigned int max_qlen)")
def _crypto_init_queue(k: Kernel, queue: int, most: int) -> None:
    empty_list(k, queue)
    found = view(k, "crypto_queue", queue)
    found.put("backlog", queue)
    found.put("qlen", 0)
    found.put("max_qlen", most)


@function(
    "int crypto_enqueue_request(struct crypto_queue *queue, struct crypto_async_request *request)"
)
def _crypto_enqueue_request(k: Kernel, queue: int, request: int) -> int:
    found = view(k, "crypto_queue", queue)
    result = errno("EINPROGRESS")
    if found.number("qlen") >= found.number("max_qlen"):
        if not view(k, "crypto_async_request", request).number("flags") & MAY_BACKLOG:
            return errno("ENOSPC")
        result = errno("EBUSY")
        if found.number("backlog") == queue:
            found.put("backlog", request)
    found.put("qlen", found.number("qlen") + 1)
    list_insert(k, request, last_node(k, queue))
    return result


@function("struct crypto_async_request *crypto_dequeue_request(struct crypto_queue *queue)")
def _crypto_dequeue_request(k: Kernel, queue: int) -> int:
    found = view(k, "crypto_queue", queue)
    if not found.number("qlen"):
        return 0
    found.put("qlen", found.number("qlen") - 1)
    waiting = found.number("backlog")
    if waiting != queue:
        found.put("backlog", k.word(waiting))
    request = k.word(queue)
    list_del_init(k, request)
    return request
