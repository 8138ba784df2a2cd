"""Whether GPUs have the memory that a plan says engines take, asked before anything is loaded."""

from collections.abc import Iterator, Mapping, Sequence

from engines.sizing.costs import GraphCosts, ModelCosts
from export.contract import GraphName
from export.errors import UserError


def require_room(
    costs: ModelCosts,
    placed: Mapping[int, Sequence[GraphName]],
    free_bytes: Mapping[int, int],
    *,
    slot_tokens: int,
    are_weights_streamed: bool,
) -> None:
    """Refuse engines that do not fit, with the figures of `build --plan`.

    Args:
        costs: of the engines' limits.
        placed: the graphs on each GPU, by its number.
        free_bytes: of each GPU.
        slot_tokens: of all KV slots together.
        are_weights_streamed: they stay on the host as far as there is no room, and do not count.

    Raises:
        UserError: what each GPU that is too full has, and what is needed on it.
    """
    problems = []
    for number, graphs in placed.items():
        parts = dict(_parts(costs, graphs, slot_tokens, are_weights_streamed=are_weights_streamed))
        needed = sum(parts.values())
        if needed > free_bytes[number]:
            listed = ", ".join(f"{what} {size / 1e9:.2f}" for what, size in parts.items())
            problems.append(
                f"cuda:{number} has {free_bytes[number] / 1e9:.2f} GB free, needed are {needed / 1e9:.2f}: {listed}"
            )
    if problems:
        raise UserError(
            "The engines do not fit:\n- " + "\n- ".join(problems),
            "Free memory there, ask for fewer slots, build with smaller limits (`qv-export build --plan` says what "
            "each costs), or name another GPU with --device.",
        )


def _parts(
    costs: ModelCosts, graphs: Sequence[GraphName], slot_tokens: int, *, are_weights_streamed: bool
) -> Iterator[tuple[str, int]]:
    """What takes memory on one GPU, in bytes. Stages there compute in one block, the vision encoder in another."""
    here = [graph for graph in costs.graphs if graph.name in graphs]
    yield "weights", 0 if are_weights_streamed else sum(graph.weights_bytes for graph in here)
    yield "the vision encoder's calls", _largest_call(graph for graph in here if graph.name == "vision")
    decoders = [graph for graph in here if graph.name != "vision"]
    yield "the decoder's calls", _largest_call(iter(decoders))
    share = sum(graph.cache_share for graph in decoders)
    yield "KV slots", int(costs.kv_bytes_per_token * slot_tokens * share)


def _largest_call(graphs: Iterator[GraphCosts]) -> int:
    return max((graph.activation_bytes for graph in graphs), default=0)
