# SPDX-License-Identifier: GPL-2.0-or-later
"""A module's devices are opened, read, written and asked from Python, by way of user memory."""

from __future__ import annotations

import errno
import functools
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allocator.types import MemType
from execmem import Machine, Out
from kernels.modelled.structs import view
from loader.errors import ModuleInUse
from machine.device import DeviceError
from samples.modules import root
from tests.kernels.modelled.test_registry import call

SIZE, CLEAR, FIND = 0x6E00, 0x6E01, 0x6E02  # _IO('n', 0 ... 2)
PAGE = 4096


@functools.cache
def _machine(name):
    machine = Machine(name, root=root(name))
    machine.load("notes")
    return machine


@pytest.fixture
def machine(arch):
    """Return a machine whose module `notes` has nothing to remember."""
    found = _machine(arch.name)
    with found.device("notes") as notes:
        notes.ioctl(CLEAR)
    return found


def refused(error, operation, *args):
    """Return the message of the refusal, which must have this errno."""
    with pytest.raises(DeviceError) as caught:
        operation(*args)
    assert caught.value.error == error
    return str(caught.value)


_OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.binary(max_size=1500)),
        st.tuples(st.just("read"), st.integers(0, 5000)),
        st.tuples(st.just("open"), st.sampled_from((os.O_RDWR, os.O_RDWR | os.O_APPEND))),
        st.tuples(st.just("clear"), st.none()),
    ),
    max_size=20,
)


@settings(max_examples=25, deadline=None)
@given(operations=_OPERATIONS)
def test_notes_are_a_file_of_one_page(arch, operations):
    """Reads, writes and positions of the sample device are those of a file of 4096 bytes."""
    machine = _machine(arch.name)
    notes = machine.device("notes").open()
    notes.ioctl(CLEAR)
    contents, place, append = b"", 0, False
    for name, value in operations:
        if name == "write":
            start = len(contents) if append else place
            taken = value[: max(PAGE - start, 0)]
            if value and start >= PAGE:
                refused(errno.ENOSPC, notes.write, value)
                continue
            assert notes.write(value) == len(taken)
            place = start + len(taken)
            contents = contents[:start] + taken + contents[start + len(taken) :]
        elif name == "read":
            expected = contents[place : place + value]
            assert notes.read(value) == expected
            place += len(expected)
        elif name == "open":
            notes.close()
            notes.open(value)
            place, append = 0, bool(value & os.O_APPEND)
        else:
            notes.ioctl(CLEAR)  # leaves the position where it is
            contents, place = b"", 0
            notes.close()
            notes.open(os.O_RDWR | os.O_APPEND * append)
        assert notes.ioctl(SIZE) == len(contents)
    notes.close()


def test_ioctl_takes_and_fills_user_memory(machine):
    """An argument may be a number, bytes, an Out that is filled, a bytearray for both ways."""
    with machine.device("notes") as notes:
        notes.write(b"abc\0def")
        both = bytearray(b"d\0\0\0\xff\xff\xff\xff")
        assert notes.ioctl(FIND, both) == 0
        assert both == b"d\0\0\0\x04\0\0\0"
        out = Out(8)  # looks for NUL
        assert notes.ioctl(FIND, out) == 0
        assert bytes(out) == bytes(4) + b"\x03\0\0\0"
        assert notes.ioctl(FIND, b"c" + bytes(7)) == 0
        with machine.user(b"f" + bytes(7)) as address:
            assert notes.ioctl(FIND, address) == 0
            assert machine.read(address + 4, 4) == b"\x06\0\0\0"
        assert refused(errno.ENOENT, notes.ioctl, FIND, b"z" + bytes(7)) == (
            "notes: ioctl 0x6e02: -2 (ENOENT)"
        )


@pytest.mark.parametrize("address", [0, 0x1234, (1 << 32) - 4, 1 << 47, (1 << 64) - 8])
def test_a_wrong_user_address_is_an_error_not_a_fault(machine, address):
    """Where the user has no memory, or the kernel has it, copies say EFAULT."""
    with machine.device("notes") as notes:
        refused(errno.EFAULT, notes.ioctl, FIND, address)
        refused(errno.EFAULT, notes.ioctl, FIND, machine.kernel.current)
        refused(errno.ENOTTY, notes.ioctl, 0x6EFF)


def test_a_file_counts_as_a_user_of_its_module(arch):
    """A module stays while its device is open; afterwards the device is gone with it."""
    machine = Machine(arch, root=root(arch.name))
    module = machine.load("notes")
    notes = machine.device("notes")
    with notes:
        assert module.call("notes_opened") == 1
        with machine.device("notes"):
            assert module.call("notes_opened") == 2
            assert refused(0, notes.open) == "notes: open: it is open already"
        with pytest.raises(ModuleInUse, match="an open file of notes"):
            module.unload()
    assert module.call("notes_opened") == 0
    free = machine.memory.physical.free_bytes
    with notes:
        notes.write(bytes(3 * PAGE))
    assert machine.memory.physical.free_bytes == free
    module.unload()
    refused(errno.ENXIO, notes.read, 1)
    refused(errno.ENOENT, machine.device, "notes")
    machine.memory.check()


def test_open_flags_decide_what_is_possible(machine):
    """A file that is open for one direction refuses the other; sizes are not negative."""
    with machine.device("notes").open(os.O_RDONLY) as notes:
        assert notes.read(1) == b""
        refused(errno.EBADF, notes.write, b"x")
        refused(errno.EINVAL, notes.read, -1)
    with machine.device("notes").open(os.O_WRONLY) as notes:
        assert notes.write(b"x") == 1
        refused(errno.EBADF, notes.read, 1)
    assert "registered are notes" in refused(errno.ENOENT, machine.device, "nodes")
    refused(errno.ENOENT, functools.partial(machine.device, "notes", minor=77))


def test_a_cdev_finds_its_structure_and_number(arch):
    """cdev_add records a device by its region's name; its inode leads to the cdev."""
    machine, seen = Machine(arch), []
    machine.stub("spy", lambda inode, file: seen.append((inode, file)) or 0)
    operations = bytearray(512)
    place = machine.kernel.layouts.offset_of("file_operations", "open")
    operations[place : place + 8] = machine.kernel.address("spy").to_bytes(8, "little")
    fops, cdev, dev = machine.alloc(operations), machine.alloc(256), machine.alloc(8)
    assert call(machine, "alloc_chrdev_region", dev, 4, 3, machine.alloc(b"many\0")) == 0
    number = machine.kernel.word(dev, 4)
    call(machine, "cdev_init", cdev, fops)
    assert call(machine, "cdev_add", cdev, number, 3) == 0
    with machine.device("many", minor=5):
        ((inode, file),) = seen
        node, opened = view(machine.kernel, "inode", inode), view(machine.kernel, "file", file)
        assert node.number("i_cdev") == cdev  # as nvme and cec read it
        assert node.number("i_rdev") == number + 1
        assert opened.number("f_op") == fops
        assert opened.number("private_data") == 0
    call(machine, "cdev_del", cdev)
    call(machine, "unregister_chrdev_region", number, 3)
    refused(errno.ENOENT, machine.device, "many")


# The kernel's functions --------------------------------------------------------------------------


@pytest.fixture
def user(machine):
    """Return the address of two pages of user memory, with nothing behind them."""
    with machine.user(2 * PAGE) as address:
        yield address


@pytest.mark.parametrize("name", ["_copy_to_user", "__arch_copy_to_user", "__asm_copy_to_user"])
def test_copies_to_the_user_end_at_its_last_page(machine, user, name):
    """What could be copied was copied, and the number of the other bytes is returned."""
    kernel = machine.alloc(bytes(range(100)))
    end = user + 2 * PAGE
    assert call(machine, name, user + PAGE - 50, kernel, 100) == 0
    assert machine.read(user + PAGE - 50, 100) == bytes(range(100))
    assert call(machine, name, end - 30, kernel, 100) == 70
    assert machine.read(end - 30, 30) == bytes(range(30))
    assert call(machine, name, end, kernel, 100) == 100
    assert call(machine, name, kernel, kernel, 100) == 100  # not the user's
    machine.free(kernel)


@pytest.mark.parametrize(
    ("name", "zeroes"),
    [("_copy_from_user", True), ("__arch_copy_from_user", False), ("__asm_copy_from_user", False)],
)
def test_copies_from_the_user_end_at_its_last_page(machine, user, name, zeroes):
    """The checked copy stores zeros for what it could not read; the bare one leaves it."""
    end = user + 2 * PAGE
    machine.write(end - 30, bytes(range(1, 31)))
    kernel = machine.alloc(b"\xee" * 100)
    assert call(machine, name, kernel, end - 30, 100) == 70
    assert machine.read(kernel, 100) == bytes(range(1, 31)) + (b"\0" if zeroes else b"\xee") * 70
    assert call(machine, name, kernel, kernel, 100) == 100
    machine.free(kernel)


def test_copies_that_do_not_fault_say_whether_they_could(machine, user):
    """copy_*_user_nofault returns 0, or -EFAULT as a long, and no number of bytes."""
    end, kernel = user + 2 * PAGE, machine.alloc(bytes(range(100)))
    for name, args in (
        ("copy_to_user_nofault", (lambda at: (at, kernel, 100))),
        ("copy_from_user_nofault", (lambda at: (kernel, at, 100))),
    ):
        copy = functools.partial(machine.call, machine.kernel.address(name))
        assert copy(*args(end - 100), returns="long") == 0
        assert copy(*args(end - 99), returns="long") == -errno.EFAULT
        assert copy(*args(kernel), returns="long") == -errno.EFAULT
    machine.free(kernel)


@pytest.mark.parametrize("name", ["clear_user", "__clear_user", "__arch_clear_user"])
def test_clearing_ends_at_the_users_last_page(machine, user, name):
    """Zeros are stored as far as the user's memory goes."""
    machine.write(user, b"\xff" * 2 * PAGE)
    assert call(machine, name, user + 2 * PAGE - 10, 25) == 15
    assert machine.read(user, 2 * PAGE) == b"\xff" * (2 * PAGE - 10) + bytes(10)


def test_strings_of_the_user(machine, user):
    """A string ends at its NUL or at the count; one that runs out of memory is EFAULT (or 0)."""
    end, kernel = user + 2 * PAGE, machine.alloc(b"\xee" * 16)
    machine.write(user, b"hello\0" + b"x" * (2 * PAGE - 6))
    fault = -errno.EFAULT & ((1 << 64) - 1)
    assert call(machine, "strncpy_from_user", kernel, user, 16) == 5
    assert machine.read(kernel, 8) == b"hello\0\xee\xee"
    assert call(machine, "strncpy_from_user", kernel, user, 3) == 3
    assert call(machine, "strncpy_from_user", kernel, end - 4, 16) == fault
    assert call(machine, "strncpy_from_user", kernel, kernel, 16) == fault
    assert call(machine, "strnlen_user", user, 100) == 6
    assert call(machine, "strnlen_user", user, 3) > 3
    assert call(machine, "strnlen_user", end - 4, 100) == 0
    copy = call(machine, "strndup_user", user, 100)
    assert machine.read(copy, 6) == b"hello\0"
    copied = call(machine, "memdup_user_nul", user, 4)
    assert machine.read(copied, 5) == b"hell\0"
    assert call(machine, "memdup_user", end - 4, 5) == fault
    for address in (kernel, copy, copied):
        machine.free(address)


# Real devices ------------------------------------------------------------------------------------


def test_loop_control_gives_a_free_number(arch, corpus):
    """LOOP_CTL_GET_FREE and LOOP_CTL_ADD of the loop driver; LOOP_CTL_REMOVE of none is ENODEV."""
    machine = Machine(arch, root=corpus)
    machine.load("loop")
    with machine.device("loop-control") as control:
        first = control.ioctl(0x4C82)
        assert first >= 0
        assert control.ioctl(0x4C80, first + 40) == first + 40
        refused(errno.EEXIST, control.ioctl, 0x4C80, first + 40)
        refused(errno.ENODEV, control.ioctl, 0x4C81, first + 41)
        refused(errno.EINVAL, control.read, 1)


def test_inlined_accesses_of_the_user_fail_as_expected(arch, corpus):
    """RFKILL_IOCTL_MAX_SIZE reads a word by get_user(): 8 to 255 do, a wrong address is EFAULT."""
    machine = Machine(arch, root=corpus)
    machine.load("rfkill")
    with machine.device("rfkill") as rfkill:
        command = 1 << 30 | 4 << 16 | ord("R") << 8 | 2  # _IOW('R', 2, __u32)
        assert rfkill.ioctl(command, (9).to_bytes(4, "little")) == 0
        refused(errno.EINVAL, rfkill.ioctl, command, (3).to_bytes(4, "little"))
        for address in (0, 0x123, (1 << 64) - 8):
            refused(errno.EFAULT, rfkill.ioctl, command, address)
        refused(errno.ENOTTY, rfkill.ioctl, command + 40, 0)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_get_user_and_put_user_have_registers_of_their_own(size):
    """x86-64: %rax to %edx and %eax; %rax to (%rcx) and %ecx: a value and 0, or -EFAULT."""
    machine = _machine("x86_64")
    address = machine.kernel.address
    code = {
        # mov %rdi,%rax; mov %rsi,%r11; push %rbx; call *%r11; pop %rbx; mov %rdx,%rax; ret
        "value": "4889f84989f35341ffd35b4889d0c3",
        # the same without mov %rdx,%rax
        "error": "4889f84989f35341ffd35bc3",
        # mov %rdi,%rcx; mov %rsi,%r11; mov %rdx,%rax; push %rbx; call *%r11; pop %rbx;
        # movslq %ecx,%rax; ret
        "put": "4889f94989f34889d05341ffd35b4863c1c3",
    }
    pending = machine.execmem.alloc(MemType.TEXT, 192)
    for index, text in enumerate(code.values()):
        pending.write(64 * index, bytes.fromhex(text))
    start = pending.finish().address
    value, error, put = (start + 64 * index for index in range(3))
    get_user, put_user = address(f"__get_user_{size}"), address(f"__put_user_{size}")
    most = (1 << 8 * size) - 1
    with machine.user(16) as user:
        machine.write(user, bytes(range(0xF0, 0x100)))
        assert machine.call(value, user, get_user) == machine.kernel.word(user, size)
        assert machine.call(error, user, get_user) == 0
        assert machine.call(put, user + 8, put_user, 0x1122334455667788) == 0
        assert machine.kernel.word(user + 8, size) == 0x1122334455667788 & most
        for wrong in (0, user + PAGE, machine.kernel.current):
            assert machine.call(error, wrong, get_user, returns="int") == -errno.EFAULT
            assert machine.call(value, wrong, get_user) == 0
            assert machine.call(put, wrong, put_user, 1, returns="int") == -errno.EFAULT
    machine.execmem.free(start)


def test_string_instructions_leave_the_rest_in_rcx():
    """x86-64: rep_stos_alternative and rep_movs_alternative stop where the user's memory ends."""
    machine = _machine("x86_64")
    # mov %rdx,%rcx; xor %eax,%eax; mov %r8,%r11; call *%r11; mov %rcx,%rax; ret
    code = bytes.fromhex("4889d131c04d89c341ffd34889c8c3")
    pending = machine.execmem.alloc(MemType.TEXT, 64)
    pending.write(0, code)
    call_it = pending.finish().address
    kernel = machine.alloc(bytes(range(64)))
    with machine.user(PAGE) as user:
        end = user + PAGE
        machine.write(user, b"\xff" * PAGE)
        movs = machine.kernel.address("rep_movs_alternative")
        stos = machine.kernel.address("rep_stos_alternative")
        assert machine.call(call_it, end - 20, kernel, 64, 0, movs) == 44
        assert machine.read(end - 20, 20) == bytes(range(20))
        assert machine.call(call_it, end - 5, 0, 64, 0, stos) == 59
        assert machine.read(end - 20, 20) == bytes(range(15)) + bytes(5)
    machine.free(kernel)
    machine.execmem.free(call_it)
