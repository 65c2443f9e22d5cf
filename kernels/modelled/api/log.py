# SPDX-License-Identifier: GPL-2.0-or-later
"""printk and the printf family (kernel/printk/printk.c, lib/vsprintf.c, lib/hexdump.c).

What a message looks like is decided by `kernels.modelled.printf`; here stands what each
function does with it: into the log, cut to a buffer, or into fresh memory.
"""

from __future__ import annotations

from kernels.modelled.api.common import INT_MAX, stop, text
from kernels.modelled.api.memory import kmalloc
from kernels.modelled.api.time import jiffies
from kernels.modelled.kernel import Kernel
from kernels.modelled.printf import pointer_hash
from kernels.modelled.structs import struct as declare
from kernels.modelled.structs import view
from kernels.modelled.table import Arguments, function

KERN_EMERG, KERN_WARNING, KERN_INFO, KERN_DEBUG = 0, 4, 6, 7
CUT_HERE = b"------------[ cut here ]------------\n"  # include/asm-generic/bug.h
DUMP_PREFIX_ADDRESS, DUMP_PREFIX_OFFSET = 1, 2
RATELIMIT_MSG_ON_RELEASE = 1

declare(
    "ratelimit_state",
    "lock interval burst printed missed flags begin",
)


@function(
    "int _printk(const char *fmt, ...)",
    "int printk(const char *fmt, ...)",
    "int _printk_deferred(const char *fmt, ...)",
)
def _printk(k: Kernel, fmt: int, args: Arguments) -> int:
    message = k.format(fmt, args)
    k.print(message)
    return len(message)


@function("int vprintk(const char *fmt, va_list args)")
def _vprintk(k: Kernel, fmt: int, args: int) -> int:
    return _printk(k, fmt, k.va_list(args))


@function("void __warn_printk(const char *fmt, ...)")
def _warn_printk(k: Kernel, fmt: int, args: Arguments) -> None:
    k.print(CUT_HERE, KERN_WARNING)
    k.print(k.format(fmt, args), KERN_WARNING)


@function("void __dynamic_pr_debug(struct _ddebug *descriptor, const char *fmt, ...)")
def _dynamic_pr_debug(k: Kernel, _descriptor: int, fmt: int, args: Arguments) -> None:
    k.print(k.format(fmt, args), KERN_DEBUG)


@function("void panic(const char *fmt, ...)")
def _panic(k: Kernel, fmt: int, args: Arguments) -> None:
    message = k.format(fmt, args).rstrip(b"\n")
    k.print(b"Kernel panic - not syncing: " + message + b"\n", KERN_EMERG)
    stop(k, message.decode("utf-8", "replace"))


@function("void dump_stack(void)", "void dump_stack_lvl(const char *log_lvl)")
def _dump_stack(k: Kernel, *_level: int) -> None:
    k.print(b"Call Trace:\n " + k.caller().encode() + b"\n", KERN_INFO)


@function("int __printk_ratelimit(const char *func)")
def _printk_ratelimit(_k: Kernel, _func: int) -> int:
    return 1


@function("int ___ratelimit(struct ratelimit_state *rs, const char *func)")
def _ratelimit(k: Kernel, rs: int, func: int) -> int:
    found = view(k, "ratelimit_state", rs)
    interval, burst, printed, missed, flags, begin = map(
        found.number, ("interval", "burst", "printed", "missed", "flags", "begin")
    )
    now = jiffies(k)
    if interval == 0:
        return 1
    if begin == 0 or now > begin + interval:
        if begin and missed and not flags & RATELIMIT_MSG_ON_RELEASE:
            k.print(text(k, func) + b": %d callbacks suppressed\n" % missed, KERN_WARNING)
            missed = 0
        found.put("begin", now)
        printed = 0
    passes = burst > printed
    found.put("printed", printed + passes)
    found.put("missed", missed + (not passes))
    return int(passes)


# Into a buffer ---------------------------------------------------------------------------


def _bounded(k: Kernel, buffer: int, size: int, message: bytes) -> int:
    """Store at most `size` bytes including the NUL; return the length that it would have."""
    if size > INT_MAX:  # the kernel warns once and stores nothing
        return 0
    if size:
        k.memory.write(buffer, message[: size - 1] + b"\0")
    return len(message)


@function("int snprintf(char *buf, size_t size, const char *fmt, ...)")
def _snprintf(k: Kernel, buffer: int, size: int, fmt: int, args: Arguments) -> int:
    return _bounded(k, buffer, size, k.format(fmt, args))


@function("int vsnprintf(char *buf, size_t size, const char *fmt, va_list args)")
def _vsnprintf(k: Kernel, buffer: int, size: int, fmt: int, args: int) -> int:
    return _snprintf(k, buffer, size, fmt, k.va_list(args))


@function("int scnprintf(char *buf, size_t size, const char *fmt, ...)")
def _scnprintf(k: Kernel, buffer: int, size: int, fmt: int, args: Arguments) -> int:
    return max(min(_snprintf(k, buffer, size, fmt, args), size - 1), 0)


@function("int vscnprintf(char *buf, size_t size, const char *fmt, va_list args)")
def _vscnprintf(k: Kernel, buffer: int, size: int, fmt: int, args: int) -> int:
    return _scnprintf(k, buffer, size, fmt, k.va_list(args))


@function("int sprintf(char *buf, const char *fmt, ...)")
def _sprintf(k: Kernel, buffer: int, fmt: int, args: Arguments) -> int:
    return _snprintf(k, buffer, INT_MAX, fmt, args)


@function("int vsprintf(char *buf, const char *fmt, va_list args)")
def _vsprintf(k: Kernel, buffer: int, fmt: int, args: int) -> int:
    return _sprintf(k, buffer, fmt, k.va_list(args))


@function("int sysfs_emit(char *buf, const char *fmt, ...)")
def _sysfs_emit(k: Kernel, buffer: int, fmt: int, args: Arguments) -> int:
    return _sysfs_emit_at(k, buffer, 0, fmt, args) if buffer else 0


@function("int sysfs_emit_at(char *buf, int at, const char *fmt, ...)")
def _sysfs_emit_at(k: Kernel, buffer: int, at: int, fmt: int, args: Arguments) -> int:
    page = k.memory.page_size
    if buffer % page or not 0 <= at < page:
        k.print(b"invalid sysfs_emit: buf:%x at:%d\n" % (buffer, at), KERN_WARNING)
        return 0
    return _scnprintf(k, buffer + at, page - at, fmt, args)


@function("char *kasprintf(gfp_t gfp, const char *fmt, ...)")
def _kasprintf(k: Kernel, gfp: int, fmt: int, args: Arguments) -> int:
    message = k.format(fmt, args) + b"\0"
    found = kmalloc(k, len(message), gfp)
    if found:
        k.memory.write(found, message)
    return found


@function(
    "char *kvasprintf(gfp_t gfp, const char *fmt, va_list args)",
    "const char *kvasprintf_const(gfp_t gfp, const char *fmt, va_list args)",
)
def _kvasprintf(k: Kernel, gfp: int, fmt: int, args: int) -> int:
    return _kasprintf(k, gfp, fmt, k.va_list(args))


# Hex dumps -------------------------------------------------------------------------------


def _hex_line(data: bytes, row: int, group: int, *, ascii_column: bool) -> bytes:
    """Return one line of a dump (hex_dump_to_buffer): words in CPU order, then the characters."""
    if group not in (1, 2, 4, 8) or len(data) % group:
        group = 1
    words = (data[at : at + group][::-1].hex() for at in range(0, len(data), group))
    line = " ".join(words)
    if ascii_column:
        shown = "".join(chr(c) if 32 <= c < 127 else "." for c in data)
        line = line.ljust(row * 2 + row // group + 1) + shown
    return line.encode()


@function(
    "int hex_dump_to_buffer(const void *buf, size_t len, int rowsize, int groupsize,"
    " char *linebuf, size_t linebuflen, bool ascii)"
)
def _hex_dump_to_buffer(
    k: Kernel, buf: int, size: int, row: int, group: int, line: int, room: int, ascii_: int
) -> int:
    row = row if row in (16, 32) else 16
    data = k.memory.read(buf, min(size, row))
    dump = _hex_line(data, row, group, ascii_column=bool(ascii_)) if data else b""
    return _bounded(k, line, room, dump)


@function(
    "void print_hex_dump(const char *level, const char *prefix_str, int prefix_type,"
    " int rowsize, int groupsize, const void *buf, size_t len, bool ascii)"
)
def _print_hex_dump(
    k: Kernel, level: int, prefix: int, kind: int, row: int, group: int, buf: int, size: int, a: int
) -> None:
    row = row if row in (16, 32) else 16
    start = text(k, level) + text(k, prefix)
    for at in range(0, size, row):
        place = b""
        if kind == DUMP_PREFIX_ADDRESS:
            place = b"%016x: " % pointer_hash(buf + at)
        elif kind == DUMP_PREFIX_OFFSET:
            place = b"%08x: " % at
        data = k.memory.read(buf + at, min(row, size - at))
        k.print(start + place + _hex_line(data, row, group, ascii_column=bool(a)) + b"\n")
