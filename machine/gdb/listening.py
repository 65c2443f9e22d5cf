# SPDX-License-Identifier: GPL-2.0-or-later
"""Where debuggers connect: a port of this host, a socket in its file system, or what is open already.

Who may connect may do everything to the guest, and read what the guest holds. So nothing but this
host is listened to, unless an address is asked for by name.
"""

from __future__ import annotations

import os
import select
import socket
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Protocol

import attrs

from allocator.errors import ExecmemError
from machine.gdb.wire import Link

LOOPBACK = "127.0.0.1"
_PRIVATE = 0o600
_PATIENCE = 0.2  # seconds
_PART = 1 << 16  # bytes that are passed on at a time


@attrs.define(auto_exc=True, str=False)
class CannotListen(ExecmemError):
    """A place that nobody can be waited for at.

    Parameters
    ----------
    where
        The place.
    reason
        Why.
    """

    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


class Place(Protocol):
    """Where a debugger connects."""

    port: int
    address: str

    def wait(self, meanwhile: Callable[[], object] | None) -> Link:
        """Return the connection of the debugger that comes."""
        ...

    def close(self) -> None:
        """Wait for nobody any more."""
        ...


class Listening:
    """A port of this host, or a socket in its file system, which this user alone may use.

    Parameters
    ----------
    port
        Of this host; 0: any that is free.
    path
        The socket in the file system, and no port.
    host
        An address of this host.

    `port` is the one that it listens at, 0 for a socket in the file system; `address` where that is, as
    gdb's `target remote` takes it.

    Raises
    ------
    CannotListen
        The port is taken, the address is none of this host, the path is there already.
    """

    def __init__(
        self, port: int = 0, *, path: str | Path | None = None, host: str = LOOPBACK
    ) -> None:
        self._path = None if path is None else Path(path)
        self._listener = _listen(port, host) if self._path is None else _listen_at(self._path)
        self.port = 0 if self._path is not None else int(self._listener.getsockname()[1])
        shown = f"[{host}]" if ":" in host else host
        self.address = str(self._path) if self._path is not None else f"{shown}:{self.port}"

    def wait(self, meanwhile: Callable[[], object] | None) -> Link:
        """Return the connection of the debugger that comes; while it does not, call a function."""
        while not select.select([self._listener], [], [], _PATIENCE)[0]:
            if meanwhile is not None:
                meanwhile()
        return Link(self._accept(), self._listener, self._refuse)

    def _accept(self) -> socket.socket:
        connection, _ = self._listener.accept()
        if self._path is None:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def _refuse(self) -> None:
        """Let nobody wait who connects while a debugger has the guest."""
        with suppress(OSError):
            self._listener.accept()[0].close()

    def pass_on(self, there: socket.socket) -> None:
        """Pass on, in a thread, what a debugger and the other end of a pair of sockets have to say."""
        threading.Thread(target=self._pass_on, args=(there,), daemon=True).start()

    def _pass_on(self, there: socket.socket) -> None:
        with suppress(OSError), self._accept() as debugger:
            while True:
                for ready in select.select([self._listener, debugger, there], [], [])[0]:
                    if ready is self._listener:
                        self._refuse()
                        continue
                    data = ready.recv(_PART)
                    (there if ready is debugger else debugger).sendall(data)
                    if not data:
                        there.shutdown(socket.SHUT_RDWR)
                        return

    def forget(self) -> None:
        """Leave waiting to a copy of this process."""
        self._listener.close()

    def close(self) -> None:
        """Wait for nobody any more."""
        self._listener.close()
        if self._path is not None:
            with suppress(OSError):
                self._path.unlink()


@attrs.define(eq=False)
class Through:
    """A descriptor that somebody else lets a debugger speak at, when one connects.

    Parameters
    ----------
    descriptor
        One end of a pair of sockets. It is read and written as a file.
    address, port
        Where that somebody listens, as of `Listening`.
    """

    descriptor: int
    address: str
    port: int

    def wait(self, meanwhile: Callable[[], object] | None) -> Link:
        """Return the connection, once a debugger has said something."""
        while not select.select([self.descriptor], [], [], _PATIENCE)[0]:
            if meanwhile is not None:
                meanwhile()
        return Link(self)

    def fileno(self) -> int:
        """Return the descriptor."""
        return self.descriptor

    def recv(self, size: int) -> bytes:
        """Return what was said, of a number of bytes at most; nothing where nobody speaks any more."""
        return os.read(self.descriptor, size)

    def sendall(self, data: bytes) -> None:
        """Say something; OSError."""
        while data:
            data = data[os.write(self.descriptor, data) :]

    def close(self) -> None:
        """Say no more."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def _listen(port: int, host: str) -> socket.socket:
    where = f"{host}:{port}"
    if not 0 <= port < 1 << 16:
        raise CannotListen(where, "a port is a number from 0 to 65535")
    try:
        family = socket.AF_INET6 if ip_address(host).version == 6 else socket.AF_INET
    except ValueError:
        raise CannotListen(where, "no address: expected one such as 127.0.0.1") from None
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1)
    except OSError as error:
        listener.close()
        raise CannotListen(where, error.strerror or str(error)) from None
    return listener


def _listen_at(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if stat.S_ISSOCK(path.lstat().st_mode):
            _drop_left(path)
    except OSError:
        pass  # nothing is there
    try:
        before = os.umask(0o777 & ~_PRIVATE)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen(1)
    except OSError as error:
        listener.close()
        reason = "is there already" if path.exists() else error.strerror or str(error)
        raise CannotListen(str(path), reason) from None
    return listener


def _drop_left(path: Path) -> None:
    """Take a socket away that nobody listens at any more."""
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.connect(str(path))
    except ConnectionRefusedError:
        path.unlink()
    finally:
        probe.close()
