# SPDX-License-Identifier: GPL-2.0-or-later
"""The table's entries, one small file per subsystem; importing this package registers them."""

from __future__ import annotations

from machine.kernel.api import (
    aes,
    algorithms,
    bits,
    block,
    compress,
    cpu,
    crypto,
    cryptoqueue,
    firmware,
    lists,
    locks,
    log,
    memory,
    net,
    notifiers,
    objects,
    params,
    pools,
    registry,
    scatterlist,
    sched,
    skcipher,
    static_keys,
    strings,
    time,
    timers,
    transforms,
    wait,
    workqueue,
    xarray,
    xxhash,
    zstd,
)
