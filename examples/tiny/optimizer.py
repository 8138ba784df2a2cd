"""The optimizer: Muon for the matrices, AdamW for token embeddings, norms and biases."""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

MUON_RATE, ADAM_RATE = 0.02, 2e-3
MOMENTUM = 0.95
MAX_GRADIENT_NORM = 1.0
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of Muon's iteration towards the nearest orthogonal matrix (K. Jordan, github.com/KellerJordan/Muon)."""


class Optimizer:
    """One step for all weights.

    `torch.optim.Muon` iterates in bfloat16, one matrix at a time, which is slow on a CPU without bfloat16 units. Here
    it is float32, matrices of one shape together.
    """

    def __init__(self, model: nn.Module) -> None:
        self.weights = dict(model.named_parameters())
        self.matrices = [name for name, weight in self.weights.items() if _takes_muon(name, weight)]
        self.momenta = {name: torch.zeros_like(self.weights[name]) for name in self.matrices}
        others = [weight for name, weight in self.weights.items() if name not in self.momenta]
        self.adam = torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0, fused=True)

    def step(self, rate: float) -> float:
        """Update with the weights' gradients; weights without one stay. Returns the gradient's norm.

        Args:
            rate: learning rate relative to its plateau.
        """
        norm = nn.utils.clip_grad_norm_(self.weights.values(), MAX_GRADIENT_NORM)
        self.adam.param_groups[0]["lr"] = ADAM_RATE * rate
        self.adam.step()
        self._step_matrices(MUON_RATE * rate)
        for weight in self.weights.values():
            weight.grad = None
        return norm.item()

    @torch.no_grad()
    def _step_matrices(self, rate: float) -> None:
        by_shape = defaultdict(list)
        for name in self.matrices:
            if self.weights[name].grad is not None:
                by_shape[self.weights[name].shape].append(name)
        for shape, names in by_shape.items():
            rows, columns = shape[0], shape[1:].numel()
            gradients = torch.stack([self.weights[name].grad for name in names])  # type: ignore[misc]
            momenta = torch.stack([self.momenta[name] for name in names]).lerp_(gradients, 1 - MOMENTUM)
            updates = _orthogonalize(gradients.lerp_(momenta, MOMENTUM).view(-1, rows, columns))
            updates = updates.view_as(gradients) * max(1.0, rows / columns) ** 0.5
            for name, momentum, update in zip(names, momenta, updates, strict=True):
                self.momenta[name].copy_(momentum)
                self.weights[name].add_(update, alpha=-rate)

    def state_dict(self) -> dict[str, Any]:
        weights = {name: weight.detach() for name, weight in self.weights.items()}
        return {"weights": weights, "momenta": self.momenta, "adam": self.adam.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        for own, saved in ((self.weights, state["weights"]), (self.momenta, state["momenta"])):
            for name, tensor in own.items():
                tensor.copy_(saved[name])
        self.adam.load_state_dict(state["adam"])


def _takes_muon(name: str, weight: Tensor) -> bool:
    """Matrices, and the patch projection, which is one; not the table of token embeddings."""
    return weight.ndim > 1 and "embed_tokens" not in name


def _orthogonalize(matrices: Tensor) -> Tensor:
    """[N, rows, columns], each with its singular values drawn near one."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
