"""What a server costs over a direct call, and how it holds with many clients: prints a report.

python benchmarks/serve.py ADDRESS [overhead] [equal] [load]
ADDRESS: of a running `pellucid serve`, such as http://127.0.0.1:7860/
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from pellucid.adapters import on_backend
from pellucid.images.metadata import save_image
from pellucid.opening import open_model
from pellucid.pipeline import generate
from pellucid.request import Request as Wanted

PICTURES, EQUAL, JOBS, CLIENTS = 20, 32, 200, 16


def call(
    address: str, path: str, body: Any = None, timeout: float = 600, method: str | None = None
) -> Any:
    """The JSON of a reply."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    with urlopen(Request(address + path, data, headers, method=method), timeout=timeout) as reply:
        return json.loads(reply.read() or b"null")


def native(connection: HTTPConnection, request: dict[str, Any]) -> float:
    """Seconds from asking to the end of a job."""
    began = time.perf_counter()
    body = json.dumps({"request": request})
    connection.request("POST", "/api/jobs", body, {"Content-Type": "application/json"})
    id = json.loads(connection.getresponse().read())["id"]
    connection.request("GET", f"/api/jobs/{id}/events")
    connection.getresponse().read()
    return time.perf_counter() - began


def overhead(address: str) -> None:
    """The same pictures by all ways, in turn, so that a busy machine slows each."""
    model = open_model(None)  # in the threads and types of the server
    adapted = on_backend(model, "auto")
    connection = HTTPConnection(urlsplit(address).netloc)
    seconds: dict[str, list[float]] = {"direct": [], "saved": [], "served": []}
    with TemporaryDirectory() as folder:
        for seed in range(PICTURES + 1):
            for name, times in seconds.items():
                fields = {"prompt": "a rabbit", "seed": 3 * seed + len(name) % 3}
                if name == "served":
                    times.append(native(connection, fields))
                    continue
                began = time.perf_counter()
                *_, last = generate(model, Wanted(**fields), adapted)
                if name == "saved":
                    (image,) = last.images or ()
                    save_image(image, Path(folder, f"{seed}.png"), last.request.record())
                times.append(time.perf_counter() - began)
    direct, saved, served = (times[1:] for times in seconds.values())
    for name, of in (("least", min), ("median", statistics.median)):
        print(
            f"a picture, {name} of {PICTURES}: direct {of(direct):.4f} s, direct and saved "
            f"{of(saved):.4f} s, served {of(served):.4f} s"
        )
    for name, times in (("direct", direct), ("direct and saved", saved)):
        # Of pictures that were drawn one after the other: a machine may change its pace.
        more = statistics.median(b - a for a, b in zip(times, served, strict=True))
        share = more / statistics.median(times)
        print(f"served took {1000 * more:.1f} ms ({share:.0%}) longer than {name}, the median")


def equal(address: str) -> None:
    """Jobs of the same shape, which the server may draw in batches."""
    call(address, "api/queue", {"paused": True}, method="PATCH")
    ids = []
    for seed in range(EQUAL):
        request = {"prompt": f"a {('rabbit', 'frog', 'red apple')[seed % 3]}", "seed": seed}
        ids.append(call(address, "api/jobs", {"request": request})["id"])
    began = time.perf_counter()
    call(address, "api/queue", {"paused": False}, method="PATCH")
    for id in ids:
        with urlopen(f"{address}api/jobs/{id}/events") as events:
            for _ in events:
                pass
    seconds = time.perf_counter() - began
    print(f"{EQUAL} equal jobs: {seconds:.2f} s, {EQUAL / seconds:.2f} pictures a second")


def load(address: str) -> None:
    """Many clients of all interfaces at once, some of which cancel or go away."""
    chance, waits = random.Random(0), list[float]()
    done = threading.Event()

    def healthy() -> None:
        while not done.wait(0.2):
            began = time.perf_counter()
            urlopen(f"{address}healthz").read()
            waits.append(time.perf_counter() - began)

    def one(number: int) -> None:
        kind = chance.choice(("native", "openai", "a1111", "cancel", "leave"))
        fields = {"prompt": "a rabbit", "seed": number % 7, "steps": 5}
        try:
            if kind == "openai":
                call(address, "v1/images/generations", fields)
            elif kind == "a1111":
                call(address, "sdapi/v1/txt2img", fields)
            elif kind == "leave":
                call(address, "v1/images/generations", fields, timeout=0.5)
            else:
                id = call(address, "api/jobs", {"request": fields})["id"]
                if kind == "cancel":
                    call(address, f"api/jobs/{id}/cancel", {})
        except OSError:  # it went away, was cancelled, or came too late to cancel
            pass

    before = call(address, "api/jobs?limit=1")["total"]
    threading.Thread(target=healthy, daemon=True).start()
    with ThreadPoolExecutor(CLIENTS) as clients:
        list(clients.map(one, range(JOBS)))
    while (state := call(address, "api/queue"))["waiting"] or state["running"]:
        time.sleep(0.5)
    done.set()
    total = call(address, "api/jobs?limit=1")["total"] - before
    states = {
        name: call(address, f"api/jobs?limit=1&state={name}")["total"]
        for name in ("queued", "running", "done", "failed", "cancelled")
    }
    waits.sort()
    print(f"{JOBS} requests of {CLIENTS} clients: {total} jobs; in all {states}")
    print(f"healthz: 95th percentile {waits[int(0.95 * len(waits))] * 1000:.1f} ms of {len(waits)}")


if __name__ == "__main__":
    for part in (overhead, equal, load):
        if len(sys.argv) < 3 or part.__name__ in sys.argv[2:]:
            part(sys.argv[1])
