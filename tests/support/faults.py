# SPDX-License-Identifier: GPL-2.0-or-later
"""Faults on demand: the n-th call of one internal step refuses, whoever makes it.

Memory is built of few primitives. Each can refuse for its own reason: no room in the range,
no run of 2 MiB, no frames, a mapping that cannot be made, changed, removed or collapsed, a
poke whose alias cannot be mapped. What stands above them must leave all as it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from allocator.errors import AllocationError, ExecmemError, MappingError, PokeError
from allocator.memory import KernelMemory


def _raises(make: Callable[[], ExecmemError]) -> Callable[..., object]:
    def refuse(*_args: object, **_kwargs: object) -> object:
        raise make()

    return refuse


def _mapping() -> ExecmemError:
    return MappingError("injected", 0, 0, "refused")


# Step -> the object that does it, its method, and what a refusal looks like.
POINTS: dict[str, tuple[str, str, Callable[..., object]]] = {
    "out of range": ("memory", "reserve", lambda *_args, **_kwargs: None),
    "out of 2 MiB runs": ("physical", "alloc_run", lambda *_args: None),
    "out of frames": (
        "physical",
        "alloc_frames",
        _raises(lambda: AllocationError("frames", 0, (), "injected")),
    ),
    "map": ("page_table", "map", _raises(_mapping)),
    "unmap": ("page_table", "unmap", _raises(_mapping)),
    "protect": ("page_table", "change", _raises(_mapping)),
    "poke alias": ("page_table", "set_pte", _raises(_mapping)),
    "collapse": ("page_table", "collapse", lambda *_args: False),
    "poke": ("memory", "poke_many", _raises(lambda: PokeError(0, 0, "injected"))),
}


class Faults:
    """Stands between kernel memory and its callers.

    Parameters
    ----------
    memory
        Its steps are wrapped for good.

    `calls` counts the calls of each step, `fired` names the steps that refused.
    """

    def __init__(self, memory: KernelMemory) -> None:
        self.fired: set[str] = set()
        self.calls: Counter[str] = Counter()
        self._armed: tuple[str, int] | None = None
        owners = {
            "memory": memory,
            "physical": memory.physical,
            "page_table": memory.page_table,
        }
        for point, (owner, method, refuse) in POINTS.items():
            self._wrap(point, owners[owner], method, refuse)
        # An alias lies in an address space of its own where the architecture has one.
        for method in ("set_pte", "map"):
            self._wrap("poke alias", memory.poking_mm, method, POINTS["poke alias"][2])

    @contextmanager
    def at(self, point: str | None, nth: int) -> Iterator[None]:
        """Let the nth call (from 1) of a step refuse."""
        self._armed = (point, nth) if point is not None else None
        try:
            yield
        finally:
            self._armed = None

    def _wrap(self, point: str, owner: Any, method: str, refuse: Callable[..., object]) -> None:
        real = getattr(owner, method)

        def call(*args: object, **kwargs: object) -> object:
            self.calls[point] += 1
            if self._armed is not None and self._armed[0] == point:
                left = self._armed[1] - 1
                self._armed = (point, left) if left else None
                if not left:
                    self.fired.add(point)
                    return refuse(*args, **kwargs)
            return real(*args, **kwargs)

        setattr(owner, method, call)
