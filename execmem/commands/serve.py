# SPDX-License-Identifier: GPL-2.0-or-later
"""`execmem serve`: the page to explore, with somebody behind it who answers."""

from __future__ import annotations

import signal
import sys
from contextlib import nullcontext
from threading import Thread
from typing import Any

import click

from execmem.commands.common import REQUIRE, examples, importing
from execmem.streams import say

LOOPBACK = "127.0.0.1"


@click.command()
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8765,
    show_default=True,
    metavar="N",
    help="0: a free one",
)
@click.option(
    "--address", default=LOOPBACK, metavar="ADDRESS", show_default=True, help="where to listen"
)
@click.option(
    "--name",
    "names",
    multiple=True,
    metavar="NAME",
    help="a name of this machine, beside the address",
)
@click.option(
    "--frame",
    "frames",
    multiple=True,
    metavar="ORIGIN",
    help="whose pages may embed it: https://HOST",
)
@click.option(
    "--pages",
    type=click.IntRange(1, 256),
    default=8,
    show_default=True,
    metavar="N",
    help="how many at a time",
)
@click.option(
    "--seconds",
    type=click.FloatRange(1, 3600),
    default=60.0,
    show_default=True,
    metavar="S",
    help="limit of an answer",
)
@click.option(
    "--memory",
    type=click.IntRange(64, 1 << 20),
    default=1024,
    show_default=True,
    metavar="MIB",
    help="limit of an answer",
)
@click.option(
    "--kernel", "path", metavar="PATH", help="show its page tables and symbols: it boots here"
)
@click.option(
    "--root", metavar="DIR", help="with --kernel: folder with lib/modules, to name modules of"
)
@click.option("--require-sandbox", is_flag=True, help=REQUIRE)
@click.option("--json", "as_json", is_flag=True, help="print where it listens as a JSON document")
@examples(
    "execmem serve",
    "execmem serve --kernel VMLINUZ",
    "execmem serve --port 0 --seconds 20",
    "execmem serve --port 0 --frame https://course.example",
)
def serve(
    port: int,
    address: str,
    names: tuple[str, ...],
    frames: tuple[str, ...],
    path: str | None,
    root: str | None,
    as_json: bool,
    **limits: Any,
) -> None:
    """Serve a page to play with modules: where they may lie, what holds them there, what they do.

    Whoever opens it picks a sample or drops a module of their own. Each page has a process of
    its own, which has given up files, network and privileges; what it answers is what the
    commands of the same names print. Only this machine can open it, unless ADDRESS is another.
    """
    if root is not None and path is None:
        raise click.UsageError("--root names modules of a kernel: give --kernel PATH")
    try:
        import starlette  # noqa: F401 -- said here, once for both
        import uvicorn
    except ImportError:
        from allocator.errors import ExecmemError

        reason = "the web page needs starlette and uvicorn: pip install 'execmem[serve]'"
        raise ExecmemError(reason) from None
    with importing():
        from execmem import report
        from execmem.serve.app import application
        from execmem.serve.kernel import Kernel
        from execmem.serve.punctual import Punctual
        from execmem.serve.serving import desks_of, listen, offer

    where = listen(address, port)
    url = f"http://{f'[{address}]' if ':' in address else address}:{where.getsockname()[1]}/"
    kernel = None if path is None else Kernel(path, root)
    desks = desks_of(readable=() if kernel is None else kernel.files, **limits)
    known = {address, *names, *(("localhost", "127.0.0.1", "::1") if address == LOOPBACK else ())}
    app = application(desks, offer(), known, frames, kernel)
    if as_json:
        report.print_json({"url": url, "sandbox": list(desks.prepare().removed)})
    else:
        say(url)
    sys.stdout.flush()  # nothing more is printed, for as long as it serves
    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        server_header=False,
        limit_concurrency=256,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=1,
        ws="none",
        http=Punctual,
    )
    server = uvicorn.Server(config)
    came: list[int] = []

    def ended() -> None:
        desks.close()
        if kernel is not None:
            kernel.close()

    def end(number: int, _frame: object) -> None:
        came.append(number)
        server.should_exit = True
        # Whoever waits for an answer is told, or uvicorn says at length that it did not wait.
        Thread(target=ended).start()

    # Uvicorn's own would raise each again while tasks still run, which says so at length.
    server.capture_signals = nullcontext  # type: ignore[assignment]  # as good as its own
    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    server.run(sockets=[where])
    for number, handler in before.items():
        signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])
