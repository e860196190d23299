"""PPO's networks: how policy, value network, reference and reward are built, and what each says of a batch of episodes.

They share what they can: frozen blocks run once (`trainable_layers`), equal frozen weights are in memory once, and a reference
that is the policy without its adapters is the policy. A reward whose sign is wrong is refused before the first rollout.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn

from .blocks import blocks_of, checkpointed, compiled
from .data import PromptBatch
from .decode import family_of
from .generation import truncate
from .logprobs import head_logprobs, head_logprobs_and_kl
from .lora import adapters_off, add_lora, read_weights
from .memory import SharedWeights, to_dtype
from .models import VALUE_HEAD, is_reward, load_lm, readable_weights
from .objective import AdaptiveKL, FixedKL
from .optim import linear_anneal
from .ppo_setup import PPOSetup
from .scalar import ScalarHead, load_scalar
from .scoring import GUARD_PAIR, LearnedReward, RewardFunction, call_reward, guard, load_reward, weighted_sum
from .tasks import UsageError, stop_ids, task_tokens
from .tokens import bos_ids, decode, vocabulary
from .trunks import SplitTrunk, hidden_states


@dataclass(frozen=True)
class Scorer:
    """One reward of the sum, and how it reads responses."""

    weight: float
    reward: LearnedReward | RewardFunction
    same_tokens: bool  # a learned one with the policy's tokenizer reads token ids
    split: SplitTrunk | None  # its top blocks, where the ones below are the policy's


class Outputs(NamedTuple):
    """What a pass of the policy gives for the R response places: (B, R) each."""

    logprobs: Tensor
    values: Tensor
    entropy: Tensor  # without a gradient
    kl: Tensor | None  # exact, to the reference, where it is needed; 0 where masked
    ref_logprobs: Tensor | None  # with it


class PPONetworks(PPOSetup):
    """The networks of PPO; the options are those of `PPOSetup`."""

    # -------------------------------------------------------------------------------------------------------- built

    def configure_model(self) -> None:
        """Load policy, value head, reference and reward, once."""
        if hasattr(self, "policy"):
            return
        lm = load_lm(self.policy_name)
        self.policy, self.tokenizer, self.pad_id = lm.model, lm.tokenizer, lm.pad_id
        self.value_head = ScalarHead(self.policy.get_input_embeddings().weight.shape[1])
        if self.value == "shared" and self.value_init is not None:
            self._take_value_head(self.value_init)
        self.resolved = task_tokens(self.task, self.tokenizer)
        self.stop: tuple[int, ...] = ()
        if self.mode == "eos":
            self.stop = stop_ids(self.tokenizer, self.stop_token, "model.stop_token")
        self.kl = FixedKL(self.kl_coef) if self.kl_target is None else AdaptiveKL(self.kl_coef, self.kl_target, self.kl_horizon)
        if self.compile_blocks or self.gradient_checkpointing:
            blocks_of(self.policy)  # told now
        if self.compile_sampler and family_of(self.policy) is None:
            own = f"{type(self.policy).__name__} is sampled by its own forward"
            rank_zero_warn(f"model.compile_sampler: found true, and a {own}, which is not compiled")
        self.split = SplitTrunk(self.policy, self.trainable_layers) if self.trainable_layers is not None else None
        shared = SharedWeights()
        self._hold(shared, self.policy, trained=True)
        self.value_trunk, self.value_split = None, None
        if self.value == "separate":
            self.value_trunk = self._value_trunk()
            self.value_split = self._split_like_the_policy(self.value_trunk)
            self._hold(shared, self.value_trunk, trained=True)
        self.reference, self.ref_split = self._reference(), None
        if self.reference is not None:
            self.ref_split = self._split_like_the_policy(self.reference)
            self._hold(shared, self.reference)
        self.scorers = [self._scorer(part.weight, load_reward(part.reward)) for part in self.parts]
        self.held_out = load_reward(self.held_out_reward) if self.held_out_reward else None
        rewards = [scorer.reward for scorer in self.scorers]
        self.reward, self.more_rewards = rewards[0], nn.ModuleList(r for r in rewards[1:] if isinstance(r, nn.Module))
        for reward in (*rewards, self.held_out):
            if isinstance(reward, LearnedReward):
                reward.requires_grad_(False)
                reward.even = self.sharded
                self._hold(shared, reward.scalar.trunk, adapter=Path(reward.directory) / "adapter")
        for network in () if self.sharded else shared.networks:
            to_dtype(network, getattr(torch, self.frozen_dtype))

    def _take_value_head(self, directory: str) -> None:
        """The value head of an earlier PPO, which the export of a policy has beside it."""
        with readable_weights(directory):
            found = read_weights(Path(directory) / VALUE_HEAD)
        if (width := tuple(found["weight"].shape)) != (own := tuple(self.value_head.weight.shape)):
            raise UsageError(f"model.value_init: {directory}: found a value head {width}, expected {own}")
        self.value_head.load_state_dict(found)

    def _hold(self, shared: SharedWeights, network: Any, trained: bool = False, adapter: Path | None = None) -> None:
        """Settle what of a network trains, and hold its frozen weights in their type and in memory once."""
        if not trained:
            network.requires_grad_(False)
        elif self.lora is not None:
            add_lora(network, self.lora, self.seed)
        merged = self.lora is not None and any((Path(part.reward) / "adapter").is_dir() for part in self.parts)
        if self.sharded or not merged:  # a merged adapter is told from weights that are not rounded yet
            to_dtype(network, getattr(torch, self.frozen_dtype))
        if self.sharded:  # each network by itself: a weight stands in one place alone
            self.shard(network)
        else:
            shared.add(network, adapter)

    def _split_like_the_policy(self, network: Any) -> SplitTrunk | None:
        """A network cut where the policy is, if the blocks below serve both; None where they do not, or nothing is cut."""
        return self.split.shared_with(network) if self.split is not None else None

    def _reference(self) -> Any:
        """The reference; None where it is the policy with its adapters off."""
        if self.lora is not None and self.reference_name == self.policy_name:
            return None
        reference = load_lm(self.reference_name).model
        if reference.get_input_embeddings().weight.shape[0] != self.policy.get_input_embeddings().weight.shape[0]:
            raise UsageError(f"model.reference: {self.reference_name} and {self.policy_name} have different vocabularies")
        return reference

    def _value_trunk(self) -> Any:
        """The separate value network's trunk; a reward directory's head and gain go into the value head."""
        name = self.value_init or self.policy_name
        if not is_reward(name):
            lm = load_lm(name)
            trunk, tokenizer, width = lm.model.base_model, lm.tokenizer, lm.model.get_input_embeddings().weight.shape[1]
            self.value_head = ScalarHead(width)
        else:
            scalar, tokenizer, _ = load_scalar(name)
            trunk, width = scalar.trunk, scalar.head.weight.shape[1]
            self.value_head = ScalarHead(width)
            with torch.no_grad():
                self.value_head.weight.copy_(scalar.gain * scalar.head.weight)
                self.value_head.bias.copy_(scalar.gain * scalar.head.bias + scalar.bias)
        if vocabulary(tokenizer) != vocabulary(self.tokenizer):
            raise UsageError(f"model.value_init: {name} and {self.policy_name} have different vocabularies")
        return trunk

    def _scorer(self, weight: float, reward: LearnedReward | RewardFunction) -> Scorer:
        """How a reward reads responses."""
        if not isinstance(reward, LearnedReward):
            return Scorer(weight, reward, False, None)
        same_tokens = vocabulary(reward.tokenizer) == vocabulary(self.tokenizer)
        same_tokens = same_tokens and bos_ids(reward.tokenizer) == bos_ids(self.tokenizer)
        no_affixes = list(self.resolved.prefix) == bos_ids(self.tokenizer) and not self.resolved.suffix
        shares = self.split is not None and same_tokens and no_affixes
        return Scorer(weight, reward, same_tokens, self.split.shared_with(reward.scalar.trunk) if shares else None)  # type: ignore[union-attr]

    @property
    def reward_split(self) -> SplitTrunk | None:
        """The first reward's top blocks, where the ones below are the policy's."""
        return self.scorers[0].split

    def configure_optimizers(self) -> Any:
        """The chosen optimizer; lr_u = lr (1 − u / updates), constant within an iteration; the updates are those of
        data.total_episodes, however early the Trainer stops."""
        optimizer = self.optimizer(self.trained_parameters())
        return [optimizer], [linear_anneal(optimizer, self.trainer.datamodule.batches)]  # type: ignore[attr-defined]

    # ------------------------------------------------------------------------------------------------------ guarded

    def on_fit_start(self) -> None:
        """Guard the reward's sign before the first rollout."""
        super().on_fit_start()
        self.began = time.perf_counter()
        try:
            if self.learned and self.guard_comparisons:
                self.guard_result = guard(self.whole_reward(), self.guard_comparisons, self.tokenizer)
            if self.guard_pairs:
                pairs = self._guard_pairs(self.guard_pairs)
                self.guard_result = pairs if self.guard_result["kind"] == "none" else {**self.guard_result, "pairs": pairs["n"]}
            if self.guard_result["kind"] == "none":
                how = "guard_comparisons (for a learned one), guard_pairs"
                rank_zero_warn(f"PPO starts UNGUARDED: nothing checks the sign of the reward ({how})")
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
        prompts, better, worse = ([p[k] for p in pairs] for k in GUARD_PAIR)
        columns = {k: [p.get(k) for p in pairs] for k in sorted({"reference"}.union(*pairs) - {*GUARD_PAIR})}
        high, low = (call_reward(self.whole_reward(), prompts, texts, columns) for texts in (better, worse))
        for pair, h, l in zip(pairs, high, low, strict=True):
            if not h > l:
                order = f"{pair['better']!r} scores {h:.4f}, not above {pair['worse']!r} with {l:.4f}"
                raise UsageError(f"the reward was refused: guard_pairs: {order}")
        return {"kind": "pairs", "n": len(pairs)}

    def whole_reward(self) -> RewardFunction:
        """The weighted sum, as a function of texts."""
        return weighted_sum([s.weight for s in self.scorers], [s.reward for s in self.scorers])

    # ------------------------------------------------------------------------------------------------------- passes

    def features(self, tokens: Tensor, mask: Tensor, seen: Tensor | None) -> Tensor | None:
        """(B, P + R, D), the frozen blocks' output, where only top blocks train: what the sampler saw, or of a pass."""
        if self.split is None:
            return None
        return self.split.below(tokens, mask) if seen is None else seen

    def policy_outputs(self, tokens: Tensor, mask: Tensor, features: Tensor | None, reference: Tensor | None = None) -> Outputs:
        """(B, P + R) → what the policy says of the R response places; their exact KL to the reference (B, R, D), if given."""
        hidden = self.policy_hidden(tokens, mask, features)
        values, temperature = self.values_of(hidden, tokens, mask, features), self.task.temperature
        of, labels = self.real_of(hidden, mask), self.real_of(self.response(tokens), mask)
        if reference is None:
            logprobs, entropy = head_logprobs(self.policy, of, labels, temperature, self.compile_blocks)
            return Outputs(self.spread(logprobs, mask), values, self.spread(entropy, mask), None, None)
        against = self.reference or self.policy
        found = head_logprobs_and_kl(self.policy, of, labels, against, self.real_of(reference, mask), temperature)
        logprobs, entropy, kl, ref_logprobs = (self.spread(x, mask) for x in found)
        return Outputs(logprobs, values, entropy, kl, ref_logprobs)

    def policy_hidden(self, tokens: Tensor, mask: Tensor, features: Tensor | None) -> Tensor:
        """(B, P + R) → (B, R, D): the policy at the place before each response token."""
        with compiled(self.policy, self.compile_blocks), checkpointed(self.policy, self.gradient_checkpointing):
            hidden = hidden_states(self.policy, tokens, mask) if features is None else self.split.above(features, mask)  # type: ignore[union-attr]
        return self.before_response(hidden)

    def before_response(self, hidden: Tensor) -> Tensor:
        """(B, P + R, D) → (B, R, D): the place before each response token."""
        return hidden[:, -self.task.response_length - 1 : -1]

    def response(self, whole: Tensor) -> Tensor:
        """(B, P + R) → (B, R), the response places."""
        return whole[:, -self.task.response_length :]

    def real_of(self, values: Tensor, mask: Tensor) -> Tensor:
        """(B, R, …), (B, P + R) → (n, …): of the real response places alone; as it is where all are, or where nothing is cut."""
        return values[self.response(mask)] if self.cuts_padding and self.mode != "fixed" else values

    def spread(self, values: Tensor, mask: Tensor) -> Tensor:
        """What `real_of` gives, (n,) or (B, R) → (B, R): 0 on the places that are not real."""
        real = self.response(mask)
        if values.shape == real.shape:
            return torch.where(real, values, 0.0)
        return values.new_zeros(real.shape).masked_scatter(real, values)

    def values_of(self, hidden: Tensor, tokens: Tensor, mask: Tensor, features: Tensor | None) -> Tensor:
        """The policy's (B, R, D) → (B, R), or the separate value network's own values."""
        if self.value_trunk is not None:
            shared = features is not None and self.value_split is not None
            with compiled(self.value_trunk, self.compile_blocks), checkpointed(self.value_trunk, self.gradient_checkpointing):
                whole = self.value_split.above(features, mask) if shared else hidden_states(self.value_trunk, tokens, mask)  # type: ignore[union-attr,arg-type]
            hidden = self.before_response(whole)
        return self.value_head(hidden)

    def reference_hidden(self, tokens: Tensor, mask: Tensor, features: Tensor | None) -> Tensor:
        """(B, P + R) → (B, R, D) of the reference: where it is None, the policy with its adapters off."""
        if self.reference is None:
            with adapters_off(self.policy), compiled(self.policy, self.compile_blocks):
                return self.before_response(hidden_states(self.policy, tokens, mask))
        shared = features is not None and self.ref_split is not None
        with compiled(self.reference, self.compile_blocks):
            hidden = self.ref_split.above(features, mask) if shared else hidden_states(self.reference, tokens, mask)  # type: ignore[union-attr,arg-type]
        return self.before_response(hidden)

    def reference_logprobs(self, hidden: Tensor, tokens: Tensor, mask: Tensor, outputs: Outputs) -> Tensor:
        """(B, R, D), (B, P + R) → (B, R): log-probs of the reference, its logits divided by the temperature too."""
        if outputs.ref_logprobs is not None:
            return outputs.ref_logprobs
        of, labels = self.real_of(hidden, mask), self.real_of(self.response(tokens), mask)
        found, _ = head_logprobs(self.reference or self.policy, of, labels, self.task.temperature, self.compile_blocks)
        return self.spread(found, mask)

    def ended(self, responses: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Responses as they are scored (B, R), what of them is kept (B, R) bool, whether they ended as they should (B,)."""
        if self.mode != "eos":
            return truncate(responses, self.resolved.truncate, self.task.truncate_after, 0)
        ends = real & torch.isin(responses, torch.tensor(self.stop, device=responses.device))
        special = torch.tensor(self.tokenizer.all_special_ids, device=responses.device)
        return responses, real & ~(ends & torch.isin(responses, special)), ends.any(1)

    def score(self, batch: PromptBatch, responses: Tensor, mask: Tensor, features: Tensor | None) -> tuple[Tensor, Tensor]:
        """Scores (B,) of what is kept of the responses, and whether they ended as they should (B,)."""
        tokens, kept, found = self.ended(responses, mask[:, -responses.shape[1] :])
        rows = [r[:n] for r, n in zip(tokens.tolist(), kept.sum(1).tolist(), strict=True)]
        texts = [decode(self.tokenizer, r, continuation=True) for r in rows] if not self.only_tokens else []
        scores = torch.zeros(len(rows), device=found.device)
        for scorer in self.scorers:
            if scorer.split is not None and features is not None:
                part = self._score_features(scorer, features, torch.cat([mask[:, : -responses.shape[1]], kept], 1))
            elif scorer.same_tokens:
                part = scorer.reward.score_tokens([q + r for q, r in zip(batch.queries, rows, strict=True)])  # type: ignore[union-attr]
            else:
                part = torch.tensor(call_reward(scorer.reward, batch.texts, texts, batch.columns), device=found.device)
            scores = scores + scorer.weight * part.float()
        if not bool(scores.isfinite().all()):
            wrong = f"{int((~scores.isfinite()).sum())} of {len(scores)} scores are not finite at iteration {self.updates}"
            raise UsageError(f"model.reward: {wrong}, expected finite numbers")
        return self.bounded(scores, found), found

    def bounded(self, scores: Tensor, found: Tensor) -> Tensor:
        """Clipped scores (B,), and the penalty in place of those of responses that did not end as they should."""
        if self.score_clip is not None:
            scores = scores.clamp(-self.score_clip, self.score_clip)
        return scores if self.penalty is None else torch.where(found, scores, self.penalty)

    @property
    def penalty(self) -> float | None:
        """The score of a response that did not end as it should; None: its own."""
        return self.task.penalty if self.missing_eos_penalty is None else self.missing_eos_penalty

    @property
    def only_tokens(self) -> bool:
        """Whether no reward reads texts."""
        return all(scorer.same_tokens for scorer in self.scorers)

    def _score_features(self, scorer: Scorer, features: Tensor, mask: Tensor) -> Tensor:
        """(B, P + R, D) of the shared blocks → (B,)."""
        assert scorer.split is not None and isinstance(scorer.reward, LearnedReward)
        index = torch.arange(len(features), device=features.device)
        return torch.cat([
            scorer.reward.scalar.score_hidden(scorer.split.above(features[i], mask[i]), mask[i])
            for i in index.split(self._micro(len(index)))
        ])  # fmt: skip

    @property
    def cuts_padding(self) -> bool:
        """Whether a pass leaves out columns that are padding in all of its rows, and logits of places that are not real.

        Where the update's passes have the rollout's rows, they round alike; permuted minibatches would not. Compiled blocks want
        few shapes.
        """
        return self.num_mini_batches == 1 and not self.compile_blocks

    def _micro(self, rows: int) -> int:
        """Episodes a forward pass."""
        return self.micro_batch_size or rows
