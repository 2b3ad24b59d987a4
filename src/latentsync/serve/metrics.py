"""Numbers for Prometheus: what the job core counts, read when they are asked for, and what the service itself has answered."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator, MutableMapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from latentsync.jobs import Desk

TYPE = "text/plain; version=0.0.4; charset=utf-8"
_TOTALS = {
    "submitted": ("latentsync_jobs_submitted", "Jobs that were taken."),
    "done": ("latentsync_jobs_done", "Jobs that were done."),
    "failed": ("latentsync_jobs_failed", "Jobs that failed."),
    "cancelled": ("latentsync_jobs_cancelled", "Jobs that were cancelled."),
    "retried": ("latentsync_jobs_retried", "Attempts that were begun again after a worker died."),
    "frames": ("latentsync_frames", "Frames written."),
    "video_seconds": ("latentsync_video_seconds", "Seconds of video written."),
    "work_seconds": ("latentsync_work_seconds", "Seconds worked."),
}


class _DeskCollector(Collector):
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def collect(self) -> Iterator[Metric]:
        counts = self._desk.counts()
        jobs = GaugeMetricFamily("latentsync_jobs", "Jobs that are there now.", labels=["state"])
        for state in ("queued", "running", "done", "failed", "cancelled"):
            jobs.add_metric([state], getattr(counts, state))
        yield jobs
        yield GaugeMetricFamily("latentsync_queue_oldest_seconds", "Seconds that the first of the queue has waited.", value=counts.oldest_wait)
        yield GaugeMetricFamily("latentsync_disk_free_bytes", "Bytes free where jobs are kept.", value=counts.free_bytes)
        workers = GaugeMetricFamily("latentsync_workers", "Worker processes.", labels=["state"])
        states = Tally(worker.state for worker in self._desk.workers())
        for name in ("starting", "loading", "idle", "busy", "dead"):
            workers.add_metric([name], states[name])  # type: ignore[index]
        yield workers
        for name, value in counts.totals.items():
            if name in _TOTALS:
                yield CounterMetricFamily(*_TOTALS[name], value=value)


class Meter:
    """The numbers of one service."""

    def __init__(self, desk: Desk) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_DeskCollector(desk))
        ProcessCollector(registry=self._registry)
        self._requests = Counter("latentsync_http_requests", "Requests.", ["method", "route", "status"], registry=self._registry)
        self._seconds = Histogram(
            "latentsync_http_request_seconds",
            "Seconds until a request was answered, uploads included, event streams left out.",
            ["route"],
            registry=self._registry,
            buckets=(0.005, 0.02, 0.1, 0.5, 2, 10, 60, 600),
        )
        self._webhooks = Counter("latentsync_webhooks", "Webhooks, by what came of them.", ["outcome"], registry=self._registry)

    def asked(self, scope: MutableMapping[str, Any], status: int, seconds: float) -> None:
        """A request was answered. Routes are counted by their pattern: what visitors write must not become a label."""
        route = str(getattr(scope.get("route"), "path", "other"))
        method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST", "DELETE", "OPTIONS") else "other"
        self._requests.labels(method, route, str(status)).inc()
        if not route.endswith("/events"):
            self._seconds.labels(route).observe(seconds)

    def webhook(self, outcome: str) -> None:
        """A webhook was tried."""
        self._webhooks.labels(outcome).inc()

    def text(self) -> bytes:
        """All of it, in the text format."""
        return generate_latest(self._registry)
