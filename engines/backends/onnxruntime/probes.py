"""A bundle's graphs on ONNX Runtime, with any of their values as further outputs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.backends.onnxruntime.session import create_session
from engines.session import Probe, Values, cache_rows
from export.bundle import Bundle
from export.contract import CACHE_PARTS, GraphName, cache_name
from export.inputs import DecoderInputs, VisionInputs


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
        """See `ProbeSession`. The cache goes in and out by value: this session is for looking, not for speed."""
        decoder, names = self._bundle.config.decoder, [probe.value for probe in probes]
        capacity = max(int(call.write_index[0]) + call.token_ids.shape[1] for call in calls) + 1
        parts = [(part, layer) for layer in range(decoder.num_hidden_layers) for part in CACHE_PARTS]
        shape = (1, decoder.num_key_value_heads, capacity, decoder.head_dim)
        cache = {cache_name("past", *part): np.zeros(shape, np.float32) for part in parts}
        present = [cache_name("present", *part) for part in parts]
        joined: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in names}
        sessions = [self._open(stage.graph, names) for stage in self._bundle.stages]
        for call in calls:
            values = {**vars(call), **cache}
            for session, _weights in sessions:
                taken = {value.name: values[value.name] for value in session.get_inputs()}
                given = [value.name for value in session.get_outputs()]
                values |= dict(zip(given, session.run(given, taken), strict=True))
            cache = {past: values[name] for past, name in zip(cache, present, strict=True)}
            for name in names:
                joined[name].append(values[name].reshape(call.token_ids.shape[1], -1))
        result = {name: np.concatenate(pieces) for name, pieces in joined.items()}
        for name, value in zip(present, cache.values(), strict=True):
            result[name] = cache_rows(value)
        return result

    def _open(self, graph: GraphName, names: Sequence[str]) -> tuple[Any, Any]:
        """A session, and the weights that it shares with us: they must live as long as it does."""
        return create_session(self._bundle, graph, None, may_pack=False, outputs=names)
