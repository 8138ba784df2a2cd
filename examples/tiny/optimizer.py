"""How do gradients become weights? bfloat16 weights for the products, float32 masters for the updates."""

from typing import Any

import torch
from torch import distributed, nn

MUON_RATE, ADAM_RATE = 0.02, 2e-3
MAX_GRADIENT_NORM = 1.0


class Optimizer:
    """Muon for the matrices, AdamW for embeddings, patch projection, norms and biases."""

    def __init__(self, model: nn.Module) -> None:
        self.weights = dict(model.named_parameters())
        self.masters = {name: nn.Parameter(weight.detach().float()) for name, weight in self.weights.items()}
        matrices = [name for name, weight in self.weights.items() if weight.ndim == 2 and "embed" not in name]
        others = [name for name in self.weights if name not in matrices]
        self.muon = torch.optim.Muon(
            [self.masters[name] for name in matrices], lr=MUON_RATE, momentum=0.95, weight_decay=0.01
        )
        self.adam = torch.optim.AdamW(
            [self.masters[name] for name in others], lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0
        )

    def step(self, rate: float) -> float:
        """Update with the weights' gradients; weights without one stay. Returns the gradient's norm.

        Args:
            rate: learning rate relative to its plateau.
        """
        for name, weight in self.weights.items():
            self.masters[name].grad = None if weight.grad is None else weight.grad.float()
            weight.grad = None
        norm = nn.utils.clip_grad_norm_(self.masters.values(), MAX_GRADIENT_NORM)
        for optimizer, plateau in ((self.muon, MUON_RATE), (self.adam, ADAM_RATE)):
            optimizer.param_groups[0]["lr"] = plateau * rate
            optimizer.step()
        self.copy_masters()
        return norm.item()

    @torch.no_grad()
    def average(self) -> None:
        """Take the mean of all processes' weights."""
        masters = list(self.masters.values())
        flat = torch.cat([master.flatten() for master in masters]).cpu()
        distributed.all_reduce(flat)
        flat /= distributed.get_world_size()
        for master, mean in zip(masters, flat.split([master.numel() for master in masters]), strict=True):
            master.copy_(mean.view_as(master))
        self.copy_masters()

    @torch.no_grad()
    def copy_masters(self) -> None:
        for name, weight in self.weights.items():
            weight.copy_(self.masters[name])

    def state_dict(self) -> dict[str, Any]:
        masters = {name: master.detach() for name, master in self.masters.items()}
        return {"masters": masters, "muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, master in self.masters.items():
            master.copy_(state["masters"][name])
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
        self.copy_masters()
