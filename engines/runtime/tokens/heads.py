"""The likeliest tokens of rows of logits, and what is known of all the others: enough for most choices.

Letters: R rows, n tokens whose logits are known. A row's head are the tokens whose logits are above its
`NUM_CANDIDATES`-th largest, so at most that many less one: with equals at the edge none of them belongs to it, whoever
picked them and in whatever order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from export.contract import NUM_CANDIDATES

_BLOCK = 64
Logits = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Heads:
    """What is known of R rows of logits."""

    ids: npt.NDArray[np.int64]
    """[R, n] no token twice, but where its logit here is -inf."""
    logits: Logits
    """[R, n] as the engine gave them; -inf for a place that holds no token."""
    edge: Logits
    """[R] no other token's logit is larger; -inf: every other one is impossible."""
    num_top: int
    """Columns of the head; those behind them were asked for by id."""
    log_sum_exp: npt.NDArray[np.float64]
    """[R] over all tokens; NaN where nobody asked."""

    def rows(self, chosen: npt.NDArray[np.int64] | slice) -> "Heads":
        """Some of the rows."""
        return Heads(
            self.ids[chosen], self.logits[chosen], self.edge[chosen], self.num_top, self.log_sum_exp[chosen]
        )


def head_edge(logits: Logits) -> np.float32:
    """Above which a row's tokens are its head: the `NUM_CANDIDATES`-th largest logit, -inf in a smaller vocabulary."""
    if logits.size <= NUM_CANDIDATES:
        return np.float32(-np.inf)
    found, _ = _largest(logits)
    return np.float32(np.partition(found, -NUM_CANDIDATES)[-NUM_CANDIDATES])


def heads_of(
    rows: Sequence[Logits], asked: Sequence[npt.NDArray[np.int64]], needs_sum: Sequence[bool]
) -> Heads:
    """Heads of whole rows of logits [vocab], none of them with a NaN.

    Args:
        rows: R of them.
        asked: ids whose logits are wanted too.
        needs_sum: whether the log-sum-exp is, which costs a pass over all logits.
    """
    found = [_head(row) for row in rows]
    num_top = max(1, *(len(ids) for ids, _ in found))
    ids = np.zeros((len(rows), num_top + max(map(len, asked))), np.int64)
    logits = np.full(ids.shape, -np.inf, np.float32)
    for r, ((head_ids, edge), more, row) in enumerate(zip(found, asked, rows, strict=True)):
        ids[r, : len(head_ids)], logits[r, : len(head_ids)] = head_ids, row[head_ids]
        unknown = more[row[more] <= edge]
        behind = slice(num_top, num_top + len(unknown))
        ids[r, behind], logits[r, behind] = unknown, row[unknown]
    sums = [log_sum_exp(row) if is_needed else np.nan for row, is_needed in zip(rows, needs_sum, strict=True)]
    return Heads(ids, logits, np.array([edge for _, edge in found], np.float32), num_top, np.array(sums))


def log_sum_exp(logits: Logits) -> float:
    """Of one row [vocab]; its largest logit is finite."""
    largest = logits.max()
    return float(largest) + float(np.log(np.exp(logits - largest).sum(dtype=np.float64)))


def heads_of_candidates(
    top_logits: Logits,
    top_ids: npt.NDArray[np.int64],
    log_sum_exps: npt.NDArray[np.float32],
    asked_logits: Logits,
    asked_ids: npt.NDArray[np.int64],
    vocab_size: int,
) -> Heads:
    """Heads of an engine's candidates.

    Args:
        top_logits, top_ids: [R, k], the largest first; k is `NUM_CANDIDATES`, or the whole vocabulary.
        log_sum_exps: [R]
        asked_logits, asked_ids: [R, A]; an id below 0 asks for nothing.
        vocab_size: how many tokens there are.
    """
    num_top = top_ids.shape[1]
    edge = np.full(len(top_ids), -np.inf, np.float32) if num_top == vocab_size else top_logits[:, -1]
    # A largest of values with a NaN among them may be any of them, their sum is none: such a row tells nothing.
    is_head = (top_logits > edge[:, None]) & np.isfinite(log_sum_exps)[:, None]
    logits, ids = np.where(is_head, top_logits, np.float32(-np.inf)), top_ids
    if (asked_ids >= 0).any():
        # An id that was asked for and belongs to the head is known already; equals at the edge are, if asked for, here.
        is_more = (asked_ids >= 0) & (asked_logits <= edge[:, None])
        logits = np.concatenate([logits, np.where(is_more, asked_logits, np.float32(-np.inf))], axis=1)
        ids = np.concatenate([ids, np.where(is_more, asked_ids, 0)], axis=1)
    return Heads(ids, logits, edge, num_top, log_sum_exps.astype(np.float64))


def _head(logits: Logits) -> tuple[npt.NDArray[np.int64], np.float32]:
    """Ids of a row's head, ascending, and its edge."""
    if logits.size <= NUM_CANDIDATES:
        return np.flatnonzero(logits > -np.inf), np.float32(-np.inf)
    found, ids = _largest(logits)
    edge = np.float32(np.partition(found, -NUM_CANDIDATES)[-NUM_CANDIDATES])
    return np.sort(ids[found > edge]), edge


def _largest(logits: Logits) -> tuple[Logits, npt.NDArray[np.int64]]:
    """Some logits and their ids, the `NUM_CANDIDATES` largest and all that equal the least of them included.

    Blocks whose maximum is among the largest maxima hold them all: one cheap pass, where a partition of the whole
    vocabulary takes three times as long.
    """
    num_blocks = logits.size // _BLOCK
    if num_blocks <= NUM_CANDIDATES:
        return logits, np.arange(logits.size)
    blocks = logits[: num_blocks * _BLOCK].reshape(_BLOCK, num_blocks)
    maxima = blocks.max(axis=0)
    least = np.partition(maxima, -NUM_CANDIDATES)[-NUM_CANDIDATES]
    columns = np.flatnonzero(maxima >= least)
    ids = columns + num_blocks * np.arange(_BLOCK)[:, None]
    rest = np.arange(num_blocks * _BLOCK, logits.size)
    return np.concatenate([blocks[:, columns].ravel(), logits[rest]]), np.concatenate([ids.ravel(), rest])
