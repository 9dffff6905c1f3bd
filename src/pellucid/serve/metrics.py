"""What Prometheus reads at /metrics: requests, jobs that ended, and what waits now."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

from pellucid.serve.engine import Engine, Event

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)


class Metrics:
    """The numbers of one server, from its start on."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "pellucid_requests", "Requests.", ["method", "status"], registry=self.registry
        )
        self.ended = Counter(
            "pellucid_jobs_ended", "Jobs that ended.", ["api", "state"], registry=self.registry
        )
        self.seconds = Histogram(
            "pellucid_job_seconds", "Time of a job.", buckets=SECONDS, registry=self.registry
        )
        self.registry.register(self)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The state of the queue now."""
        counts = self.engine.queue.counts()
        for state in ("queued", "running"):
            name = f"pellucid_jobs_{state}"
            yield GaugeMetricFamily(name, f"Jobs that are {state}.", value=counts.get(state, 0))
        ready = float(self.engine.ready)
        yield GaugeMetricFamily("pellucid_ready", "1: jobs are accepted.", value=ready)

    def take(self, event: Event) -> None:
        """Count a job that has ended; for `Engine.watch`."""
        if (job := event.job) is not None:
            self.ended.labels(job.api, job.state).inc()
            if job.state == "done" and job.started is not None and job.finished is not None:
                self.seconds.observe(job.finished - job.started)

    def replied(self, method: str, status: int) -> None:
        """Count a request."""
        known = (
            method if method in ("GET", "POST", "PATCH", "DELETE", "HEAD", "OPTIONS") else "other"
        )
        self.requests.labels(known, str(status)).inc()

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)
