"""PPO from a reward: prompts → a policy directory (Ziegler et al. 2019, §2.2 and its code; PPO: 1707.06347).

One `training_step` is one PPO iteration: rollout, rewards and advantages, inner epochs × minibatches × micro-batches, the
schedule, the KL controller, one log. The batch is on-policy by construction and a checkpoint falls between iterations.

Deviations from the 2019 code:
1. Rewards and advantages are whitened, and GAE is run, once an iteration over the global batch of all ranks; 2019 did it
   within each rank's minibatch, which is the same at one rank and one minibatch.
2. The old log-probabilities and values are not the sampler's: they come from the function, the precision and the padding of
   the update, so that the first minibatch's ratio is 1; where one pass holds the whole batch, that pass, with its graph, is
   the first inner epoch's.
3. A mean KL that is negative beyond its noise stops the run; a step whose loss or gradient is not finite is skipped and
   counted, and too many stop it (`alarms.py` has the rest, which warn).
4. With a KL estimator other than k1, a token's own term in its advantage stays k1: E[k1 ∇ log π] is the gradient of the
   token's KL, while k2 and k3 have another one and the exact KL, which does not depend on the token, none.
5. With `kl_loss` c above 0 the policy loss has c β E[exact KL of a token] beside the penalty in the reward: the same gradient
   without the noise of sampled tokens (as GRPO, 2402.03300, eq. 3, there with k3), for runs of a few thousand episodes.
6. `mode: eos` (2020): the reward sees the response without a special stop token, as comparisons hold it.
7. `mode: truncated`: the task of 2019, but what was sampled after the truncate token, which no reward sees, is not learned from,
   as nothing after EOS is in 2020: the score stands on the last token that is scored, KL and losses end there.

    lightning-rlhf fit -c configs/sentiment/ppo.yaml -c configs/sentiment/stories260k/ppo.yaml
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.nn import functional as F

from .alarms import Vitals, negative_kl, repeated_bigrams
from .data import PromptBatch
from .generation import sample_with, seed_for, until
from .models import save_policy
from .objective import (
    AdaptiveKL,
    FixedKL,
    full_kl,
    gae,
    kl_estimate,
    kl_rewards,
    masked_mean,
    penalised,
    policy_loss,
    value_loss,
    whiten,
)
from .ppo_networks import PPONetworks
from .scalar import ScalarModel, save_reward
from .scoring import call_reward
from .sharding import average_gradients, clip_gradients, gathered, gradient_norm
from .tasks import UsageError
from .tokens import decode
from .validation import Answer, figures, gather, metric_figures, write_table

__all__ = [
    "AdaptiveKL",
    "FixedKL",
    "PPOModule",
    "full_kl",
    "gae",
    "kl_estimate",
    "kl_rewards",
    "penalised",
    "policy_loss",
    "value_loss",
    "whiten",
]

STATISTICS = (
    "ppo/loss/policy", "ppo/loss/value", "ppo/loss/total", "ppo/policy/entropy", "ppo/policy/approxkl", "ppo/policy/clipfrac",
    "ppo/val/vpred", "ppo/val/error", "ppo/val/clipfrac",
)  # fmt: skip


def _mean(values: list[float], weights: list[float]) -> float:
    """Weighted; NaN of nothing."""
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights) if values else math.nan


@dataclass(frozen=True)
class Rollout:
    """What one iteration sampled, on one rank: B episodes, prompts of P places, responses of R."""

    tokens: Tensor  # (B, P + R)
    mask: Tensor  # (B, P + R) bool
    features: Tensor | None  # (B, P + R, D): frozen blocks' output, where only top blocks train
    logprobs: Tensor  # (B, R), of the policy before the update
    values: Tensor  # (B, R), before each token
    ref_logprobs: Tensor  # (B, R)
    sampler_error: Tensor  # (B,): largest difference of its tokens' log-probs from the sampler's own
    full_kl: Tensor | None  # (B, R): exact KL before each token, where that estimator is chosen
    reference: Tensor | None  # (B, R, D): the reference before each response token, where the loss has the exact KL
    scores: Tensor  # (B,)
    found: Tensor  # (B,) bool: it ended as it should, by the truncate token or a stop token
    kept: Tensor  # (B, R) bool: what is scored of the response

    @property
    def real(self) -> Tensor:
        """(B, R) bool: the response's tokens that are learned from; all of them in mode `fixed`."""
        return self.mask[:, -self.logprobs.shape[1] :]

    def rows(self, index: Tensor, cut: bool = False) -> Rollout:
        """Some of its episodes; `cut`: without the columns that are padding in all of them."""
        picked: dict[str, Any] = {k: None if v is None else v[index] for k, v in vars(self).items()}
        left, whole = padded_columns(picked["mask"]) if cut else 0, ("tokens", "mask", "features")
        picked.update({k: picked[k][:, left:] for k in whole if picked[k] is not None})
        return replace(self, **picked)


def padded_columns(mask: Tensor) -> int:
    """How many columns on the left of (B, P + R) have no real token."""
    return int((~mask.any(0)).long().cumprod(0).sum())


class PPOModule(PPONetworks):
    """Trains a policy against a reward with PPO; the options are those of `PPOSetup`."""

    # ---------------------------------------------------------------------------------------------------- iteration

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """One PPO iteration (PAPERS: 2019, `train_policy.py`, `step`)."""
        self._validate_what_is_due()
        began, beta = time.perf_counter(), self.kl.coef
        # 1. rollout: sample, score, reference and old log-probs
        rollout = self.rollout(batch)
        # 2. rewards, whitening and GAE over the batch of all ranks
        k1 = kl_estimate(rollout.logprobs, rollout.ref_logprobs, rollout.real)
        kl = self.kl_of(rollout, k1)
        rewards = penalised(rollout.scores, kl, rollout.real, kl_coef=beta, level=self.kl_level)
        own = None if self.kl_estimator == "k1" else beta * (kl - k1) * self.reach(rollout.real)
        advantages, returns = self.advantages(rewards, rollout.values, rollout.real, own)
        # 3. inner epochs × minibatches × micro-batches
        stats = self.update(rollout, advantages, returns)
        # 4. controller (the β used above is the one from before it), schedule, log, alarms
        per_response, sampled_kl = self.gathered(kl.sum(1)), self.gathered(k1.sum(1))
        mean_kl = per_response.mean().item()
        self._alarm(sampled_kl)
        if math.isfinite(mean_kl):  # else the steps were skipped, and counted
            self.kl.update(mean_kl, len(per_response))
        stats["ppo/lr"] = float(self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
        self.lr_schedulers().step()  # type: ignore[union-attr]
        self.updates += 1
        self.episodes += len(per_response)
        if self.kl_estimator != "k1":
            stats["objective/kl_k1"] = sampled_kl.mean().item()
        seconds = time.perf_counter() - began
        if self.compile_blocks and self.updates == 1 and self.trainer.is_global_zero:
            print(f"compiled blocks: first iteration {seconds:.1f} s", flush=True)
        logged = self._log(rollout, returns, mean_kl, beta, stats, seconds)
        self._judge(logged)

    def gathered(self, values: Tensor) -> Tensor:
        """The global batch: rows of all ranks, (B, …) → (ranks · B, …)."""
        return self.all_gather(values).flatten(0, 1) if self.trainer.world_size > 1 else values  # type: ignore[union-attr]

    def kl_of(self, rollout: Rollout, k1: Tensor) -> Tensor:
        """The chosen estimate of the KL, a token: (B, R), 0 where masked."""
        if self.kl_estimator == "k1":
            return k1
        if rollout.full_kl is not None:
            return torch.where(rollout.real, rollout.full_kl, 0.0)
        return kl_estimate(rollout.logprobs, rollout.ref_logprobs, rollout.real, self.kl_estimator)

    def reach(self, real: Tensor) -> Tensor | float:
        """How much of a token's own KL is in its advantage (B, R): all; (γλ)^(places to the last token), if that has the sum."""
        if self.kl_level == "token":
            return 1.0
        places = torch.arange(real.shape[1], device=real.device)
        return (self.gamma * self.lam) ** (real.sum(1, keepdim=True) - 1 - places).clamp_min(0)

    @torch.no_grad()
    def advantages(self, rewards: Tensor, values: Tensor, real: Tensor, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Whitened advantages and returns of this rank's rows, with the global batch's statistics: (B, R) each.

        Args:
            rewards, values, real: (B, R), this rank's.
            own: (B, R), what a token's own advantage has beside them, in the rewards' unit.
        """
        rewards, values, real = self.gathered(rewards), self.gathered(values), self.gathered(real.float()).bool()
        own = None if own is None else self.gathered(own)
        if self.whiten_rewards:
            if own is not None:
                own = own * torch.rsqrt(masked_mean((rewards - masked_mean(rewards, real)) ** 2, real) + 1e-8)
            rewards = whiten(rewards, real, shift_mean=False)
        advantages, returns = gae(rewards, values, real, gamma=self.gamma, lam=self.lam)
        advantages = whiten(advantages if own is None else advantages + own, real)
        share = len(values) // self.trainer.world_size
        mine = slice(self.global_rank * share, (self.global_rank + 1) * share)
        return advantages[mine], returns[mine]

    @torch.no_grad()
    def rollout(self, batch: PromptBatch, seed: int | None = None) -> Rollout:
        """Sample, score, and take the log-probs that the update compares with; `seed` None: this iteration's."""
        torch.clear_autocast_cache()  # weights cast before the last optimizer step must not be used again
        # 1. exactly R tokens a prompt, or up to a stop token, at the task's temperature
        chosen = seed_for(self.seed, self.updates, self.global_rank) if seed is None else seed
        length, temperature = self.task.response_length, self.task.temperature
        prompts, prompts_mask = self.widened(batch)
        watched = self.split.first if self.split and not torch.is_autocast_enabled(self.device.type) else None
        ends = () if self.sharded else self.ends  # sharded: as many passes on every rank
        first = self.task.truncate_after if self.mode == "truncated" else 0
        with gathered(self.policy):
            drawn = sample_with(
                self.policy, prompts, prompts_mask, length, temperature, chosen, watch=watched, stop=ends, pad_id=self.pad_id,
                compiled=self.compile_sampler, stop_after=first,
            )  # fmt: skip
        responses, real = drawn.tokens, torch.ones_like(drawn.tokens, dtype=torch.bool)
        if self.mode == "eos":
            responses, real, _ = until(responses, self.stop, self.pad_id)
        elif self.mode == "truncated":
            _, real, _ = self.ended(responses, real)
        tokens, mask = torch.cat([prompts, responses], 1), torch.cat([prompts_mask, real], 1)
        index = torch.arange(len(tokens), device=tokens.device)
        micro = self._micro(max(1, len(index) // self.num_mini_batches))
        keep = seed is None and micro >= len(index)  # one pass of all rows is the first inner epoch's too
        # 2. log-probs of policy and reference, values, frozen features
        names = ("features", "logprobs", "values", "ref_logprobs", "full_kl", "reference")
        parts: dict[str, list[Tensor]] = {name: [] for name in names}
        passes = self.passes(index, mask, micro)
        for i in passes:
            left = padded_columns(mask[i]) if self.cuts_padding else 0
            part, real_part = tokens[i, left:], mask[i, left:]
            features = self.features(part, real_part, None if drawn.inputs is None else drawn.inputs[i, left:])
            if keep:
                torch.clear_autocast_cache()  # the sampler's casts have no graph
            reference = self.reference_hidden(part, real_part, features)
            exact = reference if self.kl_loss or self.kl_estimator == "full" else None
            with torch.set_grad_enabled(keep or (self.compile_blocks and seed is None)):  # without, another function is compiled
                outputs = self.policy_outputs(part, real_part, features, exact)
            self.first_pass = outputs if keep else None
            parts["logprobs"].append(outputs.logprobs.detach())
            parts["values"].append(outputs.values.detach())
            parts["ref_logprobs"].append(self.reference_logprobs(reference, part, real_part, outputs))
            if self.kl_loss:
                parts["reference"].append(reference)
            if self.kl_estimator == "full":
                parts["full_kl"].append(outputs.kl.detach())  # type: ignore[union-attr]
            if features is not None:
                parts["features"].append(F.pad(features, (0, 0, left, 0)))
            del outputs  # and its graph, before the next pass
        order = torch.cat(passes).argsort()
        whole = {k: torch.cat(v)[order] if v else None for k, v in parts.items()}
        # 3. the truncated response is what is scored; one that did not end as it should gets the penalty
        _, kept, _ = self.ended(responses, real)
        scores, found = self.score(batch, responses, mask, whole["features"])
        torch.clear_autocast_cache()  # cast without a graph: of no use to the update
        error = torch.where(real, drawn.logprobs - whole["logprobs"], 0.0).abs().amax(1)  # type: ignore[operator]
        return Rollout(tokens=tokens, mask=mask, scores=scores, found=found, kept=kept, sampler_error=error, **whole)  # type: ignore[arg-type]

    def widened(self, batch: PromptBatch) -> tuple[Tensor, Tensor]:
        """Prompts and their mask (B, P); where blocks are compiled, padded so that P + R is a multiple of 8: few widths."""
        missing = -(batch.tokens.shape[1] + self.task.response_length) % 8 if self.compile_blocks else 0
        if not missing:
            return batch.tokens, batch.mask
        return F.pad(batch.tokens, (missing, 0), value=self.pad_id), F.pad(batch.mask, (missing, 0), value=False)

    @property
    def ends(self) -> Sequence[int]:
        """Tokens after which nothing counts, so that the sampler may stop there; none in mode `fixed`."""
        if self.mode == "truncated" and self.resolved.truncate is not None:
            return [self.resolved.truncate]
        return self.stop if self.mode == "eos" else ()

    def passes(self, index: Tensor, mask: Tensor, micro: int) -> tuple[Tensor, ...]:
        """Rows of (B, P + R) in passes of so many; where padding is cut, those with the longest prompts first."""
        if self.cuts_padding and micro < len(index):
            prompts = mask[index, : -self.task.response_length].sum(1)
            index = index[prompts.argsort(descending=True, stable=True)]
        return index.split(micro)

    def minibatches(self, n: int) -> Iterator[tuple[Tensor, ...]]:
        """Row numbers of each inner epoch's minibatches: a fresh permutation an epoch, where there are several.

        One minibatch is the batch itself: in the rollout's order the first pass gives the rollout's log-probs bit for bit.
        """
        generator = torch.Generator().manual_seed(seed_for(self.seed + 1, self.updates, self.global_rank))
        for _ in range(self.num_ppo_epochs):
            rows = torch.randperm(n, generator=generator) if self.num_mini_batches > 1 else torch.arange(n)
            yield rows.to(self.device).split(n // self.num_mini_batches)

    def update(self, rollout: Rollout, advantages: Tensor, returns: Tensor) -> dict[str, float]:
        """Clipped policy and value losses; returns the means of their statistics over the real tokens of all optimizer steps, on
        all ranks."""
        done: list[dict[str, float]] = []
        tokens: list[float] = []  # of each step in `done`
        skipped, epochs, first_ratio_error = 0, 0, math.nan
        for epoch in self.minibatches(len(advantages)):
            before, epochs = len(done), epochs + 1
            for index in epoch:
                found = self.step(rollout, advantages, returns, index)
                ratio_error, count = found.pop("ppo/ratio_error"), found.pop("tokens")
                first_ratio_error = ratio_error if math.isnan(first_ratio_error) else first_ratio_error
                if all(math.isfinite(v) for v in found.values()):
                    done.append(found)
                    tokens.append(count)
                else:
                    skipped += 1
                    self._skipped(found)
            approxkl = _mean([f["ppo/policy/approxkl"] for f in done[before:]], tokens[before:])
            if self.target_kl is not None and approxkl > self.target_kl:
                break
        means = {name: _mean([f[name] for f in done], tokens) for name in STATISTICS}
        means["ppo/grad_norm"] = _mean([f["ppo/grad_norm"] for f in done], [1.0] * len(done))
        steps = {"ppo/epochs": float(epochs), "ppo/steps": float(len(done)), "ppo/skipped": float(skipped)}
        return {**means, "ppo/ratio_error": first_ratio_error, **steps}

    def step(self, rollout: Rollout, advantages: Tensor, returns: Tensor, index: Tensor) -> dict[str, float]:
        """One optimizer step on a minibatch of this rank's rows, skipped where the loss or a gradient is not finite.

        Returns:
            Means over the minibatch's real tokens on all ranks, not all finite where the step was skipped; and `tokens`, their
            number on a rank, in the mean.
        """
        optimizer = self.optimizers()
        optimizer.zero_grad()  # type: ignore[union-attr]
        real_tokens = self.gathered(rollout.real[index].sum().view(1)).sum().item() / self.trainer.world_size
        sums = dict.fromkeys(STATISTICS, 0.0)
        ratio_error = 0.0
        kept, self.first_pass = self.first_pass, None
        for i in self.passes(index, rollout.mask, self._micro(len(index))):
            part = rollout.rows(i, self.cuts_padding)
            outputs = kept or self.policy_outputs(part.tokens, part.mask, part.features, part.reference)
            logprobs, values, entropies, kl, _ = outputs
            pg, pg_stats = policy_loss(logprobs, part.logprobs, advantages[i], part.real, cliprange=self.cliprange)
            vf, vf_stats = value_loss(values, part.values, returns[i], part.real, cliprange_value=self.cliprange_value)
            loss = pg + self.vf_coef * vf
            if self.kl_loss:
                loss = loss + self.kl_loss * self.kl.coef * masked_mean(kl, part.real)  # type: ignore[arg-type]
            share = part.real.sum().item() / real_tokens  # of this minibatch's tokens; 1 over all ranks and micro-batches
            self.manual_backward(loss * share)
            with torch.no_grad():
                entropy = masked_mean(entropies, part.real)
                vpred = masked_mean(values, part.real)
            ratio_error = max(ratio_error, pg_stats["ratio_error"].item())
            figures = (
                pg, vf, loss, entropy, pg_stats["approxkl"], pg_stats["clipfrac"], vpred, vf_stats["error"], vf_stats["clipfrac"]
            )  # fmt: skip
            for name, value in zip(STATISTICS, figures, strict=True):
                sums[name] += share * value.item()
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]  # type: ignore[union-attr]
        if self.sharded:
            average_gradients(parameters)
        norm = gradient_norm(parameters)
        here = torch.tensor([*sums.values(), norm.item(), ratio_error], dtype=torch.float64, device=self.device)
        everywhere = self.gathered(here.unsqueeze(0))
        means = everywhere.mean(0).tolist()
        found = dict(zip([*STATISTICS, "ppo/grad_norm"], means, strict=False))
        if all(math.isfinite(v) for v in found.values()):  # the same on every rank
            if self.max_grad_norm is not None:
                clip_gradients(parameters, self.max_grad_norm, norm)
            optimizer.step()  # type: ignore[union-attr]
            torch.clear_autocast_cache()  # or the next forward would use the weights from before the step
        return {**found, "ppo/ratio_error": everywhere[:, -1].max().item(), "tokens": real_tokens}

    # ------------------------------------------------------------------------------------------------------- alarms

    def _skipped(self, found: dict[str, float]) -> None:
        """Count a step that was skipped; too many stop the run."""
        self.skipped_steps += 1
        wrong = ", ".join(f"{name} = {value}" for name, value in found.items() if not math.isfinite(value))
        text = f"found {wrong} at iteration {self.updates}, expected finite numbers; lower the learning rate"
        self.alarms.note("not_finite", text)
        if self.skipped_steps > self.max_skipped_steps:
            raise UsageError(f"{text} ({self.skipped_steps} steps skipped, model.max_skipped_steps = {self.max_skipped_steps})")
        rank_zero_warn(f"ALARM: {text}; the step was skipped")

    def _alarm(self, per_response: Tensor) -> None:
        """A mean KL well below 0 stops the run."""
        if text := negative_kl(per_response, self.kl_tolerance, self.updates):
            if not self.allow_negative_kl:
                raise UsageError(text + "; the sampling and the scoring distribution differ (--model.allow_negative_kl true)")
            self.alarms.note("negative_kl", text)
            rank_zero_warn(text)

    def _judge(self, logged: dict[str, float]) -> None:
        """The alarms that an iteration's figures raise."""
        vitals = Vitals(
            entropy=logged["ppo/policy/entropy"], repetition=logged["objective/repetition"], length=logged["objective/length"],
            penalised=0.0 if self.penalty is None else 1 - logged["objective/found"],
            var_explained=logged["ppo/val/var_explained"],
        )  # fmt: skip
        self._tell(self.alarms.judge(self.updates - 1, vitals))

    def _tell(self, texts: list[str]) -> None:
        """Warn, or stop where that was asked for."""
        for text in texts:
            if self.alarms.thresholds.stop:
                raise UsageError(f"alarm: {text} (model.alarms.stop)")
            rank_zero_warn(f"ALARM: {text}")

    # --------------------------------------------------------------------------------------------------- validation

    @torch.no_grad()
    def validation_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Answer held-out prompts, with the same seed each time, and keep what is needed of it."""
        seed = seed_for(self.seed + 2, batch_idx, self.global_rank)
        rollout = self.rollout(batch, seed)
        kl = kl_estimate(rollout.logprobs, rollout.ref_logprobs, rollout.real).sum(1).tolist()
        responses = rollout.tokens[:, -self.task.response_length :].tolist()
        rows = [r[:n] for r, n in zip(responses, rollout.kept.sum(1).tolist(), strict=True)]
        texts = [decode(self.tokenizer, row, continuation=True) for row in rows]
        held_out: list[Any] = [None] * len(texts)
        if self.held_out is not None:
            held_out = call_reward(self.held_out, batch.texts, texts, batch.columns)
        scores, found = rollout.scores.tolist(), rollout.found.tolist()
        first = batch_idx * self.trainer.datamodule.batch_size + self.global_rank  # type: ignore[attr-defined]
        references = batch.columns.get("reference", [None] * len(texts))
        total = len(self.trainer.datamodule.items["val"])  # type: ignore[attr-defined]
        texts = texts[: len(range(first, total, self.trainer.world_size))]  # without the row that filled up a share
        for i, text in enumerate(texts):
            index = first + i * self.trainer.world_size
            given = batch.columns["id"][i] if "id" in batch.columns else None
            id_ = str(index if given is None else given)
            self.answers.append(Answer(
                index, id_, batch.texts[i], text, references[i], seed, scores[i], kl[i], found[i], held_out[i]
            ))  # fmt: skip
        known = [i for i in range(len(texts)) if references[i] is not None]
        for metric in self.metrics if known else ():
            metric.update([texts[i] for i in known], [references[i] for i in known])  # type: ignore[operator]

    def on_validation_epoch_end(self) -> None:
        """Figures over all ranks' answers, alarms, and the table of samples."""
        answers, self.answers = gather(self.answers, self.trainer.world_size), []
        if self.trainer.sanity_checking or not answers:
            for metric in self.metrics:
                metric.reset()  # type: ignore[operator]
            return
        if self.updates == 0:
            self.first = answers
        elif self.first and not self.rescored:
            self.first = self._scored_anew(self.first)
        self.rescored = True
        found = figures(answers, None if self.first is None else [a.score for a in self.first])
        for number, metric in enumerate(self.metrics):
            called = torch.tensor([bool(metric.update_called)], device=self.device)  # type: ignore[union-attr]
            if self.gathered(called).any():
                values = metric_figures(metric)
                again = f"_{number}" if any(f"val/{name}" in found for name in values) else ""
                found.update({f"val/{name}{again}": value for name, value in values.items()})
                metric.reset()  # type: ignore[operator]
        self.figures.update(found)
        if self.trainer.training:  # `_validate_what_is_due`: what a training step logs, Lightning repeats at each later one
            for logger in self.loggers:
                logger.log_metrics(found, step=max(0, self.updates - 1))
            self.trainer.callback_metrics.update({name: torch.tensor(value) for name, value in found.items()})
        else:
            self.log_dict(found, batch_size=len(answers))
        self.validated = self.updates
        if self.held_out is not None:
            scores, held_out = [a.score for a in answers], [float(a.held_out or 0.0) for a in answers]
            self._tell(self.alarms.judge_validation(self.updates, scores, held_out))
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            table = Path(f"{self.output}.samples") / f"{self.updates:06d}.jsonl"
            write_table(table, answers, task=self.task.name, policy="ppo", iteration=self.updates)

    def _scored_anew(self, answers: list[Answer]) -> list[Answer]:
        """Answers to validation prompts with the scores of the reward that there is now; texts are encoded again."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        columns = data.collate([data.items["val"][a.index] for a in answers]).columns
        scores = call_reward(self.whole_reward(), [a.prompt for a in answers], [a.response for a in answers], columns)
        bounded = self.bounded(torch.tensor(scores), torch.tensor([a.stopped for a in answers])).tolist()
        return [replace(answer, score=score) for answer, score in zip(answers, bounded, strict=True)]

    def before_export(self) -> None:
        """The last validation, where a kill after the last checkpoint kept it from running."""
        with torch.no_grad(), self.trainer.precision_plugin.val_step_context():  # type: ignore[attr-defined]
            self._validate_what_is_due()

    def _validate_what_is_due(self) -> None:
        """Iteration 0's validation; and one that a kill, after a checkpoint, kept from running."""
        every = int(self.trainer.val_check_batch or 0)
        due = self.updates == 0 or (every and self.updates % every == 0)
        if not due or self.validated == self.updates:
            return
        batches = islice(self.trainer.datamodule.val_dataloader(), int(sum(self.trainer.num_val_batches)))  # type: ignore[attr-defined]
        for number, batch in enumerate(batches):
            self.validation_step(self.transfer_batch_to_device(batch, self.device, 0), number)
        self.on_validation_epoch_end()

    # ----------------------------------------------------------------------------------------------- log and export

    def _log(
        self, rollout: Rollout, returns: Tensor, kl: float, beta: float, stats: dict[str, float], seconds: float
    ) -> dict[str, float]:
        """One `log_dict`, with the names of the 2019 code; and the progress bar's figures. Returns what was logged."""
        here = (rollout.scores, rollout.logprobs, rollout.values, returns, rollout.real.float(), rollout.kept.float())
        scores, logprobs, values, returns, real, kept = (self.gathered(x) for x in here)
        responses = rollout.tokens[:, -kept.shape[1] :]
        values, returns = values[real.bool()], returns[real.bool()]
        score, variance = scores.mean().item(), returns.var(correction=0).item()
        elapsed = time.perf_counter() - self.began
        logged = {
            "objective/kl": kl, "objective/kl_coef": beta, "objective/score": score, "objective/score_total": score - beta * kl,
            "objective/entropy": -torch.where(real.bool(), logprobs, 0.0).sum(1).mean().item(),
            "objective/sampler_error": self.gathered(rollout.sampler_error).max().item(),
            "objective/found": self.gathered(rollout.found.float()).mean().item(),
            "objective/length": kept.sum(1).mean().item(),
            "objective/repetition": self.gathered(repeated_bigrams(responses, rollout.kept)).mean().item(),
            **stats,
            "ppo/returns/mean": returns.mean().item(), "ppo/returns/var": variance,
            "ppo/val/mean": values.mean().item(), "ppo/val/var": values.var(correction=0).item(),
            "ppo/val/var_explained": 1 - stats["ppo/val/error"] / variance if variance else math.nan,
            "elapsed/updates": float(self.updates), "elapsed/episodes": float(self.episodes),
            "elapsed/fps": len(scores) / seconds, "elapsed/time": elapsed,
        }  # fmt: skip
        self.log_dict(logged, batch_size=len(scores))
        self.figures.update({name: value for name, value in logged.items() if not name.startswith("elapsed/")})
        bar = {"score": score, "kl": kl, "beta": beta, "tok/s": real.sum().item() / seconds}
        self.log_dict(bar, prog_bar=True, logger=False, batch_size=len(scores))
        return logged

    def export(self) -> dict[str, Any]:
        """The policy's directory, with the value head in it; a separate value network as a reward directory, `value/`."""
        extra = {"weight": self.value_head.weight, "bias": self.value_head.bias}

        def value_network(directory: Path) -> None:
            value = ScalarModel(self.value_trunk, self.value_head.weight.shape[1], std=0.0)
            value.head = self.value_head
            info = {"task": self.task.name, "base": self.value_init or self.policy_name, "role": "value"}
            save_reward(directory / "value", value, self.tokenizer, info)

        more = None if self.value_trunk is None else value_network
        save_policy(self.output, self.policy, self.tokenizer, extra, self.policy_name, more)
        figures = {**{k: float(v) for k, v in self.trainer.callback_metrics.items() if "/" in k}, **self.figures}
        beside = {"guard": self.guard_result, "beta": self.kl.coef, "updates": self.updates}
        return {**figures, **beside, "skipped_steps": self.skipped_steps, "alarms": self.alarms.raised}
