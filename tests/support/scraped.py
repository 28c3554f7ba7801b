"""What a page of Prometheus text says, over all replicas and label sets."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families


def replicas_of(page: str) -> set[str]:
    """Names of the router replicas that the page has samples of."""
    return {line.split('replica="')[1].split('"')[0] for line in page.splitlines() if 'replica="' in line}


def total(page: str, sample: str, **labels: str) -> float:
    """The sum over the samples of that name which carry these labels; 0 without any."""
    families = text_string_to_metric_families(page)
    return sum(
        found.value
        for family in families
        for found in family.samples
        if found.name == sample and labels.items() <= found.labels.items()
    )
