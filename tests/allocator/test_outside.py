# SPDX-License-Identifier: GPL-2.0-or-later
"""Designs from elsewhere: found by name, file and class, and watched in all that they do."""

from __future__ import annotations

import attrs
import pytest

from allocator.designs import DESIGNS, PerType, Strata, Vmalloc, choose
from allocator.designs.checked import Checked
from allocator.errors import AllocationError, DesignError, ExecmemError
from allocator.execmem import Execmem
from allocator.memory import KernelMemory
from allocator.physical import PhysicalMemory
from allocator.types import (
    MIB,
    PAGE_SIZE,
    Consumer,
    ExecmemRange,
    Interval,
    MemType,
    Prot,
    align_down,
)

HEAD = "from allocator.designs import Vmalloc\n"
MINE = f"{HEAD}class Mine(Vmalloc):\n    name = 'mine'\n"


def make(arch, design, *, poke=True, size=64 * MIB):
    """Return Execmem of an architecture under a design."""
    memory = KernelMemory(PhysicalMemory(size), arch.loads.address_map())
    return Execmem(
        memory, trap=arch.loads.trap, text_poke=arch.text_poke if poke else None, design=design
    )


def life(execmem):
    """Go through what a module and every other consumer do with memory."""
    held = []
    for kind in MemType:
        with execmem.alloc(kind, 300, align=64) as pending:
            held.append(pending.finish())
        for size in (300, PAGE_SIZE + 1):
            with execmem.alloc(kind, size) as pending:
                pending.write(0, b"\xcc" * size)
                pending.write(3, b"ab")
                held.append(pending.finish())
    for consumer in Consumer:
        with execmem.alloc(MemType.TEXT, 64, consumer=consumer) as pending:
            pending.write(0, b"\xcc" * 64)
            held.append(pending.finish())
    with execmem.alloc(MemType.TEXT, 128):
        pass
    for allocation in held:
        if allocation.type is MemType.RO_AFTER_INIT:
            execmem.seal(allocation)
    execmem.check()
    for allocation in held[::2] + held[1::2]:
        execmem.free(allocation.address)
    execmem.check()
    execmem.report()


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("poke", [True, False])
def test_our_designs_keep_what_outside_ones_must(arch, design, poke):
    """Each of our designs, watched as if it came from elsewhere, breaks no promise."""
    outside = type("Outside", (DESIGNS[design],), {"name": "outside"})
    if poke and arch.text_poke is None:
        pytest.skip("the architecture cannot poke")
    execmem = make(arch, outside, poke=poke)
    assert isinstance(execmem.design, Checked)
    assert execmem.design.name == "outside"
    life(execmem)
    assert execmem.design.aside > 0


def test_a_design_is_found_by_name_file_and_class(tmp_path, arch, monkeypatch):
    """A name, `default`, a file, one class of a file, and a class all mean a design."""
    assert choose("default") == choose("strata") == choose(Strata)
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    monkeypatch.chdir(tmp_path)
    assert choose("./mine.py").design is choose(file).design
    assert choose("mine.py").design is choose(f"{file}:Mine").design
    file.write_text(f"{MINE}\nclass Other(Mine):\n    name = 'other'\n")
    with pytest.raises(ExecmemError, match=r"several designs \(Mine, Other\); say ./mine.py:NAME"):
        choose("./mine.py")
    for wanted, name in ((f"{file}:Other", "other"), (choose(f"{file}:Mine"), "mine")):
        execmem = make(arch, wanted)
        assert execmem.design.name == name
        life(execmem)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("", "holds no class derived from allocator.Design"),
        ("import nonesuch_module", r"No module named 'nonesuch_module' \(mine.py:1\)"),
        ("\nclass Mine(", r"SyntaxError: .* \(mine.py:2\)"),
        ("raise SystemExit('no')", r"SystemExit: no \(mine.py:1\)"),
        ("def f(): f()\nf()", "RecursionError"),
        (f"{HEAD}class Mine(Vmalloc): pass", "calls itself 'vmalloc'.* give it a name of its own"),
        (f"{HEAD}class Mine(Vmalloc): name = 'default'", "calls itself 'default'"),
        (f"{HEAD}class Mine(Vmalloc): name = 3", "has no name"),
        (
            "from allocator import Design\nclass Mine(Design): name = 'mine'",
            "Mine does not define store, stores",
        ),
    ],
)
def test_a_file_that_holds_no_design_says_why(tmp_path, source, reason):
    """Whatever is wrong with a file, one line names it and the place in it."""
    file = tmp_path / "mine.py"
    file.write_text(source)
    with pytest.raises(ExecmemError, match=reason) as caught:
        choose(str(file))
    assert "\n" not in str(caught.value)


def test_what_is_no_design_is_refused(tmp_path, arch):
    """A missing file, a folder, another class, an object, a number and a near name are refused."""
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "text.txt").write_text(MINE)
    design = make(arch, "vmalloc").design
    for wanted, reason in (
        (tmp_path / "none.py", "No such file"),
        (tmp_path / "folder.py", "is not a file"),
        (tmp_path / "text.txt", "is not a Python file"),
        (f"{tmp_path}/\0.py", "null"),
        (dict, "not derived from allocator.Design"),
        (design, "give the class, not an object"),
        (7, "expected a name, a file or a class"),
        ("stratta", r"did you mean strata\?"),
    ):
        with pytest.raises(ExecmemError, match=reason):
            make(arch, wanted)


# What a design may do wrong -------------------------------------------------------------------


def _raises(*_args):
    raise ZeroDivisionError("by design")


def _exits(*_args):
    raise SystemExit(3)


def _same_twice(self, request):
    if not hasattr(self, "first"):
        self.first = Vmalloc.alloc(self, request)
    found = self.first
    kinds = {"type": request.type, "consumer": request.consumer, "size": request.size}
    return attrs.evolve(found, **kinds, reserved=max(PAGE_SIZE, request.size))


def _evolved(**changes):
    def alloc(self, request):
        return attrs.evolve(Vmalloc.alloc(self, request), **changes)

    return alloc


def _moved(self, request):
    found = Vmalloc.alloc(self, request)
    return attrs.evolve(found, address=found.address + 8)


def _unmapped(self, request):
    found = Vmalloc.alloc(self, request)
    self.memory.depopulate(found.address, found.reserved)
    return found


def _elsewhere(self, request):
    taken = self.memory.reserve(PAGE_SIZE, self.memory.address_map.vmalloc, highest=True)
    self.memory.populate(taken.start, PAGE_SIZE, Prot.RW)
    return attrs.evolve(Vmalloc.alloc(self, request), address=taken.start, reserved=PAGE_SIZE)


def _dirty(self, request):
    found = Vmalloc.alloc(self, request)
    self.memory.write(found.address + 5, b"x")
    return found


def _lost(self, allocation, offset, data):
    Vmalloc.write(self, allocation, offset, data[:-1])


def _half(self, allocation):
    half = attrs.evolve(allocation, reserved=max(PAGE_SIZE, allocation.reserved // 2))
    Vmalloc.finish(self, half)


def _overwritten(self, allocation):
    self.memory.write(allocation.address, b"\x7f")
    Vmalloc.finish(self, allocation)


def _nothing(self, *_args):
    return None


FAULTS = {
    "init": ({"__init__": _raises}, "create", "ZeroDivisionError: by design"),
    "raises": ({"alloc": _raises}, "alloc", "ZeroDivisionError: by design"),
    "exits": ({"finish": _exits}, "finish", "SystemExit: 3"),
    "none": ({"alloc": _nothing}, "alloc", "returned None, no Allocation"),
    "twice": ({"alloc": _same_twice}, "alloc", "overlaps"),
    "other size": ({"alloc": _evolved(size=1)}, "alloc", "answered another request"),
    "other type": ({"alloc": _evolved(type=None)}, "alloc", "answered another request"),
    "no number": ({"alloc": _evolved(address=1.5)}, "alloc", "whose numbers are none"),
    "too little": ({"alloc": _evolved(reserved=1)}, "alloc", "reserved 0x1 bytes only"),
    "misaligned": ({"alloc": _moved}, "alloc", "is not aligned to 0x40"),
    "unmapped": ({"alloc": _unmapped}, "alloc", "is not mapped"),
    "elsewhere": ({"alloc": _elsewhere}, "alloc", "is not in"),
    "dirty": ({"alloc": _dirty}, "alloc", "is not .*zero"),
    "no range": ({"where": _nothing}, "where", "returned None, no range"),
    "no places": ({"places": _nothing}, "alloc", "TypeError"),
    "no store": ({"store": _nothing}, "alloc", "AttributeError"),
    "lost": ({"write": _lost}, "write", "byte 0x12b is not what was written"),
    "forgets": ({"finish": _nothing}, "finish", "is RW-, not R-X, its final_prot"),
    "half": ({"finish": _half}, "finish", "is RW-, not R-X, its final_prot"),
    "overwritten": ({"finish": _overwritten}, "finish", "byte 0x0 is not what was written"),
    "unsealed": ({"seal": _nothing}, "seal", "of RO_AFTER_INIT is RW-, not R--"),
    "kept": ({"free": _nothing}, "free", "the freed text at .* can still be executed"),
    "leaky": ({"abandon": _raises}, "abandon", "ZeroDivisionError: by design"),
    "check": ({"check": _raises}, "check", "ZeroDivisionError: by design"),
    "intervals": ({"free_intervals": lambda _: [1]}, "free_intervals", "no Interval"),
    "staged": ({"staged": _nothing}, "alloc", "returned None, no address"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_design_names_operation_and_request(arch, fault):
    """What a design raises, returns or forgets names it, the operation, type and request."""
    body, operation, reason = FAULTS[fault]
    design = type("Mine", (Vmalloc,), {"name": "mine", **body})
    with pytest.raises(DesignError, match=reason) as caught:
        life(execmem := make(arch, design))
    error = caught.value
    assert (error.design, error.operation) == ("mine", operation)
    assert str(error).startswith(f"design mine: {operation}")
    assert "\n" not in str(error)
    if operation not in ("create", "check", "free_intervals"):
        assert " for module" in error.what
        kinds = {"seal": "RO_AFTER_INIT"}
        assert error.what.startswith(kinds.get(operation, "TEXT"))
    if operation != "create":
        with pytest.raises(DesignError) as again:  # it is not called again
            execmem.alloc(MemType.DATA, 8)
        assert again.value is error


def test_a_seal_that_takes_a_neighbour_along_is_found(arch):
    """RO_AFTER_INIT that is not page granular: the first seal closes somebody else's memory."""

    class Shared(PerType):
        name = "shared"

        def __init__(self, context):
            super().__init__(context)
            self.ro_after_init.granule = 64

        def seal(self, allocation):
            start = align_down(allocation.address, PAGE_SIZE)
            self.memory.set_memory_ro(start, PAGE_SIZE)

    execmem = make(arch, Shared)
    first, _second = (_done(execmem, MemType.RO_AFTER_INIT) for _ in range(2))
    with pytest.raises(DesignError, match=r"of RO_AFTER_INIT is R--, not RW-$"):
        execmem.seal(first)


def _done(execmem, kind):
    with execmem.alloc(kind, 64) as pending:
        return pending.finish()


def test_no_room_is_no_fault(arch):
    """A design may say that there is no room; the error names it, and it is asked again."""

    class Small(Vmalloc):
        name = "small"

        def where(self, mem_type, consumer):
            whole = super().where(mem_type, consumer).range
            return ExecmemRange(range=Interval(whole.start, whole.start + 4 * PAGE_SIZE))

    execmem = make(arch, Small)
    first = _done(execmem, MemType.DATA)
    with pytest.raises(AllocationError, match=r"of DATA for module in .*\(design small\)"):
        execmem.alloc(MemType.DATA, 4 * PAGE_SIZE)
    execmem.free(first.address)
    _done(execmem, MemType.DATA)
