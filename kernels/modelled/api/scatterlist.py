# SPDX-License-Identifier: GPL-2.0-or-later
"""Scatterlists (lib/scatterlist.c, crypto/scatterwalk.c): memory in pieces, named by page.

An entry names a struct page, and module code turns that into an address by arithmetic that
is compiled into it. So the addresses of struct pages are the kernel's, although no struct
page is there; only memory of the direct map has them.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from kernels.modelled.api.common import copy, fill, state, stop
from kernels.modelled.kernel import Kernel
from kernels.modelled.structs import size_of, struct, view
from kernels.modelled.table import function

struct("page", "")
STRUCT_PAGE = size_of("page")
CHAIN, END = 1, 2  # the low bits of page_link

struct("scatterlist", "page_link offset length")
struct("sg_mapping_iter", "page addr length consumed piter.sg piter.__nents __flags")


def entry_size(k: Kernel) -> int:
    """Return the bytes of an entry of a list."""
    return k.layouts.size_of("scatterlist")


def page_of(k: Kernel, address: int) -> int:
    """Return the address of the struct page of an address in the direct map (virt_to_page)."""
    if address not in k.memory.direct_map:
        stop(k, f"{address:#x} has no struct page: it is not in the direct map")
    return k.memory.address_map.vmemmap + (
        address - k.memory.direct_map.start
    ) // k.memory.page_size * STRUCT_PAGE(k)


def page_address(k: Kernel, page: int) -> int:
    """Return the address of a struct page's memory."""
    number = (page - k.memory.address_map.vmemmap) // STRUCT_PAGE(k)
    return k.memory.direct_map.start + number * k.memory.page_size


def set_entry(k: Kernel, sg: int, address: int, size: int, *, last: bool = True) -> None:
    """Let an entry name [address, address + size) (sg_set_buf)."""
    entry = view(k, "scatterlist", sg)
    entry.put("page_link", page_of(k, address) | END * last)
    entry.put("offset", address % k.memory.page_size)
    entry.put("length", size)


def following(k: Kernel, sg: int) -> int:
    """Return the entry after one, 0 after the last (sg_next)."""
    if k.word(sg) & END:
        return 0
    sg += entry_size(k)
    link = k.word(sg)
    return link & ~3 if link & CHAIN else sg


def spans(k: Kernel, sg: int) -> Iterator[tuple[int, int]]:
    """Yield address and size of each entry of a list."""
    while sg:
        entry = view(k, "scatterlist", sg)
        page = entry.number("page_link") & ~3
        yield page_address(k, page) + entry.number("offset"), entry.number("length")
        sg = following(k, sg)


def span(k: Kernel, sg: int, start: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the pieces (address, size) of `size` bytes from byte `start` of a list, by entry."""
    for address, length in spans(k, sg):
        if start >= length:
            start -= length
            continue
        count = min(length - start, size)
        if count:
            yield address + start, count
        size -= count
        start = 0
        if not size:
            return


def read(k: Kernel, sg: int, start: int, size: int) -> bytes:
    """Return bytes of a list."""
    return b"".join(k.memory.read(address, count) for address, count in span(k, sg, start, size))


def write(k: Kernel, sg: int, start: int, contents: bytes) -> int:
    """Store bytes in a list; return how many there was room for."""
    done = 0
    for address, count in span(k, sg, start, len(contents)):
        k.memory.write(address, contents[done : done + count])
        done += count
    return done


def copy_out(k: Kernel, sg: int, start: int, buffer: int, size: int) -> int:
    """Copy bytes of a list to memory; return how many there were."""
    done = 0
    for address, count in span(k, sg, start, size):
        copy(k, buffer + done, address, count)
        done += count
    return done


def copy_in(k: Kernel, sg: int, start: int, buffer: int, size: int) -> int:
    """Copy memory to bytes of a list; return for how many there was room."""
    done = 0
    for address, count in span(k, sg, start, size):
        copy(k, address, buffer + done, count)
        done += count
    return done


@function("struct scatterlist *sg_next(struct scatterlist *sg)")
def _sg_next(k: Kernel, sg: int) -> int:
    return following(k, sg)


@function("struct scatterlist *sg_last(struct scatterlist *sgl, unsigned int nents)")
def _sg_last(k: Kernel, sg: int, _nents: int) -> int:
    while after := following(k, sg):
        sg = after
    return sg


@function("int sg_nents(struct scatterlist *sg)")
def _sg_nents(k: Kernel, sg: int) -> int:
    return sum(1 for _ in spans(k, sg))


@function("int sg_nents_for_len(struct scatterlist *sg, u64 len)")
def _sg_nents_for_len(k: Kernel, sg: int, size: int) -> int:
    if not size:
        return 0
    for number, (_, length) in enumerate(spans(k, sg), 1):
        if length >= size:
            return number
        size -= length
    return -22  # EINVAL


@function("void sg_init_table(struct scatterlist *sgl, unsigned int nents)")
def _sg_init_table(k: Kernel, sg: int, nents: int) -> None:
    size = entry_size(k)
    fill(k, sg, size * nents, 0)
    if nents:
        k.store(sg + (nents - 1) * size, END)


@function("void sg_init_one(struct scatterlist *sg, const void *buf, unsigned int buflen)")
def _sg_init_one(k: Kernel, sg: int, address: int, size: int) -> None:
    _sg_init_table(k, sg, 1)
    set_entry(k, sg, address, size)


@function(
    "size_t sg_copy_from_buffer(struct scatterlist *sgl, unsigned int nents, const void *buf,"
    " size_t buflen)"
)
def _sg_copy_from_buffer(k: Kernel, sg: int, _nents: int, buffer: int, size: int) -> int:
    return copy_in(k, sg, 0, buffer, size)


@function(
    "size_t sg_copy_to_buffer(struct scatterlist *sgl, unsigned int nents, void *buf,"
    " size_t buflen)"
)
def _sg_copy_to_buffer(k: Kernel, sg: int, _nents: int, buffer: int, size: int) -> int:
    return copy_out(k, sg, 0, buffer, size)


@function(
    "void scatterwalk_map_and_copy(void *buf, struct scatterlist *sg, unsigned int start,"
    " unsigned int nbytes, int out)"
)
def _scatterwalk_map_and_copy(
    k: Kernel, buffer: int, sg: int, start: int, size: int, out: int
) -> None:
    if out:
        copy_in(k, sg, start, buffer, size)
    else:
        copy_out(k, sg, start, buffer, size)


@function(
    "struct scatterlist *scatterwalk_ffwd(struct scatterlist *dst, struct scatterlist *src,"
    " unsigned int len)"
)
def _scatterwalk_ffwd(k: Kernel, dst: int, sg: int, size: int) -> int:
    """Return a list that starts `size` bytes into another, in the two entries at `dst`."""
    for address, length in spans(k, sg):
        after = following(k, sg)
        if 0 < size < length:
            _sg_init_table(k, dst, 2)
            set_entry(k, dst, address + size, length - size, last=not after)
            if after:
                k.store(dst + entry_size(k), after | CHAIN)
            return dst
        if not size:
            return sg
        size -= length
        sg = after
    return 0


@attrs.define
class _Iterations:
    """Mapping iterators under way: address -> entry list, and the byte that comes next."""

    at: dict[int, tuple[int, int]] = attrs.field(factory=dict)


@function(
    "void sg_miter_start(struct sg_mapping_iter *miter, struct scatterlist *sgl, unsigned int n,"
    " unsigned int flags)"
)
def _sg_miter_start(k: Kernel, miter: int, sg: int, nents: int, flags: int) -> None:
    found = view(k, "sg_mapping_iter", miter)
    k.memory.write(miter, bytes(found.size))
    found.put("piter.sg", sg)
    found.put("piter.__nents", nents)
    found.put("__flags", flags)
    state(k, _Iterations).at[miter] = sg, 0


@function("bool sg_miter_next(struct sg_mapping_iter *miter)")
def _sg_miter_next(k: Kernel, miter: int) -> int:
    iterations, found = state(k, _Iterations), view(k, "sg_mapping_iter", miter)
    if miter not in iterations.at:
        return 0
    sg, at = iterations.at[miter]
    at += found.number("consumed")
    iterations.at[miter] = sg, at
    for address, length in span(k, sg, at, 1 << 32):
        size = min(length, k.memory.page_size - address % k.memory.page_size)
        found.put("page", page_of(k, address))
        for member, value in (("addr", address), ("length", size), ("consumed", size)):
            found.put(member, value)
        return 1
    return 0


@function("bool sg_miter_skip(struct sg_mapping_iter *miter, off_t offset)")
def _sg_miter_skip(k: Kernel, miter: int, offset: int) -> int:
    found = view(k, "sg_mapping_iter", miter)
    found.put("consumed", found.number("consumed") + offset)
    return 1


@function("void sg_miter_stop(struct sg_mapping_iter *miter)")
def _sg_miter_stop(k: Kernel, miter: int) -> None:
    iterations, found = state(k, _Iterations), view(k, "sg_mapping_iter", miter)
    if miter in iterations.at:
        sg, at = iterations.at[miter]
        iterations.at[miter] = sg, at + found.number("consumed")
    for member in ("page", "addr", "length", "consumed"):
        found.put(member, 0)
