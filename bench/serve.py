"""The HTTP service under load on loopback, with a tiny model: 200 jobs from 20 clients, kill -9 in the middle, 1000 requests a second.

    python bench/serve.py [load kill burst] [--jobs 200] [--clients 20] [--out bench/results/serve.md]

Every part starts `latentsync serve` with one worker on the CPU. A job is 0.2 s of drawn video at 128 px, one step of an untrained network: so small
that what is measured is the service and not the network. The clients are `latentsync.client.Client`, in threads of this process, on the same cores.
The numbers are kept in serve.json beside the report, so that one part can be measured anew.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil

from latentsync import client as client_module
from latentsync import weights
from latentsync.client import Client, UnreachableError
from latentsync.errors import LatentSyncError
from latentsync.jobs.store import Store, sqlite_url

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
MIB = 1 << 20


class Server:
    """`latentsync serve` in a process of its own."""

    def __init__(self, folder: Path, *more: str, port: int = 0) -> None:
        words = ["serve", "--port", str(port), "--model", str(folder / "tiny"), "--device", "cpu", "--dtype", "fp32", "--data", str(folder / "data")]
        words += ["--max-jobs", "0", "--max-queue", "0", "--min-free-gigabytes", "0.1", *more]
        self.began = time.monotonic()
        self.process = subprocess.Popen([sys.executable, "-m", "latentsync", *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        for line in self.process.stdout:
            found = re.search(r"http://[\w.]+:(\d+)", line)
            if found:
                self.url, self.port = found.group(0), int(found.group(1))
                threading.Thread(target=self.process.stdout.read, daemon=True).start()
                self.up = time.monotonic() - self.began
                return
        raise SystemExit("the service did not start")

    def worker(self) -> psutil.Process | None:
        """The largest of its children."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                found.append((child.memory_info().rss, child))
            except psutil.Error:
                continue
        return max(found, key=lambda pair: pair[0])[1] if found else None

    def ready(self, seconds: float = 300.0) -> float:
        """Wait until a worker is. Gives the seconds since the start."""
        until(lambda: _answers(self.url + "/readyz"), seconds)
        return time.monotonic() - self.began

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()


class Memory:
    """Resident memory of server and worker, twice a second."""

    def __init__(self, server: Server, done: Any) -> None:
        self.rows: list[tuple[int, float, float]] = []  # jobs done, MiB of the server, MiB of the worker
        self._server, self._done = server, done
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._over.wait(0.5):
            try:
                worker = self._server.worker()
                if worker is not None:
                    server = psutil.Process(self._server.process.pid).memory_info().rss
                    self.rows.append((self._done(), server / MIB, worker.memory_info().rss / MIB))
            except psutil.Error:
                continue

    def close(self) -> list[tuple[int, float, float]]:
        self._over.set()
        self._thread.join()
        return self.rows


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=10).status_code == 200
    except httpx.HTTPError:
        return False


def until(what: Any, seconds: float) -> Any:
    end = time.monotonic() + seconds
    while True:
        try:
            found = what()
        except LatentSyncError:
            found = None
        if found:
            return found
        if time.monotonic() > end:
            raise SystemExit("the service did not get there in time")
        time.sleep(0.2)


def prepare(folder: Path) -> None:
    """A tiny model with the package's own face finder, and the smallest clip."""
    weights.new("tiny", folder / "tiny")
    description = folder / "tiny" / "model.yaml"
    text = description.read_text(encoding="utf-8")
    description.write_text(text + ("" if "defaults:" in text else "defaults:\n  face_backend: demo\n"), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("sample", ROOT / "tools" / "sample.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.make(folder, seconds=0.2, size=128)


def one(url: str, folder: Path, key: str, seconds: float) -> dict[str, Any]:
    """A job from its upload to its result, by a client that tries again as long as it takes, always under one key."""
    end = time.monotonic() + seconds
    submitted = 0.0
    while True:
        try:
            with Client(url) as client:
                began = time.monotonic()
                job = client.submit(
                    folder / "sample.mp4", folder / "speech.wav", idempotency_key=key, steps=1, report=False, seed=7, face_backend="demo"
                )
                submitted = submitted or time.monotonic() - began
                job = client.wait(job.id).check()
                out = client.result(job.id, folder / f"{key}.mp4", overwrite=True)
                size = Path(out).stat().st_size if out else (folder / f"{key}.mp4").stat().st_size
                return {"id": job.id, "submit": submitted, "work": job.seconds, "bytes": size, "all": time.monotonic() - began}
        except UnreachableError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


def crowd(url: str, folder: Path, jobs: int, clients: int, name: str, done: list[dict[str, Any]]) -> None:
    """So many jobs from so many clients at once."""

    def work(number: int) -> None:
        done.append(one(url, folder, f"{name}-{number}", 1800))

    with ThreadPoolExecutor(clients) as pool:
        for future in [pool.submit(work, number) for number in range(jobs)]:
            future.result()


def load(folder: Path, jobs: int, clients: int) -> dict[str, Any]:
    server = Server(folder, "--rate", "0")
    try:
        ready = server.ready()
        done: list[dict[str, Any]] = []
        memory = Memory(server, lambda: len(done))
        began, cpu = time.monotonic(), cpu_of(server)
        crowd(server.url, folder, jobs, clients, "load", done)
        took = time.monotonic() - began
        spent = [b - a for a, b in zip(cpu, cpu_of(server), strict=True)]
        rows = memory.close()
    finally:
        server.close()
    books = audit(folder)
    quarter = jobs // 4

    def of(column: int, low: int, high: int) -> float:
        return statistics.median([r[column] for r in rows if low <= r[0] < high] or [0.0])

    return {
        "jobs": jobs,
        "clients": clients,
        "up": server.up,
        "ready": ready,
        "seconds": took,
        "submit": spread([d["submit"] for d in done]),
        "work": spread([d["work"] for d in done]),
        "cpu_server": spent[0] / jobs,
        "cpu_worker": spent[1] / jobs,
        "server_mib": [of(1, k * quarter, (k + 1) * quarter) for k in range(4)],
        "worker_mib": [of(2, k * quarter, (k + 1) * quarter) for k in range(4)],
        "results": len({d["id"] for d in done}),
        "same": len({d["bytes"] for d in done}),
        "books": books,
    }


def cpu_of(server: Server) -> tuple[float, float]:
    worker = server.worker()
    times = [psutil.Process(server.process.pid).cpu_times(), *([worker.cpu_times()] if worker else [])]
    return tuple(t.user + t.system for t in times)  # type: ignore[return-value]


def audit(folder: Path) -> dict[str, Any]:
    """What the database says after all: jobs by state, by the number of times that they were begun, and folders that no job knows."""
    store = Store(sqlite_url(folder / "data" / "jobs.sqlite"))
    jobs = store.jobs(None, limit=10000)
    found = {
        "states": dict(Counter(j.state for j in jobs)),
        "attempts": {str(k): v for k, v in sorted(Counter(j.attempts for j in jobs).items())},
        "totals": store.totals(),
        "folders": len(list((folder / "data" / "jobs").iterdir())),
        "results": [len(list((folder / "data" / "jobs" / j.id).glob("result-*"))) for j in jobs],
        "names": len({j.names.get("video.mp4", "") for j in jobs}),
    }
    found["results"] = {str(k): v for k, v in sorted(Counter(found["results"]).items())}
    store.close()
    return found


def kill(folder: Path, jobs: int, clients: int) -> dict[str, Any]:
    server = Server(folder, "--rate", "0")
    server.ready()
    done: list[dict[str, Any]] = []
    thread = threading.Thread(target=crowd, args=(server.url, folder, jobs, clients, "kill", done))
    thread.start()
    away: list[float] = []
    servers, workers = 0, 0
    for part in (0.2, 0.4, 0.6, 0.8):
        until(lambda part=part: len(done) >= part * jobs, 1800)
        if servers <= workers:
            server.kill()
            server = Server(folder, "--rate", "0", port=server.port)
            away.append(server.ready())
            servers += 1
        else:
            worker = server.worker()
            assert worker is not None
            worker.kill()
            workers += 1
    thread.join()
    server.close()
    return {
        "jobs": jobs,
        "clients": clients,
        "servers": servers,
        "workers": workers,
        "away": away,
        "results": len({d["id"] for d in done}),
        "same": len({d["bytes"] for d in done}),
        "books": audit(folder),
    }


async def fire(port: int, paths: list[str], rate: float, seconds: float, connections: int) -> dict[str, Any]:
    """Requests at a fixed pace, whether or not the earlier ones are answered; at most so many are open at a time."""
    waiting: asyncio.Queue[tuple[float, str] | None] = asyncio.Queue()
    codes: Counter[str] = Counter()
    times: list[float] = []

    async def connection() -> None:
        reader = writer = None
        while (item := await waiting.get()) is not None:
            due, path = item
            try:
                if writer is None or reader is None:
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head, re.I)
                await reader.readexactly(int(length.group(1)) if length else 0)
                codes[head[9:12].decode()] += 1
                times.append(time.monotonic() - due)
                if b"connection: close" in head.lower():
                    writer.close()
                    reader = writer = None
            except (OSError, asyncio.IncompleteReadError) as e:
                codes[type(e).__name__] += 1
                reader = writer = None
        if writer is not None:
            writer.close()

    crowd = [asyncio.create_task(connection()) for _ in range(connections)]
    began, sent = time.monotonic(), 0
    while (now := time.monotonic() - began) < seconds:
        while sent < now * rate:
            waiting.put_nowait((began + sent / rate, paths[sent % len(paths)]))
            sent += 1
        await asyncio.sleep(0.002)
    for _ in crowd:
        waiting.put_nowait(None)
    await asyncio.gather(*crowd)
    return {"sent": sent, "seconds": time.monotonic() - began, "codes": dict(codes), "times": spread(times)}


def burst(folder: Path, rate: float, seconds: float) -> dict[str, Any]:
    found: dict[str, Any] = {"rate": rate}
    for name, words in (("open", ("--rate", "0")), ("limited", ("--rate", "20", "--burst", "100"))):
        server = Server(folder, *words)
        try:
            server.ready()
            first = one(server.url, folder, "burst", 600)
            paths = [f"/v1/jobs/{first['id']}", f"/v1/jobs/{'x' * 22}"]
            before = psutil.Process(server.process.pid).memory_info().rss / MIB
            cpu = cpu_of(server)[0]
            shots = asyncio.run(fire(server.port, paths, rate, seconds, 50))
            shots["cpu"] = (cpu_of(server)[0] - cpu) / sum(shots["codes"].values())
            shots["mib"] = [before, psutil.Process(server.process.pid).memory_info().rss / MIB]
            time.sleep(6)  # the limited client may ask again
            after = one(server.url, folder, f"after-{name}", 600)
            found[name] = {**shots, "after": after["work"]}
        finally:
            server.close()
    return found


def spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    at = {f"p{p}": ordered[min(len(ordered) - 1, len(ordered) * p // 100)] for p in (50, 95, 99)} if ordered else {}
    return {**at, "max": ordered[-1] if ordered else 0.0}


def report(numbers: dict[str, Any]) -> str:
    lines = [
        "## The service under load",
        "",
        f"`latentsync serve` with one CPU worker ({platform.machine()}, Python {platform.python_version()}), a job being 0.2 s of drawn "
        "video at 128 px and one step of an untrained tiny network; the clients run on the same two cores, and other work beside them, so wall times "
        "say little. Written by `bench/serve.py`.",
        "",
    ]
    if "load" in numbers:
        n = numbers["load"]
        books = n["books"]
        lines += [
            f"### {n['jobs']} jobs from {n['clients']} clients",
            "",
            "| | |",
            "| --- | --- |",
            f"| results fetched, each of the same size | {n['results']} of {n['jobs']}{'' if n['same'] == 1 else ', sizes differ'} |",
            f"| jobs in the database | {states(books)}; begun once: {books['attempts'].get('1', 0)} |",
            f"| all of it | {n['seconds']:.0f} s, {n['jobs'] / n['seconds'] * 60:.0f} jobs a minute |",
            f"| work on one job, median and worst | {n['work']['p50']:.2f} s, {n['work']['max']:.2f} s |",
            f"| an upload answered, median, 95 % and worst | {n['submit']['p50']:.2f} s, {n['submit']['p95']:.2f} s, {n['submit']['max']:.2f} s |",
            f"| CPU seconds for a job: server, worker | {n['cpu_server']:.3f}, {n['cpu_worker']:.2f} |",
            f"| from start to the first answer, to a loaded model | {n['up']:.1f} s, {n['ready']:.1f} s |",
            "",
            "Resident memory, the median of each quarter of the run:",
            "",
            "| process | first | second | third | last | last of second |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for name in ("server", "worker"):
            four = n[f"{name}_mib"]
            lines.append(f"| {name} | {' | '.join(f'{m:.0f} MiB' for m in four)} | {four[3] / max(four[1], 1):.3f} |")
        lines.append("")
    if "kill" in numbers:
        n = numbers["kill"]
        books = n["books"]
        lines += [
            "### kill -9 in the middle",
            "",
            f"{n['jobs']} jobs from {n['clients']} clients, which ask again under the same idempotency key until they have their result. Meanwhile "
            f"the service was killed {n['servers']} times with SIGKILL and started anew, and its worker alone {n['workers']} times.",
            "",
            "| | |",
            "| --- | --- |",
            f"| results fetched, each of the same size | {n['results']} of {n['jobs']}{'' if n['same'] == 1 else ', sizes differ'} |",
            f"| jobs in the database | {states(books)} |",
            f"| finished, as the books count | {books['totals']['done']:.0f} |",
            f"| times that a job was begun | {', '.join(f'{v} jobs {times(k)}' for k, v in books['attempts'].items())} |",
            f"| results in a job's folder | {', '.join(f'{v} jobs {k}' for k, v in books['results'].items())}; {books['folders']} folders |",
            f"| from the kill to answers again | {', '.join(f'{s:.1f} s' for s in n['away'])} |",
            "",
        ]
    if "burst" in numbers:
        n = numbers["burst"]
        lines += [
            f"### {n['rate']:.0f} requests a second",
            "",
            "For ten seconds, over 50 connections, half of them about a job and half about one that is not there, sent at that pace "
            "whether or not the earlier ones are answered.",
            "",
            "| limit of requests | sent | answered | a second | answer, median, 99 % | CPU for one | server's memory before, after | a job after |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for name, words in (("open", "none"), ("limited", "20 a second, 100 at once")):
            s = n[name]
            answered = ", ".join(f"{v} x {k}" for k, v in sorted(s["codes"].items()))
            t, (before, after) = s["times"], s["mib"]
            lines.append(
                f"| {words} | {s['sent']} | {answered} | {sum(s['codes'].values()) / s['seconds']:.0f} | {t['p50']:.2f} s, {t['p99']:.2f} s | "
                f"{1000 * s['cpu']:.2f} ms | {before:.0f} MiB, {after:.0f} MiB | done, {s['after']:.1f} s |"
            )
        lines.append("")
    return "\n".join(lines)


def states(books: dict[str, Any]) -> str:
    return ", ".join(f"{v} {k}" for k, v in books["states"].items())


def times(number: str) -> str:
    return "once" if number == "1" else f"{number} times"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="load, kill, burst; all by default")
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--rate", type=float, default=1000.0, help="requests a second of the burst")
    parser.add_argument("--out", type=Path, default=RESULTS / "serve.md")
    given = parser.parse_args()
    client_module.POLL = 4.0  # twenty who look every second would take as much of two cores as the worker
    file = given.out.with_suffix(".json")
    numbers = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for part in given.parts or ["load", "kill", "burst"]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            prepare(folder)
            if part == "load":
                numbers[part] = load(folder, given.jobs, given.clients)
            elif part == "kill":
                numbers[part] = kill(folder, max(given.jobs // 4, 10), given.clients)
            else:
                numbers[part] = burst(folder, given.rate, 10.0)
        file.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
        given.out.write_text(report(numbers), encoding="utf-8")
        print(json.dumps(numbers[part]))


if __name__ == "__main__":
    main()
