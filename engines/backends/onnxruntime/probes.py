"""A bundle's graphs on ONNX Runtime, with any of their values as further outputs."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.backends.onnxruntime.collective import number_of, raise_error
from engines.backends.onnxruntime.rank_values import joined_ranks
from engines.backends.onnxruntime.session import create_session, new_cache
from engines.parallel.communicator import Alone, Communicator
from engines.parallel.threads import thread_group
from engines.session import Probe, Values, cache_rows
from export.bundle import Bundle
from export.contract import CACHE_PARTS, PAST, PRESENT, GraphName, cache_name, is_cache_name, present_of
from export.dtypes import numpy_dtype
from export.inputs import DecoderInputs, VisionInputs
from export.models.configuration import KV_CACHE_DTYPES


class OnnxRuntimeProbes:
    """A bundle's graphs on ONNX Runtime with any of their values as further outputs: a `ProbeSession`."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle

    def vision(self, inputs: VisionInputs, probes: Sequence[Probe]) -> Values:
        """See `ProbeSession`."""
        names = [probe.value for probe in probes]
        session, _weights = self._open("vision", names)
        values = session.run(list(names), vars(inputs))
        return {name: value.reshape(len(value), -1) for name, value in zip(names, values, strict=True)}

    def decoder(self, calls: Sequence[DecoderInputs], probes: Sequence[Probe]) -> Values:
        """See `ProbeSession`. Ranks are threads, and what they hold of a value is joined to the whole."""
        num_ranks = self._bundle.manifest.tensor_parallel
        names = [probe.value for probe in probes]
        if num_ranks == 1:
            return self._of_rank(calls, names, Alone(), 0)
        group = thread_group(num_ranks)
        with ThreadPoolExecutor(num_ranks) as pool:
            parts = list(pool.map(lambda end: self._of_rank(calls, names, end, number_of(end)), group))
        return joined_ranks(parts, probes, calls, self._bundle)

    def _of_rank(
        self, calls: Sequence[DecoderInputs], names: Sequence[str], end: Communicator, number: int
    ) -> Values:
        """The cache goes in and out by value: this session is for looking, not for speed."""
        stages = self._bundle.rank_stages[end.rank]
        capacity = max(int(call.write_index[0]) + call.token_ids.shape[1] for call in calls) + 1
        cache = {
            spec.name: new_cache(spec, 1, capacity)
            for stage in stages
            for spec in self._bundle.contract(stage.graph, "float32").inputs
            if is_cache_name(spec.name)
        }
        joined: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in names}
        sessions = [self._open(stage.graph, names, number) for stage in stages]
        for call in calls:
            values = {**vars(call), **cache}
            for session, _weights in sessions:
                taken = {value.name: values[value.name] for value in session.get_inputs()}
                given = [value.name for value in session.get_outputs()]
                values |= dict(zip(given, session.run(given, taken), strict=True))
                raise_error(number)
            cache = {past: values[present_of(past)] for past in cache}
            for name in names:
                joined[name].append(values[name].reshape(call.token_ids.shape[1], -1))
        result = {name: np.concatenate(pieces) for name, pieces in joined.items()}
        return result | self._cached(cache)

    def _cached(self, cache: Values) -> Values:
        """Keys and values by their name as outputs; of codes what they mean."""
        decoder, found = self._bundle.config.decoder, {}
        for layer in range(decoder.num_hidden_layers):
            for part in CACHE_PARTS:
                values = cache[cache_name(PAST, part, layer)]
                if decoder.kv_cache is not None:
                    codes = values.view(numpy_dtype(KV_CACHE_DTYPES[decoder.kv_cache])).astype(np.float32)
                    values = codes * cache[cache_name(PAST, f"{part}_scale", layer)]
                found[cache_name(PRESENT, part, layer)] = cache_rows(values)
        return found

    def _open(self, graph: GraphName, names: Sequence[str], number: int = 0) -> tuple[Any, Any]:
        """A session, and the weights that it shares with us: they must live as long as it does."""
        return create_session(self._bundle, graph, None, may_pack=False, outputs=names, communicator=number)
