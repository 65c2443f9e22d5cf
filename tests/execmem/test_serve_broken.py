# SPDX-License-Identifier: GPL-2.0-or-later
"""The web page's server where somebody breaks it: it costs who did, and nobody else."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from urllib.parse import urlsplit

import pytest

pytest.importorskip("starlette", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")

import uvicorn
from uvicorn.server import ServerState

from allocator.errors import ExecmemError
from execmem.serve import app as served
from execmem.serve import punctual
from execmem.serve.desks import Desk, Desks, Gone, Limits, TooMuch
from execmem.worker.jobs import ENDED, Worker
from tests.support.served import HEADER, HERE

SLOW = ("compare", "--workload", "debian")


def meanwhile(call, *words):
    """Call something in a thread; return a function that waits for what it returned or raised."""
    found = []

    def run():
        try:
            found.append(call(*words))
        except ExecmemError as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def waited():
        thread.join(20)
        return found[0]

    return waited


# Processes --------------------------------------------------------------------------------------


def asleep(seconds):
    """Take some time."""
    time.sleep(seconds)
    return "slept"


def test_who_waits_for_a_process_that_is_ended_is_told():
    """Closed while somebody waits, before, twice, and over and over: no process is left, or begun."""
    worker = Worker(asleep, memory=1 << 28, seconds=20)
    worker.give(0)
    assert worker.result() == ("slept", "")
    worker.give(20)
    waited = meanwhile(worker.result)
    time.sleep(0.2)
    worker.close()
    worker.close()
    assert waited() == (None, ENDED)
    assert worker.process.poll() == -signal.SIGKILL
    assert worker.pipe.closed
    worker.give(0)
    assert worker.result() == (None, ENDED)


def test_a_desk_that_is_given_away_says_so():
    """Who waits there is told at once, and so is who comes later; nothing of it is left."""
    desks = Desks(Limits(desks=1, seconds=60))
    try:
        name = desks.open()
        desk = desks.find(name)
        desk.started()
        waited = [meanwhile(desk.ask, SLOW) for _ in range(3)]
        time.sleep(0.3)
        began = time.monotonic()
        other = desks.open()
        assert [type(each()) for each in waited] == [Gone] * 3
        assert time.monotonic() - began < 5
        assert desks.find(name) is None
        with pytest.raises(Gone):
            desk.put("late.ko", b"")
        with pytest.raises(Gone):
            desk.ask(("archs",))
        assert not desk.folder.exists()
        assert desk._worker.process.poll() is not None
        assert desks.find(other).ask(("archs",))["code"] == 0
    finally:
        desks.close()
    with pytest.raises(Gone):
        desks.open()


def test_what_cannot_be_kept_is_told(monkeypatch):
    """A disk that is full is one line without a folder, and half a file is none."""
    desk = Desk(Limits())

    def full(self, _contents):
        self.touch()
        raise OSError(28, "No space left on device", str(self))

    try:
        monkeypatch.setattr("pathlib.Path.write_bytes", full)
        with pytest.raises(TooMuch, match="No space left on device") as refused:
            desk.put("a.ko", b"1")
        assert str(desk.folder) not in str(refused.value)
        assert not [*desk.folder.iterdir()]
    finally:
        desk.close()


def test_an_interrupt_in_the_middle_is_one_line():
    """Who waits for an answer is told that the desk is gone; the server says that it was interrupted."""
    process = subprocess.Popen(
        [sys.executable, "-m", "execmem", "serve", "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=HERE,
    )
    try:
        where = urlsplit(json.loads("".join(iter(process.stdout.readline, "}\n")) + "}")["url"])
        desk = json.loads(_post(where, "/api/desk", "")[1])["desk"]
        asked = meanwhile(_post, where, "/api/ask", json.dumps({"words": SLOW}), desk)
        time.sleep(1)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
        assert time.monotonic() - began < 5
    finally:
        process.kill()
        process.wait()
    assert asked()[0] == 410
    assert process.returncode == 130
    assert said.strip() == "execmem: interrupted"


def _post(where, path, body, desk=""):
    import http.client

    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=30)
    connection.request("POST", path, body, {HEADER: desk})
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


# Connections ------------------------------------------------------------------------------------


def test_half_a_head_is_given_up(monkeypatch):
    """A connection that does not say what it wants ends; one that does is answered, and may say more."""
    monkeypatch.setattr(punctual, "SECONDS", 0.5)

    async def app(_scope, _receive, send):
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async def play():
        config = uvicorn.Config(app, log_level="critical", lifespan="off", ws="none")
        config.load()
        loop = asyncio.get_running_loop()
        listening = await loop.create_server(
            lambda: punctual.Punctual(config, ServerState(), {}), "127.0.0.1", 0
        )
        where = listening.sockets[0].getsockname()
        found = []
        for heads in ([b""], [b"GET / HT"], [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"GET"]):
            reader, writer = await asyncio.open_connection(*where)
            began = loop.time()
            for head in heads:
                writer.write(head)
                await asyncio.sleep(0.1)
            text = await asyncio.wait_for(reader.read(), 10)
            found.append((text[:12], loop.time() - began < 5))
            writer.close()
        listening.close()
        return found

    assert asyncio.run(play()) == [(b"", True), (b"", True), (b"HTTP/1.1 204", True)]


def carried(parts, pause=0.0):
    """Send parts of a file to an application; return the status and what is said."""
    desks = Desks(Limits())
    application = served.application(desks, {}, ["localhost"])
    waiting, said = list(parts), []

    async def receive():
        await asyncio.sleep(pause)
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    async def send(message):
        said.append(message)

    async def play(desk):
        headers = [(b"host", b"localhost"), (HEADER.lower().encode(), desk.encode())]
        scope = {"type": "http", "method": "PUT", "path": "/api/files/a.ko", "headers": headers}
        scope |= {"query_string": b"", "root_path": "", "http_version": "1.1", "scheme": "http"}
        await application(scope, receive, send)

    try:
        asyncio.run(play(desks.open()))
    finally:
        desks.close()
    return said[0]["status"], json.loads(said[1]["body"])


def test_what_is_sent_is_bounded(monkeypatch):
    """All that is sent at a time has a sum, and the time that it may take an end."""
    assert carried([b"12", b"3"]) == (200, {"name": "a.ko", "size": 3})
    monkeypatch.setattr(served, "HELD", 2)
    assert carried([b"12", b"3"])[0] == 429
    assert carried([b"12"])[0] == 200
    monkeypatch.setattr(served, "SLOW", 0.1)
    status, told = carried([b"1"] * 100, 0.05)
    assert (status, told) == (408, {"error": "a file has to come within 0.1 seconds"})


def test_so_many_questions_wait_at_a_desk(monkeypatch):
    """Those that are too many are told at once; those that wait, when the desk goes."""
    monkeypatch.setattr("execmem.serve.desks.WAITING", 2)
    desk = Desk(Limits(seconds=30))
    try:
        desk.started()
        waited = [meanwhile(desk.ask, SLOW) for _ in range(5)]
        time.sleep(0.3)
        assert desk._waiting == 2
        desk.close()
        kinds = sorted(type(each()).__name__ for each in waited)
        assert kinds == ["Gone", "Gone", "TooMuch", "TooMuch", "TooMuch"]
    finally:
        desk.close()
    assert not desk.folder.exists()
