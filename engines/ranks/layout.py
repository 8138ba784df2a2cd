"""Which of several ranks does what."""

from dataclasses import dataclass

from export.errors import UserError


@dataclass(frozen=True)
class Layout:
    """A decoder's stages over ranks, one each; every rank encodes images, those beyond the last stage nothing else."""

    num_ranks: int
    num_stages: int

    def stage_of(self, rank: int) -> int | None:
        """The stage that a rank holds, or None."""
        return rank if rank < self.num_stages else None

    @property
    def last(self) -> int:
        """The rank that computes the logits."""
        return self.num_stages - 1


def layout_of(num_ranks: int, num_stages: int) -> Layout:
    """Lay a bundle's decoder out.

    Raises:
        UserError: it has more stages than there are ranks.
    """
    if num_ranks < num_stages:
        raise UserError(
            f"--ranks {num_ranks}: this bundle's decoder has {num_stages} stages, each a rank of its own.",
            f"Ask for --ranks {num_stages}, or more, which encode images.",
        )
    return Layout(num_ranks, num_stages)
