# SPDX-License-Identifier: GPL-2.0-or-later
"""The log of a kernel out of its memory: `struct printk_ringbuffer`, since 5.10.

Where what lies the kernel tells itself (VMCOREINFO). A record is a descriptor, by a number that
only grows, what is known of the message, and its text in another ring.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kernels.log import LogLine

_STATE_AT = 62  # in a descriptor's state: what the record is, above its number
_COMMITTED, _FINALIZED = 1, 2
_NO_TEXT = 1  # of a place of text: there is none
_MOST = 1 << 20  # records
_LEVEL_AT = 3  # bytes from a text's length to flags and level, which is in the upper bits
_HEADER = 8  # bytes before a text: which record it is of


class Unknown(LookupError):
    """The kernel does not tell where its log lies."""


def lines(facts: Mapping[str, str], read: Callable[[int, int], bytes]) -> list[LogLine]:
    """Return the log, first line first.

    Parameters
    ----------
    facts
        What the kernel tells of itself.
    read
        Returns guest memory; LookupError where there is none.

    Raises
    ------
    Unknown
        It tells nothing of such a log.
    LookupError
        It lies in memory that is not there.
    """

    def word(address: int, size: int = 8) -> int:
        return int.from_bytes(read(address, size), "little")

    def offset(name: str) -> int:
        try:
            return int(facts[f"OFFSET({name})"], 0)
        except (KeyError, ValueError):
            raise Unknown(name) from None

    def size(name: str) -> int:
        try:
            return int(facts[f"SIZE({name})"], 0)
        except (KeyError, ValueError):
            raise Unknown(name) from None

    try:
        prb = word(int(facts["SYMBOL(prb)"], 16))
    except (KeyError, ValueError):
        raise Unknown("prb") from None
    ring = prb + offset("printk_ringbuffer.desc_ring")
    bits = word(ring + offset("prb_desc_ring.count_bits"), 4) & 63
    descriptors = word(ring + offset("prb_desc_ring.descs"))
    infos = word(ring + offset("prb_desc_ring.infos"))
    counter = offset("atomic_long_t.counter")
    head = word(ring + offset("prb_desc_ring.head_id") + counter)
    tail = word(ring + offset("prb_desc_ring.tail_id") + counter)
    texts = prb + offset("printk_ringbuffer.text_data_ring")
    text_bits = word(texts + offset("prb_data_ring.size_bits"), 4) & 63
    data = word(texts + offset("prb_data_ring.data"))
    each, about = size("prb_desc"), size("printk_info")
    state_at = offset("prb_desc.state_var") + counter
    place_at = offset("prb_desc.text_blk_lpos")
    begin_at = place_at + offset("prb_data_blk_lpos.begin")
    next_at = place_at + offset("prb_data_blk_lpos.next")
    length_at = offset("printk_info.text_len")
    whole = (1 << _STATE_AT) - 1
    found: list[LogLine] = []
    for number in range(min((head - tail & whole) + 1, 1 << bits, _MOST)):
        wanted = tail + number & whole
        index = wanted & (1 << bits) - 1
        descriptor = descriptors + index * each
        state = word(descriptor + state_at)
        if state & whole != wanted or state >> _STATE_AT not in (_COMMITTED, _FINALIZED):
            continue
        begin, after = word(descriptor + begin_at), word(descriptor + next_at)
        info = infos + index * about
        length = word(info + length_at, 2)
        level = word(info + length_at + _LEVEL_AT, 1) >> 5
        if begin & _NO_TEXT:
            text = b""
        else:
            # One that does not fit before the ring's end stands at its begin.
            wraps = begin >> text_bits != after - 1 >> text_bits
            start = 0 if wraps else begin & (1 << text_bits) - 1
            text = read(data + start + _HEADER, length)
        shown = text.decode("utf-8", "backslashreplace").split("\n")
        found += [LogLine(level, line) for line in shown]
    return found
