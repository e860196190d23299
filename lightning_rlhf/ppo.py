"""PPO from a reward: prompts → a policy directory (Ziegler et al. 2019, §2.2 and its code; PPO: 1707.06347).

One `training_step` is one PPO iteration: rollout, rewards and advantages, inner epochs × minibatches × micro-batches, the
schedule, the KL controller, one log. The batch is on-policy by construction and a checkpoint falls between iterations.

Deviations from the 2019 code:
1. Rewards and advantages are whitened, and GAE is run, once an iteration over the global batch of all ranks; 2019 did it
   within each rank's minibatch, which is the same at one rank and one minibatch.
2. The old log-probabilities and values are not the sampler's: they come from the function, the precision and the padding of
   the update, so that the first minibatch's ratio is 1.
3. A mean KL that is negative beyond its noise stops the run, and so does a loss that is not finite.

    lightning-rlhf fit -c configs/sentiment/ppo.yaml -c configs/sentiment/stories260k/ppo.yaml
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from pytorch_lightning.cli import OptimizerCallable
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from .data import PromptBatch
from .generation import sample, seed_for, truncate
from .models import (
    ScalarHead,
    SplitTrunk,
    bos_ids,
    decode,
    entropy_of,
    find_lm,
    hidden_states,
    load_lm,
    logits_of,
    save_policy,
    token_logprobs,
)
from .optim import AdamTF, linear_anneal
from .scoring import LearnedReward, call_reward, find_reward, guard, is_learned, load_reward
from .stage import StageModule, is_finite, told
from .tasks import Task, UsageError, task_tokens

# ------------------------------------------------------------------------------------------------------- pure maths


def _mask(like: Tensor, mask: Tensor | None) -> Tensor:
    """The mask, or all True."""
    return torch.ones_like(like, dtype=torch.bool) if mask is None else mask.bool()


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over real entries; masked ones are never touched, whatever they hold."""
    return torch.where(mask, values, 0.0).sum() / mask.sum()


def whiten(values: Tensor, mask: Tensor | None = None, shift_mean: bool = True) -> Tensor:
    """(x − mean) · rsqrt(var + 1e-8), population variance over every real entry (2019, `utils/core.py`).

    Args:
        values: (B, T).
        mask: (B, T) bool, True at real entries.
        shift_mean: False adds the mean back (for rewards).

    Returns:
        (B, T) float32, masked entries 0.
    """
    real = _mask(values, mask)
    values = torch.where(real, values.float(), 0.0)  # garbage must not reach the square's gradient either
    mean = masked_mean(values, real)
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
    """
    real = _mask(rewards, mask)
    rewards, values = torch.where(real, rewards.float(), 0.0), torch.where(real, values.float(), 0.0)
    running = next_value = torch.zeros_like(rewards[:, 0])
    advantages = torch.zeros_like(rewards)
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        step = delta + gamma * lam * running
        # a masked place hands on what came from later, so that a gap changes nothing
        running = torch.where(real[:, t], step, running)
        next_value = torch.where(real[:, t], values[:, t], next_value)
        advantages[:, t] = torch.where(real[:, t], step, 0.0)
    return advantages, advantages + values


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
        ValueError: A row has no real token to put its score on.
    """
    real = _mask(logprobs, mask)
    if not bool(real.any(1).all()):
        raise ValueError(f"kl_rewards: row {int((~real.any(1)).nonzero()[0])} has no real token, expected at least one")
    kl = torch.where(real, logprobs.float() - ref_logprobs.float(), 0.0)
    last = torch.where(real, torch.arange(real.shape[1], device=real.device), -1).amax(1)
    rewards = -kl_coef * kl
    rows = torch.arange(len(last), device=last.device)
    rewards[rows, last] += scores.float()
    return rewards, kl


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor | None = None, cliprange: float = 0.2
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean max(−A ρ, −A clip(ρ, 1 ± ε)), ρ = exp(new − old) (1707.06347, eq. 7).

    Args:
        logprobs, old_logprobs, advantages: (B, T).
        mask: (B, T) bool.
        cliprange: ε.

    Returns:
        (loss, {approxkl: ½ mean (new − old)², clipfrac: share of real tokens whose clipped loss is strictly the larger}).
    """
    real = _mask(logprobs, mask)
    difference = torch.where(real, logprobs.float() - old_logprobs.float(), 0.0)
    gain = torch.where(real, advantages.float(), 0.0)
    ratio = difference.exp()
    plain, clipped = -gain * ratio, -gain * ratio.clamp(1 - cliprange, 1 + cliprange)
    stats = {
        "approxkl": 0.5 * masked_mean(difference.detach() ** 2, real),
        "clipfrac": masked_mean((clipped > plain).float(), real),
        "ratio_error": (ratio.detach() - 1).abs().max(),
    }
    return masked_mean(torch.maximum(plain, clipped), real), stats


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
    """
    real = _mask(values, mask)
    new, old, target = (torch.where(real, x.float(), 0.0) for x in (values, old_values, returns))
    clipped = torch.clamp(new, old - cliprange_value, old + cliprange_value)
    plain_error, clipped_error = (new - target) ** 2, (clipped - target) ** 2
    stats = {
        "clipfrac": masked_mean((clipped_error > plain_error).float(), real),
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
            ValueError: The KL is not finite.
        """
        if not math.isfinite(kl):
            raise ValueError(f"AdaptiveKL.update: found a KL of {kl}, expected a finite number")
        error = min(0.2, max(-0.2, kl / self.target - 1.0))
        self.coef *= 1.0 + error * episodes / self.horizon
        return self.coef


# ------------------------------------------------------------------------------------------------------------ module


@dataclass(frozen=True)
class Rollout:
    """What one iteration sampled, on one rank: B episodes, prompts of P places, responses of R."""

    tokens: Tensor  # (B, P + R)
    mask: Tensor  # (B, P + R) bool
    features: Tensor | None  # (B, P + R, D): frozen blocks' output, where only top blocks train
    logprobs: Tensor  # (B, R), of the policy before the update
    values: Tensor  # (B, R), before each token
    ref_logprobs: Tensor  # (B, R)
    scores: Tensor  # (B,)
    found: Tensor  # (B,) bool: the truncate token is there

    def rows(self, index: Tensor) -> Rollout:
        """Some of its episodes."""
        picked: dict[str, Any] = {k: None if v is None else v[index] for k, v in vars(self).items()}
        return replace(self, **picked)


class PPOModule(StageModule):
    """Trains a policy against a reward with PPO; the value head stands on the policy's own trunk (2019).

    Args:
        policy: Model to start from: embedded name, directory, GGUF file or Hub id.
        reward: A reward directory, `known:NAME`, or any callable `module:function`.
        output: Directory of the trained policy.
        task: The task (set once, at the top of the config).
        reference: Model that the KL is taken to; null: the starting policy.
        guard_comparisons: Held-out comparisons that a learned reward must agree with above chance before PPO starts.
        guard_pairs: For a callable: a list of {prompt, better, worse} that it must order rightly before PPO starts.
        allow_unguarded: Start although nothing guards the reward's sign, or the guard refuses it.
        allow_other_task: Accept a reward that was made for another task.
        allow_negative_kl: Accept a negative kl_coef, and go on where the mean KL is negative.
        optimizer: Class and arguments; `lightning_rlhf.optim.AdamTF` is 2019's form, `torch.optim.Adam` the other.
        kl_coef: β, the KL coefficient at the start.
        kl_target: KL in nats a response that β adapts to; null: β is fixed.
        kl_horizon: Horizon of the adaption, in episodes.
        kl_tolerance: Mean KL may be so far below 0, in nats, beyond three standard errors, before the run stops.
        num_ppo_epochs: Inner epochs over each batch.
        num_mini_batches: Optimizer steps an inner epoch.
        micro_batch_size: Episodes a forward pass; null: a whole minibatch.
        vf_coef: Weight of the value loss.
        cliprange: Clip of the policy's ratio.
        cliprange_value: Clip of the value's change.
        gamma: Discount.
        lam: GAE's λ.
        whiten_rewards: Scale rewards to variance 1, keeping their mean.
        trainable_layers: Train only so many top blocks (and the value head); null: all parameters.
        seed: Of sampling and of the minibatches.
        overwrite: Replace an existing output.
    """

    def __init__(
        self,
        policy: str,
        reward: str,
        output: str,
        task: Task,
        reference: str | None = None,
        guard_comparisons: str | None = None,
        guard_pairs: list[dict[str, str]] | None = None,
        allow_unguarded: bool = False,
        allow_other_task: bool = False,
        allow_negative_kl: bool = False,
        optimizer: OptimizerCallable = lambda p: AdamTF(p, lr=1e-5),
        kl_coef: float = 0.15,
        kl_target: float | None = 6.0,
        kl_horizon: float = 10_000.0,
        kl_tolerance: float = 0.1,
        num_ppo_epochs: int = 4,
        num_mini_batches: int = 1,
        micro_batch_size: int | None = None,
        vf_coef: float = 0.1,
        cliprange: float = 0.2,
        cliprange_value: float = 0.2,
        gamma: float = 1.0,
        lam: float = 0.95,
        whiten_rewards: bool = True,
        trainable_layers: int | None = None,
        seed: int = 1,
        overwrite: bool = False,
    ) -> None:
        given = {k: v for k, v in locals().items() if k not in ("self", "__class__", "task", "seed", "optimizer", "guard_pairs")}
        super().__init__("ppo", output, task, seed, overwrite, given)
        self.automatic_optimization = False
        self.reference_name, self.policy_name, self.reward_name = reference or policy, policy, reward
        self.guard_comparisons, self.guard_pairs = guard_comparisons, guard_pairs
        self.allow_unguarded, self.allow_other_task, self.allow_negative_kl = allow_unguarded, allow_other_task, allow_negative_kl
        self.optimizer, self.kl_tolerance, self.kl_coef, self.kl_target = optimizer, kl_tolerance, kl_coef, kl_target
        self.num_ppo_epochs, self.num_mini_batches, self.micro_batch_size = num_ppo_epochs, num_mini_batches, micro_batch_size
        self.vf_coef, self.cliprange, self.cliprange_value = vf_coef, cliprange, cliprange_value
        self.gamma, self.lam, self.whiten_rewards = gamma, lam, whiten_rewards
        self.trainable_layers, self.kl_horizon = trainable_layers, kl_horizon
        self.updates = self.episodes = 0
        self.began = 0.0
        self.guard_result: dict[str, Any] = {"kind": "none"}

    # ------------------------------------------------------------------------------------------------------- set-up

    def check(self, data: Any, trainer: Any, resuming: bool) -> list[str]:
        """Every problem that the options alone show."""
        problems = super().check(data, trainer, resuming)
        for name in sorted({self.policy_name, self.reference_name}):
            problems += told(find_lm, name)
        problems += told(find_reward, self.reward_name, self.task.name, self.allow_other_task)
        # on a CPU Lightning has replaced it already: what was asked for counts
        precision = str((self.run_config or {}).get("trainer", {}).get("precision", trainer.precision))
        if precision in ("16", "16-mixed", "16-true"):
            problems.append(
                f"trainer.precision: found {precision}; PPO is refused under it, because the gradient scaler skips "
                "optimizer steps while the schedule and the KL controller go on; use bf16-mixed or 32-true"
            )
        if self.kl_coef < 0 and not self.allow_negative_kl:
            problems.append(
                f"model.kl_coef: found {self.kl_coef}; a negative one pays for leaving the reference "
                "(--model.allow_negative_kl true)"
            )
        if self.kl_target is not None and not (self.kl_target > 0 and self.kl_horizon > 0):
            found = f"{self.kl_target} and {self.kl_horizon}"
            problems.append(f"model.kl_target, model.kl_horizon: found {found}, expected both above 0")
        for option in ("num_ppo_epochs", "num_mini_batches"):
            if getattr(self, option) < 1:
                problems.append(f"model.{option}: found {getattr(self, option)}, expected at least 1")
        ranks = max(1, trainer.world_size)
        pieces = ranks * max(1, self.num_mini_batches)
        if data.batch_size % pieces:
            problems.append(
                f"data.batch_size: {data.batch_size} cannot be split into model.num_mini_batches = {self.num_mini_batches} "
                f"on {ranks} device(s)"
            )
        elif self.micro_batch_size is not None:
            minibatch = data.batch_size // pieces
            if self.micro_batch_size < 1 or minibatch % self.micro_batch_size:
                problems.append(
                    f"model.micro_batch_size: minibatches of {minibatch} cannot be split into micro-batches of "
                    f"{self.micro_batch_size}"
                )
        if is_learned(self.reward_name) and not self.guard_comparisons and not self.allow_unguarded:
            problems.append(
                "model.guard_comparisons: not given; a learned reward needs held-out comparisons (--model.allow_unguarded true)"
            )
        return problems

    def configure_model(self) -> None:
        """Load policy, value head, reference and reward, once."""
        if hasattr(self, "policy"):
            return
        lm = load_lm(self.policy_name)
        self.policy, self.tokenizer = lm.model, lm.tokenizer
        self.value_head = ScalarHead(self.policy.get_input_embeddings().weight.shape[1])
        self.reference = load_lm(self.reference_name).model
        if self.reference.get_input_embeddings().weight.shape[0] != self.policy.get_input_embeddings().weight.shape[0]:
            raise UsageError(f"model.reference: {self.reference_name} and {self.policy_name} have different vocabularies")
        self.reward = load_reward(self.reward_name)
        self.resolved = task_tokens(self.task, self.tokenizer)
        learned = self.reward if isinstance(self.reward, LearnedReward) else None
        self.same_tokens = learned is not None and _vocabulary(learned.tokenizer) == _vocabulary(self.tokenizer)
        self.kl = FixedKL(self.kl_coef) if self.kl_target is None else AdaptiveKL(self.kl_coef, self.kl_target, self.kl_horizon)
        self.split: SplitTrunk | None = None
        self.ref_split: SplitTrunk | None = None
        self.reward_split: SplitTrunk | None = None
        if self.trainable_layers is not None:
            self._share_trunk(self.trainable_layers)
        for frozen in (self.reference, self.reward):
            if isinstance(frozen, torch.nn.Module):
                frozen.requires_grad_(False)

    def _share_trunk(self, trained: int) -> None:
        """Cut the trunks; blocks below the cut are run once for every network whose parameters there are bit-equal."""
        self.split = SplitTrunk(self.policy, trained)
        self.ref_split = self.split.shared_with(self.reference)
        no_affixes = list(self.resolved.prefix) == bos_ids(self.tokenizer) and not self.resolved.suffix
        if isinstance(self.reward, LearnedReward) and self.same_tokens and no_affixes:
            self.reward_split = self.split.shared_with(self.reward.scalar.trunk)

    def configure_optimizers(self) -> Any:
        """The chosen optimizer; lr_u = lr (1 − u / updates), constant within an iteration."""
        optimizer = self.optimizer(p for p in self.parameters() if p.requires_grad)  # type: ignore[arg-type]
        return [optimizer], [linear_anneal(optimizer, int(self.trainer.estimated_stepping_batches))]

    def on_fit_start(self) -> None:
        """Guard the reward's sign before the first rollout."""
        super().on_fit_start()
        self.began = time.perf_counter()
        try:
            if is_learned(self.reward_name) and self.guard_comparisons:
                self.guard_result = guard(self.reward, self.guard_comparisons)  # type: ignore[arg-type]
            elif self.guard_pairs:
                self.guard_result = self._guard_pairs(self.guard_pairs)
            else:
                rank_zero_warn("PPO starts UNGUARDED: nothing checks the sign of the reward (guard_comparisons, guard_pairs)")
        except UsageError as error:
            if not self.allow_unguarded:
                raise
            rank_zero_warn(f"PPO starts ALTHOUGH {error}")
            self.guard_result = {"kind": "overridden", "why": str(error)}
        overrides = [name for name in ("allow_unguarded", "allow_other_task", "allow_negative_kl") if getattr(self, name)]
        if overrides:
            rank_zero_warn(f"PPO starts with checks overridden: {', '.join(overrides)}")
            self.guard_result["overrides"] = ", ".join(overrides)
        if self.kl_coef < 0:
            rank_zero_warn(f"PPO starts with a NEGATIVE kl_coef of {self.kl_coef}")

    def _guard_pairs(self, pairs: list[dict[str, str]]) -> dict[str, Any]:
        """Every pair must be ordered as the config says; raises UsageError."""
        prompts, better, worse = ([p[k] for p in pairs] for k in ("prompt", "better", "worse"))
        high, low = (call_reward(self.reward, prompts, texts, {}) for texts in (better, worse))  # type: ignore[arg-type]
        for pair, h, l in zip(pairs, high, low, strict=True):
            if not h > l:
                order = f"{pair['better']!r} scores {h:.4f}, not above {pair['worse']!r} with {l:.4f}"
                raise UsageError(f"the reward was refused: guard_pairs: {order}")
        return {"kind": "pairs", "n": len(pairs)}

    def stage_state(self) -> dict[str, Any]:
        """β and the counters; sampling needs no random state."""
        return {"kl": self.kl.state_dict(), "updates": self.updates, "episodes": self.episodes}

    def load_stage_state(self, state: dict[str, Any]) -> None:
        """Take them up."""
        self.kl.load_state_dict(state["kl"])
        self.updates, self.episodes = state["updates"], state["episodes"]

    # ---------------------------------------------------------------------------------------------------- iteration

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """One PPO iteration (PAPERS: 2019, `train_policy.py`, `step`)."""
        began, beta = time.perf_counter(), self.kl.coef
        # 1. rollout: sample, score, reference and old log-probs
        rollout = self.rollout(batch)
        # 2. rewards, whitening and GAE over the batch of all ranks
        rewards, kl = kl_rewards(rollout.scores, rollout.logprobs, rollout.ref_logprobs, kl_coef=beta)
        advantages, returns = self.advantages(rewards, rollout.values)
        # 3. inner epochs × minibatches × micro-batches
        stats = self.update(rollout, advantages, returns)
        # 4. controller (the β used above is the one from before it), schedule, log
        per_response = self.gathered(kl.sum(1))
        mean_kl = per_response.mean().item()
        self._alarm(per_response)
        self.kl.update(mean_kl, len(per_response))
        self.lr_schedulers().step()  # type: ignore[union-attr]
        self.updates += 1
        self.episodes += len(per_response)
        self._log(rollout, returns, mean_kl, beta, stats, time.perf_counter() - began)

    def gathered(self, values: Tensor) -> Tensor:
        """The global batch: rows of all ranks, (B, …) → (ranks · B, …)."""
        return self.all_gather(values).flatten(0, 1) if self.trainer.world_size > 1 else values  # type: ignore[union-attr]

    @torch.no_grad()
    def advantages(self, rewards: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Whitened advantages and returns of this rank's rows, with the global batch's statistics: (B, R) each."""
        rewards, values = self.gathered(rewards), self.gathered(values)
        if self.whiten_rewards:
            rewards = whiten(rewards, shift_mean=False)
        advantages, returns = gae(rewards, values, gamma=self.gamma, lam=self.lam)
        advantages = whiten(advantages)
        share = len(values) // self.trainer.world_size
        own = slice(self.global_rank * share, (self.global_rank + 1) * share)
        return advantages[own], returns[own]

    @torch.no_grad()
    def rollout(self, batch: PromptBatch) -> Rollout:
        """Sample, score, and take the log-probs that the update compares with."""
        torch.clear_autocast_cache()  # weights cast before the last optimizer step must not be used again
        # 1. exactly R tokens a prompt, at the task's temperature
        seed = seed_for(self.seed, self.updates, self.global_rank)
        responses = sample(self.policy, batch.tokens, batch.mask, self.task.response_length, self.task.temperature, seed)
        tokens = torch.cat([batch.tokens, responses], 1)
        mask = torch.cat([batch.mask, torch.ones_like(responses, dtype=torch.bool)], 1)
        index = torch.arange(len(tokens), device=tokens.device)
        micro = self._micro(len(index) // self.num_mini_batches)
        # 2. log-probs of policy and reference, values, frozen features
        parts: dict[str, list[Tensor]] = {"features": [], "logprobs": [], "values": [], "ref_logprobs": []}
        for i in index.split(micro):
            features = self.split.below(tokens[i], mask[i]) if self.split else None
            logprobs, values, _ = self.policy_outputs(tokens[i], mask[i], features)
            parts["logprobs"].append(logprobs)
            parts["values"].append(values)
            parts["ref_logprobs"].append(self.reference_logprobs(tokens[i], mask[i], features))
            if features is not None:
                parts["features"].append(features)
        whole = {k: torch.cat(v) for k, v in parts.items() if v}
        # 3. the truncated response is what is scored; one without the truncate token gets the penalty
        scores, found = self.score(batch, responses, mask, whole.get("features"))
        torch.clear_autocast_cache()  # cast without a graph: of no use to the update
        return Rollout(
            tokens, mask, whole.get("features"), whole["logprobs"], whole["values"], whole["ref_logprobs"], scores, found
        )

    def policy_outputs(self, tokens: Tensor, mask: Tensor, features: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(B, P + R) → log-probs, values, logits of the R response places: (B, R), (B, R), (B, R, V)."""
        hidden = hidden_states(self.policy, tokens, mask) if features is None else self.split.above(features, mask)  # type: ignore[union-attr]
        hidden = hidden[:, -self.task.response_length - 1 : -1]  # the place before each response token
        logits = logits_of(self.policy, hidden)
        logprobs = token_logprobs(logits, tokens[:, -self.task.response_length :], self.task.temperature)
        return logprobs, self.value_head(hidden), logits

    def reference_logprobs(self, tokens: Tensor, mask: Tensor, features: Tensor | None) -> Tensor:
        """(B, P + R) → (B, R): log-probs of the reference, its logits divided by the temperature too."""
        shared = features is not None and self.ref_split is not None
        hidden = self.ref_split.above(features, mask) if shared else hidden_states(self.reference, tokens, mask)  # type: ignore[union-attr,arg-type]
        hidden = hidden[:, -self.task.response_length - 1 : -1]
        labels = tokens[:, -self.task.response_length :]
        return token_logprobs(logits_of(self.reference, hidden), labels, self.task.temperature)

    def score(self, batch: PromptBatch, responses: Tensor, mask: Tensor, features: Tensor | None) -> tuple[Tensor, Tensor]:
        """Scores (B,) of the truncated responses, and whether the truncate token was found (B,)."""
        tokens, kept, found = truncate(responses, self.resolved.truncate, self.task.truncate_after, 0)
        lengths = kept.sum(1).tolist()
        if self.reward_split is not None and features is not None:
            assert isinstance(self.reward, LearnedReward)
            kept_mask = torch.cat([mask[:, : -responses.shape[1]], kept], 1)
            index = torch.arange(len(features), device=features.device)
            scores = torch.cat([
                self.reward.scalar.score_hidden(self.reward_split.above(features[i], kept_mask[i]), kept_mask[i])
                for i in index.split(self._micro(len(index)))
            ])  # fmt: skip
        elif self.same_tokens:
            rows = [q + r[:n] for q, r, n in zip(batch.queries, tokens.tolist(), lengths, strict=True)]
            scores = self.reward.score_tokens(rows)  # type: ignore[attr-defined,union-attr]
        else:
            texts = [decode(self.tokenizer, r[:n], continuation=True) for r, n in zip(tokens.tolist(), lengths, strict=True)]
            scores = torch.tensor(call_reward(self.reward, batch.texts, texts, batch.columns), device=found.device)  # type: ignore[arg-type]
        return torch.where(found, scores.float(), self.task.penalty), found

    def _micro(self, rows: int) -> int:
        """Episodes a forward pass."""
        return self.micro_batch_size or rows

    def minibatches(self, n: int) -> Iterator[Tensor]:
        """Row numbers of each minibatch: a fresh permutation an inner epoch."""
        generator = torch.Generator().manual_seed(seed_for(self.seed + 1, self.updates, self.global_rank))
        for _ in range(self.num_ppo_epochs):
            yield from torch.randperm(n, generator=generator).to(self.device).split(n // self.num_mini_batches)

    def update(self, rollout: Rollout, advantages: Tensor, returns: Tensor) -> dict[str, float]:
        """Clipped policy and value losses; returns the means of their statistics over all optimizer steps."""
        optimizer = self.optimizers()
        sums: dict[str, float] = {}
        first_ratio_error, steps = 0.0, 0
        for index in self.minibatches(len(advantages)):
            optimizer.zero_grad()  # type: ignore[union-attr]
            for i in index.split(self._micro(len(index))):
                part = rollout.rows(i)
                logprobs, values, logits = self.policy_outputs(part.tokens, part.mask, part.features)
                pg, pg_stats = policy_loss(logprobs, part.logprobs, advantages[i], cliprange=self.cliprange)
                vf, vf_stats = value_loss(values, part.values, returns[i], cliprange_value=self.cliprange_value)
                loss = pg + self.vf_coef * vf
                is_finite("ppo/loss/total", loss.detach(), self.updates)
                share = len(i) / len(index)
                self.manual_backward(loss * share)
                with torch.no_grad():
                    entropy = entropy_of(logits, self.task.temperature).mean()
                ratio_error = pg_stats.pop("ratio_error").item()
                if steps == 0:
                    first_ratio_error = max(first_ratio_error, ratio_error)
                figures = {
                    "ppo/loss/policy": pg, "ppo/loss/value": vf, "ppo/loss/total": loss, "ppo/policy/entropy": entropy,
                    "ppo/policy/approxkl": pg_stats["approxkl"], "ppo/policy/clipfrac": pg_stats["clipfrac"],
                    "ppo/val/vpred": values.mean(), "ppo/val/error": vf_stats["error"], "ppo/val/clipfrac": vf_stats["clipfrac"],
                }  # fmt: skip
                for name, value in figures.items():
                    sums[name] = sums.get(name, 0.0) + share * value.item()
            optimizer.step()  # type: ignore[union-attr]
            torch.clear_autocast_cache()  # or the next forward would use the weights from before the step
            steps += 1
        return {**{k: v / steps for k, v in sums.items()}, "ppo/ratio_error": first_ratio_error}

    def _alarm(self, per_response: Tensor) -> None:
        """A KL is not negative: a mean below 0 by more than tolerance and noise means that two distributions were mixed up."""
        mean = per_response.mean().item()
        noise = 3 * per_response.std().item() / math.sqrt(len(per_response)) if len(per_response) > 1 else math.inf
        if mean < -(self.kl_tolerance + noise):
            bound = f"-{self.kl_tolerance} - {noise:.3f} (noise)"
            text = f"mean KL to the reference is {mean:.3f} nats at iteration {self.updates}, below {bound}"
            if not self.allow_negative_kl:
                raise UsageError(text + "; the sampling and the scoring distribution differ (--model.allow_negative_kl true)")
            rank_zero_warn(text)

    def _log(self, rollout: Rollout, returns: Tensor, kl: float, beta: float, stats: dict[str, float], seconds: float) -> None:
        """One `log_dict`, with the names of the 2019 code; and the progress bar's figures."""
        here = (rollout.scores, rollout.logprobs, rollout.values, returns)
        scores, logprobs, values, returns = (self.gathered(x) for x in here)
        score, variance = scores.mean().item(), returns.var(correction=0).item()
        elapsed = time.perf_counter() - self.began
        self.log_dict({
            "objective/kl": kl, "objective/kl_coef": beta, "objective/score": score, "objective/score_total": score - beta * kl,
            "objective/entropy": -logprobs.sum(1).mean().item(),
            "objective/found": self.gathered(rollout.found.float()).mean().item(),
            **stats,
            "ppo/returns/mean": returns.mean().item(), "ppo/returns/var": variance,
            "ppo/val/mean": values.mean().item(), "ppo/val/var": values.var(correction=0).item(),
            "ppo/val/var_explained": 1 - stats["ppo/val/error"] / variance if variance else math.nan,
            "ppo/lr": float(self.optimizers().param_groups[0]["lr"]),  # type: ignore[union-attr]
            "elapsed/updates": float(self.updates), "elapsed/episodes": float(self.episodes),
            "elapsed/fps": len(scores) / seconds, "elapsed/time": elapsed,
        }, batch_size=len(scores))  # fmt: skip
        bar = {"score": score, "kl": kl, "beta": beta, "tok/s": len(scores) * self.task.response_length / seconds}
        self.log_dict(bar, prog_bar=True, logger=False, batch_size=len(scores))

    def export(self) -> dict[str, Any]:
        """The policy's directory, with the value head beside it."""
        extra = {"weight": self.value_head.weight, "bias": self.value_head.bias}
        save_policy(self.output, self.policy, self.tokenizer, extra)
        figures = {k: float(v) for k, v in self.trainer.callback_metrics.items() if "/" in k}
        return {**figures, "guard": self.guard_result, "beta": self.kl.coef, "updates": self.updates}


def _vocabulary(tokenizer: Any) -> dict[str, int]:
    """A tokenizer's vocabulary without the pad token that an export added."""
    return {k: v for k, v in tokenizer.get_vocab().items() if k != "<|pad|>"}
