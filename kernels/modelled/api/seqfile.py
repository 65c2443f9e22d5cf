# SPDX-License-Identifier: GPL-2.0-or-later
"""Files whose contents are written as they are read (fs/seq_file.c): into a buffer, until it is full.

A file that does not fit is marked by a count that equals the size; the kernel then starts
anew with more room. Whoever calls a `show` callback gives it a struct seq_file with a buffer.
"""

from __future__ import annotations

from kernels.modelled.api.common import text
from kernels.modelled.kernel import Kernel
from kernels.modelled.structs import struct, view
from kernels.modelled.table import Arguments, function

struct("seq_file", "buf size from count pad_until index")


def append(k: Kernel, file: int, contents: bytes) -> int:
    """Append to the buffer; -1 and a full buffer where there is no room."""
    found = view(k, "seq_file", file)
    count, size = found.number("count"), found.number("size")
    # printf needs room for a NUL, too; so do the others here, which never matters but for it.
    if count + len(contents) >= size:
        found.put("count", size)
        return -1
    if contents:
        k.memory.write(found.number("buf") + count, contents)
    found.put("count", count + len(contents))
    return 0


@function("void seq_printf(struct seq_file *m, const char *fmt, ...)")
def _seq_printf(k: Kernel, file: int, fmt: int, args: Arguments) -> None:
    append(k, file, k.format(fmt, args))


@function("void seq_vprintf(struct seq_file *m, const char *fmt, va_list args)")
def _seq_vprintf(k: Kernel, file: int, fmt: int, args: int) -> None:
    append(k, file, k.format(fmt, k.va_list(args)))


@function("void seq_putc(struct seq_file *m, char c)")
def _seq_putc(k: Kernel, file: int, character: int) -> None:
    append(k, file, bytes([character & 0xFF]))


@function(
    "void __seq_puts(struct seq_file *m, const char *s)",
    "void seq_puts(struct seq_file *m, const char *s)",
)
def _seq_puts(k: Kernel, file: int, s: int) -> None:
    append(k, file, text(k, s))


@function("int seq_write(struct seq_file *seq, const void *data, size_t len)")
def _seq_write(k: Kernel, file: int, data: int, size: int) -> int:
    return append(k, file, k.memory.read(data, size) if size else b"")


@function(
    "void seq_put_decimal_ull(struct seq_file *m, const char *delimiter, unsigned long long num)"
)
def _seq_put_decimal_ull(k: Kernel, file: int, delimiter: int, number: int) -> None:
    append(k, file, (text(k, delimiter) if delimiter else b"") + b"%d" % number)


@function("void seq_put_decimal_ll(struct seq_file *m, const char *delimiter, long long num)")
def _seq_put_decimal_ll(k: Kernel, file: int, delimiter: int, number: int) -> None:
    _seq_put_decimal_ull(k, file, delimiter, number)


@function(
    "void seq_escape_mem(struct seq_file *m, const char *src, size_t len, unsigned int flags,"
    " const char *esc)"
)
def _seq_escape_mem(
    k: Kernel, file: int, src: int, size: int, _flags: int, characters: int
) -> None:
    chosen = text(k, characters) if characters else None
    append(
        k,
        file,
        b"".join(
            b"\\%03o" % byte if (chosen is None or byte in chosen) else bytes([byte])
            for byte in (k.memory.read(src, size) if size else b"")
        ),
    )


@function("void seq_pad(struct seq_file *m, char c)")
def _seq_pad(k: Kernel, file: int, character: int) -> None:
    found = view(k, "seq_file", file)
    missing = found.number("pad_until") - found.number("count")
    append(k, file, b" " * max(missing, 0) + (bytes([character]) if character else b""))


@function("bool seq_has_overflowed(struct seq_file *m)")
def _seq_has_overflowed(k: Kernel, file: int) -> int:
    found = view(k, "seq_file", file)
    return int(found.number("count") == found.number("size"))


@function("struct list_head *seq_list_start(struct list_head *head, loff_t pos)")
def _seq_list_start(k: Kernel, head: int, position: int) -> int:
    node = k.word(head)
    while node != head:
        if position == 0:
            return node
        node, position = k.word(node), position - 1
    return 0


@function("struct list_head *seq_list_next(void *v, struct list_head *head, loff_t *ppos)")
def _seq_list_next(k: Kernel, node: int, head: int, at: int) -> int:
    k.store(at, k.word(at) + 1)
    following = k.word(node)
    return 0 if following == head else following
