"""Which GPUs engines go to, and whether they fit there: said before anything is loaded."""

import pytest

from engines.backends import BACKENDS
from engines.backends.tensorrt.options import BuildOptions, options_of_key
from engines.backends.tensorrt.run.open import gpus_from, require_architecture
from engines.backends.tensorrt.run.room import require_room
from engines.sizing.costs import GraphCosts, ModelCosts
from export.errors import UserError
from tests.engines.store.test_compatibility import RECORD

GB = 1_000_000_000
COSTS = ModelCosts(
    (
        GraphCosts("vision", 1, 1 * GB, 2 * GB, 0, 0),
        GraphCosts("decoder.0", 1, 3 * GB, 1 * GB, 0, 0, cache_share=0.75),
        GraphCosts("decoder.1", 1, 1 * GB, 2 * GB, 0, 0, cache_share=0.25),
    ),
    kv_bytes_per_token=1_000_000,
)
BOTH = {0: ["vision", "decoder.0", "decoder.1"]}
SPLIT = {1: ["vision", "decoder.0"], 2: ["vision", "decoder.1"]}


@pytest.mark.parametrize(
    ("placed", "free", "is_streamed"),
    [
        # Weights, the vision encoder's call, the larger of the stages' calls, 4 GB of slots.
        (BOTH, {0: 13 * GB}, False),
        (BOTH, {0: 8 * GB}, True),
        (SPLIT, {1: 10 * GB, 2: 7 * GB}, False),
    ],
)
def test_what_just_fits_is_let_pass_and_a_byte_less_is_not(placed, free, is_streamed):
    def ask(free_bytes):
        require_room(COSTS, placed, free_bytes, slot_tokens=4000, are_weights_streamed=is_streamed)

    ask(free)
    for number in free:
        with pytest.raises(UserError, match=rf"- cuda:{number} has .* GB free, needed are"):
            ask({**free, number: free[number] - 1})


def test_every_gpu_that_is_too_full_is_named_with_what_takes_its_memory():
    with pytest.raises(UserError) as caught:
        require_room(COSTS, SPLIT, {1: GB, 2: 2 * GB}, slot_tokens=4000, are_weights_streamed=False)
    assert str(caught.value).startswith(
        "The engines do not fit:\n"
        "- cuda:1 has 1.00 GB free, needed are 10.00: weights 4.00, the vision encoder's calls 2.00, "
        "the decoder's calls 1.00, KV slots 3.00\n"
        "- cuda:2 has 2.00 GB free, needed are 7.00: weights 2.00, the vision encoder's calls 2.00, "
        "the decoder's calls 2.00, KV slots 1.00"
    )
    assert "--plan" in str(caught.value)


@pytest.mark.parametrize(
    ("device", "num_here", "num_stages", "expected"),
    [
        (None, 1, 1, [0]),
        (None, 4, 2, [0, 1]),
        ("cuda", 4, 1, [0]),
        ("cuda:3", 4, 1, [3]),
        ("cuda:1", 4, 2, [1, 2]),
        ("cuda:3", 4, 2, [3]),  # as many as can be used
    ],
)
def test_stages_go_to_the_named_gpu_and_its_neighbours(device, num_here, num_stages, expected):
    assert list(gpus_from(device, num_here, num_stages)) == expected


@pytest.mark.parametrize("device", ["cuda:2", "cuda:10"])
def test_a_gpu_that_is_not_there_is_refused_with_how_many_there_are(device):
    with pytest.raises(UserError, match=rf"--device {device}: CUDA shows 2 GPUs .* from cuda:0"):
        gpus_from(device, 2, 1)
    with pytest.raises(UserError, match="must be cuda"):
        gpus_from("gpu1", 2, 1)


def test_the_gpu_that_was_named_is_the_one_that_is_judged():
    require_architecture(RECORD, 1, 89)
    with pytest.raises(UserError, match=r"cuda:1 is SM90, and the engine .* for SM80, SM89.*--device"):
        require_architecture(RECORD, 1, 90)


@pytest.mark.parametrize(
    "options",
    [
        BuildOptions("tensorrt"),
        BuildOptions("tensorrt", (90,), hardware_compatibility="ampere_plus", cached_attention="plugin"),
        BuildOptions("tensorrt", weight_streaming=True, optimization_level=0),
        BuildOptions("tensorrt-rtx", (80, 89), only_logits=True, optimization_level=5),
    ],
)
def test_an_engine_that_is_looked_into_is_built_as_the_one_in_question(options):
    given = {name: value for name, value in vars(options).items() if name not in {"target", "sm"}}
    inputs = BACKENDS[options.target].key_options(options.sm, given)
    named = {f"option {name}": value for name, value in inputs.items()}
    assert options_of_key(options.target, options.sm, named) == options
