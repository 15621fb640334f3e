"""Owns the optimizer of the training run: Muon for the blocks' matrices.

Muon (Jordan, 2024) makes every direction of a matrix's momentum equally large before it steps.
PyTorch's own version works in bfloat16, which a CPU without such units does a hundred times slower.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

# Jordan's coefficients: singular values end up between about 0.7 and 1.2 after five rounds.
_QUINTIC = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised steps, for parameters that are matrices."""

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.95, decay: float = 0.01
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self) -> None:
        """Steps all matrices, those of one shape together."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                moved = torch.stack([self._moved(p, group["momentum"]) for p in parameters])
                size = max(1.0, shape[0] / shape[1]) ** 0.5
                steps = orthogonalised(moved).unbind(0)
                torch._foreach_mul_(parameters, 1.0 - group["lr"] * group["decay"])
                torch._foreach_add_(parameters, steps, alpha=-group["lr"] * size)

    def _moved(self, parameter: Tensor, momentum: float) -> Tensor:
        """The gradient with Nesterov's momentum."""
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        grad = parameter.grad
        state["momentum"].lerp_(grad, 1.0 - momentum)
        return grad.lerp(state["momentum"], momentum)


def orthogonalised(matrices: Tensor, rounds: int = 5) -> Tensor:
    """Orthogonal matrices near the given ones `[batch, rows, columns]`, by Newton-Schulz rounds."""
    a, b, c = _QUINTIC
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(rounds):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
