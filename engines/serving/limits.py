"""Bounds on what one request may hold, ask for and cost."""

from dataclasses import dataclass, fields

from export.errors import UserError

MAX_FIELD_BYTES = 1 << 20
"""Of all fields of a request but its messages, or of one that is a text of JSON."""


@dataclass(frozen=True)
class RequestLimits:
    """Bounds on one request. What decoding costs is bounded before anything is decoded.

    Raises:
        UserError: values out of range; all of them at once.
    """

    max_messages: int = 256
    max_parts: int = 2048
    """Texts, pictures and videos, all messages together."""
    max_text_characters: int = 200_000
    """All texts together, roles and other fields too: some 50,000 tokens, more than the model's context."""
    max_pictures: int = 32
    max_videos: int = 4
    max_media_bytes: int = 64 << 20
    """All files of a request together, as they come."""
    max_picture_pixels: int = 1 << 26
    """67 megapixels, all pictures of a request together, as their headers say."""
    strict_media: bool = False
    """Whether a picture or video with any damage is refused."""
    max_seen_frames: int | None = None
    """The most of a video that may be asked for; None: what the model knows."""
    max_video_frames: int = 36_000
    """Frames in a video's file, twenty minutes at 30 a second: all up to the last sampled one are decoded."""
    max_tokens: int = 4096
    """The largest `max_tokens` that may be asked for."""
    max_stop_strings: int = 16
    max_stop_characters: int = 1024
    """All stop strings together."""
    timeout_seconds: float = 600.0
    """The longest, and the default, for one answer."""
    max_context: int | None = None
    """Tokens of a KV slot: what cannot fit is refused before it is decoded."""

    def __post_init__(self) -> None:
        problems = [
            f"{field.name} must be above 0, found {value!r}"
            for field in fields(self)
            if not isinstance(value := getattr(self, field.name), bool | None) and not value > 0
        ]
        if problems:
            raise UserError("The server's limits are out of range:\n- " + "\n- ".join(problems))

    @property
    def max_message_bytes(self) -> int:
        """Of the messages' JSON: base64 takes four bytes for three of a picture."""
        return self.max_media_bytes * 4 // 3 + self.max_text_bytes

    @property
    def max_text_bytes(self) -> int:
        """Of the messages' JSON beside its pictures: an escape takes up to six bytes for a character."""
        return 6 * self.max_text_characters + self.max_structure_bytes

    @property
    def max_structure_bytes(self) -> int:
        """Of the messages' JSON outside of strings, indentation included; half as many strings."""
        return 128 * (self.max_messages + self.max_parts)
