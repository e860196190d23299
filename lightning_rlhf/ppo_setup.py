"""PPO's options, what is checked of them before anything is loaded, and the state that a resume takes up.

The networks are in `ppo_networks.py`, the algorithm in `ppo.py`.
"""

from __future__ import annotations

import math
import os
import shutil
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning.cli import OptimizerCallable
from pytorch_lightning.utilities import rank_zero_warn
from torch import nn
from torchmetrics import Metric

from .alarms import Alarms, Thresholds
from .lora import LoRA, lora_problems
from .models import VALUE_HEAD, find_policy, is_reward, position_problems
from .objective import AdaptiveKL, FixedKL
from .optim import AdamTF
from .scalar import read_reward_info
from .scoring import (
    WeightedReward,
    call_problems,
    find_reward,
    is_learned,
    named,
)
from .sharding import is_sharding
from .stage import StageModule
from .tasks import Task, told
from .validation import Answer

THRESHOLDS = Thresholds()
COUNTERS = ("updates", "episodes", "skipped_steps", "validated")
CHOICES = {
    "mode": ("fixed", "truncated", "eos"), "value": ("shared", "separate"),
    "kl_estimator": ("k1", "k2", "k3", "full"), "kl_level": ("token", "sequence"), "frozen_dtype": ("float32", "bfloat16"),
}  # fmt: skip


class PPOSetup(StageModule):
    """Trains a policy against a reward with PPO.

    Args:
        policy: Model to start from: embedded name, directory, GGUF file, checkpoint of sft or ppo, or Hub id.
        reward: A reward directory, `known:NAME`, any callable `module:function`, or a list of {reward, weight} to be summed.
        output: Directory of the trained policy; validation's samples stand beside it, in `OUTPUT.samples/`.
        task: The task (set once, at the top of the config).
        reference: Model that the KL is taken to; null: the starting policy.
        guard_comparisons: Held-out comparisons that a learned reward must agree with above chance before PPO starts.
        guard_pairs: For a callable: a list of {prompt, better, worse} that it must order rightly before PPO starts; further
            fields are the columns that it takes.
        allow_unguarded: Start although nothing guards the reward's sign, or the guard refuses it.
        allow_other_task: Accept a reward that was made for another task.
        allow_negative_kl: Accept a negative kl_coef, and go on where the mean KL is negative.
        mode: `fixed`: exactly response_length tokens, cut for the score alone (2019). `truncated`: the same, but what was cut off
            is not learned from. `eos`: a response ends at EOS or the stop token, and nothing after it counts (2020).
        stop_token: Mode eos: a text of one token, or a token's id, that ends a response as EOS does.
        missing_eos_penalty: Mode eos: score of a response that did not stop; null: task.penalty.
        score_clip: Scores are clipped to ± this, before the penalty; null: not.
        held_out_reward: A reward that is not trained on, scored in validation; its fall raises the over-optimisation alarm.
        metrics: torchmetrics for validation, by class path; updated with (responses, references) as texts.
        alarms: When to warn.
        optimizer: Class and arguments; `lightning_rlhf.optim.AdamTF` is 2019's form, `torch.optim.Adam` the other.
        kl_coef: β, the KL coefficient at the start.
        kl_target: KL in nats a response that β adapts to; null: β is fixed.
        kl_horizon: Horizon of the adaption, in episodes.
        kl_estimator: k1, k2, k3, or `full`: the exact KL over the vocabulary at each token.
        kl_level: The penalty stands on each `token`, or its sum on the last one (`sequence`).
        kl_loss: c of c β E[exact KL of a token] in the policy loss, beside the penalty in the reward; 0: none (2019).
        kl_tolerance: Mean KL may be so far below 0, in nats, beyond three standard errors, before the run stops.
        num_ppo_epochs: Inner epochs over each batch.
        num_mini_batches: Optimizer steps an inner epoch.
        micro_batch_size: Episodes a forward pass; null: a whole minibatch.
        target_kl: Inner epochs end after one whose mean approxkl, over all ranks, is above this; null: never early.
        max_grad_norm: Gradients are clipped to this norm; null: not.
        max_skipped_steps: So many steps with a loss or gradient that is not finite are skipped; one more stops the run.
        value: Value head on the policy's trunk (`shared`, 2019), or on a trunk of its own (`separate`, 2020).
        value_init: The separate value network starts from this reward directory or model; null: the policy. With a shared one:
            the directory of an earlier PPO, whose value head it starts from; null: from zero.
        vf_coef: Weight of the value loss.
        cliprange: Clip of the policy's ratio.
        cliprange_value: Clip of the value's change.
        gamma: Discount.
        lam: GAE's λ.
        whiten_rewards: Scale rewards to variance 1, keeping their mean.
        trainable_layers: Train only so many top blocks (and the value head), of a separate value network too (one that has
            fewer trains whole); null: all.
        lora: Train low-rank adapters (and the value head) alone, a separate value network's too; null: the weights themselves.
            The reference is then the policy with its adapters off.
        gradient_checkpointing: In the update, keep the blocks' inputs alone for the backward pass, and run them again there.
        frozen_dtype: Of the weights of networks that do not train, and with `lora` of those under the adapters.
        compile_sampler: Sample a Llama's or GPT-2's tokens by a compiled function (`decode.FixedSteps`): pays where the model is
            small and the run long. Sharded networks are sampled as before.
        compile_blocks: Run the blocks of policy, value network and reference under `torch.compile` where they read whole
            sequences, and what follows on the logits of an output embedding that trains: pays on a GPU. Compiles anew for each
            width of prompts (a multiple of 8 with the response), and leaves no padding out.
        seed: Of sampling and of the minibatches.
        overwrite: Replace an existing output.
    """

    kl: FixedKL | AdaptiveKL  # made with the networks

    may_change = StageModule.may_change | {f"model.alarms.{f.name}" for f in fields(Thresholds)} | {"model.max_skipped_steps"}

    def __init__(
        self,
        policy: str,
        reward: str | list[WeightedReward],
        output: str,
        task: Task,
        reference: str | None = None,
        guard_comparisons: str | None = None,
        guard_pairs: list[dict[str, str]] | None = None,
        allow_unguarded: bool = False,
        allow_other_task: bool = False,
        allow_negative_kl: bool = False,
        mode: Literal["fixed", "truncated", "eos"] = "fixed",
        stop_token: int | str | None = None,
        missing_eos_penalty: float | None = None,
        score_clip: float | None = None,
        held_out_reward: str | None = None,
        metrics: list[Metric] | None = None,
        alarms: Thresholds = THRESHOLDS,
        optimizer: OptimizerCallable = lambda p: AdamTF(p, lr=1e-5),
        kl_coef: float = 0.15,
        kl_target: float | None = 6.0,
        kl_horizon: float = 10_000.0,
        kl_estimator: Literal["k1", "k2", "k3", "full"] = "k1",
        kl_level: Literal["token", "sequence"] = "token",
        kl_loss: float = 0.0,
        kl_tolerance: float = 0.1,
        num_ppo_epochs: int = 4,
        num_mini_batches: int = 1,
        micro_batch_size: int | None = None,
        target_kl: float | None = None,
        max_grad_norm: float | None = None,
        max_skipped_steps: int = 5,
        value: Literal["shared", "separate"] = "shared",
        value_init: str | None = None,
        vf_coef: float = 0.1,
        cliprange: float = 0.2,
        cliprange_value: float = 0.2,
        gamma: float = 1.0,
        lam: float = 0.95,
        whiten_rewards: bool = True,
        trainable_layers: int | None = None,
        lora: LoRA | None = None,
        gradient_checkpointing: bool = False,
        frozen_dtype: Literal["float32", "bfloat16"] = "float32",
        compile_sampler: bool = False,
        compile_blocks: bool = False,
        seed: int = 1,
        overwrite: bool = False,
    ) -> None:
        given = {k: v for k, v in locals().items() if k not in ("self", "__class__", "task", "seed", "optimizer", "guard_pairs")}
        super().__init__("ppo", output, task, seed, overwrite, given)
        self.automatic_optimization = False
        self.reference_name, self.policy_name = reference or policy, policy
        self.parts = list(reward) if isinstance(reward, (list, tuple)) else [WeightedReward(named(reward))]
        self.guard_comparisons, self.guard_pairs = guard_comparisons, guard_pairs
        self.allow_unguarded, self.allow_other_task, self.allow_negative_kl = allow_unguarded, allow_other_task, allow_negative_kl
        self.mode, self.stop_token, self.score_clip = mode, stop_token, score_clip
        self.missing_eos_penalty, self.held_out_reward = missing_eos_penalty, held_out_reward
        self.metrics = nn.ModuleList(metrics or [])
        self.optimizer, self.kl_tolerance, self.kl_coef, self.kl_target = optimizer, kl_tolerance, kl_coef, kl_target
        self.kl_horizon, self.kl_estimator, self.kl_level, self.kl_loss = kl_horizon, kl_estimator, kl_level, kl_loss
        self.num_ppo_epochs, self.num_mini_batches, self.micro_batch_size = num_ppo_epochs, num_mini_batches, micro_batch_size
        self.target_kl, self.max_grad_norm, self.max_skipped_steps = target_kl, max_grad_norm, max_skipped_steps
        self.value, self.value_init = value, value_init
        self.vf_coef, self.cliprange, self.cliprange_value = vf_coef, cliprange, cliprange_value
        self.gamma, self.lam, self.whiten_rewards = gamma, lam, whiten_rewards
        self.trainable_layers, self.lora = trainable_layers, lora
        self.gradient_checkpointing, self.frozen_dtype = gradient_checkpointing, frozen_dtype
        self.compile_sampler, self.compile_blocks = compile_sampler, compile_blocks
        self.alarms = Alarms(alarms)
        self.updates = self.episodes = self.skipped_steps = 0
        self.first: list[Answer] | None = None  # iteration 0's, to the validation prompts
        self.rescored = True  # they have scores of the reward that there is
        self.figures: dict[str, float] = {}  # the last that were logged, for run.json
        self.answers: list[Answer] = []
        self.first_pass: Any = None  # of the rollout, with its graph, for the first inner epoch
        self.began = 0.0
        self.guard_result: dict[str, Any] = {"kind": "none"}

    # ------------------------------------------------------------------------------------------------------- set-up

    def precision_problems(self, precision: str) -> list[str]:
        """Neither float16 nor weights in half precision."""
        if precision in ("16", "16-mixed", "16-true"):
            return [
                f"trainer.precision: found {precision}; PPO is refused under it, because the gradient scaler skips optimizer "
                "steps while the schedule and the KL controller go on; use bf16-mixed or 32-true"
            ]
        if precision.endswith("-true") and precision != "32-true":
            return [f"trainer.precision: found {precision}, expected 32-true or bf16-mixed: sampling is float32"]
        return []

    def check(self, data: Any, trainer: Any, resuming: bool) -> list[str]:
        """Every problem that the options alone show."""
        problems = super().check(data, trainer, resuming)
        for name in sorted({self.policy_name, self.reference_name}):
            problems += told(find_policy, name)
        problems += position_problems(self.policy_name, self.task)
        held_out, every = data.records.get("val", []), [row for rows in data.records.values() for row in rows]
        rewards = [(part.reward, every) for part in self.parts]
        rewards += [(self.held_out_reward, held_out)] if self.held_out_reward else []
        for name, prompts in rewards:
            problems += told(find_reward, name, self.task.name, self.allow_other_task) or call_problems(name, prompts)
        problems += self._contradictions(bool(data.files.get("val")))
        if self.metrics and held_out and all(record.reference is None for _, record in held_out):
            problems.append("model.metrics: given, and no prompt of data.val has a reference to compare with")
        if is_sharding(getattr(trainer, "strategy", None)) and self.trainable_layers is not None:
            problems.append(
                f"model.trainable_layers: found {self.trainable_layers} with ModelParallelStrategy, under which each network is "
                "sharded by itself and cannot share the policy's frozen blocks; expected null"
            )
        if not math.isfinite(self.kl_coef):
            problems.append(f"model.kl_coef: found {self.kl_coef}, expected a finite number")
        if self.kl_coef < 0 and not self.allow_negative_kl:
            problems.append(
                f"model.kl_coef: found {self.kl_coef}; a negative one pays for leaving the reference "
                "(--model.allow_negative_kl true)"
            )
        if self.kl_target is not None and not (self.kl_target > 0 and self.kl_horizon > 0):
            found = f"{self.kl_target} and {self.kl_horizon}"
            problems.append(f"model.kl_target, model.kl_horizon: found {found}, expected both above 0")
        elif self.kl_target is not None and 0.2 * data.batch_size >= self.kl_horizon:
            problems.append(
                f"model.kl_horizon: found {self.kl_horizon} with data.batch_size {data.batch_size}; β is multiplied by up to "
                f"1 ± 0.2 · batch / horizon an iteration, expected above {0.2 * data.batch_size:g}"
            )
        problems += trainer_problems(trainer)
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
        if self.learned and not self.guard_comparisons and not self.allow_unguarded:
            problems.append(
                "model.guard_comparisons: not given; a learned reward needs held-out comparisons (--model.allow_unguarded true)"
            )
        return problems

    def _contradictions(self, has_val: bool) -> list[str]:
        """Values that cannot be, and options that do not go together."""
        problems = self.alarms.thresholds.problems() + lora_problems(self.lora, self.trainable_layers)
        if self.frozen_dtype != "float32" and self.trainable_layers is not None:
            problems.append(
                f"model.frozen_dtype: found {self.frozen_dtype} with model.trainable_layers, under which the networks share the "
                "policy's frozen blocks; expected float32"
            )
        for option, allowed in CHOICES.items():
            if getattr(self, option) not in allowed:
                problems.append(f"model.{option}: found {getattr(self, option)!r}, expected one of {list(allowed)}")
        for option in ("score_clip", "target_kl", "max_grad_norm"):
            if (found := getattr(self, option)) is not None and not found > 0:
                problems.append(f"model.{option}: found {found}, expected above 0, or null")
        for option in ("cliprange", "cliprange_value"):
            if not (found := getattr(self, option)) > 0:
                problems.append(f"model.{option}: found {found}, expected above 0")
        for option in ("kl_loss", "vf_coef", "kl_tolerance"):
            if not 0 <= (found := getattr(self, option)) < math.inf:
                problems.append(f"model.{option}: found {found}, expected at least 0 and finite")
        if self.missing_eos_penalty is not None and not math.isfinite(self.missing_eos_penalty):
            problems.append(f"model.missing_eos_penalty: found {self.missing_eos_penalty}, expected a finite number, or null")
        for part in self.parts:
            if not math.isfinite(part.weight):
                problems.append(f"model.reward: found a weight of {part.weight} for {part.reward}, expected a finite number")
        for option in ("gamma", "lam"):
            if not 0 <= (found := getattr(self, option)) <= 1:
                problems.append(f"model.{option}: found {found}, expected 0 to 1")
        if self.max_skipped_steps < 0:
            problems.append(f"model.max_skipped_steps: found {self.max_skipped_steps}, expected at least 0")
        if not self.parts:
            problems.append("model.reward: found an empty list, expected at least one {reward, weight}")
        if self.mode == "eos" and self.task.truncate_text is not None:
            problems.append(
                f"task.truncate_text: found {self.task.truncate_text!r} with model.mode = eos, whose responses end at EOS or "
                "model.stop_token; expected null"
            )
        if self.mode == "truncated" and self.task.truncate_text is None:
            problems.append("task.truncate_text: found null with model.mode = truncated, expected the text that ends a response")
        for option, needs, given in (
            ("stop_token", "mode = eos", self.mode == "eos"), ("missing_eos_penalty", "mode = eos", self.mode == "eos"),
        ):  # fmt: skip
            if getattr(self, option) is not None and not given:
                problems.append(f"model.{option}: found {getattr(self, option)!r}, expected null without model.{needs}")
        for option in ("held_out_reward", "metrics"):
            if getattr(self, option) and not has_val:
                problems.append(f"model.{option}: given without data.val, expected validation prompts")
        for option in ("compile_sampler", "compile_blocks"):
            if getattr(self, option) and not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
                problems.append(f"model.{option}: found true without a C++ compiler (c++, or what CXX names); expected false")
        if self.value_init is not None:
            problems += self._value_init_problems(self.value_init)
        return problems

    def _value_init_problems(self, name: str) -> list[str]:
        """Whether the value function may start from there, in words."""
        if self.value == "separate":
            return told(read_reward_info if is_reward(name) else find_policy, name)
        if (Path(name) / VALUE_HEAD).is_file() and not (Path(name) / "value").exists():  # which a separate one's head belongs on
            return []
        expected = f"a directory of an earlier PPO with a shared one ({VALUE_HEAD}), or model.value = separate"
        return [f"model.value_init: found {name!r} for a shared value function, expected {expected}"]

    @property
    def learned(self) -> bool:
        """Whether a reward model is among the rewards."""
        return any(is_learned(part.reward) for part in self.parts)

    def stage_state(self) -> dict[str, Any]:
        """β, the counters, what alarms and validations compare with; sampling needs no random state."""
        counters = {k: getattr(self, k) for k in COUNTERS}
        first = None if self.first is None else [asdict(answer) for answer in self.first]
        more = {"figures": dict(self.figures), "first": first, "rescored": self.rescored, **counters}
        return {"kl": self.kl.state_dict(), "alarms": self.alarms.state_dict(), **more}

    def differences(self, saved: dict[str, Any]) -> list[str]:
        """And that a run which has ended goes on: its data have no further batch."""
        problems, then = super().differences(saved), saved.get("options", {})
        episodes, batch = then.get("data.total_episodes"), then.get("data.batch_size")
        if problems or not (episodes and batch) or saved["state"]["updates"] < -(-episodes // batch):
            return problems
        now = self.options.get("data.total_episodes")
        found = f"found {now}, and the checkpoint's run has ended after {episodes}; a new run may start from its policy"
        return [] if now == episodes else [f"--ckpt_path: data.total_episodes: {found}"]

    def load_stage_state(self, state: dict[str, Any]) -> None:
        """Take them up; β begins anew where the resume was allowed to change what decides it, and scores of another reward are
        no longer compared with."""
        if not self.overruled & {"model.kl_coef", "model.kl_target", "model.kl_horizon"}:
            self.kl.load_state_dict(state["kl"])
        self.alarms.load_state_dict(state["alarms"])
        self.figures = dict(state.get("figures", {}))
        first = state.get("first")
        self.first = first and [Answer(**answer) for answer in first]
        if first is None:
            self.figures.pop("val/beats_first", None)
        for counter in COUNTERS:
            setattr(self, counter, state[counter])
        scale = self.overruled & {"model.reward", "model.score_clip", "model.missing_eos_penalty", "task.penalty"}
        self.rescored = state.get("rescored", True) and not scale
        if scale or "model.held_out_reward" in self.overruled:
            self.alarms.best = None


def trainer_problems(trainer: Any) -> list[str]:
    """Options of the Trainer that PPO cannot have, in words, with what stands in their place."""
    if getattr(trainer, "fast_dev_run", False):
        return []
    length = "a run is data.total_episodes long, and so is the learning rate's schedule"
    never = (
        ("max_epochs", 1, length), ("max_steps", -1, length), ("gradient_clip_val", None, "PPO has model.max_grad_norm for it"),
        ("accumulate_grad_batches", 1, "PPO has model.micro_batch_size for it"),
    )  # fmt: skip
    problems = []
    for option, expected, why in never:
        found = getattr(trainer, option, expected)
        if found != expected and not (option == "gradient_clip_val" and found == 0):
            problems.append(f"trainer.{option}: found {found}, expected {'null' if expected is None else expected}: {why}")
    limit = getattr(trainer, "limit_train_batches", 1.0)
    if limit != 1.0 or type(limit) is int:
        rank_zero_warn("trainer.limit_train_batches: the run ends before data.total_episodes, at a learning rate above 0")
    return problems
