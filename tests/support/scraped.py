"""Figures from a page of Prometheus text, over all replicas and label sets."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families


def replicas_of(page: str) -> set[str]:
    """The names of the router replicas with samples on the page."""
    return {line.split('replica="')[1].split('"')[0] for line in page.splitlines() if 'replica="' in line}


def total(page: str, sample: str, **labels: str) -> float:
    """The sum over the samples with that name and these labels; 0 if there are none."""
    families = text_string_to_metric_families(page)
    return sum(
        found.value
        for family in families
        for found in family.samples
        if found.name == sample and labels.items() <= found.labels.items()
    )
