# SPDX-License-Identifier: GPL-2.0-or-later
"""Functions of a kernel that compare memory, and what a fuzzer makes of what they are given."""

from __future__ import annotations

from typing import Any

from execmem.fuzzing.mutate import Mutator
from execmem.fuzzing.operands import hints_of

# By name: what they take beside the two places.
ASKED = {"memcmp": (6,), "strcmp": (), "strncmp": (6,), "strcasecmp": (), "strstr": ()}


def check(machine: Any, function: int, name: str) -> None:
    """Let a function of a machine compare an input, and follow what comes of it."""
    wanted = machine.alloc(b"secret\0")
    rounds = machine.rounds([])
    memory = rounds.buffer(64)

    def call(data: bytes) -> int:
        where = memory.put(data)
        result: int = rounds.call(function, (where, wanted, *ASKED[name]))
        return int(result == where) if name == "strstr" else int(not result & 0xFFFFFFFF)

    with rounds:
        data = b"abcxyz\0"
        pairs = rounds.compared(lambda: call(data))
        assert (b"abcxyz", b"secret") in pairs
        made = set(Mutator(64).followed(data, hints_of(data, pairs)))
        same = {each for each in made if rounds.run(lambda each=each: call(each)).result}
        assert same == {b"secret\0"}
        assert not rounds.compared(lambda: call(b"secret\0"))
