"""The reward model: labels → a reward directory (Ziegler et al. 2019, §2.1–2.2; Stiennon et al. 2020, §3.4).

1. The language model with a scalar head, weight normal with standard deviation 1/√(d+1), bias 0, read at the last real token.
2. Normalise: gain and bias so that the reference policy's responses to training queries have reward mean 0, std 1 (for
   scalar labels: the labels' own).
3. One epoch of the loss of each record's label, the mean over the batch's records: softmax cross-entropy over the N rewards of
   best_of_N; −log σ of the difference of a pair; of a ranking the mean over its untied pairs; squared errors of scalar labels.
   Each response is run once, whatever the number of its pairs. Adam, lr annealed linearly to 0; no dropout.
4. Normalise again, to mean 0 and std 1; write the directory with the held-out figures.

Deviations from the 2019 code:
1. The second normalisation is composed with the trained gain, instead of resetting it to 1: a gain that training had turned
   negative would otherwise flip the sign of the reward. Where the gain is positive the two are the same.
2. Label types may be mixed. The first normalisation's target is then that of the ratings, where there are some, else that of
   the differences: a comparison leaves the scale free, a number does not.

    lightning-rlhf fit -c configs/sentiment/reward.yaml -c configs/sentiment/stories260k/reward.yaml
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import Any, Literal

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric

from .blocks import blocks_of, checkpointed
from .data import ComparisonBatch, Judged, policy_prompt
from .generation import sample, seed_for
from .heldout import Decision, accuracy, decisions, scalar_fit, summary
from .lora import LoRA, add_lora, lora_problems
from .models import find_policy, load_lm, position_problems
from .objective import check_alike, wide
from .optim import AdamTF, linear_anneal
from .records import Comparison, label_type
from .scalar import ScalarModel, classifier_problems, save_reward
from .sharding import gathered
from .stage import StageModule, is_finite
from .tasks import Task, UsageError, task_tokens, told
from .tokens import bos_ids, pad_batch
from .trunks import SplitTrunk, first_blocks

# ------------------------------------------------------------------------------------------------------------ losses


def best_of_n_loss(scores: Tensor, best: Tensor) -> Tensor:
    """Softmax cross-entropy over N rewards against the choice (2019, eq. 1): (B, N), (B,) long → scalar mean.

    A reward of −inf stands for no response. Chance for N = 4 is log 4 = 1.3863. Raises IndexError for a choice outside 0 … N − 1,
    ValueError for choices that are not integers.
    """
    if best.is_floating_point():
        raise ValueError(f"best_of_n_loss: found choices of {best.dtype}, expected integers")
    return F.cross_entropy(wide(scores), best.long(), ignore_index=-(2**31))  # torch's own, −100, would be left out unseen


def pairwise_loss(chosen: Tensor, rejected: Tensor, margin: Tensor | float | None = None) -> Tensor:
    """Mean of −log σ(r_chosen − r_rejected − margin) (Stiennon et al. 2020, §3.4): (B,), (B,) → scalar.

    Raises ValueError where the shapes differ; a margin may be one number.
    """
    check_alike("pairwise_loss", chosen=chosen, rejected=rejected)
    if isinstance(margin, Tensor) and margin.dim():
        check_alike("pairwise_loss", chosen=chosen, margin=margin)
    difference = wide(chosen) - wide(rejected)
    return -F.logsigmoid(difference if margin is None else difference - margin).mean()


def ranking_loss(scores: Tensor, ranks: Tensor, mask: Tensor | None = None) -> Tensor:
    """All pairs of a prompt's K responses (InstructGPT 2203.02155, eq. 1): (B, K), (B, K), (B, K) bool → scalar.

    Per prompt the mean of −log σ(r_better − r_worse) over its untied pairs, then the mean over prompts that have one.
    Rank 1 is best; ties allowed; mask is True at real candidates.

    Raises:
        ValueError: No prompt has an untied pair, or shapes that differ.
    """
    check_alike("ranking_loss", scores=scores, ranks=ranks, mask=mask)
    real = torch.ones_like(ranks, dtype=torch.bool) if mask is None else mask.bool()
    # pair[b, i, j]: i is better than j, both real
    pair = (ranks.unsqueeze(2) < ranks.unsqueeze(1)) & real.unsqueeze(2) & real.unsqueeze(1)
    count = pair.sum((1, 2))
    if not bool((count > 0).any()):
        raise ValueError("ranking_loss: no untied pair of real candidates in the batch, expected at least one")
    clean = torch.where(real, wide(scores), 0.0)
    nll = torch.where(pair, -F.logsigmoid(clean.unsqueeze(2) - clean.unsqueeze(1)), 0.0)
    per_prompt = nll.sum((1, 2)) / count.clamp_min(1)
    return per_prompt[count > 0].mean()


def rating_loss(scores: Tensor, ratings: Tensor) -> Tensor:
    """Mean squared error of rewards against scalar ratings (2019, `scalar_rating`): (B,), (B,) → scalar.

    Raises ValueError where the shapes differ.
    """
    check_alike("rating_loss", scores=scores, ratings=ratings)
    return (wide(ratings) - wide(scores)).square().mean()


def compare_loss(score0: Tensor, score1: Tensor, difference: Tensor) -> Tensor:
    """Mean of (difference − (r1 − r0))² (2019, `scalar_compare`): (B,), (B,), (B,) → scalar.

    Raises ValueError where the shapes differ.
    """
    check_alike("compare_loss", score0=score0, score1=score1, difference=difference)
    return (wide(difference) - (wide(score1) - wide(score0))).square().mean()


def normalisation(rewards: Tensor, mean: float = 0.0, std: float = 1.0) -> tuple[float, float]:
    """(gain, bias) so that gain · rewards + bias has the population mean and std asked for (2019, §2.2).

    Args:
        rewards: Any shape; at least two different finite values.
        mean, std: The target; std above 0.

    Raises:
        ValueError: A value is not finite, all values are the same, or the target is not finite with std above 0.
    """
    values = torch.as_tensor(rewards).detach().double().flatten()
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"normalisation: {int((~torch.isfinite(values)).sum())} of {values.numel()} rewards are not finite")
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
        raise ValueError(f"normalisation: found mean {mean} and std {std}, expected finite numbers and std above 0")
    spread = values.std(correction=0).item() if values.numel() else 0.0
    if not spread > 1e-12 * (values.abs().max().item() if values.numel() else 1.0):
        raise ValueError(f"normalisation: the {values.numel()} rewards have no spread, expected different values")
    gain = std / spread
    return gain, mean - gain * values.mean().item()


def labels_loss(scores: Tensor, batch: ComparisonBatch, margin: bool = False, centring: float = 0.0) -> Tensor:
    """Mean over a batch's records of the loss of each one's label: (B, N), −inf where there is no response → scalar.

    Args:
        scores: Rewards of the batch's responses.
        batch: Its labels; none: a loss of 0 that reaches every parameter.
        margin: A pair's rewards must differ by its label's margin.
        centring: c of c · (r_chosen + r_rejected)², added to a pair's loss: keeps rewards near 0, which that leaves free.
    """
    if not batch.kinds:
        return 0.0 * scores.sum()
    total = torch.zeros((), device=scores.device)
    for kind in sorted(set(batch.kinds)):
        rows = [i for i, k in enumerate(batch.kinds) if k == kind]
        own, real = scores[rows], scores[rows] > -math.inf
        if kind == "best_of_n":
            loss = best_of_n_loss(own, batch.best[rows])
        elif kind == "pairwise":
            best = batch.best[rows].unsqueeze(1)
            chosen, rejected = own.gather(1, best).squeeze(1), own.gather(1, 1 - best).squeeze(1)
            loss = pairwise_loss(chosen, rejected, batch.margin[rows].nan_to_num(0.0) if margin else None)
            if centring:
                loss = loss + centring * (chosen + rejected).float().square().mean()
        elif kind == "ranked":
            loss = ranking_loss(own, batch.ranks[rows], real)
        elif kind == "scalar_rating":
            each = [rating_loss(s[r], n[r]) for s, n, r in zip(own, batch.ratings[rows], real, strict=True)]
            loss = torch.stack(each).mean()
        else:
            loss = compare_loss(own[:, 0], own[:, 1], batch.margin[rows])
        total = total + loss * (len(rows) / len(batch.kinds))
    return total


def label_target(labels: Sequence[Comparison | Judged]) -> tuple[float, float]:
    """Mean and population std of the first normalisation (2019, §2.2): (0, 1) for comparisons, the labels' for ratings, those
    of half the difference for scalar_compare; of mixed labels, the first of ratings, differences, comparisons that there is.

    Raises:
        UsageError: All ratings, or all differences, are the same.
    """
    ratings = [x for label in labels if label_type(label) == "scalar_rating" for x in label.ratings or []]
    halves = [(label.margin or 0.0) / 2 for label in labels if label_type(label) == "scalar_compare"]
    for name, values in (("ratings", ratings), ("differences", halves)):
        if values:
            mean, std = fmean(values), pstdev(values)
            if not std > 0:
                raise UsageError(f"data.train: all {len(values)} {name} are the same, expected different ones")
            return mean, std
    return 0.0, 1.0


# ------------------------------------------------------------------------------------------------------------ module


class RewardModule(StageModule):
    """Trains a reward model on labels of any type, mixed or not.

    Args:
        policy: Reference policy, and the model to start from: embedded name, directory, GGUF file, checkpoint or Hub id.
        output: Directory of the trained reward model.
        task: The task (set once, at the top of the config).
        optimizer: Class and arguments of the optimizer.
        num_hidden_layers: Keep so many of the model's blocks, from the bottom, and its final norm; null: all. A reward model
            may be smaller than the policy (InstructGPT, §3.5, has 6B for 175B).
        trainable_layers: Train only so many top blocks (and the head); null: all parameters.
        lora: Train low-rank adapters (and the head) alone; null: the weights themselves.
        gradient_checkpointing: Keep the blocks' inputs alone for the backward pass, and run them again there.
        normalise: `reference_policy`: the reference policy's responses get mean 0, std 1, before and after training (2019);
            `reference_summaries`: the texts of data.references get mean 0 after training, the scale stays (2020); `none`.
        normalise_samples: Responses of the reference policy over which gain and bias are set, in whole rollout batches;
            at most so many references.
        rollout_batch_size: Responses sampled at a time for that.
        margin: The rewards of a pair with a margin must differ by it.
        centring: c of c · (r_chosen + r_rejected)², added to a pair's loss; 0: none.
        token_loss: c of c · the same loss of the mean reward over the tokens of a response that the others of its record do not
            share (of a lone response the last one), added to that of the last one's; 0: none. What tells one response from
            another is spread over its tokens, of which few labels do not teach the last one
            (verifiers that judge at every token: Cobbe et al. 2021, 2110.14168, 4.2). The reward is read at the last token.
        seed: Of the head's initial weights, the samples and the data order.
        overwrite: Replace an existing output.
    """

    def __init__(
        self,
        policy: str,
        output: str,
        task: Task,
        optimizer: OptimizerCallable = lambda p: AdamTF(p, lr=5e-5),
        num_hidden_layers: int | None = None,
        trainable_layers: int | None = None,
        lora: LoRA | None = None,
        gradient_checkpointing: bool = False,
        normalise: Literal["reference_policy", "reference_summaries", "none"] = "reference_policy",
        normalise_samples: int = 256,
        rollout_batch_size: int = 64,
        margin: bool = False,
        centring: float = 0.0,
        token_loss: float = 0.0,
        seed: int = 1,
        overwrite: bool = False,
    ) -> None:
        options = dict(
            policy=policy, num_hidden_layers=num_hidden_layers, trainable_layers=trainable_layers, lora=lora,
            normalise_samples=normalise_samples, normalise=normalise,
        )  # fmt: skip
        super().__init__("reward", output, task, seed, overwrite, options)
        self.policy_name, self.optimizer = policy, optimizer
        self.num_hidden_layers, self.trainable_layers = num_hidden_layers, trainable_layers
        self.lora, self.gradient_checkpointing = lora, gradient_checkpointing
        self.normalise_by, self.normalise_samples, self.rollout_batch_size = normalise, normalise_samples, rollout_batch_size
        self.margin, self.centring, self.token_loss = margin, centring, token_loss
        self.reference_samples: tuple[Tensor, Tensor] | None = None
        self.normalisations: list[dict[str, Any]] = []
        self.val_loss = MeanMetric()
        self.judged: list[list[Decision]] = []  # of the validation under way
        self.scalars: list[tuple[str, float, float]] = []  # (label type, label, reward) of scalar labels
        self.held_out: dict[str, Any] = {}

    def check(self, data: Any, trainer: Any, resuming: bool) -> list[str]:
        """The base's, and that the model exists and there is something to normalise over."""
        problems = super().check(data, trainer, resuming) + told(find_policy, self.policy_name)
        problems += classifier_problems(self.policy_name)
        problems += position_problems(self.policy_name, self.task) + lora_problems(self.lora, self.trainable_layers)
        for option in ("normalise_samples", "rollout_batch_size"):
            if getattr(self, option) < 1:
                problems.append(f"model.{option}: found {getattr(self, option)}, expected at least 1")
        for option in ("centring", "token_loss"):
            if not 0 <= (found := getattr(self, option)) < math.inf:
                problems.append(f"model.{option}: found {found}, expected 0 or more")
        references = data.files.get("references")
        if (self.normalise_by == "reference_summaries") != (references is not None):
            problems.append(
                f"model.normalise, data.references: found {self.normalise_by} and {references}; expected reference_summaries "
                "and a file of demonstrations, or neither"
            )
        records = [r for _, r in data.records.get("train", [])]
        if self.margin and records and all(r.best is None or r.margin is None for r in records):
            problems.append("model.margin: found true, and no pair of data.train with a margin")
        if self.centring > 0 and records and all(label_type(r) != "pairwise" for r in records):
            problems.append(f"model.centring: found {self.centring}, and no pair in data.train")
        if self.normalise_by == "reference_policy":
            problems += told(label_target, records)
        return problems

    def configure_model(self) -> None:
        """Load the model and put the head on it, once."""
        if hasattr(self, "scalar"):
            return
        lm = load_lm(self.policy_name)
        width = lm.model.get_input_embeddings().weight.shape[1]
        model = lm.model
        if self.num_hidden_layers is not None:
            model = first_blocks(model.base_model, self.num_hidden_layers)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.scalar = ScalarModel(model.base_model, width, std=1.0 / math.sqrt(width + 1))
        if self.gradient_checkpointing:
            blocks_of(self.scalar.trunk)  # told now
        if self.trainable_layers is not None:
            SplitTrunk(model, self.trainable_layers)
        if self.lora is not None:
            add_lora(model, self.lora, self.seed)
        self.shard(self.scalar.trunk)
        self.tokenizer = lm.tokenizer
        self._reference = [lm]  # a list, so that the trunk is not registered twice

    def configure_optimizers(self) -> Any:
        """The chosen optimizer, its lr annealed linearly to 0 by examples seen."""
        optimizer = self.optimizer(self.trained_parameters())
        schedule = linear_anneal(optimizer, int(self.trainer.estimated_stepping_batches))
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    # ------------------------------------------------------------------------------------------------ normalisation

    @torch.no_grad()
    def sample_reference(self) -> tuple[Tensor, Tensor]:
        """Responses of the reference policy to training queries, untruncated → (tokens, mask) (n, T), right-padded."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        resolved, bos = task_tokens(self.task, self.tokenizer), bos_ids(self.tokenizer)
        queries = [item.query[len(bos) :] for item in data.items["train"]]
        model = self._reference[0].model.to(self.device)
        order = torch.randperm(len(queries), generator=torch.Generator().manual_seed(self.seed)).tolist()
        rows: list[list[int]] = []
        for batch in range(-(-self.normalise_samples // self.rollout_batch_size)):
            picked = [queries[order[(batch * self.rollout_batch_size + i) % len(order)]] for i in range(self.rollout_batch_size)]
            tokens, mask = pad_batch([policy_prompt(q, resolved) for q in picked], 0, "left")
            with gathered(model):
                responses = sample(
                    model, tokens.to(self.device), mask.to(self.device), self.task.response_length, self.task.temperature,
                    seed_for(self.seed, batch),
                )  # fmt: skip
            rows += [[*bos, *q, *r] for q, r in zip(picked, responses.tolist(), strict=True)]
        return pad_batch(rows, 0, "right")

    def references(self) -> tuple[Tensor, Tensor]:
        """The reference texts, a seeded choice of at most `normalise_samples` → (tokens, mask) (n, T), right-padded."""
        rows = self.trainer.datamodule.reference_rows()  # type: ignore[attr-defined]
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.seed)).tolist()
        return pad_batch([rows[i] for i in order[: self.normalise_samples]], 0, "right")

    @torch.no_grad()
    def normalise(self, when: str, target: tuple[float, float | None] = (0.0, 1.0)) -> None:
        """Set gain and bias so that the reference's rewards have the mean and std of the target; no std: only shift them."""
        assert self.reference_samples is not None
        tokens, mask = self.reference_samples
        chunks = zip(tokens.split(self.rollout_batch_size), mask.split(self.rollout_batch_size), strict=True)
        rewards = torch.cat([self.scalar(t.to(self.device), m.to(self.device)).float().cpu() for t, m in chunks])
        mean, std = rewards.mean().item(), rewards.std(correction=0).item()
        to_mean, to_std = target
        gain, bias = (1.0, to_mean - mean) if to_std is None else normalisation(rewards, to_mean, to_std)
        self.scalar.gain.mul_(gain)
        self.scalar.bias.mul_(gain).add_(bias)
        torch.clear_autocast_cache()
        found = {"when": when, "mean": mean, "std": std, "n": len(rewards), "target_mean": to_mean, "target_std": to_std}
        self.normalisations.append(found)

    def on_fit_start(self) -> None:
        """Sample the reference, before the trunk trains, and normalise; a resumed run has both from its checkpoint."""
        super().on_fit_start()
        if self.reference_samples is None:
            if self.normalise_by == "reference_policy":
                target = label_target(self.trainer.datamodule.items["train"])  # type: ignore[attr-defined]
                self.reference_samples = self.sample_reference()
                self.normalise("before training", target)
            elif self.normalise_by == "reference_summaries":
                self.reference_samples = self.references()
        self._reference.clear()

    def stage_state(self) -> dict[str, Any]:
        """The reference samples: after a resume the trunk is no longer the reference."""
        return {"samples": self.reference_samples, "normalisations": self.normalisations}

    def load_stage_state(self, state: dict[str, Any]) -> None:
        """Take them up."""
        self.reference_samples = tuple(state["samples"]) if state["samples"] else None  # type: ignore[assignment]
        self.normalisations = state["normalisations"]

    # ----------------------------------------------------------------------------------------------------- training

    def scores(self, batch: ComparisonBatch) -> Tensor:
        """(B, N) rewards; −inf where there is no response."""
        return self.scores_and_means(batch)[0]

    def scores_and_means(self, batch: ComparisonBatch) -> tuple[Tensor, Tensor]:
        """(B, N) rewards, and, with `token_loss`, the means of those at each token of a response; −inf where there is none."""
        n = len(batch.tokens) // len(batch.best)
        real = batch.mask.any(1).view(-1, n)
        with checkpointed(self.scalar.trunk, self.gradient_checkpointing):
            found = self.scalar.score_last_and_each(batch.tokens, batch.mask, n, self.token_loss > 0)
        scores, means = (torch.where(real, x, -math.inf) for x in found)
        return scores, means

    def loss(self, batch: ComparisonBatch) -> tuple[Tensor, Tensor]:
        """(the labels' loss, with that of every token; rewards (B, N))."""
        scores, means = self.scores_and_means(batch)
        loss = labels_loss(scores, batch, self.margin, self.centring)
        return loss + self.token_loss * labels_loss(means, batch, self.margin, self.centring) if self.token_loss else loss, scores

    def training_step(self, batch: ComparisonBatch, batch_idx: int) -> Tensor:
        """One step of the labels' losses."""
        loss, scores = self.loss(batch)
        is_finite("train/loss", loss.detach(), batch_idx)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch.kinds))
        judged = [d for d in judge(scores, batch) if d]
        if judged:
            self.log("train/accuracy", accuracy(judged)["accuracy"], prog_bar=True, batch_size=len(judged))
        return loss * self.share(len(batch.kinds), batch_idx)

    def validation_step(self, batch: ComparisonBatch, batch_idx: int) -> None:
        """Held-out loss, and what the rewards say of each label."""
        scores = self.scores(batch)
        self.val_loss.update(labels_loss(scores, batch), weight=len(batch.kinds))
        self.judged += judge(scores, batch)
        self.scalars += scalar_labels(scores, batch)

    def on_validation_epoch_end(self) -> None:
        """Accuracy with its 95 % interval, log-loss and calibration, over all ranks; the scale is the one that was trained."""
        judged, scalars = self.gathered(self.judged), self.gathered(self.scalars)
        self.judged, self.scalars = [], []
        found = summary(judged)
        self.held_out = {k: v for k, v in found.items() if k not in ("accuracy", "low", "high")}
        for kind in sorted({k for k, _, _ in scalars}):
            self.held_out[kind] = scalar_fit(*zip(*((label, reward) for k, label, reward in scalars if k == kind), strict=True))
        figures = {"val/loss": float(self.val_loss.compute())}
        if found:
            names = {"accuracy": "accuracy", "accuracy_low": "low", "accuracy_high": "high"}
            figures |= {f"val/{k}": found[v] for k, v in names.items()}
            figures |= {f"val/{k}": found[k] for k in ("log_loss", "calibration_error")}
        self.log_dict(figures)
        self.val_loss.reset()

    def gathered(self, rows: list[Any]) -> list[Any]:
        """All ranks' rows."""
        if self.trainer.world_size == 1:
            return rows
        all_rows: list[list[Any]] = [[] for _ in range(self.trainer.world_size)]
        torch.distributed.all_gather_object(all_rows, rows)
        return [row for own in all_rows for row in own]

    def before_export(self) -> None:
        """Normalise again."""
        super().before_export()
        if self.normalise_by != "none":
            self.normalise("after training", (0.0, 1.0 if self.normalise_by == "reference_policy" else None))

    def export(self) -> dict[str, Any]:
        """Write the reward directory."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        figures = {k: float(v) for k, v in self.trainer.callback_metrics.items() if torch.is_tensor(v)}
        info = {
            "task": self.task.name,
            "base": self.policy_name,
            "num_hidden_layers": self.num_hidden_layers,
            "trainable_layers": self.trainable_layers,
            "labels": len(data.items["train"]),
            "label_types": dict(Counter(label_type(item) for item in data.items["train"])),
            "held_out": len(data.items["val"]),
            "chance": self.held_out.get("chance"),
            "accuracy": figures.get("val/accuracy"),
            "accuracy_low": figures.get("val/accuracy_low"),
            "accuracy_high": figures.get("val/accuracy_high"),
            "held_out_figures": self.held_out,
            "normalise": self.normalise_by,
            "normalisations": self.normalisations,
        }
        save_reward(self.output, self.scalar, self.tokenizer, info)
        return {**figures, **info}


def judge(scores: Tensor, batch: ComparisonBatch) -> list[list[Decision]]:
    """The decisions of each record, beside its rewards; lengths are in tokens."""
    lengths = batch.mask.sum(1).view(scores.shape).tolist()
    ranks, best, ratings, margin = (x.tolist() for x in (batch.ranks, batch.best, batch.ratings, batch.margin))
    found = []
    for i, (kind, row) in enumerate(zip(batch.kinds, scores.detach().tolist(), strict=False)):
        n = sum(s > -math.inf for s in row)
        label: dict[str, Any] = {"margin": None if math.isnan(margin[i]) else margin[i]}
        if kind == "ranked":
            label = {"ranks": ranks[i][:n]}
        elif kind == "scalar_rating":
            label = {"ratings": ratings[i][:n]}
        elif kind != "scalar_compare":
            label["best"] = best[i]
        found.append(decisions(row[:n], **label, lengths=lengths[i][:n]))
    return found


def scalar_labels(scores: Tensor, batch: ComparisonBatch) -> list[tuple[str, float, float]]:
    """(label type, label, what the rewards say it is) of each scalar label."""
    found = []
    for i, (kind, row) in enumerate(zip(batch.kinds, scores.tolist(), strict=False)):
        if kind == "scalar_rating":
            found += [(kind, float(x), s) for x, s in zip(batch.ratings[i], row, strict=True) if s > -math.inf]
        elif kind == "scalar_compare":
            found.append((kind, float(batch.margin[i]), row[1] - row[0]))
    return found
