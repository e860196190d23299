"""What the training stages share as LightningModules: options, what a checkpoint holds, resuming, and the export.

A checkpoint holds the parameters that train, the options that made them, and a stage's own state; what is frozen is
reloaded from where it came from. A resume with other options is refused by name.
"""

from __future__ import annotations

import inspect
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as L
import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from pytorch_lightning.utilities import rank_zero_warn
from torch.optim.lr_scheduler import LambdaLR

from .checkpoints import checkpoint_content
from .files import content, file_sha256
from .folders import put_in_place, remove, unwritable
from .lora import LoRA
from .models import SHARDS, weights_hash
from .runinfo import RunInfo
from .scoring import is_learned
from .sharding import (
    average_gradients,
    clip_gradients,
    gradient_norm,
    is_sharding,
    parameter_groups,
    shard,
    sharding_problems,
    whole_networks,
)
from .tasks import Task, UsageError, task_dict


class StageModule(L.LightningModule):
    """Base of `SFTModule`, `RewardModule` and `PPOModule`.

    Args:
        stage: Its name, for run.json.
        output: The directory of the export.
        task: The task.
        seed: Of everything drawn at random in the stage.
        overwrite: Whether an existing export may be replaced.
        options: Every option that decides the numbers; a resume compares them.
    """

    #: Options that a resume may change: where things go, what is refused, and how much fits into memory.
    may_change = frozenset({
        "model.output", "model.overwrite", "model.micro_batch_size", "model.gradient_checkpointing", "model.guard_comparisons",
        "model.allow_unguarded", "model.allow_other_task", "model.allow_negative_kl",
    })  # fmt: skip

    def __init__(self, stage: str, output: str, task: Task, seed: int, overwrite: bool, options: dict[str, Any]) -> None:
        super().__init__()
        self.stage, self.output, self.task, self.seed, self.overwrite = stage, output, task, seed, overwrite
        groups = {k: asdict(v) for k, v in options.items() if isinstance(v, LoRA)}
        plain = {k: v for k, v in options.items() if isinstance(v, (str, int, float, bool, type(None)))}
        self.options: dict[str, Any] = {**{f"model.{k}": v for k, v in plain.items()}, **flat(groups, "model")}
        self.options.update({f"task.{k}": v for k, v in task_dict(task).items()}, seed_everything=seed)
        self.allowed_changes: frozenset[str] = frozenset()  # beside those, by the command line
        self.overruled: frozenset[str] = frozenset()  # options of a checkpoint that this run does not have from it
        self.strict_loading = False
        self.register_load_state_dict_post_hook(_lacks_nothing)
        self.validated = -1  # the last batch, of all epochs, that a validation followed; PPO counts its updates
        self.exported = False  # what a second fit of the same module replaces is its own
        self.run_config: Any = None  # the whole parsed config, set by the command line
        self.run_files: list[str] = []

    # ------------------------------------------------------------------------------------------------------- checks

    def check(self, data: Any, trainer: L.Trainer, resuming: bool) -> list[str]:
        """Every problem that the options alone show, in words; nothing is loaded."""
        problems = [] if getattr(trainer, "fast_dev_run", False) else self.output_problems(resuming)
        if 0 < data.batch_size < trainer.world_size:
            problems.append(f"data.batch_size: found {data.batch_size}, expected at least one a device: {trainer.world_size}")
        for option in ("max_epochs", "max_steps", "limit_train_batches"):
            if getattr(trainer, option, None) == 0:
                problems.append(f"trainer.{option}: found 0, which is no training, expected more")
        if getattr(trainer, "max_epochs", None) == -1 and getattr(trainer, "max_steps", -1) == -1:
            expected = "a number: the learning rate falls to 0 at the run's end"
            problems.append(f"trainer.max_epochs: found -1, a run without an end, expected {expected}")
        interval, each = getattr(trainer, "val_check_interval", 1.0), getattr(trainer, "check_val_every_n_epoch", 1)
        if data.files.get("val") and data.records.get("train") and type(interval) is int and each and interval > data.batches:
            found = f"{interval}, and {data.batches} training batches"
            problems.append(f"trainer.val_check_interval: found {found}, expected at most as many")
        problems += self.precision_problems(str(getattr(trainer, "precision", "32-true")))
        return problems + sharding_problems(getattr(trainer, "strategy", None), trainer.world_size)

    def output_problems(self, resuming: bool) -> list[str]:
        """Why the export may not be written, in words."""
        if Path(self.output).exists() and not (resuming or self.overwrite):
            hint = "give another, resume with --ckpt_path, or pass --model.overwrite true"
            return [f"model.output: {self.output} exists; {hint}"]
        return output_problems(Path(self.output))

    def precision_problems(self, precision: str) -> list[str]:
        """What speaks against a `trainer.precision`, in words."""
        found = f"trainer.precision: found {precision}, expected 32-true, bf16-mixed or bf16-true"
        return [f"{found}: a checkpoint's weights are taken up in float32"] if precision in ("64", "64-true") else []

    def share(self, count: int, batch_idx: int) -> float:
        """What this rank's mean loss of a batch counts for, by its `count` of items.

        DDP takes the plain mean of the ranks' gradients, and Lightning that of the batches it accumulates; so weighted, they
        are the mean over all items of the optimizer step, as in one process and one batch.
        """
        accumulated = int(self.trainer.accumulate_grad_batches)
        if accumulated > 1:
            total = self.trainer.datamodule.step_weight(batch_idx, accumulated)  # type: ignore[attr-defined]
            return count * self.trainer.world_size * accumulated / total
        if self.trainer.world_size == 1:
            return 1.0
        total = self.trainer.strategy.reduce(torch.tensor(float(count), device=self.device), reduce_op="sum")
        return count * self.trainer.world_size / float(total)

    # ----------------------------------------------------------------------------------------------------- sharding

    @property
    def sharded(self) -> bool:
        """Whether networks are sharded over the devices (`ModelParallelStrategy`)."""
        return self.device_mesh is not None

    def shard(self, network: Any) -> None:
        """Shard a network over all devices, where the strategy is for that."""
        if self.device_mesh is not None:
            shard(network, self.device_mesh["data_parallel"])

    def trained_parameters(self) -> list[Any]:
        """What an optimizer is given."""
        return parameter_groups(p for p in self.parameters() if p.requires_grad)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Average the gradients that sharding leaves alone; log the norm of all, before it is clipped. (PPO does both itself.)"""
        if not self.automatic_optimization:
            return
        if self.sharded:
            average_gradients(self.parameters())
        self.norm = gradient_norm(self.parameters())
        self.log("train/grad_norm", self.norm)

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Lightning's; by norm, and over shards, where networks are sharded."""
        if not self.sharded:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            clip_gradients(self.parameters(), gradient_clip_val, self.norm)

    # -------------------------------------------------------------------------------------------------- checkpoints

    def trained_keys(self) -> set[str]:
        """Names of the parameters that train."""
        return {name for name, p in self.named_parameters() if p.requires_grad}

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The parameters that train; nothing else is saved, nor written over by a resume."""
        found, prefix = super().state_dict(*args, **kwargs), kwargs.get("prefix", "")
        trained = {prefix + name for name in self.trained_keys()}
        for key in [k for k in found if k.startswith(prefix) and k not in trained]:  # where a callback averages, others' beside
            del found[key]
        return found

    def all_keys(self) -> list[str]:
        """Names of all parameters and buffers, of a tied one each."""
        both = self.named_parameters(remove_duplicate=False), self.named_buffers(remove_duplicate=False)
        return [name for named in both for name, _ in named]

    def stage_state(self) -> dict[str, Any]:
        """A stage's own state, of plain values and tensors."""
        return {}

    def load_stage_state(self, state: dict[str, Any]) -> None:
        """Take that state up again."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Options and the stage's state come in."""
        state = {"validated": self.validated, **self.stage_state()}
        checkpoint["stage"] = {"name": self.stage, "options": self.options, "state": state}

    def record_options(self, config: dict[str, Any], files: dict[str, str | None], trainer: L.Trainer) -> None:
        """Take the whole parsed config for run.json, and of it for a resume what decides the numbers; files count by content.

        Args:
            config: The parsed config, as plain values.
            files: Option of the data module → file.
            trainer: What the config's is.
        """
        self.run_config = config
        self.run_files = [f for f in files.values() if f]
        for part in ("model", "data"):
            self.options.update(flat(config[part]["init_args"], part, skip=files if part == "data" else ()))
            self.options[part] = config[part]["class_path"]
        decisive = (
            "precision", "max_epochs", "max_steps", "limit_train_batches", "gradient_clip_val", "accumulate_grad_batches",
            "val_check_interval", "check_val_every_n_epoch", "limit_val_batches", "gradient_clip_algorithm", "overfit_batches",
        )  # fmt: skip
        self.options.update({f"trainer.{k}": config["trainer"].get(k) for k in decisive})
        self.options.update({"trainer.devices (in all)": trainer.world_size, "trainer.strategy": type(trainer.strategy).__name__})
        for name in ("policy", "reference", "value_init"):  # what a checkpoint does not hold of them must be what it was
            if given := self.options.get(f"model.{name}"):
                self.options[f"model.{name}"] = f"{given} ({weights_hash(given)})"
        for name in ("reward", "held_out_reward"):  # a directory, a function, or several
            if given := self.options.get(f"model.{name}"):
                parts = given if isinstance(given, list) else [{"reward": given}]
                self.options[f"model.{name}"] = [{**part, "content": reward_hash(part["reward"])} for part in parts]
        for option, file in files.items():
            self.options[f"data.{option}"] = content(file) if file else file

    def check_checkpoint(self, path: str, strategy: Any = None) -> list[str]:
        """Why a checkpoint cannot be resumed from, in words, one line an option; nothing but the file is loaded."""
        if not Path(path).exists():
            return [f"--ckpt_path: {path}: no such file"]
        if Path(path).is_dir() and not is_sharding(strategy):
            return [f"--ckpt_path: {path}: found a folder, which ModelParallelStrategy alone reads (configs/hardware/fsdp2.yaml)"]
        file = Path(path) / SHARDS if Path(path).is_dir() else path
        saved = checkpoint_content(file)
        if saved is None:
            return [f"--ckpt_path: {path}: found no whole checkpoint there, expected a file that a stage wrote"]
        return self.differences(saved.get("stage", {}))

    def differences(self, saved: dict[str, Any]) -> list[str]:
        """What keeps this run from going on from a checkpoint's field `stage`."""
        if saved.get("name") != self.stage:
            return [f"--ckpt_path: found a checkpoint of stage {saved.get('name')!r}, expected {self.stage!r}"]
        then, now = saved["options"], self.options
        allowed = self.may_change | self.allowed_changes
        given = inspect.signature(type(self)).parameters.values()  # an option that there was not yet had its default
        then = {name: p.default for p in given if (name := f"model.{p.name}") in now and p.default is not p.empty} | then
        changed = [k for k in sorted({*then, *now}) if k not in allowed and then.get(k) != now.get(k)]
        strategies = {then.get("trainer.strategy"), now.get("trainer.strategy")}
        if not changed and len(strategies) > 1 and ModelParallelStrategy.__name__ in strategies and self.stage != "sft":
            why = "the optimizer of sharded networks has other groups; a new run may start from the checkpoint's policy"
            return [f"--ckpt_path: trainer.strategy: found {now.get('trainer.strategy')}, and {why}"]
        return [
            f"--ckpt_path: {k}: found {now.get(k)!r}, the checkpoint was made with {then.get(k)!r} "
            f"(--allow_changed '[\"{k}\"]' goes on all the same)"
            for k in changed
        ]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse another stage's checkpoint, other options, or missing weights; raises UsageError."""
        saved = checkpoint.get("stage", {})
        problems = self.differences(saved)
        weights = checkpoint.get("state_dict", self.trained_keys())  # sharded weights were taken up, and out, already
        if not problems and (missing := self.trained_keys() - set(weights)):
            problems = [f"--ckpt_path: the checkpoint lacks {len(missing)} weights, such as {sorted(missing)[:3]}"]
        if problems:
            raise UsageError("\n".join(problems))
        kept = saved["options"]
        self.overruled = frozenset(k for k in {*kept, *self.options} if kept.get(k) != self.options.get(k))
        self.validated = saved["state"].get("validated", -1)
        self.load_stage_state(saved["state"])

    def on_train_start(self) -> None:
        """After a resume: the options of an optimizer that it was allowed to change, where a checkpoint's would stay; and the
        validation that a kill, after its batch's checkpoint, kept from running."""
        self._change_optimizers()
        if self.automatic_optimization and self.trainer.ckpt_path and self.trainer.enable_validation and self.validation_due():
            self.validate()

    def validation_due(self) -> bool:
        """Whether one, at Lightning's intervals, belongs behind the last batch and has not been. (Its own loop skips it, and
        counts a full epoch as over.)"""
        trainer, last = self.trainer, self.trainer.fit_loop.epoch_loop.total_batch_idx
        if last < 0 or last == self.validated or not isinstance(trainer.val_check_batch, int):
            return False
        if trainer.check_val_every_n_epoch is None:
            return (last + 1) % trainer.val_check_batch == 0
        epoch, place = divmod(last, int(trainer.num_training_batches))
        return (epoch + 1) % trainer.check_val_every_n_epoch == 0 and (place + 1) % trainer.val_check_batch == 0

    def validate(self) -> None:
        """Run the validation, between two batches."""
        loop = self.trainer.fit_loop.epoch_loop.val_loop
        loop.restarting = False  # a checkpoint's place in an earlier validation is none in this one
        self.trainer.validating = True
        loop.run()
        self.trainer.training = True

    def on_validation_start(self) -> None:
        """Which batch it follows, before a callback saves that at its end."""
        if self.automatic_optimization and self.trainer.validating:
            self.validated = self.trainer.fit_loop.epoch_loop.total_batch_idx

    def _change_optimizers(self) -> None:
        if not any(k.startswith("model.optimizer") for k in self.overruled):
            return
        for optimizer, config in zip(self.trainer.optimizers, self.trainer.lr_scheduler_configs, strict=True):
            schedule = cast(LambdaLR, config.scheduler)
            for i, group in enumerate(optimizer.param_groups):
                group.update({k: v for k, v in optimizer.defaults.items() if k in group})
                group["initial_lr"] = schedule.base_lrs[i] = group["lr"]
                group["lr"] *= schedule.lr_lambdas[i](schedule.last_epoch)

    # ------------------------------------------------------------------------------------------------------- export

    def on_fit_start(self) -> None:
        """The clock of run.json starts. Without the command line, which has asked that long before: raises UsageError where the
        export would replace what it may not."""
        late = self.trainer.strategy.restore_checkpoint_after_setup  # then Lightning does not tell yet that it is a resume
        mine = self.run_config is None and not self.exported and not late
        mine = mine and not self.trainer.fast_dev_run  # type: ignore[attr-defined]
        if mine and (problems := self.output_problems(bool(self.trainer.ckpt_path))):
            raise UsageError("\n".join(problems))
        self.run_info = RunInfo(self.stage, self.seed, self.run_config, list(self.run_files))

    def export(self) -> dict[str, Any]:
        """Write the stage's Hugging Face directory to `output`; returns figures for run.json."""
        raise NotImplementedError

    def before_export(self) -> None:
        """What every rank does before the first one exports: the validation that a kill after the last checkpoint kept from
        running."""
        trainer = self.trainer
        if trainer.ckpt_path and trainer.enable_validation and not any(k.startswith("val/") for k in trainer.callback_metrics):
            self.validate()

    def on_train_end(self) -> None:
        """Export, on the first rank; a run that was interrupted, or of a batch alone (`fast_dev_run`), exports nothing."""
        if self.trainer.interrupted or self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self.before_export()
        with whole_networks(self):
            if self.trainer.is_global_zero:
                figures = self.export()
                self.exported = True
                self.run_info.write(self.output, figures=figures)
                told = [f"{name} {value:.3g}" for name, value in figures.items() if isinstance(value, float)]
                print(f"{self.output}: {', '.join(told[:6]) or 'written'}", flush=True)


def _lacks_nothing(module: Any, keys: Any) -> None:
    """What `state_dict` leaves out is not missing, to an average of the weights either."""
    own = tuple(f".{name}" for name in module.all_keys())
    keys.missing_keys[:] = [key for key in keys.missing_keys if not f".{key}".endswith(own)]


class StageCheckpoint(L.Callback):
    """One checkpoint, replaced every so many batches by rename, so that it is never half-written.

    That of an earlier run, which this one does not resume, is kept as `PATH.old`.

    Args:
        path: The file; a link to a folder where the strategy has each device write its part (`save_distributed_checkpoint`).
        every: Batches (for PPO: iterations) between two; the last batch always makes one. Where batches are accumulated, one
            that is due waits for the end of the optimizer step, whose gradients a checkpoint does not hold. None is made at
            trainer.max_steps: Lightning would not even export from there.
    """

    def __init__(self, path: str, every: int = 10) -> None:
        if every < 1:
            raise UsageError(f"StageCheckpoint.every: found {every}, expected at least 1")
        self.path, self.every = Path(path), every
        self.saved = False  # whether this run has a checkpoint there

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save where it is due."""
        if getattr(trainer, "fast_dev_run", False):
            return
        done, step = batch_idx + 1, trainer.accumulate_grad_batches
        due = done % step == 0 and done // self.every > (done - step) // self.every
        ended = 0 <= getattr(trainer, "max_steps", -1) <= trainer.global_step
        if (due or done == trainer.num_training_batches) and not ended:
            self.save(trainer)

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Stand behind the other callbacks, whose state is then that of the same batch; say of a checkpoint that a killed run
        left half-written that it is not used."""
        trainer.callbacks = sorted(trainer.callbacks, key=lambda callback: isinstance(callback, StageCheckpoint))  # type: ignore[attr-defined]
        if self.path.is_dir() and not self.path.is_symlink():
            raise UsageError(f"StageCheckpoint.path: found the folder {self.path}, expected a file's name")
        if stage == "fit" and (problem := unwritable(self.path.parent)):
            raise UsageError(f"StageCheckpoint.path: {problem}")
        if stage == "fit" and self.partial.exists():
            rank_zero_warn(f"{self.partial}: a checkpoint that was interrupted; ignored, {self.path} is the last whole one")

    @property
    def partial(self) -> Path:
        """Where a checkpoint is written before it has its name."""
        return self.path.with_name(f".{self.path.name}.partial")

    def save(self, trainer: L.Trainer) -> None:
        """Write it aside, then rename."""
        if trainer.is_global_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            remove(self.partial)  # what a killed run left: other devices, other files
        trainer.strategy.barrier()
        trainer.save_checkpoint(self.partial)
        if trainer.is_global_zero:
            if not self.saved and self.of_another_run(trainer):
                old = self.path.with_name(f"{self.path.name}.old")
                self.path.replace(old)
                rank_zero_warn(f"{self.path} was of an earlier run, which can be resumed from {old}")
            put_in_place(self.partial, self.path)
        self.saved = True
        trainer.strategy.barrier()

    def of_another_run(self, trainer: L.Trainer) -> bool:
        """Whether a checkpoint is there that this run did not go on from (Lightning says so only once it has been read)."""
        resumed = trainer.ckpt_path
        return self.path.exists() and not (resumed and Path(resumed).exists() and self.path.samefile(resumed))


def output_problems(output: Path) -> list[str]:
    """What keeps an export from being written there; a folder is replaced only if it is an export, or empty."""
    if not output.name or output.name == "..":
        return [f"model.output: found {str(output)!r}, expected the name of a new folder"]
    if output.exists() and not (output.is_dir() and (not any(output.iterdir()) or (output / "config.json").is_file())):
        return [f"model.output: {output} is no export (it has no config.json), and is not replaced; expected another name"]
    problem = unwritable(output.parent)
    return [f"model.output: {problem}"] if problem else []


def reward_hash(name: str) -> str:
    """What tells one reward from another of the same name: its weights, or its file of code."""
    if is_learned(name):
        return weights_hash(name)
    module, _, _ = name.rpartition(":")
    file = Path(module) if module.endswith(".py") else Path(f"{module.replace('.', '/')}.py")  # beside where the run starts
    return file_sha256(file)[:12] if file.is_file() else "as installed"


def flat(tree: dict[str, Any], prefix: str, skip: Any = ()) -> dict[str, Any]:
    """Options by dotted name, without `init_args`: {optimizer: {init_args: {lr: 1}}}, model → {model.optimizer.lr: 1}."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if key in skip:
            continue
        name = prefix if key == "init_args" else f"{prefix}.{key}"
        found.update(flat(value, name) if isinstance(value, dict) else {name: value})
    return found


def is_finite(name: str, value: torch.Tensor, iteration: int) -> None:
    """Stop a run whose loss is not a number, before it reaches the weights."""
    if not bool(torch.isfinite(value).all()):
        raise UsageError(
            f"{name}: found {value.item()} at iteration {iteration}, expected a finite number; lower the learning rate"
        )
