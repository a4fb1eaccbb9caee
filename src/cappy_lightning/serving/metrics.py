"""What the service counts, as Prometheus reads it."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from cappy_lightning.serving.batching import BatchingScorer
from cappy_lightning.serving.completions import Completions


class Metrics(Collector):
    """Requests and their seconds by route and status; what was sampled, scored and not answered.

    Args:
        scorer: which counts pairs and batches.
        completions: which counts candidates and abstentions.
    """

    def __init__(self, scorer: BatchingScorer, completions: Completions) -> None:
        self._scorer, self._completions = scorer, completions
        self._registry = CollectorRegistry()
        self._requests = Counter("cappy_requests", "Requests", ["route", "status"], registry=self._registry)
        self._seconds = Histogram("cappy_request_seconds", "Seconds of a request", ["route"], registry=self._registry)
        self._in_work = Gauge("cappy_requests_in_work", "Requests in work", registry=self._registry)
        self._registry.register(self)

    def in_work(self, count: int) -> None:
        """Note how many requests are in work."""
        self._in_work.set(count)

    def count(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def collect(self) -> Iterator[CounterMetricFamily]:
        """What others count."""
        found = {
            "cappy_pairs_scored": self._scorer.pairs,
            "cappy_batches_scored": self._scorer.batches,
            "cappy_candidates": self._completions.candidates,
            "cappy_abstentions": self._completions.abstained,
        }
        for name, value in found.items():
            yield CounterMetricFamily(name, name.removeprefix("cappy_").replace("_", " "), value=value)

    async def page(self, _: Request) -> Response:
        """All figures, in Prometheus' text format."""
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)
