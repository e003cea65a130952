"""What Prometheus reads, by its own parser."""

from __future__ import annotations

import pytest

pytest.importorskip("prometheus_client", reason="pip install 'rmadapter[serve]'")

from prometheus_client.parser import text_string_to_metric_families

from rmadapter.deploy.serve.counters import Counters


def test_prometheus_reads_it() -> None:
    counters = Counters()
    for status, count in ((200, 3), (429, 2)):
        counters.requests.labels("/predict", status).inc(count)
    counters.batches.labels('a "model"').observe(5)
    found = {
        family.name: family for family in text_string_to_metric_families(counters.text().decode())
    }
    samples = found["rmadapter_requests"].samples
    assert {
        tuple(sample.labels.values()): sample.value
        for sample in samples
        if sample.name.endswith("_total")
    } == {("/predict", "200"): 3, ("/predict", "429"): 2}
    buckets = {
        sample.labels.get("le"): sample.value for sample in found["rmadapter_batch_images"].samples
    }
    assert (buckets["4.0"], buckets["8.0"]) == (0, 1)
    assert counters.total("rmadapter_requests") == 5
    assert counters.total("rmadapter_requests", status="429") == 2
    assert counters.total("rmadapter_images") == 0


def test_two_servers_in_a_process_count_for_themselves() -> None:
    first, second = Counters(), Counters()
    first.requests.labels("/", 200).inc()
    assert second.total("rmadapter_requests") == 0
