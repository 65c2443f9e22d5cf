# SPDX-License-Identifier: GPL-2.0-or-later
"""Sizes of zstd's workspaces (lib/zstd/): modules reserve them early; nothing compresses here."""

from __future__ import annotations

import struct as struct_

from allocator.types import KIB
from kernels.modelled.kernel import Kernel
from kernels.modelled.structs import struct, view
from kernels.modelled.table import function

WINDOW_LOG_MIN, WINDOW_LOG_MAX = 10, 27
FAST, BEST = 1, 8  # ZSTD_fast ... ZSTD_btultra
struct("zstd_compression_parameters", "windowLog chainLog hashLog strategy")
BLOCK, TABLES = 128 * KIB, 256 * KIB


@function(
    "struct zstd_parameters zstd_get_params(int level, unsigned long long estimated_src_size)"
)
def _zstd_get_params(k: Kernel, result: int, level: int, size: int) -> int:
    window = min(max((max(size, 1) - 1).bit_length(), WINDOW_LOG_MIN), WINDOW_LOG_MAX)
    strategy = min(max(FAST, level // 2), BEST)
    # Compression: window, chain, hash and search log, shortest match, target, strategy;
    # frame: content size, checksum, no dictionary id.
    k.memory.write(
        result,
        struct_.pack("<10I", window, window, window, level & 0xFFFFFFFF, 4, 0, strategy, 1, 0, 0),
    )
    return result


@function("size_t zstd_cstream_workspace_bound(const struct zstd_compression_parameters *cparams)")
def _zstd_cstream_bound(k: Kernel, parameters: int) -> int:
    found = view(k, "zstd_compression_parameters", parameters)
    window, chain, hashes = map(found.number, ("windowLog", "chainLog", "hashLog"))
    return (1 << (window & 31)) + (4 << (chain & 31)) + (4 << (hashes & 31)) + 2 * BLOCK + TABLES


@function("size_t zstd_dstream_workspace_bound(size_t max_window_size)")
def _zstd_dstream_bound(_k: Kernel, window: int) -> int:
    return window + 2 * BLOCK + TABLES
