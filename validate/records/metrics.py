"""How far a tensor is from what it should be: every metric, always. What is acceptable is said by `validate.gates`.

Rows are tokens: an array [..., C] is compared row by row, so that the worst token is seen and not only the mean.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]


@dataclass(frozen=True)
class TensorMetrics:
    """Distance of one tensor from the reference's. All in float64."""

    num_tokens: int
    num_nonfinite: int
    max_abs: float
    mean_abs: float
    relative_l2: float
    """Norm of the difference over the norm of the expected tensor."""
    worst_token_error: float
    """The largest `relative_l2` of a single token."""
    worst_token_cosine: float
    """The smallest cosine between a token's vector and the expected one."""
    worst_token: int
    """Row of `worst_token_error`, counted over the flattened batch."""


@dataclass(frozen=True)
class LogitsMetrics(TensorMetrics):
    """Distance of logits [tokens, vocab], as tensors and as predictions."""

    mean_kl: float
    worst_kl: float
    """Largest Kullback-Leibler divergence KL(expected || actual) of a single token, in nats."""
    top1_agreement: float
    top5_agreement: float
    """Share of tokens whose five likeliest ids are the same set."""
    worst_lost_margin: float
    """Where the likeliest id differs: how much more the reference preferred its own, at worst; 0 if none differs.
    Small values are near ties, which any rounding may turn."""
    first_differing_token: int | None


def compare_tensors(actual: Array, expected: Array) -> TensorMetrics:
    """Metrics of one tensor.

    Raises:
        ValueError: shapes differ; that is an engine's fault that no number expresses.
    """
    return TensorMetrics(**_tensor_fields(actual, expected))


def compare_logits(actual: Array, expected: Array) -> LogitsMetrics:
    """Metrics of logits [tokens, vocab].

    Raises:
        ValueError: shapes differ.
    """
    fields = _tensor_fields(actual, expected)
    if not len(actual) or fields["num_nonfinite"]:
        worst = 0.0 if not len(actual) else float("inf")
        agreement = float(not len(actual))
        return LogitsMetrics(**fields, **_prediction(worst, worst, agreement, agreement, worst, None))
    kl = np.array([_kl(a, e) for a, e in zip(actual, expected, strict=True)])
    chosen, best = actual.argmax(-1), expected.argmax(-1)
    rows = np.arange(len(actual))
    differs = np.flatnonzero(chosen != best)
    lost = expected[rows, best].astype(np.float64) - expected[rows, chosen]
    top = min(5, actual.shape[1])
    same_five = [set(_top(a, top)) == set(_top(e, top)) for a, e in zip(actual, expected, strict=True)]
    first = int(differs[0]) if len(differs) else None
    agreement = 1 - len(differs) / len(actual)
    prediction = _prediction(
        float(kl.mean()), float(kl.max()), agreement, float(np.mean(same_five)), float(lost.max()), first
    )
    return LogitsMetrics(**fields, **prediction)


def _tensor_fields(actual: Array, expected: Array) -> dict[str, Any]:
    if actual.shape != expected.shape:
        raise ValueError(f"shape {list(actual.shape)}, expected {list(expected.shape)}")
    actual, expected = (_rows(array) for array in (actual, expected))
    num_nonfinite = int((~np.isfinite(actual)).sum())
    if num_nonfinite or not actual.size:
        worst = float("inf") if num_nonfinite else 0.0
        bad = np.flatnonzero(~np.isfinite(actual).all(axis=1))
        return _fields(len(actual), num_nonfinite, worst, worst, worst, worst, int(bad[0]) if len(bad) else 0)
    difference = actual - expected
    norms = np.linalg.norm(expected, axis=1)
    errors = np.linalg.norm(difference, axis=1) / np.maximum(norms, _tiny(norms))
    lengths = np.linalg.norm(actual, axis=1) * norms
    cosines = np.divide((actual * expected).sum(1), lengths, out=np.ones(len(actual)), where=lengths > 0)
    total = float(np.linalg.norm(difference) / max(float(np.linalg.norm(expected)), 1e-300))
    fields = _fields(
        len(actual),
        0,
        float(np.abs(difference).max()),
        float(np.abs(difference).mean()),
        total,
        float(errors.max()),
        int(errors.argmax()),
    )
    return fields | {"worst_token_cosine": float(cosines.min())}


def _rows(array: Array) -> npt.NDArray[np.float64]:
    return array.reshape(-1, array.shape[-1]).astype(np.float64)


def _tiny(norms: npt.NDArray[np.float64]) -> float:
    """A token whose expected vector is all but zero is measured against the mean token instead of exploding."""
    return max(1e-6 * float(norms.mean()), 1e-300)


def _fields(
    num_tokens: int, num_nonfinite: int, max_abs: float, mean_abs: float, l2: float, worst: float, token: int
) -> dict[str, Any]:
    return {
        "num_tokens": num_tokens,
        "num_nonfinite": num_nonfinite,
        "max_abs": max_abs,
        "mean_abs": mean_abs,
        "relative_l2": l2,
        "worst_token_error": worst,
        "worst_token_cosine": -1.0 if num_nonfinite else 1.0,
        "worst_token": token,
    }


def _prediction(
    mean_kl: float, worst_kl: float, top1: float, top5: float, lost: float, first: int | None
) -> dict[str, Any]:
    return {
        "mean_kl": mean_kl,
        "worst_kl": worst_kl,
        "top1_agreement": top1,
        "top5_agreement": top5,
        "worst_lost_margin": lost,
        "first_differing_token": first,
    }


def _kl(actual: Array, expected: Array) -> float:
    """By token: a vocabulary of 152,064 in float64 for all tokens at once would not fit."""
    log_p, log_q = _log_softmax(expected), _log_softmax(actual)
    return max(0.0, float((np.exp(log_p) * (log_p - log_q)).sum()))


def _log_softmax(logits: Array) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - float(logits.max())
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return result


def _top(logits: Array, count: int) -> list[int]:
    return list(np.argpartition(logits, -count)[-count:].tolist())
