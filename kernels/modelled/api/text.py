# SPDX-License-Identifier: GPL-2.0-or-later
"""Static keys and static calls (kernel/jump_label.c, kernel/static_call_inline.c), and tracing.

What they change is text; `kernels.modelled.text` does it. A kernel that is not allowed to write text
stops the caller.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from allocator.errors import ExecmemError
from kernels.modelled.api.common import stop
from kernels.modelled.kernel import Kernel
from kernels.modelled.table import function
from kernels.modelled.text.live import LiveText


def _live(k: Kernel) -> LiveText:
    """Return what patches text; where there is nothing, the guest stops."""
    if k.text is None:
        stop(k, "this architecture's text cannot be patched")
    return k.text


@contextmanager
def _text(k: Kernel) -> Iterator[LiveText]:
    """Give what patches text; what it refuses stops the guest."""
    try:
        yield _live(k)
    except ExecmemError as error:
        stop(k, str(error))


@function("int static_key_count(struct static_key *key)")
def _count(k: Kernel, key: int) -> int:
    with _text(k) as text:
        return text.static_keys.count(key)


@function(
    "void static_key_enable(struct static_key *key)",
    "void static_key_enable_cpuslocked(struct static_key *key)",
)
def _enable(k: Kernel, key: int) -> None:
    with _text(k) as text:
        text.static_keys.enable(key)


@function(
    "void static_key_disable(struct static_key *key)",
    "void static_key_disable_cpuslocked(struct static_key *key)",
)
def _disable(k: Kernel, key: int) -> None:
    with _text(k) as text:
        text.static_keys.disable(key)


@function(
    "bool static_key_slow_inc(struct static_key *key)",
    "bool static_key_slow_inc_cpuslocked(struct static_key *key)",
)
def _inc(k: Kernel, key: int) -> int:
    with _text(k) as text:
        text.static_keys.inc(key)
    return 1


@function("bool static_key_fast_inc_not_disabled(struct static_key *key)")
def _inc_not_disabled(k: Kernel, key: int) -> int:
    with _text(k) as text:
        enabled = text.static_keys.count(key)
        if enabled:
            text.static_keys.inc(key)
    return int(enabled > 0)


@function(
    "void static_key_slow_dec(struct static_key *key)",
    "void static_key_slow_dec_cpuslocked(struct static_key *key)",
)
def _dec(k: Kernel, key: int) -> None:
    with _text(k) as text:
        if not text.static_keys.dec(key):
            k.print(b"jump label: negative count!\n", 4)


# A deferred key waits before it is disabled; here that moment has always come.


@function(
    "void __static_key_slow_dec_deferred(struct static_key *key, struct delayed_work *work,"
    " unsigned long timeout)"
)
def _dec_deferred(k: Kernel, key: int, _work: int, _timeout: int) -> None:
    _dec(k, key)


@function(
    "void __static_key_deferred_flush(void *key, struct delayed_work *work)",
    "void jump_label_rate_limit(struct static_key_deferred *key, unsigned long rl)",
)
def _deferred(_k: Kernel, _key: int, _other: int) -> None:
    return


@function("void __static_call_update(struct static_call_key *key, void *tramp, void *func)")
def _static_call_update(k: Kernel, key: int, trampoline: int, target: int) -> None:
    with _text(k) as text:
        text.static_calls.update(key, trampoline, target)


@function("long __static_call_return0(void)")
def _return_zero(_k: Kernel) -> int:
    return 0


# What trampolines call. The kernel's own do this in assembly, under names that no module knows.


@function("void ftrace_enter(void)")
def _ftrace_enter(k: Kernel) -> None:
    _live(k).ftrace.entered()


@function("void ftrace_exit(void)")
def _ftrace_exit(k: Kernel) -> None:
    _live(k).ftrace.left()
