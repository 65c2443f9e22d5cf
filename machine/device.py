# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices that modules registered, opened and used as a process would use their nodes.

The registration is a record of callbacks. What the kernel does around them is done here: an
open file and an inode for them to look at, the arguments in user memory, the file's position,
a module that cannot go while somebody has its device open (fs/read_write.c, fs/ioctl.c,
fs/char_dev.c, drivers/char/misc.c).

>>> from machine.face import Machine
>>> from samples.modules import root
>>> machine = Machine("arm64", root=root("arm64"))
>>> module = machine.load("notes")
>>> with machine.device("notes") as notes:
...     notes.write(b"remember"), notes.ioctl(0x6E00)
(8, 8)
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, Self

import attrs

from allocator.errors import ExecmemError
from emulator.budget import Limits, one_budget
from kernels.errors import MAX_ERRNO, ErrnoError
from kernels.modelled.api.files import Mode
from kernels.modelled.api.user import user_memory
from kernels.modelled.kernel import Kernel
from kernels.modelled.structs import StructView, view
from kernels.registry import Record
from machine.arguments import Out
from machine.calling import Caller
from machine.module import Module

KINDS = ("misc device", "char device")
MISC_MAJOR = 10
S_IFCHR = 0o020600
ENOIOCTLCMD = 515
MOST = 0x7FFF_F000  # bytes of one read or write: MAX_RW_COUNT
_one_budget = one_budget(lambda device: device.machine.limits)


class DeviceError(ErrnoError):
    """A device refused what it was asked for, or there is no such device."""


class Owner(Protocol):
    """The machine that devices are registered in."""

    kernel: Kernel
    limits: Limits
    caller: Caller

    @property
    def modules(self) -> Mapping[str, Module]:
        """The modules that are there, by name."""
        ...


@attrs.define(eq=False)
class Device:
    """One device; a file of it is open from `open`, or the first use, until `close`.

    Parameters
    ----------
    machine
        Where it is registered.
    record
        The registration.
    minor
        Which of the devices that it covers.
    """

    machine: Owner
    record: Record
    minor: int
    _file: StructView | None = attrs.field(default=None, init=False)
    _inode: int = attrs.field(default=0, init=False)

    @property
    def name(self) -> str:
        """What it is called in `/dev`, as far as the registration says it."""
        return str(self.record.fields.get("node") or self.record.name)

    @_one_budget
    def open(self, flags: int = os.O_RDWR) -> Self:
        """Open a file of it; DeviceError where it refuses, or where one is open."""
        if self._file is not None:
            raise DeviceError(self.name, "open", 0, "it is open already")
        if all(record is not self.record for record in self.machine.kernel.registry):
            raise DeviceError(self.name, "open", errno.ENXIO, "its module has taken it back")
        kernel, record = self.machine.kernel, self.record
        self._inode = self.machine.caller.alloc(kernel.layouts.size_of("inode"))
        inode = view(kernel, "inode", self._inode)
        inode.put("i_mode", S_IFCHR)
        inode.put("i_rdev", self._major << 20 | self.minor)
        file = view(kernel, "file", self.machine.caller.alloc(kernel.layouts.size_of("file")))
        if "node" in record.fields:
            file.put("private_data", record.address)
        file.put("f_op", self._operations)
        if record.kind == "char device" and self._operations:
            inode.put("i_cdev", record.address)
        mode = Mode((flags + 1) & 3) | Mode.LSEEK | Mode.PREAD | Mode.PWRITE | Mode.OPENED
        for right, able, names in (
            (Mode.READ, Mode.CAN_READ, {"read", "read_iter"}),
            (Mode.WRITE, Mode.CAN_WRITE, {"write", "write_iter"}),
        ):
            if mode & right and names & record.callbacks.keys():
                mode |= able
        for member, value in (
            ("f_count", 1),
            ("f_mode", mode),
            ("f_inode", self._inode),
            ("f_flags", flags),
        ):
            file.put(member, value)
        self._file = file
        try:
            if "open" in record.callbacks:
                self._call("open", self._inode, file.address, returns="int")
        except BaseException:
            self._forget()
            raise
        self._hold(True)
        return self

    @_one_budget
    def close(self) -> None:
        """Close the file, if one is open; what the device says to that does not count."""
        file = self._file
        if file is None:
            return
        try:
            if "flush" in self.record.callbacks:
                self.machine.caller.call(self.record.callbacks["flush"], file.address, 0)
            if "release" in self.record.callbacks:
                self.machine.caller.call(
                    self.record.callbacks["release"], self._inode, file.address
                )
        finally:
            self._hold(False)
            self._forget()

    def __enter__(self) -> Self:
        if self._file is None:
            self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @_one_budget
    def read(self, size: int) -> bytes:
        """Return up to `size` bytes from the file's position on; none at the end."""
        file = self._ready("read", size, Mode.READ)
        with user_memory(self.machine.kernel, min(size, MOST)) as buffer:
            count = self._transfer("read", file, buffer, size)
            return self.machine.caller.read(buffer, count) if count else b""

    @_one_budget
    def write(self, data: bytes) -> int:
        """Write `data` at the file's position; return how many bytes of it were taken."""
        file = self._ready("write", len(data), Mode.WRITE)
        with user_memory(self.machine.kernel, bytes(data[:MOST])) as buffer:
            return self._transfer("write", file, buffer, len(data))

    @_one_budget
    def ioctl(self, command: int, argument: int | bytes | bytearray | Out = 0) -> int:
        """Do what `command` says, and return the device's answer.

        Parameters
        ----------
        argument
            A number, or contents of user memory whose address is the argument: `bytes`;
            an `Out` is filled with what the device stores there, a `bytearray` is
            read and filled.

        Raises
        ------
        DeviceError
            The device refused; ENOTTY where it does not know the command.
        """
        file = self._opened()
        with self._argument(argument) as value:
            if "unlocked_ioctl" not in self.record.callbacks:
                raise DeviceError(self.name, f"ioctl {command:#x}", errno.ENOTTY)
            return self._call(
                "unlocked_ioctl",
                file.address,
                command & 0xFFFF_FFFF,
                value,
                title=f"ioctl {command:#x}",
            )

    # What the kernel does around it --------------------------------------------------------------

    @property
    def _major(self) -> int:
        value = self.record.fields.get("major", MISC_MAJOR)
        assert isinstance(value, int)
        return value

    @property
    def _operations(self) -> int:
        """The address of its struct file_operations; 0 where only the callbacks are known."""
        structure = {"misc device": ("miscdevice", "fops"), "char device": ("cdev", "ops")}
        if self.record.address < 1 << 32:  # a device number
            return 0
        name, member = structure[self.record.kind]
        return view(self.machine.kernel, name, self.record.address).number(member)

    @contextmanager
    def _argument(self, argument: int | bytes | bytearray | Out) -> Iterator[int]:
        if isinstance(argument, int):
            yield argument & ((1 << 64) - 1)
            return
        with user_memory(self.machine.kernel, bytes(argument)) as address:
            try:
                yield address
            finally:
                found = self.machine.caller.read(address, len(argument)) if len(argument) else b""
                if isinstance(argument, Out):
                    argument.data = found
                elif isinstance(argument, bytearray):
                    argument[:] = found

    def _opened(self) -> StructView:
        if self._file is None:
            self.open()
        assert self._file is not None
        return self._file

    def _ready(self, operation: str, size: int, right: Mode) -> StructView:
        """Return the open file, if that operation is possible."""
        file = self._opened()
        if not file.number("f_mode") & right:
            reason = "it is not open for that"
            raise DeviceError(self.name, operation, errno.EBADF, reason)
        if size < 0:
            raise DeviceError(self.name, operation, errno.EINVAL, f"{size} bytes")
        if operation not in self.record.callbacks:
            more = f"{operation}_iter" in self.record.callbacks
            reason = f"it has only {operation}_iter, which is not supported" if more else ""
            raise DeviceError(self.name, operation, errno.EINVAL, reason)
        return file

    def _transfer(self, operation: str, file: StructView, buffer: int, size: int) -> int:
        """Read or write at the file's position, which a failure leaves as it was."""
        stream, before = file.number("f_mode") & Mode.STREAM, file.number("f_pos")
        place = 0 if stream else file.at("f_pos")
        size = min(size, MOST)
        try:
            count = self._call(operation, file.address, buffer, size, place)
        except ExecmemError:
            file.put("f_pos", before)
            raise
        if count > size:
            reason = f"it says that it did {count:#x} of {size:#x} bytes"
            raise DeviceError(self.name, operation, errno.EIO, reason)
        return count

    def _call(self, name: str, *args: int, title: str = "", returns: str = "long") -> int:
        result = self.machine.caller.call(self.record.callbacks[name], *args, returns=returns)
        if -MAX_ERRNO <= result < 0:
            error = errno.ENOTTY if result == -ENOIOCTLCMD else -result
            raise DeviceError(self.name, title or name, error)
        return result

    def _hold(self, held: bool) -> None:
        """Let the module stay for as long as the file is open (fops_get)."""
        module = self.machine.modules.get(self.record.owner)
        if module is not None and self._file is not None:
            who = f"an open file of {self.name} ({self._file.address:#x})"
            (module.loaded.users.add if held else module.loaded.users.discard)(who)

    def _forget(self) -> None:
        if self._file is not None:
            self.machine.caller.free(self._file.address)
        self.machine.caller.free(self._inode)
        self._file, self._inode = None, 0


def find_device(machine: Owner, name: str, minor: int | None = None) -> Device | None:
    """Return the device of a name in `/dev` or in the registry; None: nobody has it."""
    for record in machine.kernel.registry:
        if record.kind not in KINDS or name not in (record.name, record.fields.get("node")):
            continue
        first, count = record.fields.get("minor", 0), record.fields.get("count", 1)
        assert isinstance(first, int)
        assert isinstance(count, int)
        number = first if minor is None else minor
        if record.callbacks and first <= number < first + count:
            return Device(machine, record, number)
    return None


def instead(kernel: Kernel, known: Collection[str]) -> str:
    """Return what to say where nobody registered something: what is there, or what stopped."""
    if known:
        return f"registered are {', '.join(sorted(known))}"
    stopped = next(iter(kernel.stopped.values()), None)
    return "load its module" if stopped is None else str(stopped)


def no_device(machine: Owner, name: str, minor: int | None) -> DeviceError:
    """Return what says that nobody has a device, and which there are."""
    known = {r.name for r in machine.kernel.registry if r.kind in KINDS and r.callbacks}
    hint = instead(machine.kernel, known)
    which = "" if minor is None else f" with the minor number {minor}"
    return DeviceError(name, "look up", errno.ENOENT, f"no such device{which}; {hint}")
