# SPDX-License-Identifier: GPL-2.0-or-later
"""Connections that say in time what they want.

uvicorn waits for the rest of a request for as long as somebody holds the connection: as many as it
takes at a time, and nobody else is answered.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

SECONDS = 15  # until the head of a request is there


class Punctual(H11Protocol):
    """HTTP over a connection that is given up where the head of a request does not come."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as its own
        """Begin to wait."""
        super().connection_made(transport)
        self._waits()

    def data_received(self, data: bytes) -> None:
        """Take what came, and wait for the rest of a head, but not for longer."""
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._waits()
        else:
            self._heard()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._heard()
        super().connection_lost(exc)

    def _waits(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(SECONDS, self.transport.close)

    def _heard(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
