# SPDX-License-Identifier: GPL-2.0-or-later
"""BPF programs in a booted kernel: loaded by bpf(2), translated by its own compiler, and found in memory."""

from __future__ import annotations

import struct
from contextlib import suppress

import attrs

from emulator.faults import BadCall
from kernels.booted.kernel import BootedKernel
from kernels.errors import errno_name

_LOAD, _INFO = 5, 15  # BPF_PROG_LOAD, BPF_OBJ_GET_INFO_BY_FD
_SOCKET_FILTER = 1
_MOVE, _EXIT = 0xB7, 0x95
_ATTRIBUTES = 144  # bytes of union bpf_attr that every kernel since 5.10 takes
_INFORMATION = 192
# In struct bpf_prog_info (include/uapi/linux/bpf.h).
_LENGTH, _COUNT, _PLACES = 16, 104, 112
_WORD = 8
_MOST = 1 << 16  # moves of a program
_TRIALS = (16, 144)  # moves of the two by which it is found out what a move takes
_SWITCH = "bpf_jit_enable"
_LOCKED, _ANY = 8, (1 << 64) - 1  # RLIMIT_MEMLOCK, RLIM_INFINITY


@attrs.frozen
class Program:
    """A program that is loaded: its file, and where its code is."""

    file: int
    address: int
    size: int


class Programs:
    """Loads programs whose code has about the bytes that are wanted.

    A compiler that is switched off (net.core.bpf_jit_enable) is switched on. What a move takes in its
    code is found out by two programs.

    Parameters
    ----------
    kernel
        The kernel, whose first process loads them.
    """

    def __init__(self, kernel: BootedKernel) -> None:
        self._kernel = kernel
        self._shape: tuple[int, float] | None = None  # bytes of none, and of a move

    def load(self, size: int) -> Program:
        """Load a program.

        Raises
        ------
        BadCall
            The kernel refuses it, or does not compile programs.
        Fault
            It does not come back.
        """
        if self._shape is None:
            self._switch_on()
            self._allow()
            trials = [self._load(moves) for moves in _TRIALS]
            for trial in trials:
                self.unload(trial)
            each = (trials[1].size - trials[0].size) / (_TRIALS[1] - _TRIALS[0])
            self._shape = round(trials[0].size - each * _TRIALS[0]), each
        none, each = self._shape
        return self._load(min(max(1, round((size - none) / each)), _MOST))

    def unload(self, program: Program) -> None:
        """Close its file, the last thing that holds it."""
        with self._kernel.watched():
            self._kernel.guest.system_call("close", program.file)

    def _switch_on(self) -> None:
        at = self._kernel.symbols.get(_SWITCH)
        if at is not None and not any(self._kernel.board.read(at, 4)):
            self._kernel.board.write(at, (1).to_bytes(4, "little"))

    def _allow(self) -> None:
        """Let the process have as many as it wants: until 5.11 their memory counts as locked."""
        guest = self._kernel.guest
        limits = struct.pack("<QQ", _ANY, _ANY)
        user = guest.user(len(limits))
        try:
            guest.board.write(user, limits)
            with suppress(LookupError), self._kernel.watched():
                guest.system_call("prlimit64", 0, _LOCKED, user, 0)
        finally:
            if not guest.board.broken:
                guest.free_user(user, len(limits))

    def _load(self, moves: int) -> Program:
        try:
            with self._kernel.watched():
                return self._loaded(moves)
        except LookupError as error:
            raise BadCall("bpf", f"the kernel is built without: {error}") from None

    def _loaded(self, moves: int) -> Program:
        guest = self._kernel.guest
        program = b"".join(
            struct.pack("<BBhi", _MOVE, 0, 0, 0x10000 + number) for number in range(moves)
        ) + struct.pack("<BBhi", _EXIT, 0, 0, 0)
        license_at = len(program)
        attributes_at = license_at + _WORD
        information_at = attributes_at + _ATTRIBUTES
        results_at = information_at + _INFORMATION
        whole = results_at + 2 * _WORD
        user = guest.user(whole)
        try:
            attributes = struct.pack(
                "<IIQQIIQ", _SOCKET_FILTER, moves + 1, user, user + license_at, 0, 0, 0
            )
            data = program + b"GPL\0".ljust(_WORD, b"\0") + attributes.ljust(_ATTRIBUTES, b"\0")
            guest.board.write(user, data)
            file = guest.system_call("bpf", _LOAD, user + attributes_at, _ATTRIBUTES)
            if file < 0:
                raise BadCall("bpf", f"BPF_PROG_LOAD: {errno_name(-file)}")
            asked = struct.pack("<IIQ", file, _INFORMATION, user + information_at)
            guest.board.write(user + attributes_at, asked.ljust(_ATTRIBUTES, b"\0"))
            information = bytearray(_INFORMATION + 2 * _WORD)
            struct.pack_into("<II", information, _COUNT, 1, 1)
            struct.pack_into(
                "<QQ", information, _PLACES, user + results_at, user + results_at + _WORD
            )
            guest.board.write(user + information_at, bytes(information))
            result = guest.system_call("bpf", _INFO, user + attributes_at, _ATTRIBUTES)
            found = guest.board.read(user + information_at, len(information))
            (length,) = struct.unpack_from("<I", found, _LENGTH)
            (address,) = struct.unpack_from("<Q", found, _INFORMATION)
            if result < 0 or not address or not length:
                guest.system_call("close", file)
                reason = "its code is not told (net.core.bpf_jit_enable, CONFIG_BPF_JIT)"
                raise BadCall("bpf", errno_name(-result) if result < 0 else reason)
            return Program(file, address, length)
        finally:
            if not guest.board.broken:
                guest.free_user(user, whole)
