"""What the webhook counts, over all processes of a replica: admissions, and how long each took."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0)
"""Seconds."""
_ZERO = {("run", "internal-error"): 0, ("reuse", "hit"): 0}
"""From zero: the first one is an increase, which alerts and dashboard see."""


@dataclass(slots=True)
class Tally:
    """Admissions by (decision, reason), requests by the bucket of their time, and the sum of their times."""

    decisions: Counter[tuple[str, str]] = field(default_factory=Counter)
    buckets: list[int] = field(default_factory=lambda: [0] * (len(_BOUNDS) + 1))
    seconds: float = 0.0

    def took(self, seconds: float) -> None:
        """Count a request and its time."""
        self.buckets[bisect_left(_BOUNDS, seconds)] += 1
        self.seconds += seconds

    def add(self, other: "Tally") -> None:
        """Count what another process counted."""
        self.decisions.update(other.decisions)
        self.buckets = [a + b for a, b in zip(self.buckets, other.buckets, strict=True)]
        self.seconds += other.seconds


class Admissions(Collector):
    """The tally of this process and of those that hand theirs over; a collector of metrics."""

    def __init__(self) -> None:
        self.tally = Tally()

    def take(self) -> Tally:
        """What was counted since the last call."""
        taken, self.tally = self.tally, Tally()
        return taken

    def collect(self) -> Iterator[Metric]:
        """The metrics, made of plain numbers: counting a request costs no lock."""
        tally = self.tally
        counter = CounterMetricFamily(
            "memopod_admissions", "Pods seen at admission.", labels=["decision", "reason"]
        )
        for (decision, reason), count in sorted({**_ZERO, **tally.decisions}.items()):
            counter.add_metric([decision, reason], count)
        yield counter
        buckets, total = [], 0
        for bound, count in zip([*map(str, _BOUNDS), "+Inf"], tally.buckets, strict=True):
            total += count
            buckets.append((bound, total))
        histogram = HistogramMetricFamily("memopod_admission_seconds", "Time to answer an admission request.")
        histogram.add_metric([], buckets, tally.seconds)
        yield histogram


ADMISSIONS = Admissions()
REGISTRY.register(ADMISSIONS)
