# SPDX-License-Identifier: GPL-2.0-or-later
"""struct module in guest memory: what modules read of themselves, and who holds them."""

from __future__ import annotations

import struct

import pytest

from emulator.faults import Fault
from kernels.modelled.structs import PREV, view
from loader.errors import InitFailed, ModuleInUse
from loader.files import ModuleFile
from loader.layout import THIS_MODULE
from loader.loaded import State
from machine.face import Machine
from tests.archs.facts import facts, needs
from tests.support.modules import module

LIVE, COMING, GOING = 0, 1, 2
NAMES = ("the_init", "the_exit")


def load(machine, name="mini", **options):
    """Load a minimal module, which calls nothing unless it is told to."""
    init = options.pop("init", True)
    options = {"undefined": (), "runs": True, **options}
    image = module(machine.arch.machine, name, **options)
    return machine.load(ModuleFile(f"{name}.ko", image), init=init)


def this(loaded):
    """Return the address of a module's struct module."""
    return next(s.address for s in loaded.sections.values() if s.name == THIS_MODULE)


def number(machine, loaded, member, size=8):
    """Return a member of a module's struct module, at the offset of 6.12's build."""
    at = this(loaded) + machine.arch.loads.layouts.offset_of("module", member)
    return int.from_bytes(machine.read(at, size), "little", signed=size == 4)


def let_exit_work(machine, loaded):
    """Let the exit in a module's struct module be its work function, which calls what it is told."""
    at = this(loaded) + facts(machine.arch).link.exit_at
    machine.write(at, struct.pack("<Q", loaded.symbols[f"{loaded.name}_work"]))


def kernel(machine, function, *args):
    """Call a kernel function as the guest would."""
    return machine.call(machine.kernel.address(function), *args)


@pytest.fixture
def machine(arch):
    """Return a machine whose modules may call anything."""
    made = Machine(arch, unknown="zero")
    made.seconds = 2.0
    return made


@pytest.mark.parametrize("names", [("init_module", "cleanup_module"), NAMES])
def test_init_and_exit_are_what_it_points_at(machine, names):
    """Init and exit run when struct module points at them, whatever their symbols are called."""
    needs(machine.arch, "patch")
    calls = []
    machine.stub("peek", lambda: calls.append("init"))
    loaded = load(machine, undefined=("peek",), functions=names)
    assert loaded.report.init_result is not None
    assert calls == ["init"]
    with machine.probe(loaded.symbols[names[1]], lambda _hit: calls.append("exit")):
        loaded.unload(force=True)
    assert calls == ["init", "exit"]


def test_the_names_alone_do_nothing(machine):
    """A function called init_module that struct module does not point at is not called."""
    calls = []
    machine.stub("peek", lambda: calls.append("init"))
    loaded = load(machine, undefined=("peek",), entries={})
    assert loaded.report.init_result is None
    assert not calls
    loaded.unload()


def test_the_guest_changes_its_exit(machine):
    """What struct module points at when the module goes is called, not what it once did."""
    calls = []
    machine.stub("peek", lambda: calls.append("call"))
    loaded = load(machine, undefined=("peek",))
    let_exit_work(machine, loaded)
    loaded.unload()
    assert calls == ["call", "call"]


def test_state(machine):
    """The state is COMING during init, LIVE after it, and GOING during exit."""
    seen = []

    def state():
        (formed,) = machine.loader.modules.values()
        return int.from_bytes(machine.read(formed.member("state"), 4), "little")

    machine.stub("peek", lambda: seen.append(state()))
    loaded = load(machine, undefined=("peek",))
    assert number(machine, loaded, "state", 4) == LIVE
    let_exit_work(machine, loaded)
    loaded.unload()
    assert seen == [COMING, GOING]


def test_state_before_init(machine):
    """A module whose init has not run is COMING, and held once by that."""
    loaded = load(machine, init=False)
    assert number(machine, loaded, "state", 4) == COMING
    assert kernel(machine, "module_refcount", this(loaded)) == 1


def test_what_modules_read(machine):
    """Name, kobject, version and per-cpu memory are as the kernel sets them."""
    loaded = load(machine, percpu=24, info="version=1.5")
    name = this(loaded) + machine.arch.loads.layouts.offset_of("module", "name")
    assert machine.read(name, 5) == b"mini\0"
    at = this(loaded) + machine.arch.loads.layouts.offset_of("module", "mkobj")
    whole = view(machine.kernel, "module_kobject", at)
    kobject = view(machine.kernel, "kobject", at)
    assert kobject.text("name") == "mini"
    assert kobject.number("name") == name
    assert kobject.number("kref") == whole.number("kobj.kref") == 1
    assert whole.number("mod") == this(loaded)
    assert machine.read(number(machine, loaded, "version"), 4) == b"1.5\0"
    assert number(machine, loaded, "srcversion") == 0
    assert number(machine, loaded, "percpu_size", 4) == 24
    assert number(machine, loaded, "percpu") == loaded.loaded.percpu


def test_the_list_of_modules(machine):
    """The modules form a list, the latest first; one that goes leaves it."""
    at = machine.arch.loads.layouts.offset_of("module", "list")
    one, two, three = (load(machine, name) for name in ("one", "two", "three"))
    head = machine.kernel.address("modules")

    def nodes():
        node, found = machine.kernel.word(head), []
        while node != head:
            assert machine.kernel.word(machine.kernel.word(node) + PREV) == node
            found.append(node - at)
            node = machine.kernel.word(node)
        return found

    assert nodes() == [this(three), this(two), this(one)]
    two.unload()
    assert nodes() == [this(three), this(one)]


def test_a_list_that_the_guest_broke(machine):
    """A module that took itself out of the list, or wrote into its links, can be unloaded."""
    for links in (struct.pack("<QQ", 0xDEAD, 0xBEEF), bytes(16)):
        one = load(machine, "one")
        machine.write(this(one) + machine.arch.loads.layouts.offset_of("module", "list"), links)
        one.unload()
        assert not machine.modules


def test_references(machine):
    """try_module_get counts, module_put gives back, and a held module does not go (EWOULDBLOCK)."""
    loaded = load(machine)
    assert kernel(machine, "try_module_get", this(loaded)) == 1
    kernel(machine, "__module_get", this(loaded))
    assert kernel(machine, "module_refcount", this(loaded)) == 2
    with pytest.raises(ModuleInUse, match="the guest holds 2 references") as caught:
        loaded.unload()
    assert caught.value.references == 2
    assert loaded.state is State.LIVE
    kernel(machine, "module_put", this(loaded))
    kernel(machine, "module_put", this(loaded))
    assert kernel(machine, "module_refcount", this(loaded)) == 0
    loaded.unload()
    assert loaded.state is State.UNLOADED


def test_a_put_too_many(machine):
    """module_put of a module that nobody holds warns, and the count stays."""
    loaded = load(machine)
    for _ in range(3):
        kernel(machine, "module_put", this(loaded))
    assert "WARNING" in machine.log[-1].text
    assert number(machine, loaded, "refcnt", 4) == 0
    assert kernel(machine, "try_module_get", this(loaded)) == 0


def test_no_module(machine):
    """NULL, which a built-in owner is, can always be had; another address is refused by name."""
    assert kernel(machine, "try_module_get", 0) == 1
    kernel(machine, "__module_get", 0)
    kernel(machine, "module_put", 0)
    with pytest.raises(Fault, match="no module's struct module lies at 0x1000"):
        kernel(machine, "try_module_get", 0x1000)


def test_a_module_that_goes(machine):
    """try_module_get fails while the module's exit runs."""
    needs(machine.arch, "patch")
    results = []
    machine.stub("peek", lambda: results.append(kernel(machine, "try_module_get", address)))
    address = this(loaded := load(machine, undefined=("peek",), entries={}))
    let_exit_work(machine, loaded)
    loaded.unload()
    assert results == [0]


def test_force(machine):
    """Force takes out what the guest holds, and a permanent module, which has no exit."""
    loaded = load(machine)
    kernel(machine, "__module_get", this(loaded))
    loaded.unload(force=True)
    permanent = load(machine, entries={facts(machine.arch).link.init_at: "init_module"})
    with pytest.raises(ModuleInUse, match="permanent: it has an init and no exit"):
        permanent.unload()
    permanent.unload(force=True)
    assert not machine.modules


def test_users_are_counted(machine):
    """A module that uses another one's symbols holds it, as long as it is loaded."""
    base = load(machine, "base", exported=("shared",))
    user = load(machine, "user", undefined=("shared",))
    assert kernel(machine, "module_refcount", this(base)) == 1
    source = this(base) + machine.arch.loads.layouts.offset_of("module", "source_list")
    use = view(machine.kernel, "module_use", machine.kernel.word(source))
    assert (use.number("source"), use.number("target")) == (this(user), this(base))
    with pytest.raises(ModuleInUse, match="in use by user"):
        base.unload()
    user.unload()
    assert kernel(machine, "module_refcount", this(base)) == 0
    assert machine.kernel.word(source) == source
    base.unload()


def test_a_failed_init_lets_go(machine):
    """A module whose init fails lets go of what it used."""
    base = load(machine, "base", exported=("shared",))
    machine.stub("fails", (1 << 64) - 12)
    with pytest.raises(InitFailed):
        load(machine, "user", undefined=("shared", "fails"))
    assert kernel(machine, "module_refcount", this(base)) == 0
    base.unload()


def test_another_build(machine):
    """In another build's structure only what is known is written; the rest stops by name."""
    pointers = {304: "init_module", 848: "cleanup_module"}
    loaded = load(machine, this_size=896, entries=pointers, vermagic="6.1.0 SMP")
    content = machine.read(this(loaded), 896)
    assert content[848 + 8 : 848 + 12] == b"\1\0\0\0"
    assert content[320:848] == bytes(528)
    kernel(machine, "try_module_get", this(loaded))
    with pytest.raises(ModuleInUse):
        loaded.unload()
    kernel(machine, "module_put", this(loaded))
    loaded.unload()
    library = load(machine, "library", this_size=896, entries={}, vermagic="6.1.0 SMP")
    with pytest.raises(
        Fault, match=r"module\.refcnt of 6\.1\.0 is not known .*give the kernel with --kernel"
    ):
        kernel(machine, "try_module_get", this(library))
    assert machine.read(this(library) + 320, 576) == bytes(576)
    library.unload()
