"""The PyTorch reference at two precisions: what an engine should answer, and how far rounding may carry it.

It computes one precision above the engine: float64 for a float32 engine, float32 for half types. The same weights run
once more in the engine's dtype; their distance from the high precision is the noise that no engine can avoid.
Memory holds the weights once, in float32; each block's weights are converted when the block runs.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from export.checkpoint.tensors import open_checkpoint
from export.inputs import DecoderInputs, ModelInputs
from export.models.pieces import torch_dtype
from export.models.qwen2_vl.model import KvCache, Qwen2VL, load_reference
from export.quantization.simulated import rounding_inputs_of_few_bits, turning_ties
from validate.bisect.search import HIGH_PRECISION_DTYPE
from validate.cases.feeds import decode_call, prefill_call
from validate.cases.prompts import PreparedCase, visual_token_ids
from validate.records.records import (
    ExpectedPrompt,
    PromptAnswer,
    Record,
    loudest,
    measure_answers,
    spread_index,
)
from validate.reference.probes import (
    Captured,
    add_caches,
    add_patch_rotations,
    add_token_rotations,
    capturing,
    probed_modules,
)

SMALL_MODEL_PARAMETERS = 50_000_000
"""Below this one thread is faster: PyTorch's threads would wait for each other at each small product. Measured on two
busy cores: level standard of a model of 0.7 million parameters took 321 s with two threads and 19 s with one."""


NOISE_DRAWS = 3
"""Computations of a case in the engine's dtype: a token that multiplies rounding is seldom lucky in all of them."""


def jittered(prompt: ModelInputs, dtype: str, seed: int) -> ModelInputs:
    """The prompt, its patches changed within their rounding, so that all that follows rounds anew; seed 0: itself."""
    if seed == 0:
        return prompt
    half_step = torch.finfo(torch_dtype(dtype)).eps / 2
    factors = 1 + half_step * np.random.default_rng(seed).uniform(-1, 1, prompt.patches.shape)
    return replace(prompt, patches=(prompt.patches * factors).astype(np.float32))


class HighPrecisionReference:
    """The reference model, able to run in any precision."""

    def __init__(
        self, model: Qwen2VL, engine_dtype: str | None = None, blocks: Mapping[str, int] | None = None
    ) -> None:
        """Args: see `from_directory`; blocks: of weights whose inputs the engine rounds by itself, by name."""
        self.model = model
        self.config = model.config
        self._blocks = blocks or {}
        self._engine_dtype = engine_dtype

    @classmethod
    def from_directory(
        cls,
        directory: Path,
        device: str = "cpu",
        *,
        engine_dtype: str | None = None,
        rounds_inputs: bool = False,
    ) -> "HighPrecisionReference":
        """Load the weights of a bundle or checkpoint as float32.

        Args:
            directory: of the bundle or checkpoint.
            device: where it computes.
            engine_dtype: an engine's, whose noise it is asked for: in it, inputs that the graph rounds are rounded as
                unluckily as an engine may.
            rounds_inputs: in that dtype, products of weights in few bits round their inputs as the engine's kernels do.

        Raises:
            UserError: no sound Qwen2-VL weights there.
        """
        model = load_reference(directory, torch.float32, device)
        if sum(parameter.numel() for parameter in model.parameters()) < SMALL_MODEL_PARAMETERS:
            torch.set_num_threads(1)
        return cls(model, engine_dtype, _blocks_of_few_bits(directory) if rounds_inputs else {})

    def record(self, case: PreparedCase, num_decode_steps: int, dtype: str) -> Record:
        """What a case must yield, and the noise of `dtype`, an engine's, on it."""
        expected: list[ExpectedPrompt] = []
        rounded: list[list[PromptAnswer]] = [[] for _ in range(NOISE_DRAWS)]
        for prompt in case.prompts:
            continuation = self.continue_greedily(prompt, num_decode_steps)
            index = spread_index(len(prompt.token_ids))
            answer = self.answer(prompt, continuation, index, HIGH_PRECISION_DTYPE[dtype])
            expected.append(ExpectedPrompt(continuation, index, answer))
            for seed, answers in enumerate(rounded):
                answers.append(self.answer(jittered(prompt, dtype, seed), continuation, index, dtype))
        answers_expected = [prompt.answer for prompt in expected]
        noise = loudest([measure_answers(answers, answers_expected) for answers in rounded])
        return Record(case.digest(), dtype, tuple(expected), noise)

    def continue_greedily(self, prompt: ModelInputs, num_tokens: int) -> npt.NDArray[np.int64]:
        """The reference's own answer in float32, [num_tokens]; never an image or video pad, which means a picture."""
        capacity = len(prompt.token_ids) + num_tokens
        cache = self.model.new_cache(1, capacity)
        last = np.array([len(prompt.token_ids) - 1])
        call = prefill_call([prompt], [self._encode(prompt, torch.float32).numpy()], self.config, [last])
        tokens: list[int] = []
        for step in range(num_tokens):
            logits, cache = self.model.decode(**self._tensors(call, torch.float32), cache=cache)
            logits[..., list(visual_token_ids(self.config))] = -torch.inf
            tokens.append(int(logits[0, 0].argmax()))
            call = decode_call(np.array(tokens[-1:]), [prompt], step, self.config)
        return np.array(tokens, np.int64)

    def answer(
        self,
        prompt: ModelInputs,
        continuation: npt.NDArray[np.int64],
        prompt_index: npt.NDArray[np.int64],
        dtype: str,
    ) -> PromptAnswer:
        """Prompt and continuation in one causal call: what prefill and teacher-forced decoding must yield step by step.

        Args:
            prompt: with its pictures, which are encoded first.
            continuation: [T] forced tokens.
            prompt_index: [K'] prompt tokens to project.
            dtype: "float64" or one that graphs compute in.
        """
        with self._computing_in(dtype):
            visual_embeds = self._encode(prompt, torch_dtype(dtype))
            index = np.concatenate([prompt_index, len(prompt.token_ids) + np.arange(len(continuation))])
            logits, _ = self._forward(prompt, continuation, visual_embeds, index, dtype)
        cut = len(prompt_index)
        return PromptAnswer(visual_embeds.float().cpu().numpy(), logits[:cut], logits[cut:])

    def vision_probes(self, prompt: ModelInputs, references: Collection[str], dtype: str) -> Captured:
        """Values [P or V, C] while pictures are encoded. Args: references: see `Probe.reference`."""
        with self._computing_in(dtype), capturing(self.model, probed_modules(references)) as probes:
            self._encode(prompt, torch_dtype(dtype))
        add_patch_rotations(probes, self.model, prompt.positions, torch_dtype(dtype))
        return probes

    def decoder_probes(
        self,
        prompt: ModelInputs,
        continuation: npt.NDArray[np.int64],
        visual_embeds: npt.NDArray[np.float32],
        references: Collection[str],
        dtype: str,
    ) -> Captured:
        """The same for the decoder, [tokens, C] over the whole of prompt and continuation; caches as `add_caches`."""
        length = len(prompt.token_ids) + len(continuation)
        with self._computing_in(dtype), capturing(self.model, probed_modules(references)) as probes:
            embeds = torch.from_numpy(visual_embeds).to(torch_dtype(dtype))
            _, present = self._forward(prompt, continuation, embeds, np.arange(length), dtype)
        probes = {name: array.reshape(length, -1) for name, array in probes.items()}
        position_ids = extended(prompt, continuation).position_ids
        add_token_rotations(probes, self.model, position_ids, torch_dtype(dtype))
        add_caches(probes, present)
        return probes

    def _encode(self, prompt: ModelInputs, dtype: torch.dtype) -> Tensor:
        if not prompt.grids:
            return torch.zeros((0, self.config.vision.hidden_size), dtype=dtype)
        patches = torch.from_numpy(prompt.patches).to(dtype)
        return self.model.encode(
            patches, torch.from_numpy(prompt.positions), torch.from_numpy(prompt.cu_seqlens)
        )

    def _forward(
        self,
        prompt: ModelInputs,
        continuation: npt.NDArray[np.int64],
        visual_embeds: Tensor,
        index: npt.NDArray[np.int64],
        dtype: str,
    ) -> tuple[npt.NDArray[np.float32], KvCache]:
        whole = extended(prompt, continuation)
        call = prefill_call([whole], [np.zeros((0, 0), np.float32)], self.config, [index])
        tensors = self._tensors(call, torch_dtype(dtype))
        tensors["visual_embeds"] = visual_embeds
        cache = self.model.new_cache(1, len(whole.token_ids), torch_dtype(dtype))
        logits, present = self.model.decode(**tensors, cache=cache)
        return logits[0].cpu().numpy(), present

    def _tensors(self, call: DecoderInputs, dtype: torch.dtype) -> dict[str, Tensor]:
        tensors = {name: torch.from_numpy(array) for name, array in vars(call).items()}
        return {name: x.to(dtype) if x.is_floating_point() else x for name, x in tensors.items()}

    @contextmanager
    def _computing_in(self, dtype: str) -> Iterator[None]:
        """As an engine of that dtype does: in its weights, and in its inputs of products where it rounds those."""
        if dtype != self._engine_dtype:
            with self._weights_in(dtype):
                yield
            return
        rounding = rounding_inputs_of_few_bits(self.model, self._blocks)
        with self._weights_in(dtype), turning_ties(self.model), rounding:
            yield

    @contextmanager
    def _weights_in(self, dtype: str) -> Iterator[None]:
        """Convert each stage's weights while it runs, and put the float32 ones back after it."""
        if dtype == "float32":
            yield
            return
        kept: dict[int, Mapping[nn.Module, Mapping[str, Any]]] = {}

        def widen(stage: nn.Module, _inputs: Any) -> None:
            kept[id(stage)] = {module: dict(module._parameters) for module in stage.modules()}  # noqa: SLF001
            for module in stage.modules():
                for name, parameter in module._parameters.items():  # noqa: SLF001
                    if parameter is not None:
                        converted = nn.Parameter(parameter.to(torch_dtype(dtype)), requires_grad=False)
                        module._parameters[name] = converted  # noqa: SLF001

        def restore(stage: nn.Module, _inputs: Any, _outputs: Any) -> None:
            for module, parameters in kept.pop(id(stage)).items():
                module._parameters.update(parameters)  # noqa: SLF001

        handles = []
        for stage in stages(self.model):
            handles += [stage.register_forward_pre_hook(widen), stage.register_forward_hook(restore)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


_ROUNDED_BLOCK = 32
"""Inputs that share a scale where a weight has one for each output: ONNX Runtime's own block."""


def _blocks_of_few_bits(directory: Path) -> dict[str, int]:
    """By name, of the weights that are in few bits while the graph leaves their inputs as they are."""
    checkpoint = open_checkpoint(directory)
    blocks = {
        linear.name: linear.block if linear.num_blocks > 1 else _ROUNDED_BLOCK
        for linear in checkpoint.linears.values()
        if linear.activations is None and linear.precision != "fp8"
    }
    embedding = blocks.pop("model.embed_tokens.weight", None)  # a look-up rounds nothing; a tied head does
    if embedding is not None and checkpoint.config.decoder.tie_word_embeddings:
        blocks["lm_head.weight"] = embedding
    return blocks


def stages(model: Qwen2VL) -> list[nn.Module]:
    """The pieces that run one after another; together they hold every weight."""
    visual, text = model.visual, model.model
    encoder = [visual.patch_embed, *visual.blocks, visual.merger]
    return [*encoder, text.embed_tokens, *text.layers, text.norm, model.lm_head]


def extended(prompt: ModelInputs, continuation: npt.NDArray[np.int64]) -> ModelInputs:
    """The prompt with its continuation as text: positions go on by `position_delta`."""
    start = len(prompt.token_ids)
    positions = np.arange(start, start + len(continuation)) + prompt.position_delta
    return ModelInputs(
        token_ids=np.concatenate([prompt.token_ids, continuation]),
        position_ids=np.concatenate([prompt.position_ids, np.tile(positions, (3, 1))], axis=1).astype(
            np.int32
        ),
        position_delta=prompt.position_delta,
        patches=prompt.patches,
        positions=prompt.positions,
        cu_seqlens=prompt.cu_seqlens,
        grids=prompt.grids,
    )
