"""Metrics of many replicas → one text for Prometheus, each sample with the name of its replica."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client import generate_latest as text_of
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

LABEL = "replica"


class _Merged:
    def __init__(self, texts: Iterable[tuple[str, str]]) -> None:
        self._texts = list(texts)

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for name, text in self._texts:
            for family in text_string_to_metric_families(text):
                merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    merged.add_sample(sample.name, {**sample.labels, LABEL: name}, sample.value)
        yield from families.values()


def merged(texts: Iterable[tuple[str, str]]) -> bytes:
    """Texts by names of replicas → one text, in which each family of metrics stands once."""
    registry = CollectorRegistry()
    registry.register(_Merged(texts))
    return text_of(registry)
