"""What engines say of their work and of themselves: pages of metrics and answers to `/info`, as values.

Pure, and patient: a line or a field that cannot be read counts as absent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tei_manager.domain.figures import Figures

# `name{labels} value`; a timestamp may follow
_SAMPLE = re.compile(r"([A-Za-z_:][\w:]*)(?:\{(.*)\})?[ \t]+(\S+)(?:[ \t]+-?\d+)?[ \t]*")
_LABEL = re.compile(r'([A-Za-z_]\w*)="((?:[^"\\]|\\.)*)"')
# what each engine calls its own series: two programs never share a prefix
_TEI, _VLLM = "te_", "vllm:"
_LONGEST_LINE = 4096
_LARGEST = 2.0**53  # beyond it a float counts no more
_NO_ANSWER = ("abort", "error")  # of vLLM's reasons to finish a request: all others are answers


@dataclass(frozen=True, slots=True)
class Summary:
    """A histogram without its buckets."""

    sum: float = 0.0
    count: int = 0


@dataclass(frozen=True, slots=True)
class EngineMetrics:
    """An engine's own counts since its process began; durations in seconds. What it does not tell is 0.

    `inputs_*` count single inputs, `failures` calls by reason, `latency` the calls that were answered.
    """

    queue_size: int = 0
    inputs_ok: int = 0
    inputs_seen: int = 0
    failures: Mapping[str, int] = field(default_factory=dict)
    latency: Summary = Summary()
    queue: Summary = Summary()
    tokenization: Summary = Summary()
    inference: Summary = Summary()
    batch_tokens: Summary = Summary()

    @property
    def figures(self) -> Figures:
        """Requests are those answered and those failed: engines count arrivals in ways that differ."""
        failed = sum(self.failures.values())
        return Figures(self.latency.count + failed, failed, self.latency.count, self.latency.sum)


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine says of itself. None = it does not tell.

    `version` is the program's own release; `model_type` is `embedding`, `classifier` or `reranker`.
    """

    version: str | None = None
    model_type: str | None = None
    model_sha: str | None = None
    model_dtype: str | None = None
    max_input_length: int | None = None


MODEL_TYPES = ("embedding", "classifier", "reranker")


def read_metrics(text: str) -> EngineMetrics:
    """The metrics of text-embeddings-router or tei-engine; a series that is absent is 0.

    `te_request_success` and `te_request_count` are left alone: the router raises the one too seldom and the other
    twice for some calls. `te_request_duration` is observed exactly once for every call that was answered.
    """
    page = _Page(text, _TEI)
    return EngineMetrics(
        queue_size=_whole(page.total("te_queue_size")),
        inputs_ok=_whole(page.total("te_embed_success") + page.total("te_predict_success")),
        inputs_seen=_whole(page.total("te_embed_count") + page.total("te_predict_count")),
        failures=page.by_label("te_request_failure", "err"),
        latency=page.summary("te_request_duration"),
        queue=page.summary("te_request_queue_duration"),
        tokenization=page.summary("te_request_tokenization_duration"),
        inference=page.summary("te_request_inference_duration"),
        batch_tokens=page.summary("te_batch_next_tokens"),
    )


def read_foreign_metrics(text: str) -> EngineMetrics | None:
    """The metrics of whatever answers: one of the routers above, or vLLM; None if it is neither.

    vLLM counts what it finished by reason, `abort` and `error` among them, and calls that it refused not at all.
    """
    if _Page(text, _TEI).has("te_request_count", "te_request_duration_count"):
        return read_metrics(text)
    page = _Page(text, _VLLM)
    if not page.has("vllm:request_success_total"):
        return None
    finished = page.by_label("vllm:request_success_total", "finished_reason")
    failures = {reason: finished[reason] for reason in _NO_ANSWER if finished.get(reason)}
    answered, latency = (
        sum(finished.values()) - sum(failures.values()),
        page.summary("vllm:e2e_request_latency_seconds"),
    )
    mean = latency.sum / latency.count if latency.count else 0.0
    return EngineMetrics(
        queue_size=_whole(page.total("vllm:num_requests_waiting")),
        inputs_ok=answered,
        inputs_seen=answered + sum(failures.values()),
        failures=failures,
        # it times every finished call, those without an answer included
        latency=Summary(mean * answered, answered),
        queue=page.summary("vllm:request_queue_time_seconds"),
        inference=page.summary("vllm:request_inference_time_seconds"),
    )


def read_info(body: bytes) -> EngineInfo | None:
    """The answer of text-embeddings-router or tei-engine to `GET /info`; None if it is something else."""
    try:
        info = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(info, dict) or "model_id" not in info:
        return None
    own = info.get("engine")
    own = own if isinstance(own, dict) else {}
    kinds = info.get("model_type")
    return EngineInfo(
        # tei-engine says which router it equals, and beside that what it is
        version=_text(own.get("version")) or _text(info.get("version")),
        model_type=next((kind for kind in MODEL_TYPES if isinstance(kinds, dict) and kind in kinds), None),
        model_sha=_text(info.get("model_sha")),
        model_dtype=_text(info.get("model_dtype")),
        max_input_length=_positive(info.get("max_input_length")),
    )


class _Page:
    """The samples of one page whose names begin with `prefix`; buckets are left out."""

    def __init__(self, text: str, prefix: str) -> None:
        self._samples: dict[str, list[tuple[Mapping[str, str], float]]] = {}
        for name, labels, value in _samples(text, prefix):
            self._samples.setdefault(name, []).append((labels, value))

    def has(self, *names: str) -> bool:
        return any(name in self._samples for name in names)

    def total(self, name: str) -> float:
        """Over all label values."""
        return sum(value for _, value in self._samples.get(name, ()))

    def by_label(self, name: str, label: str) -> dict[str, int]:
        found: dict[str, float] = {}
        for labels, value in self._samples.get(name, ()):
            key = labels.get(label, "")
            found[key] = found.get(key, 0.0) + value
        return {key: _whole(value) for key, value in found.items()}

    def summary(self, name: str) -> Summary:
        return Summary(self.total(f"{name}_sum"), _whole(self.total(f"{name}_count")))


def _samples(text: str, prefix: str) -> Iterator[tuple[str, Mapping[str, str], float]]:
    for line in text.splitlines():
        if not line.startswith(prefix) or len(line) > _LONGEST_LINE:
            continue
        if (sample := _SAMPLE.fullmatch(line)) is None:
            continue
        name, labels, shown = sample.groups()
        if name.endswith("_bucket"):
            continue
        try:
            value = float(shown)
        except ValueError:
            continue
        # counters, sizes and durations: whatever is no number, or below zero, is a mistake of the engine
        if 0 <= value <= _LARGEST:
            yield name, dict(_LABEL.findall(labels or "")), value


def _whole(value: float) -> int:
    return round(value)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _positive(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
