"""The processor: a conversation with pictures and videos becomes everything that the two graphs take."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from export.checkpoint.config import ModelConfig, load_config
from export.errors import UserError
from export.inputs import Grid, ModelInputs, SeenMedium
from export.models.families import family_of
from export.models.qwen2_vl.positions import cu_seqlens_from_grids, patch_positions
from export.processor.media.budget import Budget
from export.processor.media.data_urls import source_from_text
from export.processor.media.decode import LocalReader, MediaReader
from export.processor.media.limits import DEFAULT_LIMITS, MediaLimits
from export.processor.media.medium import DecodedMedium
from export.processor.patches import grid_of_frames, write_patches
from export.processor.settings import ImageSettings, VideoSettings, load_settings
from export.processor.text.chat import (
    TemplateOptions,
    expand_placeholders,
    media_from_conversation,
    token_ids_from_conversation,
)
from export.processor.text.conversation import Medium, read_conversation
from export.processor.text.located import Located, located_in_text
from export.processor.text.template import ChatTemplate, load_chat_template
from export.processor.text.tokenizer import SpecialTokens, load_tokenizer


class Processor:
    """A checkpoint's tokenizer, chat template and picture settings."""

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        image_settings: ImageSettings,
        video_settings: VideoSettings,
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.template = template
        self.image_settings = image_settings
        self.video_settings = video_settings
        self._special_tokens = SpecialTokens(tokenizer)

    @classmethod
    def from_directory(cls, directory: Path | str, config: ModelConfig | None = None) -> "Processor":
        """Read everything from a checkpoint's or bundle's directory.

        Args:
            directory: the checkpoint's or the bundle's.
            config: the model's, where it was read already.

        Raises:
            UserError: a file is missing or broken, or two files contradict each other.
        """
        directory = Path(directory)
        config = config or load_config(directory)
        image_settings, video_settings = load_settings(directory)
        tokenizer = load_tokenizer(directory)
        _check_agreement(directory, config, image_settings, tokenizer)
        return cls(config, tokenizer, load_chat_template(directory), image_settings, video_settings)

    def token_ids_without_a_token(self) -> list[int]:
        """Rows of the vocabulary's tables that pad them to a round size: an answer must not hold any."""
        named = self.tokenizer.get_vocab(with_added_tokens=True).values()
        return sorted(set(range(self.config.decoder.vocab_size)).difference(named))

    def with_budget(self, budget: Budget, limits: MediaLimits = DEFAULT_LIMITS) -> "Processor":
        """One whose pictures and videos have this budget where a part says nothing else.

        Raises:
            UserError: more than the limits allow, or a least above the most.
        """
        return Processor(
            self.config,
            self.tokenizer,
            self.template,
            budget.image_settings(self.image_settings, limits),
            budget.video_settings(self.video_settings, limits),
        )

    @property
    def reader(self) -> LocalReader:
        """What decodes pictures and videos in this process, as the checkpoint asks."""
        return LocalReader(self.image_settings, self.video_settings)

    def inputs_from_messages(
        self,
        messages: Sequence[Mapping[str, Any]],
        reader: MediaReader | None = None,
        *,
        max_tokens: int | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_vision_id: bool | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        continue_final_message: bool = False,
        max_seconds: float | None = None,
    ) -> ModelInputs:
        """Process a conversation in the chat format of Hugging Face, OpenAI or the family's own utilities.

        Args:
            messages: each {"role": ..., "content": text or a list of parts}; a part is {"type": "text", "text": ...},
                {"type": "image", "image": path, bytes, data: URL, base64 or Pillow image} or {"type": "video", "video":
                path, bytes, folder or list of frames}; `image_url` and `video_url` as OpenAI's clients send them.
                Special tokens in texts are encoded as ordinary text.
            reader: what decodes them; None: this process.
            max_tokens: what the context holds; text beyond it is refused before anything is decoded.
            tools: functions that the model may call, as JSON schemas, where the chat template renders them.
            add_vision_id: number the pictures and videos ("Picture 1: "); None: as the template does by itself.
            chat_template_kwargs: further variables of the chat template.
            continue_final_message: go on with the assistant's last message.
            max_seconds: what the chat template may take, where less than its own bound.

        Raises:
            UserError: malformed messages, an option that the template does not read, more text than the context holds,
                or a picture or video that cannot be used.
        """
        variables = dict(chat_template_kwargs or {})
        own = {"tools": tools, "add_vision_id": add_vision_id}
        if twice := sorted(name for name in variables if own.get(name) is not None):
            raise UserError(
                f"{', '.join(twice)} is asked for twice, in chat_template_kwargs too.", "Keep one."
            )
        if add_vision_id is not None:
            variables["add_vision_id"] = add_vision_id
        # Text first: a malformed prompt should not wait for a video to decode.
        conversation = read_conversation(messages, self.template.source)
        token_ids = token_ids_from_conversation(
            conversation,
            self.template,
            self._special_tokens,
            options=TemplateOptions(tools, variables, continue_final_message),
            max_tokens=max_tokens,
            max_seconds=max_seconds,
        )
        media = media_from_conversation(conversation)
        decoded = self._decoded(media, reader)
        patches, grids = self._patches(media, decoded)
        token_ids = expand_placeholders(token_ids, media, grids, self.config)
        family = family_of(self.config.model_type)
        position_ids, position_delta = family.position_ids(token_ids, grids, self.config)
        return ModelInputs(
            token_ids=token_ids,
            position_ids=position_ids,
            position_delta=position_delta,
            patches=patches,
            positions=patch_positions(grids, self.image_settings.merge_size),
            cu_seqlens=cu_seqlens_from_grids(grids),
            grids=tuple(grids),
            media=tuple(
                SeenMedium(medium.kind, one.seconds, one.notes, one.size)
                for medium, one in zip(media, decoded, strict=True)
            ),
        )

    def located(self, token_ids: Sequence[int], media: Sequence[SeenMedium]) -> list[Located]:
        """What an answer locates in the picture that its conversation shows; see `export.processor.text.located`.

        Args:
            token_ids: the answer's.
            media: of the prompt's `ModelInputs`. Pixels are told of one picture alone.
        """
        text = self.tokenizer.decode(list(token_ids), skip_special_tokens=False)
        sizes = [medium.size for medium in media if medium.size is not None]
        return located_in_text(text, sizes if len(media) == 1 else ())

    def patches_from_media(self, media: Sequence[Medium]) -> tuple[NDArray[np.float32], list[Grid]]:
        """Decode, resize and cut up pictures and videos: float32 [P, patch_values] and a grid for each.

        Raises:
            UserError: a picture or video cannot be used.
        """
        return self._patches(media, self._decoded(media, None))

    def _decoded(self, media: Sequence[Medium], reader: MediaReader | None) -> list[DecodedMedium]:
        # Pixels take a quarter of the patches' bytes or less: all are read before the one big array is made.
        reader = reader or self.reader
        return [
            reader.decode(medium.kind, source_from_text(medium.source, medium.kind), medium.budget)
            for medium in media
        ]

    def _patches(
        self, media: Sequence[Medium], decoded: Sequence[DecodedMedium]
    ) -> tuple[NDArray[np.float32], list[Grid]]:
        resized = [one.frames for one in decoded]
        grids = [grid_of_frames(frames, self.image_settings) for frames in resized]
        offsets = np.cumsum([0, *(np.prod(grid, dtype=int) for grid in grids)])
        patches = np.empty((offsets[-1], self.image_settings.patch_values), np.float32)
        for medium, frames, start, stop in zip(media, resized, offsets, offsets[1:], strict=False):
            settings = self.image_settings if medium.kind == "image" else self.video_settings.frame
            write_patches(frames, settings, patches[start:stop])
        return patches, grids


def _check_agreement(
    directory: Path, config: ModelConfig, settings: ImageSettings, tokenizer: Tokenizer
) -> None:
    pairs = (
        ("patch_size", settings.patch_size, config.vision.patch_size),
        ("temporal_patch_size", settings.temporal_patch_size, config.vision.temporal_patch_size),
        ("merge_size", settings.merge_size, config.vision.spatial_merge_size),
        ("values of a patch", settings.patch_values, config.vision.patch_values),
    )
    problems = [
        f"{name} is {ours}, config.json says {theirs}" for name, ours, theirs in pairs if ours != theirs
    ]
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    problems += [
        f"the tokenizer has no token {getattr(config, name)}, config.json's {name}"
        for name in names
        if tokenizer.id_to_token(getattr(config, name)) is None
    ]
    if problems:
        raise UserError(
            f"{directory}: files contradict each other; take all from one checkpoint:\n- "
            + "\n- ".join(problems)
        )
