"""Puts a mutation into an engine: into its bundle's graph, or between the validator and its sessions."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from engines.session import DecoderSession, Engine, Probe, ProbeSession, Values, VisionSession
from export.bundle import FileRecord, open_bundle
from export.checkpoint.config import ModelConfig
from export.files.atomic import link_or_copy
from export.inputs import DecoderInputs, VisionInputs
from validate.execution import EngineUnderTest
from validate.self_test.mutations import Edit, Mutation, NoSuchNodeError


def mutate_bundle(directory: Path, mutation: Mutation, target: Path) -> Path:
    """Write the bundle with the edited graph beside hard links to everything else; returns the bundle to open."""
    if mutation.edit is None or mutation.graph is None:
        return directory
    bundle = open_bundle(directory)
    target.mkdir()
    for record in bundle.manifest.records():
        link_or_copy(directory / record.name, target / record.name)
    graphs = dict(bundle.manifest.graphs)
    ranks = [[stage.graph for stage in stages] for stages in bundle.rank_stages]
    chosen = ranks if mutation.rank is None else [ranks[mutation.rank]]
    for parts in [[mutation.graph]] if mutation.graph in graphs else chosen:
        models = {name: onnx.load(target / graphs[name].name, load_external_data=False) for name in parts}
        weights = {weight.name: weight for model in models.values() for weight in model.graph.initializer}
        for name, model in models.items():
            try:
                _edit(model.graph, mutation.edit, weights)
            except NoSuchNodeError:
                continue
            path = target / graphs[name].name
            path.unlink()  # a hard link: writing into it would change the bundle itself
            onnx.save(model, path)
            graphs[name] = FileRecord.from_file(path)
    assert graphs != bundle.manifest.graphs, f"{mutation.name} changes nothing"
    replace(bundle.manifest, graphs=graphs).write(target)
    return target


def _edit(graph: onnx.GraphProto, edit: Edit, weights: Mapping[str, onnx.TensorProto]) -> None:
    """Edit one stage, which may take weights of all stages; what it does not read goes again."""
    own = {weight.name for weight in graph.initializer}
    graph.initializer.extend(weight for name, weight in weights.items() if name not in own)
    edit(graph)
    read = {name for node in graph.node for name in node.input}
    kept = [weight for weight in graph.initializer if weight.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def mutate_engine(engine: EngineUnderTest, mutation: Mutation, config: ModelConfig) -> EngineUnderTest:
    """The engine behind mutated feeds."""

    def open_mutated(num_slots: int, capacity: int) -> Engine:
        vision, decoder = engine.open(num_slots, capacity)
        return Engine(MutatedVision(vision, mutation), MutatedDecoder(decoder, mutation, config))

    return replace(engine, name=f"{engine.name} with {mutation.name}", open=open_mutated)


class MutatedVision:
    """A `VisionSession` fed wrongly."""

    def __init__(self, session: VisionSession, mutation: Mutation) -> None:
        self._session = session
        self._mutation = mutation

    def encode(self, inputs: VisionInputs) -> npt.NDArray[np.float32]:
        return self._session.encode(vision_feeds(self._mutation, inputs))


class MutatedDecoder:
    """A `DecoderSession` fed wrongly."""

    def __init__(self, session: DecoderSession, mutation: Mutation, config: ModelConfig) -> None:
        self._session = session
        self._mutation = mutation
        self._config = config

    @property
    def num_slots(self) -> int:
        return self._session.num_slots

    @property
    def capacity(self) -> int:
        return self._session.capacity

    def forward(self, first_slot: int, inputs: DecoderInputs) -> npt.NDArray[np.float32]:
        return self._session.forward(first_slot, decoder_feeds(self._mutation, inputs, self._config))


class MutatedProbes:
    """A `ProbeSession` fed wrongly."""

    def __init__(self, session: ProbeSession, mutation: Mutation, config: ModelConfig) -> None:
        self._session = session
        self._mutation = mutation
        self._config = config

    def vision(self, inputs: VisionInputs, probes: Sequence[Probe]) -> Values:
        return self._session.vision(vision_feeds(self._mutation, inputs), probes)

    def decoder(self, calls: Sequence[DecoderInputs], probes: Sequence[Probe]) -> Values:
        changed = [decoder_feeds(self._mutation, call, self._config) for call in calls]
        return self._session.decoder(changed, probes)


def vision_feeds(mutation: Mutation, inputs: VisionInputs) -> VisionInputs:
    return mutation.vision_feeds(inputs) if mutation.vision_feeds else inputs


def decoder_feeds(mutation: Mutation, inputs: DecoderInputs, config: ModelConfig) -> DecoderInputs:
    return mutation.decoder_feeds(inputs, config) if mutation.decoder_feeds else inputs
