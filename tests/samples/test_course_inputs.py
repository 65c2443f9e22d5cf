# SPDX-License-Identifier: GPL-2.0-or-later
"""Tasks of the lessons about hostile inputs: what becomes of one, by parsers written a second time."""

from __future__ import annotations

import random
from itertools import islice, pairwise

import pytest

from samples.course.tasks import TASKS, byte_by_byte, small_bomb
from samples.hostile import PACKET
from tests.samples.test_course import failing, grade, solved

ROOM = small_bomb.ROOM
ITEMS = {0x74, 0x94, 0x80, 0xA0, 0xC0, 0xA4, 0xB4}


def unpacked(block):
    """Return to how many bytes an LZ4 block unpacks; None where a literal does not fit, or it is none."""
    at, done = 0, 0

    def length(first):
        nonlocal at
        while first >= 15 and at < len(block):
            more = block[at]
            at, first = at + 1, first + more
            if more < 255:
                break
        return first

    while at < len(block):
        token, at = block[at], at + 1
        literals = length(token >> 4)
        if literals > len(block) - at or literals > ROOM - done:
            return None
        at, done = at + literals, done + literals
        if at == len(block):
            break
        back, at = int.from_bytes(block[at : at + 2], "little"), at + 2
        if at > len(block) or not 1 <= back <= done:
            return None
        done += length(token & 15) + 4
        if done > ROOM:
            return done
    return done


def blocks(chance):
    """Yield blocks about as long as there is room for, and some that are none."""
    for more in (14, 15, 16):
        for last in (0, 251, 252, 254):
            yield b"\x1fA\x01\0" + b"\xff" * (more - 1) + bytes([last])
    for _ in range(6):
        literals = chance.randrange(0, 40)
        head = bytes([min(literals, 15) << 4 | 15]) + bytes([literals - 15] * (literals >= 15))
        yield (
            head
            + b"x" * literals
            + bytes([chance.randrange(3), 0])
            + b"\xff" * chance.randrange(18)
        )


def test_small_bomb_counts_what_comes_out(arch):
    """A block passes where a decoder of ours stores too much, and no other; 19 bytes cannot."""
    passed = 0
    for block in blocks(random.Random(10)):
        verdict = grade("small-bomb", arch.name, block=block.hex())
        done = unpacked(block)
        assert verdict.passed is (done is not None and done > ROOM), block.hex()
        assert verdict.score == len(block)
        if done is not None and done <= ROOM:
            assert verdict.checks[0].found == f"{done:,} bytes"
        passed += verdict.passed
    assert passed
    # L literals take L bytes and give L; a byte of length gives 255 at most.
    least = min(
        1 + literals + 2 + -(-(ROOM + 1 - literals - 19) // 255) for literals in range(1, 15)
    )
    assert TASKS["small-bomb"].best[arch.name] == least


def endless(packet):
    """Return whether a parser of options that believes every length goes round and round."""
    head, length = (packet[0] & 15) * 4, len(packet)
    if packet[0] >> 4 != 4 or head < 20 or packet[9] != 6 or length < head + 20:
        return False
    end, at, met = head + (packet[head + 12] >> 4) * 4, head + 20, set()
    if end > length:
        return False
    while at < end and packet[at] != 8 and at not in met:
        met.add(at)
        if packet[at] >= 2 and at + 1 >= end:
            return False
        at += 1 if packet[at] < 2 else packet[at + 1]
    return at in met and at < end and packet[at] != 8


def test_one_bit_is_one_of_few(arch):
    """Of all packets with one bit changed those pass that go round and round, and are one bit away."""
    chance, bits = random.Random(11), 8 * len(PACKET)
    flipped = {bit: int.from_bytes(PACKET, "big") ^ 1 << bit for bit in range(bits)}
    packets = {bit: value.to_bytes(len(PACKET), "big") for bit, value in flipped.items()}
    hang = [bit for bit, packet in packets.items() if endless(packet)]
    assert 0 < len(hang) < 10
    for bit in [*hang[:2], *chance.sample(range(bits), 8)]:
        verdict = grade("one-bit", arch.name, packet=packets[bit].hex())
        assert verdict.passed is (bit in hang)
        assert verdict.score == 1
    assert failing(grade("one-bit", arch.name, packet=PACKET.hex())) == {"changed", "formats_match"}
    assert grade("one-bit", arch.name, packet=bytes(len(PACKET)).hex()).score > 1


@pytest.mark.parametrize("size", [2, 7, 8, 9, 16, 250])
def test_three_sizes_are_those_of_an_alignment(arch, size):
    """What ends at a multiple of 8 is found at once; the rest as the file says."""
    keys = dict.fromkeys(("written_at_once", "written_later", "read_never"), size)
    at_once, later, never = (
        check.passed for check in grade("three-sizes", arch.name, **keys).checks
    )
    assert (at_once, later, never) == (size % 8 == 0, size % 8 != 0, size % 8 != 0)


def test_three_sizes_are_the_least():
    """From two bytes on: the first that is a multiple of 8, and twice the first that is none."""
    sizes = range(2, 20)
    first, other = next(s for s in sizes if s % 8 == 0), next(s for s in sizes if s % 8)
    assert set(TASKS["three-sizes"].best.values()) == {first + 2 * other}


def described(data):
    """Return the steps of a parser of descriptors, and whether it pushes too often."""
    steps, at, size, count, stack, opened = ["begin"], 0, 0, 0, [], 0
    while at < len(data):
        item, at = data[at], at + 1
        length = (0, 1, 2, 4)[item & 3]
        if length > len(data) - at:
            return [*steps, "wrong"], False
        value, at = int.from_bytes(data[at : at + length], "little"), at + length
        steps += ["byte"] * length
        steps.append(item & 0xFC)
        match item & 0xFC:
            case 0x74:
                size = value
            case 0x94:
                count = value
            case 0xA4:
                if len(stack) == 2:
                    return steps, True
                stack.append((size, count))
            case 0xB4 if stack:
                size, count = stack.pop()
            case 0xA0:
                opened += 1
            case 0xC0 if opened:
                opened -= 1
            case 0x80 if size <= 32 and count <= 1024:
                pass
            case _:
                return [*steps, "wrong"], False
    return [*steps, "open" if opened else "end"], False


def changes(data, alphabet):
    """Return all that one byte of an alphabet that is set, put in, or taken out makes of an input."""
    cuts = [(data[:at], data[at:]) for at in range(len(data) + 1)]
    found = {head + tail[1:] for head, tail in cuts}
    for byte in map(bytes, ([each] for each in alphabet)):
        found |= {head + byte + tail for head, tail in cuts}
        found |= {head + byte + tail[1:] for head, tail in cuts if tail}
    return sorted(found)


def test_byte_by_byte_keeps_what_is_new(arch):
    """An input is kept where a parser of ours comes to a new step, and not where each follows as before."""
    chance, alphabet = random.Random(12), (0x75, 0x95, 0x81, 0x80, 0xA4, 0xB4, 0xA0, 0xC0, 8, 2)
    told, right = set(), [bytes.fromhex(each) for each in solved("byte-by-byte", "arm64", "inputs")]
    for number in range(2):
        begun = right[:2] if number % 2 else []
        kept, chain, wanted = [byte_by_byte.SEED], [], []
        steps, _ = described(byte_by_byte.SEED)
        seen, pairs = set(steps), set(pairwise(steps))
        while len(chain) < 15 and not (wanted and wanted[-1] == {"found"}):
            data = begun.pop(0) if begun else chance.choice(changes(chance.choice(kept), alphabet))
            steps, over = described(data)
            if not {step for step in steps if isinstance(step, int)} <= ITEMS:
                continue  # what it does with items that it does not know is the compiler's
            new, other = set(steps) - seen, set(pairwise(steps)) - pairs
            may = {"kept"} if new else {"kept", "thrown away"} if other else {"thrown away"}
            wanted.append({"found"} if over else may)
            chain.append(data)
            kept += [data] if new else []
            seen, pairs = seen | set(steps), pairs | set(pairwise(steps))
        near = (data for each in kept for data in changes(each, (0xA4,)) if described(data)[1])
        for data in islice(near, not (wanted and wanted[-1] == {"found"})):
            chain.append(data)
            wanted.append({"found"})
        made = byte_by_byte.fuzzed(arch, chain)
        states = ["found" if stop else "kept" if new else "thrown away" for _, new, stop in made]
        assert all(far <= 1 for far, _, _ in made)
        assert len(states) == len(wanted)
        for data, state, may in zip(chain, states, wanted, strict=True):
            assert state in may, data.hex()
        told |= set(states)
    assert told == {"found", "kept", "thrown away"}


def test_byte_by_byte_says_why(arch):
    """Pushes that follow one another come to nothing new; what is two bytes away is never made."""
    seed, push = byte_by_byte.SEED.hex(), "a4"
    again = grade("byte-by-byte", arch.name, inputs=[push + seed, 2 * push + seed, 3 * push + seed])
    assert [check.passed for check in again.checks] == [True, False, False, True]
    assert again.checks[1].found == "0 new blocks: thrown away"
    assert again.checks[2].found == "2 bytes from any that was kept: never made"
    right = solved("byte-by-byte", arch.name, "inputs")
    late = grade("byte-by-byte", arch.name, inputs=[*right, seed])
    assert failing(late) == {"inputs behind it"}
    assert failing(grade("byte-by-byte", arch.name, inputs=[])) == {"found"}


def test_byte_by_byte_takes_three():
    """Three pushes are three bytes, the seed has none; a change makes one of them at most."""
    pushes = [byte & 0xFC == 0xA4 for byte in byte_by_byte.SEED]
    assert not any(pushes)
    assert set(TASKS["byte-by-byte"].best.values()) == {3}
    first = changes(byte_by_byte.SEED, range(256))
    assert all(byte_by_byte.apart(byte_by_byte.SEED, data) <= 1 for data in first)
    chance = random.Random(13)
    for data in chance.sample(first, 40):
        assert not described(data)[1]
        assert not any(described(each)[1] for each in changes(data, (0xA4, 0xA5)))
