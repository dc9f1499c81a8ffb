"""`nanogpt dashboard`: a local page that shows runs side by side, during training and afterwards.

    nanogpt dashboard out

It reads the JSON files of each run, so it needs no tracker, and writes nothing. The page loads
nothing from the network. It reads JSON from these addresses:

    /api/runs               all runs and their progress
    /api/curves?run=out/a   &key=val_loss&x=tokens&points=600, and &low=…&high=…: a part in detail
    /api/samples?run=out/a  the texts of its evaluations
"""

import json
import math
import re
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from nanogpt.config import ignored_by
from nanogpt.extras.dashboard.follow import Runs
from nanogpt.run.errors import plain

WEB = Path(__file__).parent / "web"
HEADERS = {
    # the page may load its own files only, and no other page may embed or read it
    "Content-Security-Policy": "default-src 'self'; img-src data:; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
PORT = 6070
API = ("/api/runs", "/api/curves", "/api/samples")
# A hostile page can point its own name at 127.0.0.1 to become part of our origin (DNS rebinding),
# but its requests still carry that name.
OWN = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d+)?", re.IGNORECASE)


def answer(runs: Runs, address: str, query: dict[str, list[str]]) -> object:
    """The JSON at an address of the API. Raises ValueError or KeyError for a wrong query."""
    if address == "/api/runs":
        runs.update()
        listed = [{"name": name, **run.summary()} for name, run in runs.found.items()]
        # settings that do not make runs different
        incidental = {"commit", *ignored_by("resume", "compare", "card")}
        return {"runs": listed, "incidental": sorted(incidental)}
    run = runs.found[query["run"][0]]
    if address == "/api/samples":
        return run.samples
    x, points = query["x"][0], int(query["points"][0])
    low, high = float(query.get("low", [-math.inf])[0]), float(query.get("high", [math.inf])[0])
    return {key: run.curve(key, x, points, low, high) for key in query["key"]}


class Handler(SimpleHTTPRequestHandler):
    """Answers GET requests: the files in web/, or JSON."""

    server: "Server"

    def do_GET(self) -> None:
        """Refuses requests under another host name."""
        if not OWN.fullmatch(self.headers.get("Host", "")):
            return self.send_error(403, "use http://127.0.0.1 or http://localhost")
        try:
            url = urlsplit(self.path)
            if url.path not in API:
                return super().do_GET()
            with self.server.lock:
                found = answer(self.server.runs, url.path, parse_qs(url.query))
        except (ValueError, KeyError):
            return self.send_error(400)
        body = json.dumps(plain(found)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *args) -> None:
        """Logs nothing."""


class Server(ThreadingHTTPServer):
    """Serves the runs in `roots` at `address`, on 127.0.0.1 only."""

    def __init__(self, roots: list[str], port: int | None = None):
        """Listens at `port`, by default 6070 if it is free, else any. Raises ValueError."""
        self.runs, self.lock = Runs(roots), threading.Lock()
        handler = partial(Handler, directory=WEB)
        try:
            super().__init__(("127.0.0.1", PORT if port is None else port), handler)
        except OSError as error:
            if port is not None:
                raise ValueError(f"port {port} is unavailable: {error}; choose another") from None
            super().__init__(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self.server_port}/"

    def handle_error(self, request, client_address) -> None:
        """Ignores clients that disconnected."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)
