"""The annotators' page under load: many clients, a server that is killed, a full collection.

Knows the page as a browser sees it: links, forms, redirects. Clients are plain HTTP and never wait
between two judgments, so that the server is as busy as they can make it.

    python -m bench.annotate.load --clients 20 --judgments 5000 --kills 5
"""

import argparse
import http.client
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
from random import Random
from statistics import median, quantiles
from typing import Any
from urllib.parse import urlencode

from bench.machine import command, write_result
from posttrain.annotate.store import Store
from posttrain.rows import Message, Strength, Task

PORT = 8931
SERVE = """
import sys
from pathlib import Path
from posttrain.annotate.collection import Collection
from posttrain.annotate.serving import serve
from posttrain.annotate.store import Store
store = Store(Path(sys.argv[1]), 1800.0)
serve(Collection("load", 1, store, Path("unused"), [], 1.0), "127.0.0.1", int(sys.argv[2]))
"""
FIELD = re.compile(r'<input type="hidden" name="(check|task|order)"(?: id="\w+")? value="([^"]*)">')
SENTENCE = "This is a sentence of a common length, as one stands in an answer to a question. "
RESPONSE = (
    f"{SENTENCE * 4}\n\n{SENTENCE * 4}\n\n- **first**: {SENTENCE}\n- **second**: {SENTENCE}\n"
    f"- **third**: {SENTENCE}\n\n```python\ndef add(a, b):\n    return a + b\n```\n\n{SENTENCE * 3}"
)
"""About 1,200 characters, the 284 tokens that are the paper's mean (Table 6)."""


def tasks(num: int) -> list[Task]:
    """Tasks with responses of a common length and layout."""

    def said(text: str, role: str = "assistant") -> list[Message]:
        return [Message.model_validate({"role": role, "content": text})]

    return [
        Task.model_validate(
            {
                "id": f"round-1/{n:06}",
                "prompt": said(f"Question {n}?", "user"),
                "a": said(f"a{n} {RESPONSE}"),
                "b": said(f"b{n} {RESPONSE}"),
                "model_a": "x",
                "model_b": "y",
                "capability": "general",
                "batch": "round-2",
            }
        )
        for n in range(num)
    ]


class Server:
    """The server, which can be killed and started again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.start()

    def start(self) -> None:
        """Returns once it answers."""
        words = [sys.executable, "-c", SERVE, str(self.path), str(PORT)]
        self.process = subprocess.Popen(words)
        while True:
            try:
                ask("GET", "/static/annotate.css")
                return
            except OSError:
                time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL, whatever it is doing."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()


def ask(
    method: str,
    path: str,
    cookie: str = "",
    form: dict[str, str] | None = None,
    kept: http.client.HTTPConnection | None = None,
) -> tuple[int, str, http.client.HTTPResponse]:
    """One request; raises OSError where the server is gone."""
    connection = kept or http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
    headers = {"Cookie": cookie} if cookie else {}
    body = None
    if form is not None:
        body = urlencode(form)
        headers["Content-Type"] = "application/x-www-form-urlencoded"
        headers["Origin"] = f"http://127.0.0.1:{PORT}"
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), answer
    except http.client.HTTPException as error:
        raise ConnectionError(str(error)) from error


@dataclass
class Client:
    """One annotator who judges until nothing is left."""

    name: str
    token: str
    told: list[tuple[str, str]] = field(default_factory=list)
    """Task and verdict of each judgment that was acknowledged."""
    submits: list[float] = field(default_factory=list)
    pages: list[float] = field(default_factory=list)
    broken: int = 0

    def work(self) -> None:
        """Judge; a lost connection is opened again."""
        draw, connection = Random(self.name), None
        while True:
            try:
                connection = connection or http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
                begun = time.perf_counter()
                status, page, _ = ask(
                    "GET", "/", f"posttrain_annotator={self.token}", None, connection
                )
                assert status == 200, page
                fields = dict(FIELD.findall(page))
                if "task" not in fields:
                    return
                self.pages.append(time.perf_counter() - begun)
                side = draw.choice(("first", "second"))
                verdict = f"{side}/{draw.choice(list(Strength))}"
                form = {**{k: unescape(v) for k, v in fields.items()}, "verdict": verdict}
                begun = time.perf_counter()
                status, page, _ = ask(
                    "POST", "/judge", f"posttrain_annotator={self.token}", form, connection
                )
                if status == 303:
                    self.submits.append(time.perf_counter() - begun)
                    self.told.append((form["task"], verdict))
                else:
                    raise AssertionError(f"{status}: {page[-300:]}")
            except OSError:
                self.broken += 1
                connection = None
                time.sleep(0.1)


def percentile(seconds: list[float], share: int) -> float:
    """In milliseconds."""
    return round(1000 * quantiles(seconds, n=100)[share - 1], 1)


def under_load(folder: Path, num_clients: int, num: int, kills: int) -> dict[str, Any]:
    """Judge all tasks with a server that is killed in between, and compare with what was told."""
    store = Store(folder / "round.sqlite")
    store.publish(tasks(num))
    clients = [
        Client(name, store.add_annotator(name)) for name in map("n{}".format, range(num_clients))
    ]
    server = Server(folder / "round.sqlite")
    threads = [threading.Thread(target=one.work) for one in clients]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for turn in range(1, kills + 1):
        while sum(len(one.told) for one in clients) < num * turn / (kills + 1):
            time.sleep(0.02)
        server.kill()
        server.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - begun
    server.kill()
    # What was told and nothing else: each task once, as its annotator said.
    kept = {(one.annotator, one.task): one for one in Store(folder / "round.sqlite").judgments()}
    told = [(client.name, *one) for client in clients for one in client.told]
    missing = [one for one in told if (one[0], one[1]) not in kept]
    wrong = [
        one
        for one in told
        if (found := kept.get((one[0], one[1]))) is not None
        and (found.choice == found.first, str(found.strength))
        != (one[2].startswith("first/"), one[2].partition("/")[2])
    ]
    judged = Counter(task for _, task in kept)
    submits = [value for one in clients for value in one.submits]
    pages = [value for one in clients for value in one.pages]
    return {
        "clients": num_clients,
        "tasks": num,
        "kills": kills,
        "seconds": round(seconds, 1),
        "acknowledged": len(told),
        "kept": len(kept),
        "acknowledged_but_missing": len(missing),
        "kept_otherwise_than_acknowledged": len(wrong),
        "tasks_judged_twice": sum(count > 1 for count in judged.values()),
        "tasks_not_judged": num - len(judged),
        "kept_but_never_acknowledged": len(kept) - len({(n, t) for n, t, _ in told}),
        "lost_connections": sum(one.broken for one in clients),
        "submit_ms": {"median": round(1000 * median(submits), 1), "p95": percentile(submits, 95),
                      "p99": percentile(submits, 99)},
        "page_ms": {"median": round(1000 * median(pages), 1), "p95": percentile(pages, 95)},
    }  # fmt: skip


def many_open(folder: Path, num: int) -> dict[str, Any]:
    """How long the page takes to open with many open tasks."""
    store = Store(folder / "many.sqlite")
    store.publish(tasks(num))
    cookie = f"posttrain_annotator={store.add_annotator('ana')}"
    server = Server(folder / "many.sqlite")
    begun = time.perf_counter()
    ask("GET", "/", cookie)
    first = time.perf_counter() - begun
    seconds = []
    for _ in range(50):
        begun = time.perf_counter()
        ask("GET", "/", cookie)
        seconds.append(time.perf_counter() - begun)
    server.kill()
    return {
        "tasks": num,
        "first_page_ms": round(1000 * first, 1),
        "page_ms": {"median": round(1000 * median(seconds), 1), "p95": percentile(seconds, 95)},
    }


def main() -> None:
    """Measure and write the result beside this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--judgments", type=int, default=5000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--open", type=int, default=50_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result = {
            "command": command("annotate.load"),
            "load": under_load(folder, options.clients, options.judgments, options.kills),
            "open": many_open(folder, options.open),
        }
    write_result(Path(__file__).with_name("load.json"), result)


if __name__ == "__main__":
    main()
