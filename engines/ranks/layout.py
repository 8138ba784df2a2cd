"""Which of several ranks does what."""

from dataclasses import dataclass

from export.errors import UserError


@dataclass(frozen=True)
class Layout:
    """A decoder over ranks: stage by stage, and within a stage part by part. Every rank encodes images, too.

    With 2 stages of 2 parts each, ranks 0 and 1 hold the first stage, 2 and 3 the second; a rank 4 holds neither.
    """

    num_ranks: int
    num_stages: int
    num_parts: int = 1
    """Of each stage, which compute it together."""

    @property
    def num_decoding(self) -> int:
        """Ranks that hold a part of the decoder: the first ones."""
        return self.num_stages * self.num_parts

    def stage_of(self, rank: int) -> int | None:
        """The stage that a rank holds a part of, or None."""
        return rank // self.num_parts if rank < self.num_decoding else None

    def before(self, rank: int) -> int | None:
        """Whose hidden states a rank takes: those of its like in the stage before; None in the first."""
        return rank - self.num_parts if rank >= self.num_parts else None

    def after(self, rank: int) -> int | None:
        """Who takes a rank's hidden states; None in the last stage."""
        return rank + self.num_parts if rank + self.num_parts < self.num_decoding else None

    @property
    def answering(self) -> int:
        """The rank whose logits are the answer: the first of the last stage."""
        return self.num_decoding - self.num_parts


def layout_of(num_ranks: int, num_stages: int, num_parts: int = 1) -> Layout:
    """Lay a bundle's decoder out.

    Raises:
        UserError: it has more stages, or parts of them, than there are ranks.
    """
    layout = Layout(num_ranks, num_stages, num_parts)
    if num_ranks < layout.num_decoding:
        stages = f"{num_stages} stage{'s' if num_stages > 1 else ''}"
        parts = f" of {num_parts} parts" if num_parts > 1 else ""
        raise UserError(
            f"--ranks {num_ranks}: this bundle's decoder has {stages}{parts}, each a rank of its own.",
            f"Ask for --ranks {layout.num_decoding}, or more, which encode images.",
        )
    return layout
