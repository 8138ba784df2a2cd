"""How do samples become one training step's tensors? Packed: vision by `cu_seqlens`, text by document offsets."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from examples.tiny.tasks import Sample
from export.processor.chat import Medium, expand_placeholders
from export.processor.positions import cu_seqlens_from_grids, mrope_position_ids, patch_positions
from export.processor.processor import Processor


@dataclass(frozen=True)
class Batch:
    """A shared start and samples one after another: T text and visual tokens, P patches, A answer tokens."""

    token_ids: Tensor
    """[1, T] int64, questions with their answers."""
    position_ids: Tensor
    """[3, 1, T] int32"""
    documents: tuple[int, ...]
    """Token offsets 0 ... T: first the start that all questions share, then the rest of each sample."""
    patches: Tensor
    """[P, patch_values] bfloat16"""
    positions: Tensor
    """[2, P] int32"""
    cu_seqlens: Tensor
    """[N + 1] int32"""
    logits_index: Tensor
    """[1, A] int64: the tokens before each answer token."""
    targets: Tensor
    """[A] int64: answer tokens, `<|im_end|>` last in each sample."""
    target_documents: Tensor
    """[A] int64: the sample to which each answer token belongs."""

    def to(self, device: str) -> "Batch":
        tensors = {name: x.to(device) for name, x in vars(self).items() if isinstance(x, Tensor)}
        return Batch(documents=self.documents, **tensors)


def make_batch(samples: Sequence[Sample], processor: Processor) -> Batch:
    """Pack samples; the loss is on the answers alone."""
    config, merge = processor.config, processor.image_settings.merge_size
    media = [
        [Medium(m.kind, list(m.frames) if m.kind == "video" else m.frames[0]) for m in sample.media]
        for sample in samples
    ]
    patches, grids = processor.patches_from_media([medium for group in media for medium in group])
    questions, answers, position_ids = [], [], []
    remaining = iter(grids)
    for sample, group in zip(samples, media, strict=True):
        own = list(islice(remaining, len(group)))
        question = expand_placeholders(_question_ids(sample, processor), group, own, config)
        answer = processor.tokenizer.encode(sample.answer + "<|im_end|>", add_special_tokens=False).ids
        questions.append(question)
        answers.append(np.array(answer, np.int64))
        position_ids.append(mrope_position_ids(np.concatenate([question, answers[-1]]), own, config)[0])
    shared = _shared_start(questions, (config.image_token_id, config.video_token_id))
    tokens, positions = [questions[0][:shared]], [position_ids[0][:, :shared]]
    index: list[np.ndarray] = []
    documents = [0, shared]
    for question, words, ids in zip(questions, answers, position_ids, strict=True):
        tokens += [question[shared:], words]
        positions.append(ids[:, shared:])
        documents.append(documents[-1] + len(question) + len(words) - shared)
        index.append(np.arange(documents[-1] - len(words), documents[-1]) - 1)
    lengths = torch.tensor([len(words) for words in answers])
    return Batch(
        token_ids=torch.from_numpy(np.concatenate(tokens))[None],
        position_ids=torch.from_numpy(np.concatenate(positions, axis=1))[:, None],
        documents=tuple(documents),
        patches=torch.from_numpy(patches).bfloat16(),
        positions=torch.from_numpy(patch_positions(grids, merge)),
        cu_seqlens=torch.from_numpy(cu_seqlens_from_grids(grids)),
        logits_index=torch.from_numpy(np.concatenate(index))[None],
        targets=torch.from_numpy(np.concatenate(answers)),
        target_documents=torch.repeat_interleave(torch.arange(len(samples)), lengths),
    )


def _shared_start(questions: Sequence[np.ndarray], placeholders: tuple[int, int]) -> int:
    """How many tokens all questions begin with, short of the last one of any and of every picture's placeholder."""
    shortest = min(len(question) for question in questions) - 1
    stacked = np.stack([question[:shortest] for question in questions])
    ends = (stacked != stacked[0]).any(0) | np.isin(stacked[0], placeholders)
    return int(ends.argmax()) if ends.any() else shortest


def _question_ids(sample: Sample, processor: Processor) -> np.ndarray:
    """The rendered chat; `Processor` says the same, but guards against special tokens in hostile prompts."""
    content = [{"type": medium.kind} for medium in sample.media] + [{"type": "text", "text": sample.prompt}]
    rendered = processor.template.render([{"role": "user", "content": content}])
    return np.array(processor.tokenizer.encode(rendered, add_special_tokens=False).ids, np.int64)
