"""What should an engine answer, and how far may rounding carry it? The PyTorch reference, run at two precisions.

The oracle computes one precision above the engine: float64 for a float32 engine, float32 for half types. The same
weights run once more in the engine's dtype; their distance from the oracle is the noise that no engine can avoid.
Memory holds the weights once, in float32; each block's weights are converted when the block runs.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from engines.session import DecoderInputs
from export.processor.processor import ModelInputs
from export.reference import decoder, vision
from export.reference.model import KvCache, Qwen2VL, load_reference
from plugins.rotary.reference import rotary
from validate.answers import ExpectedPrompt, PromptAnswer, Record, measure, spread_index
from validate.divergence import ORACLE_DTYPE
from validate.feeds import decode_call, prefill_call
from validate.prompts import PreparedCase, visual_token_ids

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
SMALL_MODEL_PARAMETERS = 50_000_000
"""Below this one thread is faster: PyTorch's threads would wait for each other at each small product. Measured on two
busy cores: level standard of a model of 0.7 million parameters took 321 s with two threads and 19 s with one."""

Taps = dict[str, npt.NDArray[Any]]


class Oracle:
    """The reference model, able to run in any precision."""

    def __init__(self, model: Qwen2VL) -> None:
        self.model = model
        self.config = model.config

    @classmethod
    def from_directory(cls, directory: Path, device: str = "cpu") -> "Oracle":
        """Load the weights of a bundle or checkpoint as float32.

        Raises:
            UserError: no sound Qwen2-VL weights there.
        """
        model = load_reference(directory, torch.float32, device)
        if sum(parameter.numel() for parameter in model.parameters()) < SMALL_MODEL_PARAMETERS:
            torch.set_num_threads(1)
        return cls(model)

    def record(self, case: PreparedCase, num_decode_steps: int, dtype: str) -> Record:
        """What a case must yield, and the noise of `dtype`, an engine's, on it."""
        expected, rounded = [], []
        for prompt in case.prompts:
            continuation = self.continue_greedily(prompt, num_decode_steps)
            index = spread_index(len(prompt.token_ids))
            answer = self.answer(prompt, continuation, index, ORACLE_DTYPE[dtype])
            expected.append(ExpectedPrompt(continuation, index, answer))
            rounded.append(self.answer(prompt, continuation, index, dtype))
        noise = measure(rounded, [prompt.answer for prompt in expected])
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
            dtype: a key of DTYPES.
        """
        with self._computing_in(dtype):
            visual_embeds = self._encode(prompt, DTYPES[dtype])
            index = np.concatenate([prompt_index, len(prompt.token_ids) + np.arange(len(continuation))])
            logits = self._forward(prompt, continuation, visual_embeds, index, dtype)
        cut = len(prompt_index)
        return PromptAnswer(visual_embeds.float().cpu().numpy(), logits[:cut], logits[cut:])

    def vision_taps(self, prompt: ModelInputs, modules: Sequence[str], dtype: str) -> Taps:
        """Inputs and outputs of modules while pictures are encoded; keys `NAME:in` and `NAME:out`."""
        with self._computing_in(dtype), self._tapping(modules) as taps:
            self._encode(prompt, DTYPES[dtype])
        for name in [name.removesuffix(":out") for name in taps if name.endswith(".attn.qkv:out")]:
            qkv = torch.from_numpy(taps[f"{name}:out"])  # [P, 3 * E]
            q, k, _ = qkv.to(DTYPES[dtype]).view(len(qkv), 3, self.config.vision.num_heads, -1).unbind(1)
            rotated = rotary(
                q, k, torch.from_numpy(prompt.positions), *vision.rotary_tables(self.config.vision)
            )
            _keep_rotated(taps, name.removesuffix(".attn.qkv"), *rotated)
        return taps

    def decoder_taps(
        self,
        prompt: ModelInputs,
        continuation: npt.NDArray[np.int64],
        visual_embeds: npt.NDArray[np.float32],
        modules: Sequence[str],
        dtype: str,
    ) -> Taps:
        """The same for the decoder, over the whole of prompt and continuation, without the batch axis.

        Keys `present_key.I` and `present_value.I` are the caches, `[tokens, K * D]`.
        """
        length = len(prompt.token_ids) + len(continuation)
        with self._computing_in(dtype), self._tapping(modules) as taps:
            embeds = torch.from_numpy(visual_embeds).to(DTYPES[dtype])
            self._forward(prompt, continuation, embeds, np.arange(length), dtype, taps)
        taps = {name: array.reshape(length, -1) for name, array in taps.items()}
        position_ids = torch.from_numpy(extended(prompt, continuation).position_ids)
        for name in [name.removesuffix(".q_proj:out") for name in taps if name.endswith(".q_proj:out")]:
            q, k = (
                torch.from_numpy(taps[f"{name}.{x}_proj:out"])
                .to(DTYPES[dtype])
                .view(length, -1, self.config.decoder.head_dim)
                for x in "qk"
            )
            rotated = rotary(q, k, position_ids, *decoder.rotary_tables(self.config.decoder))
            _keep_rotated(taps, name.removesuffix(".self_attn"), *rotated)
        return taps

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
        taps: Taps | None = None,
    ) -> npt.NDArray[np.float32]:
        whole = extended(prompt, continuation)
        call = prefill_call([whole], [np.zeros((0, 0), np.float32)], self.config, [index])
        tensors = self._tensors(call, DTYPES[dtype])
        tensors["visual_embeds"] = visual_embeds
        cache = self.model.new_cache(1, len(whole.token_ids))
        cache = KvCache(*([part.to(DTYPES[dtype]) for part in parts] for parts in cache))
        logits, present = self.model.decode(**tensors, cache=cache)
        if taps is not None:
            for kind, parts in zip(("key", "value"), present, strict=True):
                for layer, part in enumerate(parts):  # [1, K, L, D]
                    taps[f"present_{kind}.{layer}"] = _numpy(part[0].transpose(0, 1).flatten(1))
        result: npt.NDArray[np.float32] = logits[0].cpu().numpy()
        return result

    def _tensors(self, call: DecoderInputs, dtype: torch.dtype) -> dict[str, Tensor]:
        tensors = {name: torch.from_numpy(array) for name, array in vars(call).items()}
        return {name: x.to(dtype) if x.is_floating_point() else x for name, x in tensors.items()}

    @contextmanager
    def _tapping(self, modules: Sequence[str]) -> Iterator[Taps]:
        taps: Taps = {}

        def keep(name: str) -> Any:
            def hook(_module: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> None:
                first = outputs[0] if isinstance(outputs, tuple) else outputs
                taps[f"{name}:in"], taps[f"{name}:out"] = _numpy(inputs[0]), _numpy(first)

            return hook

        handles = [self.model.get_submodule(name).register_forward_hook(keep(name)) for name in modules]
        try:
            yield taps
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def _computing_in(self, dtype: str) -> Iterator[None]:
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
                        converted = nn.Parameter(parameter.to(DTYPES[dtype]), requires_grad=False)
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


def _keep_rotated(taps: Taps, block: str, q: Tensor, k: Tensor) -> None:
    """The rotation is a function between modules: it is computed again from the projections that it took."""
    taps[f"{block}:rotated_q"], taps[f"{block}:rotated_k"] = _numpy(q.flatten(1)), _numpy(k.flatten(1))


def _numpy(tensor: Tensor) -> npt.NDArray[Any]:
    widest = tensor.detach().cpu()
    return (widest if widest.dtype == torch.float64 else widest.float()).numpy().copy()
