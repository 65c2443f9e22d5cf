# SPDX-License-Identifier: GPL-2.0-or-later
"""Packets of gdb's remote protocol, and the connection that they come over.

A packet is `$`, its body, `#` and two digits of a checksum; `}` in a body escapes the next byte.
What is damaged is answered with `-`, what is no packet is left out, and nothing that arrives ends
more than the connection. Source: gdb's manual, appendix "Remote Serial Protocol", Overview.
"""

from __future__ import annotations

import re
import select
import socket
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

LONGEST = 0x10000  # bytes of a packet's body that are taken
_INTERRUPT, _ACK, _NACK, _START, _END, _ESCAPE = 0x03, 0x2B, 0x2D, 0x24, 0x23, 0x7D
_HEX = re.compile(rb"[0-9a-fA-F]{1,16}")
_FLIP = 0x20  # what an escaped byte is changed by
_ESCAPED = b"}#$*"


class Lost(Exception):
    """The debugger is gone."""


def number(text: bytes) -> int:
    """Return a hexadecimal number of a packet; ValueError."""
    if not _HEX.fullmatch(text):
        raise ValueError(text)
    return int(text, 16)


def numbers(text: bytes) -> list[int]:
    """Return the numbers of a packet between commas; ValueError."""
    return [number(word) for word in text.split(b",")]


def framed(body: bytes) -> bytes:
    """Return the packet of a body."""
    return b"$" + body + b"#%02x" % (sum(body) & 0xFF)


def escaped(data: bytes) -> bytes:
    """Return binary data as it may stand in a body."""
    if not any(byte in data for byte in _ESCAPED):
        return data
    data = data.replace(b"}", b"}" + bytes((_ESCAPE ^ _FLIP,)))
    for byte in _ESCAPED[1:]:
        data = data.replace(bytes((byte,)), bytes((_ESCAPE, byte ^ _FLIP)))
    return data


def unescaped(data: bytes) -> bytes:
    """Return the binary data that stands in a body."""
    first, *parts = data.split(b"}")
    out = bytearray(first)
    pending = False  # a `}` was itself what is escaped
    for part in parts:
        if part and not pending:
            out.append(part[0] ^ _FLIP)
            out += part[1:]
        elif not pending:
            out.append(_ESCAPE ^ _FLIP)  # `}}`
            pending = True
            continue
        else:
            out += part
        pending = False
    return bytes(out)


class Framing:
    """Takes what arrives apart: packets, interrupts, requests to say something again."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes | int]:
        """Yield each packet's body, and as numbers: an interrupt, a `-`, a `$` for a damaged packet."""
        self._rest += data
        while self._rest:
            kind = self._rest[0]
            if kind != _START:
                del self._rest[0]
                if kind in (_INTERRUPT, _NACK):
                    yield kind
                continue
            end = self._rest.find(_END)
            again = self._rest.find(_START, 1, end if end >= 0 else len(self._rest))
            if again > 0:  # the rest of what was cut off
                del self._rest[:again]
                yield _START
                continue
            if end < 0 or end + 3 > len(self._rest):
                if len(self._rest) > LONGEST:
                    self._rest.clear()
                    yield _START
                return
            body = bytes(self._rest[1:end])
            told = bytes(self._rest[end + 1 : end + 3])
            del self._rest[: end + 3]
            yield body if told.lower() == b"%02x" % (sum(body) & 0xFF) else _START


class Connection(Protocol):
    """What is asked of a socket that a debugger speaks at, as of `socket.socket`."""

    def fileno(self) -> int:
        """Return its descriptor."""
        ...

    def recv(self, size: int, /) -> bytes:
        """Return what was said, of a number of bytes at most; OSError."""
        ...

    def sendall(self, data: bytes, /) -> None:
        """Say something; OSError."""
        ...

    def close(self) -> None:
        """Say and hear no more."""
        ...


class Link:
    """A connection to a debugger.

    Parameters
    ----------
    connection
        The socket.
    refuse
        Called with nothing while it is waited for the debugger, as often as `others` is readable.
    others
        The socket that further debuggers would connect to.
    """

    def __init__(
        self,
        connection: Connection,
        others: socket.socket | None = None,
        refuse: Callable[[], object] = lambda: None,
    ) -> None:
        self._socket = connection
        self._others, self._refuse = others, refuse
        self._framing = Framing()
        self._packets: deque[bytes] = deque()
        self._sent = b""
        self._interrupts = 0
        self.acknowledges = True

    def close(self) -> None:
        """End the connection."""
        self._socket.close()

    def receive(self) -> bytes:
        """Return the next packet's body; Lost where none will come."""
        while not self._packets:
            self._read(None)
        return self._packets.popleft()

    def interrupted(self) -> bool:
        """Return whether the debugger wants the guest to stop; waits for nothing; Lost.

        It does until it is told that the guest stands (`forget_interrupts`).
        """
        self._read(0)
        return bool(self._interrupts)

    def forget_interrupts(self) -> None:
        """Take note that the guest stands: whoever wanted that has it."""
        self._interrupts = 0

    def send(self, body: bytes) -> None:
        """Send a packet."""
        self._sent = framed(body)
        self._write(self._sent)

    def _read(self, timeout: float | None) -> None:
        waited: list[Connection] = (
            [self._socket] if self._others is None else [self._socket, self._others]
        )
        while True:
            ready = select.select(waited, [], [], timeout)[0]
            if self._others in ready:
                self._refuse()
            if self._socket not in ready:
                if timeout is None:
                    continue
                return
            try:
                data = self._socket.recv(1 << 16)
            except OSError:
                data = b""
            if not data:
                raise Lost
            for event in self._framing.feed(data):
                self._take(event)
            return

    def _take(self, event: bytes | int) -> None:
        if isinstance(event, bytes):
            if self.acknowledges:
                self._write(b"+")
            self._packets.append(event)
        elif event == _INTERRUPT:
            self._interrupts += 1
        elif self.acknowledges:
            self._write(self._sent if event == _NACK else b"-")

    def _write(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError:
            raise Lost from None
