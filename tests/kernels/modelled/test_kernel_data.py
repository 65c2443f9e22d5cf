# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's data structures and objects, as modules use them, against Python's own."""

from __future__ import annotations

import errno
import functools
import struct
import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import archs
from emulator.faults import Fault
from execmem.check.elfwriter import FUNC, A, Sec, Sym, X
from kernels.modelled.structs import POINTER
from tests.archs.facts import facts
from tests.support.checked import made
from tests.support.guest import EACH, GFP_KERNEL, guest_of

# Notifiers, reserves, counters ---------------------------------------------------------------


@EACH
@settings(max_examples=15, deadline=None)
@given(priorities=st.lists(st.integers(-3, 3), max_size=7), stop=st.integers(0, 7))
def test_notifiers_are_called_by_priority(arch, priorities, stop):
    """Highest first, equal ones in order of registration, until one says stop."""
    guest = guest_of(arch)
    head, called, blocks = guest.alloc(16), [], []

    def notify(block, event, data):
        assert (event, data) == (5, 77)
        called.append(block)
        return 0x8001 if len(called) == stop else 1

    func = guest.callback(
        "notified", notify, "int notified(void *nb, unsigned long event, void *data)"
    )
    for priority in priorities:
        block = guest.alloc(24)
        guest.machine.write(block, struct.pack("<QQi", func, 0, priority))
        guest("atomic_notifier_chain_register", head, block)
        blocks.append(block)
    order = [b for _, b in sorted(zip(priorities, blocks, strict=True), key=lambda x: -x[0])]
    result = guest("atomic_notifier_call_chain", head, 5, 77, returns="int")
    assert called == (order[:stop] if stop else order)
    assert result == (0 if not order else 0x8001 if len(called) == stop else 1)
    for block in blocks:
        assert guest("atomic_notifier_chain_unregister", head, block, returns="int") == 0
    for block in blocks:
        got = guest("atomic_notifier_chain_unregister", head, block, returns="int")
        assert got == -errno.ENOENT
    assert guest.view("atomic_notifier_head", head).number("head") == 0


def test_a_mempool_keeps_its_reserve(guest):
    """Elements come from the allocator while it gives any, then from the reserve, which refills."""
    given, freed = [], []

    def alloc(_gfp, _data):
        if len(given) >= 5:
            return 0
        given.append(0x1000 * (len(given) + 1))
        return given[-1]

    alloc_fn = guest.callback("pool_alloc", alloc, "void *pool_alloc(u32 gfp, void *d)")
    free_fn = guest.callback(
        "pool_free", lambda e, _d: freed.append(e), "void pool_free(void *e, void *d)"
    )
    pool = guest("mempool_create_node_noprof", 3, alloc_fn, free_fn, 0, GFP_KERNEL, -1)
    assert len(given) == 3
    first = [guest("mempool_alloc_noprof", pool, GFP_KERNEL) for _ in range(2)]
    assert first == given[3:]
    reserve = [guest("mempool_alloc_noprof", pool, GFP_KERNEL) for _ in range(3)]
    assert sorted(reserve) == given[:3]
    assert guest("mempool_alloc_noprof", pool, GFP_KERNEL) == 0
    for element in first:
        guest("mempool_free", element, pool)
    assert freed == []
    guest("mempool_destroy", pool)
    assert sorted(freed) == first


def test_percpu_counters_sum(guest):
    """Counts may be negative; comparing tells the order."""
    size = guest.kernel.layouts.size_of("percpu_counter")
    counter = guest.alloc(2 * size)
    assert guest("__percpu_counter_init_many", counter, -7, GFP_KERNEL, 2, 0, returns="int") == 0
    for at in (counter, counter + size):
        guest("percpu_counter_add_batch", at, 3, 32)
        assert guest("__percpu_counter_sum", at, returns="s64") == -4
        for other, order in ((-5, 1), (-4, 0), (0, -1)):
            assert guest("__percpu_counter_compare", at, other, 32, returns="int") == order
    guest("percpu_counter_destroy_many", counter, 2)
    assert guest.view("percpu_counter", counter).number("counters") == 0


def test_percpu_ref_is_released_with_its_last_reference(guest):
    """Killing drops the first reference; the release runs once."""
    released = []
    func = guest.callback("ref_released", released.append, "void ref_released(void *ref)")
    ref = guest.alloc(16)
    assert guest("percpu_ref_init", ref, func, 0, GFP_KERNEL, returns="int") == 0
    assert guest("percpu_ref_is_zero", ref) == 0
    guest("percpu_ref_kill_and_confirm", ref, 0)
    assert released == [ref]
    assert guest("percpu_ref_is_zero", ref) == 1
    guest("percpu_ref_exit", ref)


# Objects ---------------------------------------------------------------------------------------


def test_a_kobject_is_released_with_its_last_reference(guest):
    """The type's release runs at the last put, and its name goes with it."""
    released, before = [], guest.kernel.heap.live()
    func = guest.callback("kobject_gone", released.append, "void kobject_gone(void *kobj)")
    kobject, kind = guest.alloc(64), guest.alloc(24)
    guest.kernel.store(kind, func)
    name = b"port%d\0"
    got = guest("kobject_init_and_add", kobject, kind, 0, name, 3, returns="int")
    assert got == 0
    assert guest.kernel.string(guest.kernel.word(kobject)) == b"port3"
    guest("kobject_get", kobject)
    guest("kobject_put", kobject)
    assert released == []
    guest("kobject_put", kobject)
    assert released == [kobject]
    guest.machine.free(kobject)
    guest.machine.free(kind)
    assert guest.kernel.heap.live() == before


def test_devices_of_a_class_come_and_go(guest):
    """device_create names and records a device; device_destroy finds it by its number."""
    before = guest.kernel.heap.live()
    name, fmt = guest.alloc(b"toys\0"), guest.alloc(b"toy%u\0")
    cls = guest("class_create", name)
    device = guest("device_create", cls, 0, 0x0AB00003, 0x77, fmt, 3)
    registry = guest.kernel.registry
    assert [r.name for r in registry.find("class")] == ["toys"]
    assert [(r.name, r.address) for r in registry.find("device")] == [("toy3", device)]
    guest("device_destroy", cls, 0x0AB00003)
    guest("class_destroy", cls)
    assert not list(registry.find("device"))
    assert not list(registry.find("class"))
    guest.machine.free(name)
    guest.machine.free(fmt)
    assert guest.kernel.heap.live() == before


@pytest.mark.parametrize(
    ("make", "remove", "kind"),
    [
        ("proc_mkdir", "proc_remove", "proc entry"),
        ("debugfs_create_dir", "debugfs_remove", "debugfs entry"),
    ],
)
def test_a_folder_goes_with_what_is_in_it(guest, make, remove, kind):
    """Entries are recorded by their path; removing one removes what lies below."""
    before = guest.kernel.heap.live()
    names = {n: guest.alloc(n.encode() + b"\0") for n in ("fs", "a", "b")}
    top = guest(make, names["fs"], 0)
    inner = guest(make, names["a"], top)
    guest(make, names["b"], inner)
    found = [r.name for r in guest.kernel.registry.find(kind)]
    assert found == ["fs", "fs/a", "fs/a/b"]
    guest(remove, inner)
    assert [r.name for r in guest.kernel.registry.find(kind)] == ["fs"]
    guest(remove, top)
    for address in names.values():
        guest.machine.free(address)
    assert guest.kernel.heap.live() == before


def test_dev_messages_name_driver_and_device(guest):
    """As dev_printk prefixes them; without a device it says so."""
    device, name, fmt = guest.alloc(2048), guest.alloc(b"eth0\0"), guest.alloc(b"link %d\n\0")
    driver = guest.alloc(8)
    guest.kernel.store(driver, guest.alloc(b"drv\0"))
    guest("device_initialize", device)
    guest.kernel.store(device, name)
    guest.view("device", device).put("driver", driver)
    guest("_dev_warn", device, fmt, 5)
    assert (guest.machine.log[-1].level, guest.machine.log[-1].text) == (4, "drv eth0: link 5")
    guest("_dev_err", 0, fmt, 6)
    assert (guest.machine.log[-1].level, guest.machine.log[-1].text) == (
        3,
        "(NULL device *): link 6",
    )


def test_what_belongs_to_a_device_goes_with_it(guest):
    """Memory, actions and resources are released when the device goes, the newest first."""
    before, gone = guest.kernel.heap.live(), []
    action = guest.callback("devm_action", gone.append, "void devm_action(void *data)")
    release = guest.callback(
        "devm_release", lambda _dev, res: gone.append(res), "void devm_release(void *d, void *r)"
    )
    device, name = guest.alloc(2048), guest.alloc(b"gadget\0")
    guest("device_initialize", device)
    guest("dev_set_name", device, name)
    assert guest("device_add", device, returns="int") == 0
    assert guest("devm_kmalloc", device, 100, GFP_KERNEL)
    guest("__devm_add_action", device, action, 1, 0)
    resource = guest("__devres_alloc_node", release, 24, GFP_KERNEL, -1, 0)
    guest("devres_add", device, resource)
    text = guest("devm_kasprintf", device, GFP_KERNEL, b"n%d\0", 5)
    assert guest.kernel.string(text) == b"n5"
    guest("__devm_add_action", device, action, 2, 0)
    guest("__devm_add_action", device, action, 3, 0)
    guest("devm_remove_action", device, action, 3)
    early = guest("devm_kmalloc", device, 10, GFP_KERNEL)
    guest("devm_kfree", device, early)
    assert guest("ksize", early) == 0
    with pytest.raises(Fault, match="not memory of this device"):
        guest("devm_kfree", device, device)
    guest("device_unregister", device)
    assert gone == [2, resource, 1]
    guest.machine.free(device)
    guest.machine.free(name)
    assert guest.kernel.heap.live() == before


def test_a_group_of_resources_is_released_alone(guest):
    """devres_release_group releases what was added since the group was opened."""
    gone = []
    action = guest.callback("group_action", gone.append, "void group_action(void *data)")
    device = 0x1000
    guest("__devm_add_action", device, action, 1, 0)
    group = guest("devres_open_group", device, 0, GFP_KERNEL)
    guest("__devm_add_action", device, action, 2, 0)
    guest("__devm_add_action", device, action, 3, 0)
    guest("devres_release_group", device, group)
    assert gone == [3, 2]
    guest("devm_release_action", device, action, 1)
    assert gone == [3, 2, 1]


@EACH
@settings(max_examples=15, deadline=None)
@given(data=st.binary(max_size=40), start=st.integers(0, (1 << 32) - 1))
def test_csum_partial_is_the_internet_checksum(arch, data, start):
    """RFC 1071: the sum of 16-bit words, folded, whatever the order of folding."""
    guest = guest_of(arch)
    raw = guest("csum_partial", data or b"\0", len(data), start, returns="u32")
    words = struct.unpack(f"<{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2))

    def fold(total):
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        return total

    assert fold(raw) == fold(start + sum(words))


def test_the_last_reference_takes_the_lock(guest):
    """refcount_dec_and_lock locks only where the count reaches 0."""
    count, lock = guest.alloc((2).to_bytes(4, "little")), guest.alloc(4)
    assert guest("refcount_dec_and_lock", count, lock) == 0
    assert guest("refcount_dec_not_one", count) == 0
    assert guest.kernel.word(lock, 4) == 0
    assert guest("refcount_dec_and_lock", count, lock) == 1
    assert guest("_raw_spin_trylock", lock) == 0
    guest("_raw_spin_unlock", lock)


def test_a_page_is_known_by_its_struct_page(guest):
    """Neighbours are one struct page apart, and freeing by struct page frees the memory."""
    before = guest.kernel.heap.live()
    page = guest("alloc_pages_noprof", GFP_KERNEL | 0x100, 1)
    (address,) = set(guest.kernel.heap.live()) - set(before)
    assert guest.machine.read(address, 8192) == bytes(8192)
    assert page % 64 == 0
    guest("__free_pages", page, 1)
    assert guest.kernel.heap.live() == before
    area = guest("vmalloc_noprof", 8192)
    first, second = (guest("vmalloc_to_page", area + at) for at in (0, 4096))
    assert first != second
    assert guest("vmalloc_to_page", area + 4095) == first
    guest("vfree", area)


# Networking and the rest -------------------------------------------------------------------------


def test_what_is_kept_per_name_space(guest):
    """A number, memory and a call for the one name space; an init that fails leaves nothing."""
    before, calls = guest.kernel.heap.live(), []
    net = guest.kernel.address("init_net")

    def init(given):
        calls.append(("init", given))
        return -errno.EIO if len(calls) > 2 else 0

    functions = [
        guest.callback("ns_init", init, "int ns_init(void *net)"),
        guest.callback("ns_exit", lambda n: calls.append(("exit", n)), "void ns_exit(void *net)"),
    ]
    number, ops = guest.alloc(4), guest.alloc(72)
    # list, init, pre_exit, exit, exit_batch, exit_batch_rtnl, id, size
    guest.machine.write(
        ops, struct.pack("<9Q", 0, 0, functions[0], 0, functions[1], 0, 0, number, 48)
    )
    assert guest("register_pernet_subsys", ops, returns="int") == 0
    table = guest.view("net", net).number("gen")
    memory = guest.kernel.word(table + POINTER * guest.kernel.word(number, 4))
    assert guest.machine.read(memory, 48) == bytes(48)
    guest("unregister_pernet_subsys", ops)
    assert calls == [("init", net), ("exit", net)]
    assert guest("register_pernet_subsys", ops, returns="int") == -errno.EIO
    guest.machine.free(number)
    guest.machine.free(ops)
    assert guest.kernel.heap.live() == before


def test_firmware_files_are_not_there(guest):
    """Asking fails at once, or later by a call with no firmware."""
    out, name, told = guest.alloc(8), guest.alloc(b"card.fw\0"), []
    guest.kernel.store(out, 99)
    assert guest("request_firmware", out, name, 0, returns="int") == -errno.ENOENT
    assert guest.kernel.word(out) == 0
    func = guest.callback(
        "fw_told", lambda fw, context: told.append((fw, context)), "void fw_told(void *f, void *c)"
    )
    args = (0, 1, name, 0, GFP_KERNEL, 0x55, func)
    assert guest("request_firmware_nowait", *args, returns="int") == 0
    assert told == [(0, 0x55)]


@given(value=st.uuids())
@settings(max_examples=10, deadline=None)
def test_uuids_are_parsed(value):
    """A GUID's first three groups are little-endian; what is no UUID is refused."""
    guest = guest_of(archs.arch("x86_64"))
    out, text = guest.alloc(16), guest.alloc(str(value).encode() + b"\n\0")
    assert guest("guid_parse", text, out, returns="int") == 0
    assert guest.machine.read(out, 16) == value.bytes_le
    assert guest("uuid_parse", text, out, returns="int") == 0
    assert guest.machine.read(out, 16) == value.bytes
    guest.kernel.store(text + 8, ord("+"), 1)
    assert guest("uuid_parse", text, out, returns="int") == -errno.EINVAL
    assert isinstance(value, uuid.UUID)
    guest.machine.free(out)
    guest.machine.free(text)


def test_a_structure_is_returned_in_memory(guest):
    """The caller's address is passed where the architecture says, and the result lies there."""
    if not guest.kernel.layouts.has("zstd_compression_parameters"):
        pytest.skip(f"the types of {guest.machine.arch.name} have no such structure")
    machine = guest.machine.arch.machine
    code = bytes.fromhex(facts(machine).run.through)
    image = made(
        machine,
        extra=[Sec(".text.through", code, A | X, align=4)],
        symbols=[Sym("through", ".text.through", 0, len(code), FUNC)],
    )
    module = guest.machine.load(image)
    out = guest.alloc(40)
    module.call("through", out, 3, 1 << 17, guest.kernel.address("zstd_get_params"))
    guest.machine.unload(module)
    if guest.machine.arch.runs.calling.indirect is None:
        assert guest("zstd_get_params", out, 3, 1 << 17) == out
    window, chain, hashes, *_ = struct.unpack("<10I", guest.machine.read(out, 40))
    assert window == 17  # the window of 128 KiB
    bound = guest("zstd_cstream_workspace_bound", out)
    assert bound > (1 << window) + (4 << chain) + (4 << hashes)


@EACH
@settings(max_examples=15, deadline=None)
@given(parts=st.lists(st.binary(max_size=12), max_size=6), room=st.integers(1, 40))
def test_a_sequence_file_is_what_was_written_or_full(arch, parts, room):
    """Parts are appended while they fit; the first that does not marks the file as too small."""
    guest = guest_of(arch)
    buffer, file, source = guest.alloc(room), guest.alloc(128), guest.alloc(16)
    guest.machine.write(file, struct.pack("<QQ", buffer, room))
    expected = b""
    for part in parts:
        guest.machine.write(source, part)
        fits = len(expected) + len(part) < room
        assert guest("seq_write", file, source, len(part), returns="int") == (0 if fits else -1)
        if not fits:
            assert guest("seq_has_overflowed", file) == 1
            break
        expected += part
    else:
        assert guest.view("seq_file", file).number("count") == len(expected)
        assert guest.machine.read(buffer, len(expected)) == expected
    for address in (buffer, file, source):
        guest.machine.free(address)


def test_a_sequence_file_shows_numbers_and_text(guest):
    """Formats, decimal numbers with a delimiter, escapes and padding, as fs/seq_file.c."""
    buffer, file = guest.alloc(128), guest.alloc(128)
    guest.machine.write(file, struct.pack("<QQ", buffer, 128))
    guest("seq_printf", file, b"%s=%d\0", b"a\0", -3 & 0xFFFF_FFFF)
    guest("seq_putc", file, ord(";"))
    guest("seq_put_decimal_ull", file, b" \0", (1 << 64) - 1)
    guest("seq_escape_mem", file, b"x y\n", 4, 0, b" \n\0")
    guest.view("seq_file", file).put("pad_until", 45)
    guest("seq_pad", file, ord("|"))
    guest("__seq_puts", file, b"end\0")
    shown = b"a=-3; 18446744073709551615x\\040y\\012".ljust(45) + b"|end"
    assert guest.machine.read(buffer, guest.view("seq_file", file).number("count")) == shown


def test_crypto_requests_wait_in_line(guest):
    """First in, first out; a full queue takes only requests that may wait behind it."""
    queue = guest.alloc(32)
    plain, patient = guest.alloc(48), guest.alloc(48)
    guest.view("crypto_async_request", patient).put("flags", 0x400)
    guest("crypto_init_queue", queue, 1)
    first = guest.alloc(48)
    enqueue = functools.partial(guest, "crypto_enqueue_request", queue, returns="int")
    assert enqueue(first) == -errno.EINPROGRESS
    assert enqueue(plain) == -errno.ENOSPC
    assert enqueue(patient) == -errno.EBUSY
    assert [guest("crypto_dequeue_request", queue) for _ in range(3)] == [first, patient, 0]
