"""What an engine of given limits costs, to build and to run, and what to change where it does not fit.

Arithmetic on the model's sizes: it takes no time and loads nothing. What it says is an upper bound with a stated
formula; what a backend's builds add to it is calibrated beside the backend. `engine.json` holds what a build took.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from engines.sizing.limits import Limits
from export.checkpoint.config import ModelConfig
from export.models.sizes import decoder_weights, vision_weights

_PATCHES_PER_TOKEN = 4
_SCRATCH_BYTES = 16_000_000
"""Added to what tensors take: workspace and alignment; small builds report 6 to 8 MB."""


@dataclass(frozen=True)
class GraphCosts:
    """One graph's share."""

    name: str
    num_weights: int
    weights_bytes: int
    """On the device, in the graph's dtype."""
    activation_bytes: int
    """Device memory of the largest call."""
    engine_bytes: int
    """Of the file."""
    build_ram_bytes: int
    cache_share: float = 1.0
    """Of the KV cache, that this graph's layers hold."""


@dataclass(frozen=True)
class ModelCosts:
    """What a backend's engines take for one set of limits."""

    graphs: tuple[GraphCosts, ...]
    kv_bytes_per_token: int
    """Keys and values of one token in every layer."""

    def kv_cache_bytes(self, limits: Limits) -> int:
        """All slots."""
        return self.kv_bytes_per_token * limits.max_context * limits.max_batch

    def device_bytes(self, limits: Limits) -> int:
        """Both engines loaded, their largest calls, every slot of the cache."""
        return self.kv_cache_bytes(limits) + sum(
            graph.weights_bytes + graph.activation_bytes for graph in self.graphs
        )


def cached_token_bytes(config: ModelConfig, value_bytes: int) -> int:
    """Keys and values of one token in every layer.

    Args:
        config: the model's sizes; a cache in 8 bits has a float32 scale for each token and KV head.
        value_bytes: of one value that is not kept in 8 bits.
    """
    decoder = config.decoder
    row_bytes = decoder.head_dim * value_bytes if decoder.kv_cache is None else decoder.head_dim + 4
    return 2 * decoder.num_hidden_layers * decoder.num_key_value_heads * row_bytes


CostsOf = Callable[[Limits], ModelCosts]
"""A backend's costs as a function of the limits alone."""

BuildCosts = Callable[[str, int], tuple[int, int]]
"""From a graph's name and its weights' bytes to (bytes of the engine file, peak memory of its build)."""


@dataclass(frozen=True)
class Shortage:
    """Something that does not fit, and what would help."""

    what: str
    needed_bytes: int
    available_bytes: int
    changes: tuple[str, ...]

    def sentence(self) -> str:
        advice = "".join(f"\n  - {change}" for change in self.changes)
        return (
            f"{self.what}: {self.needed_bytes / 1e9:.1f} GB needed, {self.available_bytes / 1e9:.1f} GB there. "
            f"What helps:{advice}"
        )


@dataclass(frozen=True)
class EngineCosts:
    """From pixels to bytes."""

    target: str
    config: ModelConfig
    dtype: str
    limits: Limits
    max_pixels: int
    """Of all pictures of one vision call together, after resizing."""
    max_visual_tokens: int
    kv_bytes_per_token: int
    kv_cache_bytes: int
    """All slots."""
    graphs: tuple[GraphCosts, ...]
    jobs: int
    costs_of: CostsOf
    """For other limits of the same model and backend."""

    @property
    def device_bytes(self) -> int:
        """Both engines loaded, their largest calls, every slot of the cache."""
        return ModelCosts(self.graphs, self.kv_bytes_per_token).device_bytes(self.limits)

    @property
    def build_ram_bytes(self) -> int:
        """Peak: graphs are built one after the other, or as many at once as there are jobs."""
        return sum(sorted((graph.build_ram_bytes for graph in self.graphs), reverse=True)[: self.jobs])

    @property
    def disk_bytes(self) -> int:
        return sum(graph.engine_bytes for graph in self.graphs)


def plan_engine(
    target: str, config: ModelConfig, dtype: str, limits: Limits, costs_of: CostsOf, jobs: int = 1
) -> EngineCosts:
    """Work out what an engine takes.

    Args:
        target: name of the backend that it is built for.
        config: the model's sizes.
        dtype: the graphs'.
        limits: the engine's.
        costs_of: the backend's costs for this model and dtype.
        jobs: graphs built at once.
    """
    costs = costs_of(limits)
    return EngineCosts(
        target=target,
        config=config,
        dtype=dtype,
        limits=limits,
        max_pixels=limits.max_patches * config.vision.patch_size**2,
        max_visual_tokens=limits.max_patches // config.vision.patches_per_token,
        kv_bytes_per_token=costs.kv_bytes_per_token,
        kv_cache_bytes=costs.kv_cache_bytes(limits),
        graphs=costs.graphs,
        jobs=jobs,
        costs_of=costs_of,
    )


def model_costs(
    config: ModelConfig,
    limits: Limits,
    value_bytes: int,
    build_costs: BuildCosts,
    attention_bytes: Callable[[str], int] = lambda _graph: 0,
) -> ModelCosts:
    """Both graphs of a model whose weights, activations and cache are computed in one width.

    Args:
        config: the model's sizes.
        limits: the engine's.
        value_bytes: of one value as it is computed.
        build_costs: what the backend's build adds.
        attention_bytes: from a graph's name to the device memory that the backend's attention takes beside the
            tensors that every backend has.
    """
    weights = {"vision": vision_weights(config), "decoder": decoder_weights(config)}
    activations = {
        "vision": vision_activation_bytes(config, limits, value_bytes) + attention_bytes("vision"),
        "decoder": decoder_activation_bytes(config, limits, value_bytes) + attention_bytes("decoder"),
    }
    graphs = []
    for name, num_weights in weights.items():
        engine_bytes, build_ram_bytes = build_costs(name, num_weights * value_bytes)
        graphs.append(
            GraphCosts(
                name, num_weights, num_weights * value_bytes, activations[name], engine_bytes, build_ram_bytes
            )
        )
    return ModelCosts(tuple(graphs), cached_token_bytes(config, value_bytes))


def vision_activation_bytes(config: ModelConfig, limits: Limits, value_bytes: int) -> int:
    """Device memory of the largest vision call.

    The native attention pads every segment to the longest: q, k, v and the result have N * M rows each, beside their
    index arrays (48 bytes a row). That, with the residual stream around it, or an unpadded block's ten tensors of
    P rows, whichever is more.
    TensorRT-RTX 1.7 reports 10 to 12 percent less (`EngineFacts.activation_bytes`, both graphs, two sizes).
    """
    width = config.vision.embed_dim * value_bytes
    padded_rows = limits.max_segments * limits.max_patches
    padded = padded_rows * (4 * width + 48) + 2 * limits.max_patches * width
    return max(padded, 10 * limits.max_patches * width) + _SCRATCH_BYTES


def decoder_activation_bytes(config: ModelConfig, limits: Limits, value_bytes: int) -> int:
    """Device memory of the largest prefill.

    For each of B * S tokens the gated MLP's three tensors, four of the residual stream's width, queries, keys and
    values; and the logits that are asked for.
    """
    decoder = config.decoder
    heads = decoder.num_attention_heads + 2 * decoder.num_key_value_heads
    values = 3 * decoder.intermediate_size + 4 * decoder.hidden_size + heads * decoder.head_dim
    tokens = limits.max_batch * limits.prompt_tokens
    logits = limits.max_batch * limits.max_logits_tokens * decoder.vocab_size * 4
    return tokens * values * value_bytes + logits + _SCRATCH_BYTES


def shortages(
    plan: EngineCosts, free_ram_bytes: int, free_disk_bytes: int, device_bytes: int | None
) -> list[Shortage]:
    """What does not fit.

    Args:
        plan: the plan.
        free_ram_bytes: memory that the build may take.
        free_disk_bytes: where the engine is written.
        device_bytes: memory of the GPU that will run it; None: not known, nothing to compare.
    """
    found = []
    if plan.build_ram_bytes > free_ram_bytes:
        found.append(Shortage("memory to build", plan.build_ram_bytes, free_ram_bytes, _ram_advice(plan)))
    if plan.disk_bytes > free_disk_bytes:
        disk_advice = ("free some space, or move the bundle to a larger disk",)
        found.append(Shortage("disk for the engines", plan.disk_bytes, free_disk_bytes, disk_advice))
    if device_bytes is not None and plan.device_bytes > device_bytes:
        advice = tuple(limit_advice(plan, device_bytes)) or (
            "no single limit is enough: the weights alone leave too little; halve several, or use a larger GPU",
        )
        found.append(Shortage("GPU memory to run", plan.device_bytes, device_bytes, advice))
    return found


def _ram_advice(plan: EngineCosts) -> tuple[str, ...]:
    largest = max(graph.build_ram_bytes for graph in plan.graphs)
    one_job = (f"--jobs 1 builds one graph at a time: {largest / 1e9:.1f} GB",) if plan.jobs > 1 else ()
    return (
        *one_job,
        f"build on a machine with {largest / 1e9:.1f} GB free; the engine runs elsewhere all the same",
    )


_LEAST = {"max_segments": 1, "max_patches": 256, "max_batch": 1, "max_context": 256, "max_prompt_tokens": 64}


def limit_advice(plan: EngineCosts, device_bytes: int) -> Iterator[str]:
    """Each limit that alone makes it fit when it is halved often enough."""
    for name in _LEAST:
        limits = plan.limits
        while (smaller := _halved(limits, name)) is not None:
            limits = smaller
            shrunk = plan_engine(plan.target, plan.config, plan.dtype, limits, plan.costs_of)
            if shrunk.device_bytes <= device_bytes:
                yield f"--{name.replace('_', '-')} {getattr(limits, name)}: {shrunk.device_bytes / 1e9:.1f} GB"
                break


def _halved(limits: Limits, name: str) -> Limits | None:
    """Half of one limit, and of those that may not exceed it; None where it gets too small to be of use."""
    value = getattr(limits, name) // 2
    if value < _LEAST[name]:
        return None
    changes = {name: value}
    if name == "max_context":
        changes["max_prompt_tokens"] = min(limits.prompt_tokens, value)
    if name == "max_patches":
        changes["max_segments"] = min(limits.max_segments, value // _PATCHES_PER_TOKEN)
    return replace(limits, **changes)


def free_ram_bytes() -> int:
    """Memory that a new process can have: what the kernel calls available, within this container's limit."""
    fields = dict(
        line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    )
    available = int(fields["MemAvailable"].split()[0]) * 1024
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        used = Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii").strip()
    except OSError:
        return available
    return min(available, int(limit) - int(used)) if limit.isdigit() else available


def free_disk_bytes(bundle: Path) -> int:
    return shutil.disk_usage(bundle).free
