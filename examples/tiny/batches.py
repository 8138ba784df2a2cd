"""One training step's tensors from samples, packed: vision by `cu_seqlens`, text by document offsets."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from examples.tiny.contents import contents_of_scene, join_contents
from examples.tiny.tasks import Medium, Sample
from export.inputs import Grid
from export.models.qwen2_vl.positions import cu_seqlens_from_grids, mrope_position_ids, patch_positions
from export.processor.processor import Processor
from export.processor.resize import smart_resize, video_frame_size
from export.processor.text.chat import expand_placeholders
from export.processor.text.conversation import Medium as ChatMedium


@dataclass(frozen=True)
class Batch:
    """A shared start and samples one after another: T text and V visual tokens, P patches, A answer tokens."""

    token_ids: Tensor
    """[1, T] int64, questions with their answers."""
    position_ids: Tensor
    """[3, 1, T] int32"""
    documents: tuple[int, ...]
    """Token offsets 0 ... T: first the start that all questions share, then the rest of each sample."""
    patches: Tensor
    """[P, patch_values] float32; none where pictures are told, not drawn."""
    positions: Tensor
    """[2, P] int32"""
    cu_seqlens: Tensor
    """[N + 1] int32"""
    things: Tensor
    """[V, SLOTS] int64, what each visual token shows"""
    edges: Tensor
    """[V, 4] float32, where its shape's edges are"""
    logits_index: Tensor
    """[1, A] int64: the tokens before each answer token."""
    targets: Tensor
    """[A] int64: answer tokens, `<|im_end|>` last in each answer."""
    target_turns: Tensor
    """[A] int64: the answer to which each answer token belongs, counted through the batch."""
    turn_samples: Tensor
    """[answers] int64: the sample to which each answer belongs."""

    def to(self, device: str) -> "Batch":
        tensors = {name: x.to(device) for name, x in vars(self).items() if isinstance(x, Tensor)}
        return Batch(documents=self.documents, **tensors)


def make_batch(samples: Sequence[Sample], processor: Processor, *, drawn: bool = True) -> Batch:
    """Pack samples; the loss is on the answers alone.

    Args:
        samples: what is asked.
        processor: the checkpoint's.
        drawn: whether pictures are drawn and cut up; otherwise only what they show is told.
    """
    config, merge = processor.config, processor.image_settings.merge_size
    sequences, grids = [], []
    for sample in samples:
        own = [_grid(medium, processor) for medium in sample.media]
        sequences.append(_sequence(sample, own, processor))
        grids += own
    shared = _shared_start([ids for ids, _, _ in sequences], (config.image_token_id, config.video_token_id))
    tokens, positions = [sequences[0][0][:shared]], [sequences[0][1][:, :shared]]
    documents, turn_samples = [0, shared], list[int]()
    index, targets, turns = list[np.ndarray](), list[np.ndarray](), list[np.ndarray]()
    for number, (ids, position_ids, answers) in enumerate(sequences):
        offset = documents[-1] - shared
        for start, stop in answers:
            index.append(np.arange(start, stop) - 1 + offset)
            targets.append(ids[start:stop])
            turns.append(np.full(stop - start, len(turn_samples)))
            turn_samples.append(number)
        tokens.append(ids[shared:])
        positions.append(position_ids[:, shared:])
        documents.append(documents[-1] + len(ids) - shared)
    patches = np.zeros((0, processor.image_settings.patch_values), np.float32)
    if drawn:
        media = [medium for sample in samples for medium in sample.media]
        frames = [ChatMedium(m.kind, m.frames if m.kind == "video" else m.frames[0]) for m in media]
        patches, drawn_grids = processor.patches_from_media(frames)
        assert drawn_grids == grids
    contents = join_contents(
        contents_of_scene(scene, (grid[1] // merge, grid[2] // merge))
        for medium, grid in zip((m for s in samples for m in s.media), grids, strict=True)
        for scene in medium.scenes
    )
    return Batch(
        token_ids=torch.from_numpy(np.concatenate(tokens))[None],
        position_ids=torch.from_numpy(np.concatenate(positions, axis=1))[:, None],
        documents=tuple(documents),
        patches=torch.from_numpy(patches),
        positions=torch.from_numpy(patch_positions(grids, merge)),
        cu_seqlens=torch.from_numpy(cu_seqlens_from_grids(grids)),
        things=torch.from_numpy(contents.things),
        edges=torch.from_numpy(contents.edges),
        logits_index=torch.from_numpy(np.concatenate(index))[None],
        targets=torch.from_numpy(np.concatenate(targets)),
        target_turns=torch.from_numpy(np.concatenate(turns)),
        turn_samples=torch.tensor(turn_samples),
    )


def _grid(medium: Medium, processor: Processor) -> Grid:
    """The patch grid to which the processor will resize a medium, without drawing it."""
    width, height = medium.scenes[0].size
    steps, patch = len(medium.scenes), processor.image_settings.patch_size
    if medium.kind == "image":
        rows, columns = smart_resize(height, width, processor.image_settings)
    else:
        rows, columns = video_frame_size(height, width, steps, processor.video_settings)
    return steps, rows // patch, columns // patch


def _sequence(
    sample: Sample, grids: Sequence[Grid], processor: Processor
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, int]]]:
    """A sample's token ids [S], position ids [3, S], and where its answers begin and end."""
    placeholders = [{"type": medium.kind} for medium in sample.media]
    text = processor.template.render(
        [{"role": "user", "content": [*placeholders, {"type": "text", "text": sample.prompt}]}]
    )
    ids, answers = np.zeros(0, np.int64), []
    for number, turn in enumerate(sample.turns):
        if number:
            text = f"\n<|im_start|>user\n{turn.prompt}<|im_end|>\n<|im_start|>assistant\n"
        question = _encode(text, processor)
        if not number:
            media = [ChatMedium(medium.kind, None) for medium in sample.media]
            question = expand_placeholders(question, media, grids, processor.config)
        answer = _encode(f"{turn.answer}<|im_end|>", processor)
        answers.append((len(ids) + len(question), len(ids) + len(question) + len(answer)))
        ids = np.concatenate([ids, question, answer])
    return ids, mrope_position_ids(ids, grids, processor.config)[0], answers


def _encode(text: str, processor: Processor) -> np.ndarray:
    """`Processor` encodes the same, but guards against special tokens in hostile prompts."""
    return np.array(processor.tokenizer.encode(text, add_special_tokens=False).ids, np.int64)


def _shared_start(sequences: Sequence[np.ndarray], placeholders: tuple[int, int]) -> int:
    """How many tokens all sequences begin with, short of the last one of any and of every picture's placeholder."""
    shortest = min(len(ids) for ids in sequences) - 1
    stacked = np.stack([ids[:shortest] for ids in sequences])
    ends = (stacked != stacked[0]).any(0) | np.isin(stacked[0], placeholders)
    return int(ends.argmax()) if ends.any() else shortest
