"""An answer as it is told: its JSON object's parts, one line for a person, boxes drawn on the picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.errors import UserError

if TYPE_CHECKING:
    from engines.runtime.answer import TokenEvent
    from export.bundle import Bundle
    from export.processor.processor import Processor
    from export.processor.text.located import Located

_BOX_COLORS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080")


def outcome(last: "TokenEvent", laps_ms: Mapping[str, float]) -> dict[str, Any]:
    """Why it ended, how many tokens, how long each phase took."""
    timings = last.timings
    return {
        "finish_reason": last.finish_reason,
        "num_prompt_tokens": timings.num_prompt_tokens,
        "num_visual_tokens": timings.num_visual_tokens,
        "num_new_tokens": timings.num_new_tokens,
        "timings_ms": {
            **laps_ms,
            "vision": round(timings.vision_seconds * 1000, 3),
            "prefill": round(timings.prefill_seconds * 1000, 3),
            "decode": round(timings.decode_seconds * 1000, 3),
        },
        "decode_tokens_per_second": round(timings.decode_tokens_per_second, 3),
    }


def identity(bundle: "Bundle") -> dict[str, str]:
    """Which bundle answered."""
    manifest = bundle.manifest
    return {
        "path": str(bundle.directory),
        "key": manifest.key,
        "dtype": manifest.dtype,
        "precision": manifest.precision_text,
        "source": manifest.source.name,
    }


def answer_summary(result: dict[str, Any]) -> str:
    """One line for a person."""
    timings_ms = result["timings_ms"]
    phases = ", ".join(
        f"{name} {timings_ms[name]:.0f} ms" for name in ("load", "vision", "prefill", "decode")
    )
    return (
        f"[{result['num_prompt_tokens']} prompt tokens ({result['num_visual_tokens']} visual), "
        f"{result['num_new_tokens']} new, {result['finish_reason']}; {phases}; "
        f"{result['decode_tokens_per_second']:.1f} tokens/s]"
    )


def logprobs_json(events: "Sequence[TokenEvent]", processor: "Processor") -> list[dict[str, Any]]:
    """How likely each token of an answer was."""

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        return {
            "token_id": token_id,
            "token": processor.tokenizer.decode([token_id], skip_special_tokens=False),
            "logprob": round(logprob, 6),
        }

    return [
        {**entry(event.token_id, told.logprob), "top": [entry(*one) for one in told.top]}
        for event in events
        if (told := event.logprobs) is not None
    ]


def picture_to_draw_on(path: Path, messages: Sequence[Mapping[str, Any]], template_source: str) -> Any:
    """Where the conversation's one picture stands; asked before the answer, which would be lost with the drawing.

    Args:
        path: where the drawing goes.
        messages: the conversation.
        template_source: of the chat template, which may name further roles.

    Raises:
        UserError: there is not one picture, or the place is none for a drawing.
    """
    from PIL import Image

    from export.processor.text.chat import media_from_conversation
    from export.processor.text.conversation import read_conversation

    media = media_from_conversation(read_conversation(messages, template_source))
    if [medium.kind for medium in media] != ["image"]:
        raise UserError(
            f"--draw needs a conversation with one picture, this one has {len(media)} pictures or videos."
        )
    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise UserError(
            f"--draw {path}: no picture is written with the ending {path.suffix!r}.", "Take .png."
        )
    if not path.absolute().parent.is_dir():
        raise UserError(
            f"--draw {path} cannot be written: {path.absolute().parent} is no folder.", "Make it first."
        )
    return media[0].source


def draw_located(path: Path, located: "Sequence[Located]", source: Any) -> None:
    """Draw what an answer located on the conversation's one picture, which `picture_to_draw_on` found.

    Raises:
        UserError: the place cannot be written.
    """
    from PIL import ImageDraw

    from export.processor.images import load_image
    from export.processor.media.data_urls import source_from_text

    picture = load_image(source_from_text(source, "image")).convert("RGB")
    pen = ImageDraw.Draw(picture)
    width = max(2, max(picture.size) // 200)
    for number, one in enumerate(located):
        color = _BOX_COLORS[number % len(_BOX_COLORS)]
        points = list(one.pixels or ())
        if one.kind == "point":
            (x, y), radius = points[0], 2 * width
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=color, width=width)
        elif one.kind == "box":
            corners = [sorted(values) for values in zip(*points, strict=True)]
            pen.rectangle(
                (corners[0][0], corners[1][0], corners[0][1], corners[1][1]), outline=color, width=width
            )
        else:
            pen.line([*points, points[0]], fill=color, width=width)
        if one.label:
            pen.text((points[0][0] + width, points[0][1] + width), one.label, fill=color)
    try:
        picture.save(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be written: {error}.", "Choose another place for --draw.") from None
