# SPDX-License-Identifier: GPL-2.0-or-later
"""Names between modules: who provides what, who may not, and what is taken away again."""

from __future__ import annotations

import pytest

import archs
from execmem.check.elfwriter import A, Sec, W, write
from loader.elf import parse
from loader.elfview import ElfView
from loader.errors import MissingDependency, SymbolClash, UnresolvedSymbols
from loader.layout import plan
from loader.link import link_view
from loader.symbols import Export, SymbolTable, exports_of
from tests.archs.facts import facts
from tests.support.addresses import place
from tests.support.kernel import FakeKernel
from tests.support.modules import exports, module, versions


def wants(*names: str, vouched: tuple[str, ...] = (), weak: tuple[str, ...] = ()) -> ElfView:
    """Return a module that uses `names`."""
    extra = (versions(*vouched),) if vouched else ()
    return parse(module(62, undefined=names, weak=weak, extra=extra), "user.ko")


def export(name: str, address: int = 0x1000, owner: str = "lib") -> Export:
    """Return an export."""
    return Export(name, address, owner, gpl=False)


def test_modules_come_before_the_kernel() -> None:
    """An exported name gives the module's address and owner, the others the kernel's."""
    table = SymbolTable(FakeKernel("_printk", "both"))
    table.publish("lib", [export("lib_f", 0x1111), export("both", 0x2222)])
    found, owners, unknown = table.resolve(wants("_printk", "lib_f", "both"))
    assert found == {"_printk": table.kernel.address("_printk"), "lib_f": 0x1111, "both": 0x2222}
    assert owners == {"lib"}
    assert unknown == ()


def test_an_unknown_name_gets_a_stub_that_stops() -> None:
    """By default a name that nobody has is resolved by the kernel's side and reported."""
    table = SymbolTable(FakeKernel("_printk"))
    found, owners, unknown = table.resolve(wants("_printk", "odd", "odder"))
    assert set(unknown) == {"odd", "odder"}
    assert found["odd"] == table.kernel.address("odd")
    assert owners == frozenset()


def test_unknown_names_can_be_refused() -> None:
    """With refuse_unknown every name that nobody has is named at once."""
    table = SymbolTable(FakeKernel("_printk"), refuse_unknown=True)
    with pytest.raises(UnresolvedSymbols) as caught:
        table.resolve(wants("_printk", "odder", "odd"))
    assert caught.value.names == ("odd", "odder")
    assert str(caught.value).startswith("user.ko: 2 unresolved symbols: odd, odder; hint: ")


def test_the_modules_build_may_vouch_for_a_name() -> None:
    """A name in `__versions` existed in the kernel the module was built for: it gets a stub."""
    table = SymbolTable(FakeKernel(), refuse_unknown=True)
    with pytest.raises(UnresolvedSymbols) as caught:
        table.resolve(wants("odd", "odder", vouched=("odd",)))
    assert caught.value.names == ("odder",)
    _, _, unknown = table.resolve(wants("odd", vouched=("odd",)))
    assert unknown == ("odd",)


@pytest.mark.parametrize("refuse", [False, True])
def test_a_weak_name_may_stay_without_an_address(refuse: bool) -> None:
    """An undefined weak name is neither unknown nor refused."""
    table = SymbolTable(FakeKernel("_printk"), refuse_unknown=refuse)
    found, _, unknown = table.resolve(wants("_printk", weak=("maybe",)))
    assert set(found) == {"_printk"}
    assert unknown == ()
    has = SymbolTable(FakeKernel("maybe"), refuse_unknown=refuse)
    assert "maybe" in has.resolve(wants(weak=("maybe",)))[0]


@pytest.mark.parametrize("refuse", [False, True])
def test_a_missing_module_is_named_with_its_symbols(refuse: bool) -> None:
    """Where a dependency is not loaded, the error says which and what it was wanted for."""
    table = SymbolTable(FakeKernel("_printk"), refuse_unknown=refuse)
    with pytest.raises(MissingDependency) as caught:
        table.resolve(wants("_printk", "lib_g", "lib_f"), ["lib"])
    assert caught.value.missing == ("lib",)
    assert caught.value.symbols == ("lib_f", "lib_g")
    text = str(caught.value)
    assert text.startswith("user.ko: missing dependency: lib (for lib_f, lib_g); hint: ")


def test_a_clash_publishes_nothing() -> None:
    """A name exported already is refused with its owner, and no other name is added."""
    table = SymbolTable(FakeKernel())
    table.publish("lib", [export("f")])
    with pytest.raises(SymbolClash) as caught:
        table.publish("other", [export("g", owner="other"), export("f", owner="other")])
    assert (caught.value.names, caught.value.owners) == (("f",), ("lib",))
    assert str(caught.value) == "other: exports symbols that are exported already: f (by lib)"
    assert set(table.exports) == {"f"}


def test_what_a_module_exported_goes_with_it() -> None:
    """Withdrawing removes one owner's names and nobody else's, and may be repeated."""
    table = SymbolTable(FakeKernel())
    table.publish("lib", [export("f"), export("g")])
    table.publish("other", [export("h", owner="other")])
    table.withdraw("lib")
    table.withdraw("lib")
    assert set(table.exports) == {"h"}
    table.publish("again", [export("f", owner="again")])


def exported(view: ElfView, base: int = 0xFFFF_FFFF_C000_0000) -> tuple[Export, ...]:
    """Link a module somewhere and read what it exports."""
    layout = plan(view)
    addresses = place(layout, base)
    symbols = dict.fromkeys(view.undefined, base)
    return exports_of(view, addresses, link_view(view, layout, addresses, symbols).sections, "lib")


def test_exports_are_read_from_the_relocated_table(arch: archs.Arch) -> None:
    """Self-relative words or pointers, as the architecture has them, give name and address."""
    assert arch.loads.prel32 == (facts(arch).link.export_word == 4)
    view = parse(module(arch.machine, exported=("lib_f", "lib_g", "lib_h")))
    base = 0xFFFF_FFFF_C000_0000
    start = place(plan(view), base)[view.section(".text").index]
    offset = {n: int(view.symbols["value"][i]) for n, i in view.global_symbols.items()}
    want = tuple(
        Export(n, start + offset[n], "lib", gpl=False) for n in ("lib_f", "lib_g", "lib_h")
    )
    assert exported(view, base) == want


def test_gpl_exports_are_marked(arch: archs.Arch) -> None:
    """What stands in `__ksymtab_gpl` is for GPL-compatible modules."""
    sections, symbols = exports(arch.machine, ["mini_work"], gpl=True)
    view = parse(module(arch.machine, extra=sections, symbols=symbols))
    assert [(e.name, e.gpl) for e in exported(view)] == [("mini_work", True)]


def test_a_module_without_a_table_exports_nothing(arch: archs.Arch) -> None:
    """No `__ksymtab`, or no strings for it: nothing."""
    assert exported(parse(module(arch.machine))) == ()
    lonely = write(arch.machine, [Sec("__ksymtab", bytes(24), A), Sec(".data", b"", A | W)])
    assert exported(parse(lonely)) == ()


def test_an_entry_that_points_nowhere_is_no_export(arch: archs.Arch) -> None:
    """A table that no relocation filled names nothing and breaks nothing."""
    sections = [Sec("__ksymtab", bytes(48), A, align=8), Sec("__ksymtab_strings", b"\0name\0", A)]
    assert exported(parse(write(arch.machine, sections))) == ()
