"""Metrics for /metrics, in Prometheus' format, by its own library."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Counters:
    """Metrics of one server, with CPU seconds and memory of its process where the system provides
    them (Linux)."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "rmadapter_requests", "Requests.", ["path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "rmadapter_request_seconds",
            "From the first byte to the last.",
            ["path"],
            registry=registry,
            buckets=SECONDS,
        )
        self.images = Counter(
            "rmadapter_images", "Images, answered or bad.", ["model", "outcome"], registry=registry
        )
        self.batches = Histogram(
            "rmadapter_batch_images",
            "Images asked about at once.",
            ["model"],
            registry=registry,
            buckets=IMAGES,
        )
        self.queue = Gauge(
            "rmadapter_queue_images",
            "Images accepted but unanswered.",
            ["model"],
            registry=registry,
        )
        self.reloads = Counter(
            "rmadapter_reloads", "Of changed models.", ["model", "outcome"], registry=registry
        )

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def total(self, name: str, **labels: str) -> int:
        """Sum of a counter over all labels that are not given."""
        return int(
            sum(
                sample.value
                for metric in self.registry.collect()
                for sample in metric.samples
                if sample.name == f"{name}_total" and labels.items() <= sample.labels.items()
            )
        )
