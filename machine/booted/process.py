# SPDX-License-Identifier: GPL-2.0-or-later
"""A booted kernel as its first process uses it: system calls, files, devices, algorithms."""

from __future__ import annotations

import abc
import errno
import os
from contextlib import ExitStack
from functools import cached_property

from allocator.types import ADDRESS_MASK
from archs.layouts import Layouts, Unknown
from emulator.faults import BadCall
from kernels.booted.kernel import BootedKernel
from kernels.registry import Record
from loader.layouts import BtfLayouts
from machine.arguments import Argument, Out
from machine.booted import registered
from machine.booted.algorithms import open_algorithm
from machine.booted.crypto import Algorithm
from machine.booted.files import File, FileError, mount, opened
from machine.booted.noting import Noting
from machine.face import Machine


class Using(Machine):
    """A machine whose kernel a process uses."""

    kernel: BootedKernel
    mounted: bool
    _noting: Noting

    @abc.abstractmethod
    def request(self, name: str) -> bool:
        """Load what the kernel asks for by name or alias; False where that is not possible."""

    @abc.abstractmethod
    def function(self, name: str) -> int:
        """Return the address of a kernel function or variable."""

    # System calls -------------------------------------------------------------------------------

    def syscall(self, name: str, *args: Argument) -> int:
        """Make a system call as the first process; its result, negative for an errno.

        Parameters
        ----------
        name
            As in its manual page: `openat`.
        args
            Ints; bytes or str (copied into user memory for the time of the call, str
            NUL-terminated); `Out(n)` for a zeroed buffer that can be read afterwards.
        """
        with ExitStack() as buffers:
            slots = []
            for value in args:
                if isinstance(value, int):
                    slots.append(value & ADDRESS_MASK)
                    continue
                data = value.encode() + b"\0" if isinstance(value, str) else bytes(value)
                slots.append(buffers.enter_context(self.user(data)))
            with self.kernel.watched():
                try:
                    result = self.kernel.guest.system_call(name, *slots)
                except LookupError as error:
                    raise BadCall(name, str(error)) from None
            for value, slot in zip(args, slots, strict=True):
                if isinstance(value, Out) and len(value):
                    value.data = self.read(slot, len(value))
        return result

    def open(self, path: str, flags: int = os.O_RDWR) -> File:
        """Open a file of the guest as its first process; /dev, /proc and /sys are mounted.

        Raises
        ------
        FileError
            The kernel refused, or there is no such file.
        """
        if not self.mounted:
            mount(self)
            self.mounted = True
        return opened(self, path, flags, self.kernel.symbols)

    def device(self, name: str, *, flags: int = os.O_RDWR) -> File:
        """Open a device by what it is called in `/dev`.

        Where it is not there, the modules under `root` that have it as their alias are loaded
        first, as opening its node would.

        Raises
        ------
        FileError
            The driver refused, or nobody has it.
        """
        try:
            return self.open(f"/dev/{name}", flags)
        except FileError as error:
            if error.error != errno.ENOENT or not self.request(f"devname:{name}"):
                raise
        return self.open(f"/dev/{name}", flags)

    # What there is ------------------------------------------------------------------------------

    @cached_property
    def layouts(self) -> Layouts:
        """The layouts of the kernel's structures, by its own types."""
        types = self.kernel.standing.types
        release = self.kernel.release
        if types is None:
            return Unknown(release, "take a kernel with CONFIG_DEBUG_INFO_BTF")
        return BtfLayouts(release, types)

    def registered(self) -> list[Record]:
        """Return what is registered now, by the kernel's lists in /proc and /sys.

        Who owns it is known where the list tells; `BootedModule.registered` knows more.
        """
        return self._noting.everything()

    def note_registrations(self) -> None:
        """Let each load from now on say what it registered (`BootedModule.registered`).

        The kernel is asked for its lists before and after, a tenth of a second each time, and so
        does more than load modules: what it allocates later may lie elsewhere.
        """
        self._noting.begin()

    @property
    def tainted(self) -> str:
        """How the kernel is tainted, in its own words: `Not tainted`, `Tainted: G OE`."""
        guest = self.kernel.guest
        with guest.unwatched(), self.kernel.watched():
            text = guest.string(guest.call_by_name(("print_tainted",)))
        return " ".join(text.split())

    @property
    def taints(self) -> str:
        """How the kernel is tainted: letters, as /proc/sys/kernel/tainted has bits."""
        _, colon, flags = self.tainted.partition(":")
        return flags.replace("G", "").replace(" ", "") if colon else ""  # G: no proprietary module

    def taints_of(self, module: str) -> str:
        """Return how a module taints the kernel, as /sys/module/NAME/taint has it."""
        with self.kernel.guest.unwatched():
            return registered.text_of(self, f"/sys/module/{module}/taint").strip()

    def algorithms(self) -> list[Record]:
        """Return the crypto algorithms that are registered now, as /proc/crypto has them.

        `fields["selftest"]` is what became of the kernel's own test of one.
        """
        with self.kernel.guest.unwatched():
            return registered.every_algorithm(self)

    def crypto(self, name: str, *, kind: str | None = None) -> Algorithm:
        """Return a crypto algorithm to compute with, through the kernel's own crypto API.

        Parameters
        ----------
        name
            The algorithm's name (`md4`, `hmac(sha256)`) or its driver's (`md4-generic`). What
            is not there the kernel makes or asks for, and modules come from `root`.
        kind
            `shash`, `ahash`, `skcipher`, `aead`, `rng`, `scomp`, `compress` or `cipher`;
            None: what the kernel has of the name, that of the highest priority.

        Raises
        ------
        CryptoError
            Nobody has it, or the kernel refuses it: its self-test failed, say.
        """
        return open_algorithm(self, name, kind, self.request)
