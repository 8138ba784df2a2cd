"""The reference itself as what is validated, on a device and in a dtype: shows what a sound engine does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from export.bundle import Bundle
from export.dtypes import GRAPH_DTYPES
from export.install import install_command, missing_modules

if TYPE_CHECKING:
    from engines.session import Engine, ProbeSession


@dataclass(frozen=True)
class ReferenceTarget:
    """The reference on one device. Loads PyTorch when it is asked for more than its name."""

    name: str
    device: str
    dtypes: tuple[str, ...] = GRAPH_DTYPES

    def missing(self) -> str | None:
        """Why it cannot run here, with what would help; None where it can."""
        if missing_modules("validate"):
            return f"--target {self.name} needs PyTorch. Install it: {install_command('validate')}"
        import torch  # noqa: PLC0415 - nothing else needs it

        if self.device == "cuda" and not torch.cuda.is_available():
            return f"--target {self.name} needs an NVIDIA GPU and a PyTorch for CUDA. Use --target torch."
        return None

    def open(self, bundle: Bundle, dtype: str, num_slots: int, capacity: int) -> Engine:
        """Its sessions, weights in `dtype`."""
        from validate.reference.sessions import open_reference  # noqa: PLC0415 - torch

        return open_reference(bundle.directory, dtype, self.device, num_slots, capacity)

    def probe(self, bundle: Bundle, dtype: str) -> ProbeSession:
        """The same, showing its inner values."""
        from validate.reference.sessions import ReferenceProbes  # noqa: PLC0415 - torch

        return ReferenceProbes(bundle.directory, dtype, self.device)


REFERENCE_TARGETS = {
    target.name: target for target in (ReferenceTarget("torch", "cpu"), ReferenceTarget("torch-cuda", "cuda"))
}
