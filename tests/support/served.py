# SPDX-License-Identifier: GPL-2.0-or-later
"""The web page's server in a process of its own."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

HERE = Path(__file__).parents[2]
HEADER = "X-Execmem-Desk"


class Served:
    """A server of its own process, as a person starts it."""

    def __init__(self, *words: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "execmem", "serve", "--port", "0", "--json", *words],
            stdout=subprocess.PIPE,
            text=True,
            cwd=HERE,
        )
        assert self.process.stdout is not None
        self.told = json.loads("".join(iter(self.process.stdout.readline, "}\n")) + "}")
        self.url = self.told["url"]

    def request(self, method, path, body=None, **headers):
        """Return status, headers and document of an answer."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=60)
        connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        return answer.status, answer.headers, text

    def desk(self):
        """Return the name of a new desk."""
        return json.loads(self.request("POST", "/api/desk")[2])["desk"]

    def ask(self, desk, *words):
        """Return status and answer to a question."""
        body = json.dumps({"words": list(words)})
        status, _, text = self.request("POST", "/api/ask", body, **{HEADER: desk})
        return status, json.loads(text)

    def close(self):
        """End it as Ctrl-C does; return the exit code."""
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(20)
        self.process.stdout.close()
        return code
