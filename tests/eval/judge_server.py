"""A judge on the loopback address: it speaks the chat interface, and misbehaves as it is told."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Act:
    """What the judge does with one call.

    Args:
        text: Its reply.
        body: Sent in the place of a reply, e.g. half of one.
        drop: Whether it hangs up.
        late: Seconds before it does anything.
    """

    text: str = "8 7\nFine."
    status: int = 200
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False
    late: float = 0.0


Behaviour = Callable[[int, str], Act]
"""(number of the call from 1 on, text of the last message) -> what to do."""


@dataclass
class JudgeServer:
    """The server, and what it was asked."""

    url: str
    calls: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    judged: Counter[str] = field(default_factory=Counter)  # good replies, by what was asked
    most_at_once: int = 0


def last_text(body: dict[str, Any]) -> str:
    """The text of the last message."""
    content = body["messages"][-1]["content"]
    return str(content if isinstance(content, str) else content[0]["text"])


@contextmanager
def judge_server(behaviour: Behaviour) -> Iterator[JudgeServer]:
    """Serve until the block ends."""
    lock, at_once = threading.Lock(), [0]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                served.calls.append({"path": self.path, **body})
                served.keys.append(self.headers.get("Authorization"))
                number = len(served.calls)
                at_once[0] += 1
                served.most_at_once = max(served.most_at_once, at_once[0])
            try:
                self.act(behaviour(number, last_text(body)), body)
            finally:
                with lock:
                    at_once[0] -= 1

        def act(self, act: Act, body: dict[str, Any]) -> None:
            time.sleep(act.late)
            if act.drop:
                self.close_connection = True
                self.connection.close()
                return
            content = act.body
            if content is None:
                reply = {"choices": [{"message": {"role": "assistant", "content": act.text}}]}
                content = json.dumps(reply).encode()
                if act.status == 200:
                    with lock:
                        served.judged[json.dumps(body, sort_keys=True)] += 1
            self.send_response(act.status)
            for name, value in act.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            pass  # a caller that went away is part of the tests

    server = Server(("127.0.0.1", 0), Handler)
    served = JudgeServer(f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
