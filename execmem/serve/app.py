# SPDX-License-Identifier: GPL-2.0-or-later
"""HTTP: who may ask, and what is sent. What is asked is `questions`' and answered at a desk.

starlette and uvicorn, because both are small, kept, and do one thing each: an ASGI application,
and its server over h11. A page comes from here alone and asks here alone: no address but those that
the server is known by is answered (a name that an attacker points at 127.0.0.1 is none of them),
and nobody else's page may ask, because a desk's name travels in a header that only pages from here
can set.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import attrs
from anyio import CapacityLimiter, to_thread
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from allocator.errors import ExecmemError
from execmem import pages
from execmem.serve import compiling
from execmem.serve.desks import FILE, FILES, WAITING, Desk, Desks, Gone, TooMuch
from execmem.serve.kernel import Kernel
from execmem.serve.questions import KERNEL, NotAsked, checked

BUILDS = 2  # compilers at a time
QUESTION = 1 << 20  # bytes of a question
HELD = 4 * FILE  # bytes of all that is being sent
SLOW = 60  # seconds in which it has to be there
DESK = "x-execmem-desk"  # the header that names a desk

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGI: TypeAlias = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


@attrs.define(auto_exc=True, str=False)
class Refused(ExecmemError):
    """A request that is not taken: the status of HTTP, and why."""

    status: int
    why: str


class Guard:
    """Answers only who is here for it, and says with each answer what a page may do.

    Parameters
    ----------
    app
        Who answers.
    hosts
        Names and addresses that this server is known by, without a port.
    frames
        Origins whose pages may show this one in a frame.
    """

    def __init__(self, app: ASGI, hosts: Iterable[str], frames: Iterable[str] = ()) -> None:
        self._app = app
        self._hosts = frozenset(hosts)
        ancestors = " ".join(frames) or "'self'"
        script = f"'self' '{pages.import_map_hash()}'"
        policy = (
            f"default-src 'none'; script-src {script}; style-src 'self'; img-src 'self' data:;"
            f" connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors {ancestors}"
        )
        self._headers = [
            (b"content-security-policy", policy.encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
            (b"cross-origin-resource-policy", b"same-origin"),
            (b"cache-control", b"no-store"),
        ]

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *self._headers]
            await send(message)

        why = self._refuses(dict(scope["headers"]))
        if why:
            await _error(403, why)(scope, receive, sending)
            return
        await self._app(scope, receive, sending)

    def _refuses(self, headers: dict[bytes, bytes]) -> str:
        """Return why a request is not answered; empty: it is."""
        host = headers.get(b"host", b"").decode("latin-1")
        if _name(f"//{host}") not in self._hosts:
            return "this server is not known by that name"
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and origin.partition("://")[2] != host:
            return "pages from elsewhere may not ask"
        return ""


def _name(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _error(status: int, why: str) -> JSONResponse:
    return JSONResponse({"error": why}, status)


class Application:
    """What is answered, address by address.

    Parameters
    ----------
    desks
        Where.
    offer
        What a page is told first: samples, architectures, designs.
    kernel
        Who is asked about the kernel that is served; None: there is none.
    """

    def __init__(self, desks: Desks, offer: dict[str, Any], kernel: Kernel | None = None) -> None:
        self._desks = desks
        self._kernel = kernel
        self._compiler = asyncio.Semaphore(BUILDS)
        self._held = 0  # bytes that came and are not kept yet
        # Who waits at a desk keeps nobody from another one.
        self._seats = CapacityLimiter(desks.limits.desks * WAITING)
        self._offer = offer

    @asynccontextmanager
    async def _carried(self, request: Request, largest: int, what: str) -> AsyncIterator[bytes]:
        """Give what a request carries, of all of which there is room for so much at a time."""
        found, most = bytearray(), f"{what} has at most {largest >> 20} MiB"
        try:
            async with asyncio.timeout(SLOW):
                async for part in request.stream():
                    found += part
                    self._held += len(part)
                    if len(found) > largest:
                        raise Refused(413, most)
                    if self._held > HELD:
                        raise Refused(429, "too much is sent at a time: try again")
            yield bytes(found)
        except TimeoutError:
            raise Refused(408, f"{what} has to come within {SLOW} seconds") from None
        finally:
            self._held -= len(found)

    def page(self, _request: Request) -> Response:
        """Return the page."""
        return Response(pages.served(), media_type="text/html")

    def file(self, request: Request) -> Response:
        """Return a file of the front end."""
        found = pages.file(request.path_params["name"])
        if found is None:
            return _error(404, "there is no such file")
        return Response(found[0], media_type=found[1])

    async def desk(self, _request: Request) -> Response:
        """Open a desk."""
        name = await run_in_threadpool(self._desks.open)
        limits = self._desks.limits
        told = {"seconds": limits.seconds, "file": FILE, "files": FILES}
        return JSONResponse({"desk": name, "limits": told, **self._offer})

    def _at(self, request: Request) -> Desk:
        desk = self._desks.find(request.headers.get(DESK, ""))
        if desk is None:
            raise Gone
        return desk

    async def put(self, request: Request) -> Response:
        """Keep a file that was dropped."""
        desk = self._at(request)
        async with self._carried(request, FILE, "a file") as contents:
            name = await run_in_threadpool(desk.put, request.path_params["name"], contents)
            return JSONResponse({"name": name, "size": len(contents)})

    async def ask(self, request: Request) -> Response:
        """Answer a question."""
        desk = self._at(request)
        try:
            async with self._carried(request, QUESTION, "a question") as body:
                question = json.loads(body)
        except (ValueError, RecursionError):
            return _error(400, "a question is JSON")
        words = checked(question.get("words") if isinstance(question, dict) else None)
        found = await to_thread.run_sync(self._answer, desk, words, limiter=self._seats)
        return Response(json.dumps(found, separators=(",", ":")), media_type="application/json")

    async def source(self, request: Request) -> Response:
        """Return the source of a sample module."""
        found = compiling.sample(request.path_params["name"])
        if found is None:
            return _error(404, "there is no such sample")
        return JSONResponse({"text": found})

    async def build(self, request: Request) -> Response:
        """Compile what was typed, for one architecture, and keep it as if it had been dropped."""
        desk = self._at(request)
        try:
            async with self._carried(request, QUESTION, "a question") as body:
                asked = json.loads(body)
            text, kind, name = (asked[key] for key in ("text", "kind", "arch"))
        except (ValueError, RecursionError, KeyError, TypeError):
            return _error(400, "expected JSON with text, kind and arch")
        arch = next((each for each in compiling.targets() if each.name == name), None)
        if arch is None or kind not in compiling.SUFFIXES or not isinstance(text, str):
            return _error(400, "there is no compiler for that")
        if len(text) > compiling.LONGEST:
            return _error(413, f"a source has at most {compiling.LONGEST} characters")
        async with self._compiler:
            built = await run_in_threadpool(compiling.build, arch, kind, text)
        given = await run_in_threadpool(desk.put, f"{compiling.NAME}-{arch.name}.ko", built.image)
        return JSONResponse({"name": given, "said": built.said})

    def _answer(self, desk: Desk, words: tuple[str, ...]) -> dict[str, Any]:
        """Return an answer, from the desk or of whoever has the kernel."""
        if KERNEL not in words:
            return desk.ask(words)
        if self._kernel is None:
            raise NotAsked("no kernel is served (execmem serve --kernel PATH)")
        if words[0] == "kernel":
            return self._kernel.ask(words)
        return self._kernel.hidden(desk.ask(self._kernel.given(words)))


def application(
    desks: Desks,
    offer: dict[str, Any],
    hosts: Iterable[str],
    frames: Iterable[str] = (),
    kernel: Kernel | None = None,
) -> Starlette:
    """Return the ASGI application.

    Parameters
    ----------
    desks
        Where questions are answered; closed when the server ends.
    offer
        What a page is told first.
    hosts
        Names and addresses that the server is known by.
    frames
        Origins whose pages may show this one in a frame.
    kernel
        Who is asked about a kernel; None: there is none.
    """
    named = {"words": KERNEL, "name": kernel.name, "modules": kernel.modules} if kernel else None
    own = Application(desks, offer | {"kernel": named}, kernel)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(desks.close)
        if kernel is not None:
            await run_in_threadpool(kernel.close)

    routes = [
        Route("/", own.page),
        Route("/page/{name}", own.file),
        Route("/api/desk", own.desk, methods=["POST"]),
        Route("/api/files/{name:path}", own.put, methods=["PUT"]),
        Route("/api/ask", own.ask, methods=["POST"]),
        Route("/api/build", own.build, methods=["POST"]),
        Route("/api/source/{name}", own.source),
    ]
    return Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[Middleware(partial(Guard, hosts=tuple(hosts), frames=tuple(frames)))],
        exception_handlers={
            NotAsked: _told(400),
            compiling.NotBuilt: _told(422),
            TooMuch: _told(429),
            Gone: _told(410),
            Refused: lambda _, error: _error(error.status, error.why),
            ExecmemError: _told(503),
            ClientDisconnect: _told(400),
        },
    )


def _told(status: int) -> Callable[[Request, Exception], Response]:
    def handle(_request: Request, error: Exception) -> Response:
        return _error(status, str(error))

    return handle
