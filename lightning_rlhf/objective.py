"""PPO's mathematics: whitening, advantages, KL estimators and controllers, the two clipped losses.

Pure functions of tensors, batch-first. `mask` is True at real response tokens (None: all are), statistics never touch masked
entries, and results are float32 at least. `ppo.py` imports every name of this file.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def wide(values: Tensor) -> Tensor:
    """float32 at least: half precision and integers become float32, float64 stays."""
    return values if values.dtype == torch.float64 else values.float()


def _mask(like: Tensor, mask: Tensor | None) -> Tensor:
    """The mask, or all True."""
    return torch.ones_like(like, dtype=torch.bool) if mask is None else mask.bool()


def check_alike(function: str, **tensors: Tensor | None) -> None:
    """Raise ValueError where shapes differ: torch would stretch one over the other, unseen. None is left out."""
    shapes = {name: tuple(t.shape) for name, t in tensors.items() if t is not None}
    if len(set(shapes.values())) > 1:
        found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"{function}: found {found}, expected the same shape")


def check_temperature(temperature: float) -> None:
    """Raise ValueError for a temperature that is not above 0."""
    if not temperature > 0:
        raise ValueError(f"found a temperature of {temperature}, expected one above 0")


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over real entries, 0 where there is none; masked ones are never touched, whatever they hold."""
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp_min(1)


def whiten(values: Tensor, mask: Tensor | None = None, shift_mean: bool = True) -> Tensor:
    """(x − mean) · rsqrt(var + 1e-8), population variance over every real entry (2019, `utils/core.py`).

    Args:
        values: (B, T).
        mask: (B, T) bool, True at real entries.
        shift_mean: False adds the mean back (for rewards).

    Returns:
        (B, T) float32, masked entries 0.

    Raises:
        ValueError: Shapes differ.
    """
    check_alike("whiten", values=values, mask=mask)
    real = _mask(values, mask)
    values = torch.where(real, wide(values), 0.0)  # garbage must not reach the square's gradient either
    mean = masked_mean(values, real)
    mean = mean + masked_mean(values - mean, real)  # float32's own error of a large mean: equal values become 0
    variance = masked_mean((values - mean) ** 2, real)
    white = (values - mean) * torch.rsqrt(variance + 1e-8)
    return torch.where(real, white if shift_mean else white + mean, 0.0)


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor | None = None, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (1506.02438, eq. 16) over the real tokens of each row, right-padded.

    δ_t = r_t + γ V_{t+1} − V_t, with V = 0 after the last real token;  A_t = δ_t + γ λ A_{t+1}.

    Args:
        rewards, values: (B, T).
        mask: (B, T) bool.
        gamma, lam: Discount, and the trace's decay.

    Returns:
        (advantages, returns = advantages + values), (B, T) float32 each, unwhitened, masked entries 0.

    Raises:
        ValueError: Shapes differ.
    """
    check_alike("gae", rewards=rewards, values=values, mask=mask)
    real = _mask(rewards, mask)
    rewards, values = torch.where(real, wide(rewards), 0.0), torch.where(real, wide(values), 0.0)
    running = next_value = rewards.new_zeros(len(rewards))
    advantages = torch.zeros_like(rewards)
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        step = delta + gamma * lam * running
        # a masked place hands on what came from later, so that a gap changes nothing
        running = torch.where(real[:, t], step, running)
        next_value = torch.where(real[:, t], values[:, t], next_value)
        advantages[:, t] = torch.where(real[:, t], step, 0.0)
    return advantages, advantages + values


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor | None = None, kind: str = "k1") -> Tensor:
    """A token's estimate of KL(π, ρ) from its two log-probs, d = log π − log ρ (Schulman, "Approximating KL divergence", 2020).

    k1 = d, unbiased;  k2 = d² / 2, biased, never negative;  k3 = e^(−d) − 1 + d, unbiased, never negative.

    Args:
        logprobs, ref_logprobs: (B, T), of tokens sampled from π.
        mask: (B, T) bool.
        kind: k1, k2 or k3.

    Returns:
        (B, T) float32, masked entries 0.

    Raises:
        ValueError: Another kind, or shapes differ.
    """
    check_alike("kl_estimate", logprobs=logprobs, ref_logprobs=ref_logprobs, mask=mask)
    d = torch.where(_mask(logprobs, mask), wide(logprobs) - wide(ref_logprobs), 0.0)
    if kind == "k1":
        return d
    if kind == "k2":
        return 0.5 * d**2
    if kind == "k3":
        return torch.expm1(-d) + d
    raise ValueError(f"kl_estimate: found kind {kind!r}, expected k1, k2 or k3")


def full_kl(logits: Tensor, ref_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Exact KL(π, ρ) of the next token over the vocabulary, Σ_v π_v (log π_v − log ρ_v): (B, T, V) twice → (B, T) float32.

    Both distributions are softmax(logits / temperature); a token that π cannot give counts 0. Raises ValueError where shapes
    differ or the temperature is not above 0.
    """
    check_alike("full_kl", logits=logits, ref_logits=ref_logits)
    check_temperature(temperature)
    log_pi, log_rho = (torch.log_softmax(wide(x) / temperature, -1) for x in (logits, ref_logits))
    log_ratio = torch.where(log_pi == -math.inf, 0.0, log_pi - log_rho)
    return (log_pi.exp() * log_ratio).sum(-1)


def penalised(scores: Tensor, kl: Tensor, mask: Tensor | None = None, *, kl_coef: float, level: str = "token") -> Tensor:
    """Reward a token: the score on the last real token, and −β KL on each token, or its sum on the last one.

    Args:
        scores: (B,).
        kl: (B, T).
        mask: (B, T) bool.
        kl_coef: β.
        level: `token` (2019, eq. 2, spread over tokens) or `sequence`.

    Returns:
        (B, T) float32, masked entries 0.

    Raises:
        ValueError: A row has no real token to put its score on, another level, or shapes that do not fit.
    """
    if level not in ("token", "sequence"):
        raise ValueError(f"penalised: found level {level!r}, expected token or sequence")
    check_alike("penalised", kl=kl, mask=mask)
    check_alike("penalised", scores=scores, rows_of_kl=kl.sum(1))
    real = _mask(kl, mask)
    if not bool(real.any(1).all()):
        raise ValueError(f"rewards: row {int((~real.any(1)).nonzero()[0])} has no real token, expected at least one")
    rows = torch.arange(len(real), device=real.device)
    last = torch.where(real, torch.arange(real.shape[1], device=real.device), -1).amax(1)
    rewards = torch.where(real, -kl_coef * wide(kl), 0.0)
    if level == "sequence":
        total = rewards.sum(1)
        rewards = torch.zeros_like(rewards)
        rewards[rows, last] = total
    rewards[rows, last] += wide(scores)
    return rewards


def kl_rewards(
    scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor | None = None, *, kl_coef: float
) -> tuple[Tensor, Tensor]:
    """Reward a token: −β (log π − log ρ), and the score on the last real token (2019, eq. 2, spread over tokens).

    Args:
        scores: (B,).
        logprobs, ref_logprobs: (B, T).
        mask: (B, T) bool.
        kl_coef: β.

    Returns:
        (rewards, kl), (B, T) float32 each, masked entries 0; kl = log π − log ρ.

    Raises:
        ValueError: A row has no real token to put its score on, or shapes that do not fit.
    """
    kl = kl_estimate(logprobs, ref_logprobs, mask)
    return penalised(scores, kl, mask, kl_coef=kl_coef), kl


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor | None = None, cliprange: float = 0.2
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean max(−A ρ, −A clip(ρ, 1 ± ε)), ρ = exp(new − old) (1707.06347, eq. 7).

    Args:
        logprobs, old_logprobs, advantages: (B, T).
        mask: (B, T) bool.
        cliprange: ε.

    Returns:
        (loss, {approxkl: ½ mean (new − old)², clipfrac: share of real tokens whose clipped loss is strictly the larger,
        ratio_error: largest |ρ − 1|}).

    Raises:
        ValueError: Shapes differ.
    """
    check_alike("policy_loss", logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages, mask=mask)
    real = _mask(logprobs, mask)
    difference = torch.where(real, wide(logprobs) - wide(old_logprobs), 0.0)
    gain = torch.where(real, wide(advantages), 0.0)
    low, high = 1 - cliprange, 1 + cliprange
    now = difference.detach().exp()
    # Which loss is the larger is decided first: a ratio that has overflowed would make 0 · inf = NaN of the other's gradient.
    clipped = ((gain > 0) & (now > high)) | ((gain < 0) & (now < low))
    ratio = torch.where(clipped | (gain == 0), 0.0, difference).exp()
    losses = -gain * torch.where(clipped, now.clamp(low, high), ratio)
    stats = {
        "approxkl": 0.5 * masked_mean(difference.detach() ** 2, real),
        "clipfrac": masked_mean(clipped.to(losses.dtype), real),
        "ratio_error": (now - 1).abs().max(),
    }
    return masked_mean(losses, real), stats


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor | None = None, cliprange_value: float = 0.2
) -> tuple[Tensor, dict[str, Tensor]]:
    """½ mean max((v − R)², (clip(v, v_old ± ε) − R)²) (2019, `train_policy.py`).

    Args:
        values, old_values, returns: (B, T).
        mask: (B, T) bool.
        cliprange_value: ε.

    Returns:
        (loss, {clipfrac: share whose clipped loss is strictly the larger, error: mean (v − R)²}).

    Raises:
        ValueError: Shapes differ.
    """
    check_alike("value_loss", values=values, old_values=old_values, returns=returns, mask=mask)
    real = _mask(values, mask)
    new, old, target = (torch.where(real, wide(x), 0.0) for x in (values, old_values, returns))
    clipped = torch.clamp(new, old - cliprange_value, old + cliprange_value)
    plain_error, clipped_error = (new - target) ** 2, (clipped - target) ** 2
    stats = {
        "clipfrac": masked_mean((clipped_error > plain_error).to(new.dtype), real),
        "error": masked_mean(plain_error.detach(), real),
    }
    return 0.5 * masked_mean(torch.maximum(plain_error, clipped_error), real), stats


class FixedKL:
    """A KL coefficient that stays (2019: summaries)."""

    def __init__(self, coef: float) -> None:
        self.coef = coef

    def update(self, kl: float, episodes: int) -> float:
        """Returns the coefficient."""
        return self.coef

    def state_dict(self) -> dict[str, float]:
        """The coefficient."""
        return {"coef": self.coef}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take it up."""
        self.coef = state["coef"]


class AdaptiveKL(FixedKL):
    """β ← β (1 + clip(KL / target − 1, ±0.2) · episodes / horizon) (2019, §2.2).

    Args:
        coef: First β.
        target: KL aimed at, nats a response, above 0.
        horizon: Episodes, above 0.
    """

    def __init__(self, coef: float, target: float, horizon: float) -> None:
        super().__init__(coef)
        if not (target > 0 and horizon > 0):
            raise ValueError(f"AdaptiveKL: found target {target} and horizon {horizon}, expected both above 0")
        self.target, self.horizon = target, horizon

    def update(self, kl: float, episodes: int) -> float:
        """Sets and returns the new coefficient, from the batch's mean KL and its number of episodes.

        Raises:
            ValueError: The KL is not finite, or the coefficient would change its sign.
        """
        kl = float(kl)
        if not math.isfinite(kl):
            raise ValueError(f"AdaptiveKL.update: found a KL of {kl}, expected a finite number")
        error = min(0.2, max(-0.2, kl / self.target - 1.0))
        factor = 1.0 + error * int(episodes) / self.horizon
        if not factor > 0:
            found = f"found {int(episodes)} episodes and a horizon of {self.horizon}"
            raise ValueError(f"AdaptiveKL.update: {found}, by which a KL of {kl} multiplies the coefficient by {factor:.3g}")
        self.coef *= factor
        return self.coef
