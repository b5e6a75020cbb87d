"""The metrics of several replicas on one page."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from specport.serve.metrics import ServerMetrics
from specport.serve.ray.metrics import joined


def test_each_metric_is_there_once_with_the_samples_of_all() -> None:
    pages = []
    for number, engine in enumerate("abc", start=1):
        metrics = ServerMetrics("toy", engine=engine)
        for _ in range(number):
            metrics.committed(5, 0.5)
        pages.append(metrics.exposition())
    text = joined(pages).decode()
    assert text.count("# TYPE specport:generation_tokens_total counter") == 1
    families = {family.name: family for family in text_string_to_metric_families(text)}
    one = {family.name: family for family in text_string_to_metric_families(pages[0].decode())}
    assert {*families} == {*one}
    tokens = {
        s.labels["engine"]: s.value
        for s in families["specport:generation_tokens"].samples
        if s.name.endswith("_total")
    }
    assert tokens == {"a": 5, "b": 10, "c": 15}
    for name, family in families.items():
        assert len(family.samples) == 3 * len(one[name].samples) and family.type == one[name].type
    assert joined([]) == b""
