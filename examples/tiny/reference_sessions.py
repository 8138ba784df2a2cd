"""The PyTorch reference behind the engines' interface, so that the same runtime drives it."""

from pathlib import Path

from export.models.qwen2_vl.model import load_reference
from validate.reference.sessions import ReferenceDecoder, ReferenceVision

CAPACITY = 640


def open_reference(checkpoint: Path, num_slots: int) -> tuple[ReferenceVision, ReferenceDecoder]:
    """The checkpoint in float32."""
    model = load_reference(checkpoint)
    return ReferenceVision(model), ReferenceDecoder(model, num_slots, CAPACITY)
