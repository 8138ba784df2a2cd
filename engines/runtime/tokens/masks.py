"""Which tokens may come next in answers that follow a grammar: computed for all of a step while the engine computes.

llguidance fills one row of bits an answer, all rows in one call, on threads of its own and without Python's lock.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache

import numpy as np
import numpy.typing as npt
from llguidance import LLExecutor, LLMatcher
from llguidance.numpy import fill_next_token_bitmask, fill_next_token_bitmask_par
from tokenizers import Tokenizer

from engines.runtime.tokens.text_stream import token_bytes
from export.errors import UserError

Allowed = npt.NDArray[np.bool_]
"""[vocab]"""

_NUM_THREADS = 2
_FEW_BITS = 1 << 16
"""Of all rows: below it one thread is done before others have begun."""


class Vocabulary:
    """What masks need to know of a tokenizer.

    Args:
        tokenizer: the checkpoint's.
        size: rows of the logits, which may be more than there are tokens.
    """

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self.size = size
        added = tokenizer.get_added_tokens_decoder()
        self.special_ids = np.array(
            sorted(token_id for token_id, token in added.items() if token.special and token_id < size),
            np.int64,
        )
        self._tokenizer = tokenizer
        self._plain: dict[bytes, int] = {}

    def first_of(self, text: bytes) -> list[int]:
        """Ordinary tokens with which a text may begin."""
        if not self._plain:
            special = set(self.special_ids.tolist())
            ids = [token_id for token_id in range(self.size) if token_id not in special]
            self._plain = {data: one for one in ids if (data := token_bytes(self._tokenizer, one))}
        starts = (text[:length] for length in range(1, min(len(text), max(map(len, self._plain))) + 1))
        return [self._plain[start] for start in starts if start in self._plain]


class MaskedMatcher:
    """One answer's place in its grammar, with the mask of its next token once that was asked for."""

    def __init__(self, matcher: LLMatcher, vocabulary: Vocabulary) -> None:
        self._matcher, self._vocabulary = matcher, vocabulary
        self._job: _Job | None = None
        self._mask: Allowed | None = None
        self.is_over = False
        """Whether nothing more may come."""

    def begin(self, matchers: Sequence["MaskedMatcher"]) -> None:
        """Begin to compute the masks of these, one of which this is, beside what the caller does next."""
        waiting = [one for one in matchers if one._job is None and not one.is_over]  # noqa: SLF001
        if not waiting:
            return
        job = _Job(waiting)
        for one in waiting:
            one._job = job  # noqa: SLF001

    def allowed(self) -> Allowed:
        """Which tokens may come next.

        Raises:
            UserError: the grammar ran into a bound.
        """
        self.begin([self])
        assert self._job is not None
        self._job.wait()
        if self._mask is None:
            raise self._bound_error()
        return self._mask

    def _bound_error(self) -> UserError:
        """Of whoever asked for the grammar: what its parser may hold is bounded."""
        reason, *_ = self._matcher.get_error().strip().splitlines() or [""]
        return UserError(
            f"The form of the answer ran into a bound of its parser: {reason:.300}.", "Ask for less."
        )

    def accept(self, token_id: int) -> None:
        """An allowed token came.

        Raises:
            UserError: the grammar ran into a bound.
            RuntimeError: it is none.
        """
        if self._job is not None:
            self._job.wait()  # while a thread computes, nobody else may ask the matcher
        if not self._matcher.consume_token(token_id):
            if self._mask is not None and self._mask[token_id]:
                raise self._bound_error()
            raise RuntimeError(
                f"the grammar does not take token {token_id}: {self._matcher.get_error():.300}"
            )
        self._job = self._mask = None
        self.is_over = bool(self._matcher.is_stopped())

    def _take(self, mask: Allowed) -> None:
        if self._matcher.is_error():
            return
        special = self._vocabulary.special_ids
        for token_id in special[mask[special]].tolist():
            if self._matcher.validate_tokens([token_id]) == 0:
                mask[token_id] = False
        if not mask.any():
            # Where only one text may come and it reads like a special token, llguidance allows that token alone, and
            # then does not take it: the text is ordinary, and so are its tokens.
            mask[self._vocabulary.first_of(bytes(self._matcher.compute_ff_bytes()))] = True
        self._mask = mask


class _Job:
    """The masks of some answers, on their way. To be waited for by the thread that began it."""

    def __init__(self, matchers: Sequence[MaskedMatcher]) -> None:
        self._matchers = matchers
        self._future: Future[None] | None = _thread().submit(_fill, matchers)

    def wait(self) -> None:
        """Until they are there. What no thread has begun yet is done by this one: on a busy machine sooner."""
        if self._future is not None:
            if self._future.cancel():
                _fill(self._matchers)
            else:
                self._future.result()
            self._future = None


def _fill(matchers: Sequence[MaskedMatcher]) -> None:
    size = matchers[0]._vocabulary.size  # noqa: SLF001
    bits = np.zeros((len(matchers), -(-size // 32)), np.int32)
    rows = [(one._matcher, row) for row, one in enumerate(matchers)]  # noqa: SLF001
    if 32 * bits.size < _FEW_BITS:
        for matcher, row in rows:
            fill_next_token_bitmask(matcher, bits, row)
    else:
        fill_next_token_bitmask_par(_executor(), rows, bits)
    masks = np.unpackbits(bits.view(np.uint8), axis=1, count=size, bitorder="little").view(np.bool_)
    for one, mask in zip(matchers, masks, strict=True):
        one._take(mask)  # noqa: SLF001


@cache
def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="grammar")


@cache
def _executor() -> LLExecutor:
    return LLExecutor(_NUM_THREADS)
