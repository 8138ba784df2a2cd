"""Contexts of decode steps: one for each set of slots, so that its CUDA graph stays good."""

from collections import OrderedDict
from collections.abc import Callable

from engines.backends.tensorrt.run.execution import Execution

StepKey = tuple[int, int, int]
"""First slot, rows, and which group of its call they are."""

MAX_STEP_CONTEXTS = 64
"""Enough for every run of slots of 10; with more, the least recently used sets are captured anew."""


class StepExecutions:
    """Contexts of the decode profile, each set up for the step of some slots.

    A graph belongs to the context that it was captured from: once that is set up for other shapes or addresses, what
    the graph does is undefined (TensorRT, best practices, CUDA graphs). Serving takes turns among a few sets of slots,
    so each keeps a context and its graph; working memory is shared. A plugin loads its kernels whenever its context is
    set up for other shapes: with a context a set that ends, too.
    """

    def __init__(self, create: Callable[[], Execution], max_contexts: int) -> None:
        self._create, self._max_contexts = create, max_contexts
        self._executions: OrderedDict[StepKey, Execution] = OrderedDict()

    def of(self, key: StepKey) -> Execution:
        """The context of these slots; not ready if it is new or was taken from other slots.

        Raises:
            EngineError: TensorRT cannot make another context.
        """
        execution = self._executions.pop(key, None)
        if execution is None:
            is_full = len(self._executions) == self._max_contexts
            execution = self._executions.popitem(last=False)[1] if is_full else self._create()
            execution.forget()
        self._executions[key] = execution
        return execution
