# SPDX-License-Identifier: GPL-2.0-or-later
"""Modules of a build whose structures nobody knows: what needs one stops by name, the rest goes on."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

import archs
from archs.layouts import NotKnown, Unknown
from emulator.faults import Fault, FaultKind
from execmem.check.elfwriter import A, Sec, W
from kernels.modelled.api.algorithms import algorithm
from kernels.modelled.structs import USED, callbacks, offset_of, size_of, view
from kernels.modelled.table import DATA, FUNCTIONS
from loader.errors import BadParameter
from loader.files import ModuleFile
from machine.face import Machine
from machine.module import Module
from tests.archs.facts import facts
from tests.support.checked import made
from tests.support.modules import module

OTHER = "6.1.176-other"
HINT = "give the kernel with --kernel"
POINTER = re.compile(r"struct (\w+) \*")

# Functions of modules of each subsystem, and the structure that each needs first.
NEEDS = {
    "crypto_register_shash": "shash_alg",
    "crypto_register_skcipher": "skcipher_alg",
    "crypto_register_alg": "crypto_alg",
    "crypto_shash_update": "shash_desc",
    "misc_register": "miscdevice",
    "cdev_init": "cdev",
    "init_timer_key": "timer_list",
    "queue_work_on": "work_struct",
    "queue_delayed_work_on": "work_struct",
    "tasklet_setup": "tasklet_struct",
    "call_rcu": "callback_head",
    "hrtimer_init": "hrtimer",
    "__mutex_init": "mutex",
    "mutex_lock": "mutex",
    "down_read": "rw_semaphore",
    "down": "semaphore",
    "__init_waitqueue_head": "wait_queue_head",
    "complete": "completion",
    "register_pernet_subsys": "pernet_operations",
    "sg_init_table": "scatterlist",
    "seq_putc": "seq_file",
    "xa_load": "xarray",
    "idr_find": "idr",
    "kobject_init": "kobject",
    "platform_device_register": "platform_device",
    "class_create": "class",
    "noop_llseek": "file",
    "param_set_int": "kernel_param",
    "register_filesystem": "file_system_type",
    "__platform_driver_register": "platform_driver",
    "__pci_register_driver": "pci_driver",
    "__kmem_cache_create_args": "kmem_cache_args",
}
# What takes a pointer to one of the named structures and looks at nothing behind it: its address
# alone is what is entered, looked up or handed back.
BY_ADDRESS = {
    "_unregister", "_unregister_pernet_operations", "_return_zero", "_attribute_of_a_task",
    "_class_destroy", "_device_del", "_device_destroy", "_root_device_unregister",
    "_devm_add_action", "_devm_get_free_pages", "_devm_kfree", "_devm_kmalloc", "_devm_kmemdup",
    "_devm_krealloc", "_devm_kstrdup", "_devm_kvasprintf", "_devm_release_action", "_devm_remove_action",
    "_devres_add", "_devres_close_group", "_devres_open_group", "_devres_release_group",
    "_input_unregister_handler", "_led_trigger_unregister", "_led_trigger_unregister_simple",
    "_request_firmware", "_request_firmware_nowait", "_dynamic_kobj_release", "_dev_remove_pack",
    "_genl_unregister_family", "_misc_deregister", "cdev_del", "_kernel_param_lock",
    "_shrinker_free", "_debugfs_lookup", "_debugfs_lookup_and_remove", "_debugfs_remove",
    "_freezing", "_kthread_bind", "_kthread_data", "_kthread_stop", "_kthread_create_on_cpu",
    "_wake_up_process", "_wake_up_state", "_shared_queue", "_cancel_work", "_cancel_work_sync",
    "_current_work", "_destroy_workqueue", "_flush_work", "_flush_workqueue", "_tasklet_kill",
    "_tasklet_schedule", "_work_busy", "_workqueue_set_active", "_same_id", "_yes", "_key_put",
    "_fqdir_exit", "_bit_wait", "_generic_file_open", "_srcu_read_lock", "_srcu_read_unlock",
    # Streams and walks that were not begun, transforms that there are none of.
    "_deflate", "_deflate_init", "_inflate", "_inflate_init", "_end", "_stream_reset",
    "_sg_miter_next", "_walk_done", "_alloc_base", "_alloc_shash", "_destroy_tfm", "_shash_setkey",
    "_shash_tfm_digest", "_deferred", "_dec_deferred",
    "_kmem_cache_alloc_lru", "_del_gendisk", "_remove_proc_entry", "_proc_remove",
    "_unregister_sysctl", "_cipher_setkey", "_cipher_encrypt_one", "_cipher_decrypt_one",
    # Only where a count comes to zero.
    "_atomic_dec_and_mutex_lock", "_refcount_dec_and_mutex_lock",
    # Members of struct module that the file itself tells.
    "_module_get", "_module_put", "_module_refcount", "_try_module_get",
}  # fmt: skip


def load(machine: Machine, name: str = "mini", **options: object) -> Module:
    """Load a module that calls what it is told when its function is called, of another build."""
    options = {"vermagic": f"{OTHER} SMP", "undefined": (), "runs": True, **options}
    init = bool(options.pop("init", False))
    image = module(machine.arch.machine, name, **options)
    return machine.load(ModuleFile(f"{name}.ko", image), init=init)


@pytest.fixture
def machine(arch: archs.Arch) -> Machine:
    """Return a machine without a kernel that is given."""
    found = Machine(arch)
    found.seconds = 5.0
    return found


def buffers(machine: Machine) -> list[int]:
    """Return addresses of zeroed memory, for as many arguments as registers hold."""
    return [machine.alloc(4096) for _ in range(4)]


def kind_of(act: Callable[[], object]) -> FaultKind | None:
    """Return why something stops; None: it does not."""
    try:
        act()
    except Fault as fault:
        return fault.kind
    return None


@pytest.mark.parametrize(("function", "structure"), NEEDS.items())
def test_what_needs_a_structure_stops_by_name(
    machine: Machine, function: str, structure: str
) -> None:
    """Structure, release and what would help, in one line; a module of what is modelled goes on."""
    other = load(machine, undefined=(function,))
    with pytest.raises(Fault) as caught:
        other.call("mini_work", *buffers(machine))
    fault = caught.value
    assert fault.kind is FaultKind.UNKNOWN_STRUCTURE
    assert fault.reason == f"{structure} of {OTHER} is not known"
    assert fault.hint == HINT
    assert "\n" not in str(fault)
    assert not fault.foreign
    assert not list(machine.registry)
    machine.unload(other)
    if not machine.arch.loads.layouts.has(structure):
        return
    own = load(machine, "own", undefined=(function,), vermagic=None)
    assert kind_of(lambda: own.call("own_work", *buffers(machine))) is not fault.kind


@pytest.mark.parametrize("structure", sorted(USED))
def test_every_structure_goes_this_way(machine: Machine, structure: str) -> None:
    """Size, members, views and callbacks of each are asked of the same layouts, which lack it."""
    kernel = machine.kernel
    told = re.escape(f"{structure} of {OTHER} is not known; {HINT}")
    at = machine.alloc(64)
    with kernel.whose.by(Unknown(OTHER)):
        for ask in (
            lambda: size_of(structure)(kernel),
            lambda: callbacks(kernel.layouts, structure),
            lambda: view(kernel, structure, at).size,
            *(lambda m=m: offset_of(structure, m)(kernel) for m in USED[structure]),
            *(lambda m=m: view(kernel, structure, at).number(m) for m in USED[structure]),
            *(lambda m=m: view(kernel, structure, at).put(m, 0) for m in USED[structure]),
        ):
            with pytest.raises(NotKnown, match=f"^{told}$"):
                ask()
    assert kernel.layouts is machine.arch.loads.layouts


def test_nobody_reads_structures_by_hand(machine: Machine) -> None:
    """Each function that takes a pointer to a named structure stops, or is known not to look."""
    load(machine, undefined=())  # so that whoever calls may be of that build
    wrong, stopped = [], 0
    for name, function in FUNCTIONS.items():
        structures = [s for s in POINTER.findall(function.declaration) if s in USED]
        prototype = function.prototype
        if not structures or prototype.variadic or prototype.indirect:
            continue
        arguments = [machine.alloc(4096) if p.type.pointer else 1 for p in prototype.params]
        kind = kind_of(lambda n=name, a=arguments: machine.call(machine.kernel.address(n), *a))
        if kind is FaultKind.UNKNOWN_STRUCTURE:
            stopped += 1
        elif function.handler.__name__ not in BY_ADDRESS:
            wrong.append(name)
    assert not wrong, " ".join(wrong)
    assert stopped > 250


@pytest.mark.parametrize(
    ("function", "arguments", "result"),
    [
        ("strlen", ["four"], 4),
        ("crc32_le", [0xFFFF_FFFF, b"123456789", 9], ~zlib.crc32(b"123456789") & 0xFFFF_FFFF),
        ("memcmp", [b"one", b"one", 3], 0),
        ("_raw_spin_trylock", [bytes(8)], 1),
        ("_printk", ["%s %d\n", "said", 7], 7),
        ("msleep", [20], None),
        ("__kmalloc_noprof", [64, 0], None),
    ],
)
def test_what_needs_none_goes_on(
    machine: Machine, function: str, arguments: list[int | bytes | str], result: int | None
) -> None:
    """Text, memory, checksums and lock words are the same in every build."""
    other = load(machine, undefined=(function,))
    found = other.call("mini_work", *arguments)
    assert machine.kernel.calls[function] == 1
    assert result is None or found & 0xFFFF_FFFF == result
    assert function != "__kmalloc_noprof" or machine.read(found, 64)
    assert not machine.kernel.oopses


def test_what_a_service_is_given_is_kept(machine: Machine) -> None:
    """Only a tasklet's address is put off; when its turn comes, it is not read as another's."""
    other = load(machine, undefined=("__tasklet_schedule",))
    tasklet = machine.alloc(256)
    before = machine.read(tasklet, 256)
    other.call("mini_work", tasklet)
    (oops,) = machine.kernel.oopses
    assert oops.kind is FaultKind.UNKNOWN_STRUCTURE
    assert f"tasklet_struct of {OTHER} is not known, in tasklet" in str(oops)
    assert machine.read(tasklet, 256) == before


# Who calls --------------------------------------------------------------------------------------


def test_modules_beside_it_are_served(machine: Machine) -> None:
    """A module of what is modelled shares nothing with another one, and goes on."""
    own = load(machine, "own", undefined=("__mutex_init",), vermagic=None)
    other = load(machine, "other", undefined=("__mutex_init",))
    lock = machine.alloc(b"\xff" * 64)
    own.call("own_work", lock)
    assert machine.read(lock, 8) == bytes(8)
    with pytest.raises(Fault, match=f"mutex of {OTHER} is not known"):
        other.call("other_work", lock)


def test_a_call_in_the_last_place(machine: Machine) -> None:
    """Where a function jumps to what it calls last, it is still the one that calls."""
    own = load(machine, "own", undefined=("__mutex_init",), vermagic=None)
    load(machine, "other", undefined=())
    # From outside: nobody says whose memory it is.
    with pytest.raises(Fault, match=f"mutex of {OTHER} is not known"):
        machine.call(machine.kernel.address("__mutex_init"), machine.alloc(64))
    own.call("own_work", machine.alloc(64))


def test_modules_that_link_to_one_another(machine: Machine) -> None:
    """What one of them hands to the other is of its build: neither is served by the table."""
    lib = load(machine, "lib", undefined=("__mutex_init",), exported=("shared",), vermagic=None)
    lock = machine.alloc(64)
    lib.call("lib_work", lock)
    user = load(machine, "user", undefined=("shared",))
    with pytest.raises(Fault, match=f"mutex of {OTHER} is not known"):
        lib.call("lib_work", lock)
    machine.unload(user)
    lib.call("lib_work", lock)


def test_a_build_each(machine: Machine) -> None:
    """Of two builds that are not known, each is called by its own name."""
    one = load(machine, "one", undefined=("__mutex_init",), vermagic="6.2.1 SMP")
    two = load(machine, "two", undefined=("__mutex_init",), vermagic="6.3.1 SMP")
    for loaded, release in ((one, "6.2.1"), (two, "6.3.1")):
        with pytest.raises(Fault, match=f"mutex of {re.escape(release)} is not known"):
            loaded.call(f"{loaded.name}_work", machine.alloc(64))


# Which builds are known ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vermagic", "release"),
    [
        ("{model}", ""),
        ("6.12.3-samples SMP", ""),
        ("{release} SMP odd", "{release}"),
        ("6.12.106{rest}", "6.12.106{tail}"),
        ("nonsense", "a kernel that the module does not name"),
        ("", "a kernel that the module does not name"),
    ],
)
def test_which_build_is_known(arch: archs.Arch, vermagic: str, release: str) -> None:
    """That which the module names, word by word; what names none is not known."""
    model = arch.loads.vermagic
    words = {
        "model": model,
        "release": model.partition(" ")[0],
        "rest": model.partition(".107")[2],
        "tail": model.partition(".107")[2].partition(" ")[0],
    }
    machine = Machine(arch, force=True)
    magic, release = vermagic.format(**words), release.format(**words)
    loaded = machine.load(made(arch.machine, magic=magic or None), init=False)
    layouts = loaded.loaded.layouts
    assert layouts is not None
    assert layouts.has("mutex") == (not release)
    if release:
        with pytest.raises(NotKnown, match=f"^mutex of {re.escape(release)} is not known; {HINT}$"):
            layouts.size_of("mutex")
        assert any("what needs its structures stops" in n.text for n in loaded.report.notices)
    else:
        assert loaded.report.notices == ()


# What the kernel reads of a module, and has for it ------------------------------------------------


def test_variables_of_structures_are_not_read(machine: Machine) -> None:
    """A module of another build gets none of them, as long as one of what is modelled has them."""
    own = load(machine, "own", weak=("init_net",), vermagic=None)
    other = load(machine, "other", weak=("init_net",))
    at = machine.kernel.symbols["init_net"]
    given = machine.kernel.stand_in("init_net", other.loaded.layouts)
    assert given not in (None, at)
    for loaded, place in ((own, at), (other, given)):
        (data,) = (s.address for s in loaded.sections.values() if s.name == ".data")
        assert machine.kernel.word(data + 8) == place
    assert machine.kernel.stand_in("init_net", own.loaded.layouts) is None
    size = machine.arch.loads.layouts.size_of("net")
    assert len(machine.read(at, size)) == size
    assert machine.kernel.unknown_at(given) == "init_net"
    assert "init_net" not in (*other.loaded.unknown, *machine.kernel.missing)


def test_variables_that_sizes_belong_to() -> None:
    """A variable whose contents go by a structure has the structure's size: that is what is asked."""
    machine = Machine("x86_64")
    for name, variable in DATA.items():
        if machine.kernel.lacking(name, Unknown(OTHER)) is None and variable.fill is not None:
            with machine.kernel.whose.by(Unknown(OTHER)):
                variable.fill(machine.kernel)  # raises nothing
    for name in ("init_net", "boot_cpu_data", "pcpu_hot", "param_ops_int", "kernel_kobj"):
        assert machine.kernel.lacking(name, Unknown(OTHER)) is not None, name


def test_parameters(machine: Machine) -> None:
    """Where a module has a table of them, its entries are not read by another's; else it has none."""
    plain = load(machine, "plain")
    with pytest.raises(BadParameter, match="'x': unknown; the module takes none"):
        machine.parameters_of(plain.loaded) or machine._parameters.set(plain.loaded, {"x": 1})
    image = module(
        machine.arch.machine, "some", undefined=(), runs=True, vermagic=f"{OTHER} SMP",
        extra=[Sec("__param", bytes(40), A | W, align=8)],
    )  # fmt: skip
    with pytest.raises(NotKnown, match=f"kernel_param of {OTHER} is not known; {HINT}"):
        machine.load(ModuleFile("some.ko", image), init=False, x=1)
    loaded = machine.load(ModuleFile("some.ko", image), init=False)
    assert machine.parameters_of(loaded.loaded) == ()
    machine.unload(loaded)


def test_struct_module_has_what_the_file_tells(machine: Machine) -> None:
    """Behind the name nothing is stored: a build id stands there in some kernels."""
    size = facts(machine.arch).link.this_module_size
    loaded = load(machine, this_size=size)
    at = loaded.loaded.member()
    assert at is not None
    name = machine.arch.loads.layouts.offset_of("module", "name")
    begin = name + 56  # MODULE_NAME_LEN, 64 bytes less a pointer
    known = {loaded.loaded.member(m) for m in ("init", "exit", "refcnt")}
    data = machine.read(at + begin, size - begin)
    stored = {at + begin + n & -8 for n, byte in enumerate(data) if byte}
    assert stored <= {place & -8 for place in known if place is not None}


# Modules of real kernels --------------------------------------------------------------------------

# RFC 1320; "The hash function RIPEMD-160", A; GOST R 34.11-2012, example 1 of RFC 6986 (10.1.2, which
# writes the bytes the other way round)
DIGESTS = {
    "md4": ("md4", b"abc", "a448017aaf21d8525fc10ae87aa6729d"),
    "rmd160": ("rmd160", b"abc", "8eb208f7e05d987a9b044a8e98c6b087f15a0bfc"),
    "streebog_generic": (
        "streebog256",
        b"012345678901234567890123456789012345678901234567890123456789012",
        "9d151eefd8590b89daa6ba6cb74af9275dd051026bb149a452fd84e5e57b5500",
    ),
}


@pytest.mark.parametrize("name", DIGESTS)
def test_digests_of_other_kernels(kernels: dict[str, Path], arch: archs.Arch, name: str) -> None:
    """With its kernel an algorithm computes; without it, it registers nothing and says why."""
    files = [(f, found) for f in kernels.values() for found in f.rglob(f"{name}.ko*")]
    if not files:
        pytest.skip(f"EXECMEM_KERNELS has no {name} for this architecture")
    title, data, digest = DIGESTS[name]
    for folder, file in files:
        given = Machine(kernel=folder, modelled=True, root=folder)
        given.load(file)
        (record,) = (r for r in given.registry.find("shash") if r.name == title)
        with algorithm(given.kernel, record) as found:
            assert found.digest(data).hex() == digest
        alone = Machine(arch, root=folder)
        loaded = alone.load(file)
        fault = loaded.report.init_fault
        assert fault is not None
        assert re.fullmatch(r"shash_alg of \S+ is not known", fault.reason)
        assert not list(alone.registry)
        with pytest.raises(Exception, match=r"no such algorithm; stopped first: .*shash_alg of"):
            alone.crypto(title)


def test_what_a_module_reads_itself(kernels: dict[str, Path], arch: archs.Arch) -> None:
    """A variable of a structure that inlined code reads stops by the structure's name, and its own."""
    files = [file for folder in kernels.values() for file in folder.rglob("chacha-x86_64.ko*")]
    if not files:
        pytest.skip("EXECMEM_KERNELS has no chacha-x86_64 for this architecture")
    for file in files:
        tree = next(folder for folder in kernels.values() if file.is_relative_to(folder))
        fault = Machine(arch, root=tree).load(file).report.init_fault
        assert fault is not None
        assert fault.kind is FaultKind.UNKNOWN_STRUCTURE
        assert re.fullmatch(
            r"cpuinfo_x86 of \S+ is not known: 'boot_cpu_data(\+0x[0-9a-f]+)?', read as a variable",
            fault.reason,
        )
        assert "[chacha_x86_64]" in fault.where


def test_no_module_of_another_kernel_registers(kernels: dict[str, Path], arch: archs.Arch) -> None:
    """Without its kernel each of them starts, or stops at what is not known; none is read wrongly."""
    for folder in kernels.values():
        for file in sorted(folder.glob("lib/modules/*/kernel/**/*.ko*"))[::5]:
            machine = Machine(arch, root=folder)
            machine.seconds = 20.0
            try:
                fault = machine.load(file).report.init_fault
            except Fault as error:  # of a module that depends on one that stopped
                fault = error.cause.fault if error.cause is not None else error
            assert fault is None or fault.kind.is_unknown, (file.name, str(fault))
            assert not any(r.callbacks for r in machine.registry), file.name
