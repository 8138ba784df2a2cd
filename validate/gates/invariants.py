"""Invariants: what must hold for any engine without asking a reference.

Each property compares the engine with itself. Where the same arithmetic runs twice the answers must be equal bit for
bit; where the shapes of a call differ, sums may run in another order, and noise is allowed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from export.checkpoint.config import ModelConfig
from export.inputs import ModelInputs
from export.processor.settings import ImageSettings
from validate.cases.builtin import (
    Image,
    Profile,
    Prompt,
    Text,
    Video,
    num_patches,
    num_tokens,
    outside_profile,
)
from validate.cases.prompts import grid_of_part, prepare_prompt
from validate.execution import OpenEngine
from validate.gates.gates import GateResult, GateSettings
from validate.records.metrics import compare_tensors

Array = npt.NDArray[np.float32]
Draw = Callable[[Prompt], ModelInputs]

_PICTURES: Prompt = (Image(4, 4), Image(6, 10), Image(8, 2), Video(2, 4, 6))
_MIXED: Prompt = (Text(5), Image(6, 4), Text(7), Image(4, 8), Text(9))
_BATCH: tuple[Prompt, ...] = (_MIXED, (Text(31),), (Text(3), Video(2, 4, 4), Text(2)))
_LONG: Prompt = (
    *_MIXED,
    Text(20),
)  # with its decode steps below 64 tokens, the smallest context that can be asked for
_NUM_STEPS = 3


@dataclass(frozen=True)
class Property:
    """A law, and the noise that it allows."""

    name: str
    meaning: str
    check: Callable[[OpenEngine, Draw], tuple[Array, Array]]
    """Two arrays [tokens, C] that must be equal."""
    noise_of: str | None
    """The gate whose noise is allowed; None: bit for bit."""
    batch: tuple[Prompt, ...]
    """The largest call that the check makes."""
    num_decode_steps: int = 0
    is_vision_only: bool = False

    def problem(self, profile: Profile, floors: Mapping[str, float]) -> str | None:
        """Why it lies outside of a profile; None where it does not."""
        if self.noise_of is not None and self.noise_of not in floors:
            return f"no case inside the profile tells the noise of {self.noise_of}"
        grids = [grid_of_part(part) for prompt in self.batch for part in prompt if not isinstance(part, Text)]
        return outside_profile(
            profile,
            [1] if self.is_vision_only else [num_tokens(prompt) for prompt in self.batch],
            sum(map(num_patches, self.batch)),
            self.num_decode_steps,
            num_segments=sum(steps for steps, _, _ in grids),
        )


def properties_outside(profile: Profile, floors: Mapping[str, float]) -> dict[str, str]:
    """Why each property that cannot be asked of an engine lies outside of its profile, by name."""
    problems = {law.name: law.problem(profile, floors) for law in PROPERTIES}
    return {name: problem for name, problem in problems.items() if problem is not None}


def check_properties(
    engine: OpenEngine,
    config: ModelConfig,
    settings: ImageSettings,
    floors: Mapping[str, float],
    gates: GateSettings,
    profile: Profile,
) -> list[GateResult]:
    """Every property inside the profile as a gate of its own name."""

    def draw(prompt: Prompt) -> ModelInputs:
        return prepare_prompt(prompt, config, settings, np.random.default_rng(len(prompt)))

    outside = properties_outside(profile, floors)
    return [judge_property(law, engine, draw, floors, gates) for law in PROPERTIES if law.name not in outside]


def judge_property(
    law: Property, engine: OpenEngine, draw: Draw, floors: Mapping[str, float], gates: GateSettings
) -> GateResult:
    """An engine that raises on a property fails it."""
    try:
        actual, expected = law.check(engine, draw)
        metrics = compare_tensors(actual, expected)
    except Exception as error:  # noqa: BLE001 - whatever an engine raises is a finding about it
        return GateResult(law.name, "properties", passed=False, value=None, limit=None, detail=repr(error))
    if law.noise_of is None:
        return GateResult(
            law.name, "properties", metrics.max_abs == 0, metrics.max_abs, 0.0, detail=law.meaning
        )
    noise = floors[law.noise_of]
    limit = gates.multiple * noise
    value = metrics.worst_token_error
    return GateResult(law.name, "properties", value <= limit, value, limit, noise, law.meaning)


def _each_alone(draw: Draw) -> list[ModelInputs]:
    """The pictures of one prompt as prompts of their own."""
    return [_only(draw(_PICTURES), picture) for picture in range(len(_PICTURES))]


def _only(prompt: ModelInputs, picture: int) -> ModelInputs:
    sizes = [steps * height * width for steps, height, width in prompt.grids]
    start = sum(sizes[:picture])
    rows = slice(start, start + sizes[picture])
    steps, height, width = prompt.grids[picture]
    return replace(
        prompt,
        patches=prompt.patches[rows],
        positions=prompt.positions[:, rows],
        cu_seqlens=np.arange(steps + 1, dtype=np.int32) * (height * width),
        grids=(prompt.grids[picture],),
    )


def _packing(engine: OpenEngine, draw: Draw) -> tuple[Array, Array]:
    pictures = _each_alone(draw)
    alone = [engine.encode([picture])[0] for picture in pictures]
    return np.concatenate(engine.encode(pictures)), np.concatenate(alone)


def _permutation(engine: OpenEngine, draw: Draw) -> tuple[Array, Array]:
    pictures = _each_alone(draw)
    backwards = engine.encode(pictures[::-1])[::-1]
    return np.concatenate(backwards), np.concatenate(engine.encode(pictures))


def _neighbours(engine: OpenEngine, draw: Draw) -> tuple[Array, Array]:
    pictures = _each_alone(draw)
    changed = [*pictures[:1], replace(pictures[1], patches=-pictures[1].patches), *pictures[2:]]
    before, after = engine.encode(pictures), engine.encode(changed)
    return np.concatenate([after[0], *after[2:]]), np.concatenate([before[0], *before[2:]])


def _frames(engine: OpenEngine, draw: Draw) -> tuple[Array, Array]:
    """Two temporal steps of a video are two segments: the first does not know the second."""
    video = _each_alone(draw)[3]
    half = len(video.patches) // 2
    changed = video.patches.copy()
    changed[half:] *= -1
    rows = slice(0, half // engine.config.vision.patches_per_token)
    return engine.encode([replace(video, patches=changed)])[0][rows], engine.encode([video])[0][rows]


def _batch(engine: OpenEngine, draw: Draw) -> tuple[Array, Array]:
    prompts = [draw(prompt) for prompt in _BATCH][: engine.decoder.num_slots]
    together = _prefill_and_decode(engine, 0, prompts)
    alone = [_prefill_and_decode(engine, 0, [prompt]) for prompt in prompts]
    return together, np.concatenate(alone)


def _chunks(engine: OpenEngine, draw: Draw) -> tuple[Array, Array]:
    prompt = draw(_MIXED)
    embeds = engine.encode([prompt])[0]
    index = np.arange(len(prompt.token_ids))
    return (
        engine.prefill_in_chunks(0, prompt, embeds, index, chunk_tokens=5),
        engine.prefill(0, [prompt], [embeds], [index])[0],
    )


def _decode_is_prefill(engine: OpenEngine, draw: Draw) -> tuple[Array, Array]:
    """The last tokens one by one, after the rest at once, against all at once."""
    whole = draw(_MIXED)
    num_steps = 6
    cut = len(whole.token_ids) - num_steps
    start = replace(whole, token_ids=whole.token_ids[:cut], position_ids=whole.position_ids[:, :cut])
    embeds = engine.encode([whole])
    engine.prefill(0, [start], embeds, [np.array([cut - 1])])
    steps = engine.decode(0, [start], whole.token_ids[None, cut:])[0]
    return steps, engine.prefill(0, [whole], embeds, [cut + np.arange(num_steps)])[0]


def _slot_reuse(engine: OpenEngine, draw: Draw) -> tuple[Array, Array]:
    """A slot that held a longer prompt, against the last slot, which nothing else uses."""
    prompt, fresh = draw((Text(4), Image(4, 4), Text(3))), engine.decoder.num_slots - 1
    expected = _prefill_and_decode(engine, fresh, [prompt])
    _prefill_and_decode(engine, 0, [draw(_LONG)])
    return _prefill_and_decode(engine, 0, [prompt]), expected


def _prefill_and_decode(engine: OpenEngine, first_slot: int, prompts: list[ModelInputs]) -> Array:
    """Logits of each prompt's last token and of three forced ones: [B * 4, vocab], prompt by prompt."""
    last = [np.array([len(prompt.token_ids) - 1]) for prompt in prompts]
    prefilled = engine.prefill(first_slot, prompts, engine.encode(prompts), last)
    tokens = np.stack([prompt.token_ids[-_NUM_STEPS:][::-1] for prompt in prompts])
    decoded = engine.decode(first_slot, prompts, tokens)
    return np.concatenate([part for pair in zip(prefilled, decoded, strict=True) for part in pair])


_VISION_NOISE = "visual_embeds.worst_token_error"
_PREFILL_NOISE = "prefill_logits.worst_token_error"
PROPERTIES = (
    Property(
        "packing",
        "each picture alone equals all packed in one call",
        _packing,
        _VISION_NOISE,
        (_PICTURES,),
        is_vision_only=True,
    ),
    Property(
        "permutation",
        "the order of packed pictures changes none of them",
        _permutation,
        _VISION_NOISE,
        (_PICTURES,),
        is_vision_only=True,
    ),
    Property(
        "neighbour_perturbation",
        "changing one picture changes no other",
        _neighbours,
        None,
        (_PICTURES,),
        is_vision_only=True,
    ),
    Property(
        "frame_perturbation",
        "changing a video's second step leaves its first alone",
        _frames,
        None,
        (_PICTURES[3:],),
        is_vision_only=True,
    ),
    Property(
        "batch_invariance",
        "a prompt alone equals itself in a padded batch",
        _batch,
        _PREFILL_NOISE,
        _BATCH,
        _NUM_STEPS,
    ),
    Property(
        "chunked_prefill", "a prompt in pieces equals the prompt at once", _chunks, _PREFILL_NOISE, (_MIXED,)
    ),
    Property(
        "decode_is_prefill",
        "prefill(n + 1) equals prefill(n) and decode(1)",
        _decode_is_prefill,
        _PREFILL_NOISE,
        (_MIXED,),
    ),
    Property(
        "slot_reuse",
        "a KV slot keeps no trace of what it held before",
        _slot_reuse,
        None,
        (_LONG,),
        _NUM_STEPS,
    ),
)
