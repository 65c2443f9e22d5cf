# SPDX-License-Identifier: GPL-2.0-or-later
"""The table's entries, one small file per subsystem; importing this package registers them."""

from __future__ import annotations

from allocator.errors import ExecmemError
from allocator.plugins import SYMBOLS, bring, installed
from kernels.modelled import table
from kernels.modelled.api import (
    aes,
    algorithms,
    bits,
    block,
    compress,
    cpu,
    cpuhp,
    crypto,
    cryptoalgs,
    cryptoqueue,
    devices,
    devres,
    drivers,
    files,
    firmware,
    idr,
    kobjects,
    kstrtox,
    leds,
    lists,
    locks,
    log,
    memory,
    misc,
    modulerefs,
    net,
    nodes,
    notifiers,
    params,
    pools,
    pseudofiles,
    rcu,
    scatterlist,
    sched,
    seqfile,
    skcipher,
    strings,
    subsystems,
    text,
    time,
    timers,
    transforms,
    user,
    wait,
    workqueue,
    xarray,
    xxhash,
    zstd,
)

_brought: set[str] = set()


def bring_installed() -> None:
    """Let installed packages declare their symbols (entry point `execmem.symbols`), once.

    ExecmemError, which names the package, where one cannot; it has declared nothing then.
    """
    for name, point in installed(SYMBOLS).items():
        if name in _brought:
            continue
        functions, data = set(table.FUNCTIONS), set(table.DATA)
        try:
            bring(point)
        except ExecmemError:
            for symbol in table.FUNCTIONS.keys() - functions:
                del table.FUNCTIONS[symbol]
            for symbol in table.DATA.keys() - data:
                del table.DATA[symbol]
            raise
        _brought.add(name)
