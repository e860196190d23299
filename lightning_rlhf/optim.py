"""Optimizers and schedules: `AdamTF`, the update that the 2019 code used, and the linear anneal (by optimizer steps, which is by
examples seen where the batch divides them).

The 2019 code's Adam (TensorFlow's) adds epsilon *outside* the bias correction:

    p <- p - lr * sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + eps)

while `torch.optim.Adam` divides by sqrt(v / (1 - beta2^t)) + eps. At the paper's eps = 1e-5 the PyTorch form moves far
more in the first steps. Choose by class path in the config: `lightning_rlhf.optim.AdamTF` or `torch.optim.Adam`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch.optim.adam import adam
from torch.optim.lr_scheduler import LambdaLR

from .tasks import UsageError


class AdamTF(torch.optim.Optimizer):
    """Adam with epsilon outside the bias correction (TensorFlow 1's `AdamOptimizer`; Kingma & Ba 2015, end of §2).

    Args:
        params: Parameters or parameter groups.
        lr: Learning rate, 0 or more.
        betas: Decay of the first and the second moment, each in [0, 1).
        eps: Added to sqrt(v), uncorrected.

    Raises:
        UsageError: An argument is out of its range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-5,
    ) -> None:
        if not 0 <= lr < math.inf:
            raise UsageError(f"lr: found {lr}, expected 0 or more")
        if eps < 0:
            raise UsageError(f"eps: found {eps}, expected 0 or more")
        if not (0 <= betas[0] < 1 and 0 <= betas[1] < 1):
            raise UsageError(f"betas: found {tuple(betas)}, expected both in [0, 1)")
        super().__init__(params, dict(lr=lr, betas=tuple(betas), eps=eps))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient; returns the closure's loss, if there is a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            params = [p for p in group["params"] if p.grad is not None]
            for p in params:
                if not self.state[p]:
                    self.state[p]["step"] = torch.zeros((), dtype=torch.float32)
                    self.state[p]["exp_avg"] = torch.zeros_like(p)
                    self.state[p]["exp_avg_sq"] = torch.zeros_like(p)
                self.state[p]["step"] += 1
            alike: dict[tuple[int, bool], list[torch.Tensor]] = {}
            for p in params:
                state = self.state[p]
                dense = all(x.stride() == p.stride() for x in (p.grad, state["exp_avg"], state["exp_avg_sq"]))
                alike.setdefault((int(state["step"]), dense), []).append(p)
            for (t, dense), some in alike.items():
                # lr √b₂/b₁ · m/(√v + eps) = lr/b₁ · m/(√v/√b₂ + eps/√b₂) with b = 1 − βᵗ: torch's form at another eps
                eps = group["eps"] / math.sqrt(1 - beta2**t)
                grads = [cast(torch.Tensor, p.grad) for p in some]
                m, v = ([self.state[p][key] for p in some] for key in ("exp_avg", "exp_avg_sq"))
                before = [step for p in some for step in torch.full((1,), t - 1.0, device=p.device)]  # `adam` counts on
                adam(
                    some, grads, m, v, [], before, fused=dense, foreach=False, amsgrad=False, beta1=beta1, beta2=beta2,
                    lr=group["lr"], weight_decay=0.0, eps=eps, maximize=False,
                )  # fmt: skip
        return loss


def linear_anneal(optimizer: torch.optim.Optimizer, total: int) -> LambdaLR:
    """lr_u = lr (1 - u / total) for step u = 0, 1, … (Ziegler et al. 2019); constant inside a PPO iteration.

    Args:
        optimizer: Its lr is scaled.
        total: Number of steps of the schedule, at least 1.

    Raises:
        UsageError: `total` is below 1.
    """
    if total < 1:
        raise UsageError(f"total: found {total}, expected at least 1")
    return LambdaLR(optimizer, lambda step: max(0.0, 1.0 - step / total))
