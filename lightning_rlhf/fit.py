"""`fit`, `validate` and `estimate`: LightningCLI with what all stages share, and every check before anything expensive."""

from __future__ import annotations

import json
import logging
import os
import sys
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import yaml
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.utilities import rank_zero_warn
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.model_helpers import is_overridden

from .estimate import ALLOW, estimate, memory_problem
from .files import DataError
from .folders import alone, leaving_none, unwritable
from .parsing import OneMessage, explained, nulls, overruled
from .reward import RewardModule
from .scoring import guard_problems
from .stage import StageCheckpoint, StageModule
from .stage_data import StageData
from .tasks import LM_HELP, RUN_DIR_HELP, Task, UsageError


class StageParser(OneMessage, LightningArgumentParser):
    """Of a LightningCLI."""


# Options of a part that are set once for all
LINKED = {
    "model.task": "task", "data.task": "task", "data.tokenizer": "lm",
    "model.seed": "seed_everything", "data.seed": "seed_everything",
}  # fmt: skip


class SaveConfig(SaveConfigCallback):
    """Keeps the parsed config beside the logs; without a logger there is no place for it (run.json holds it too)."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save it, where there is a logger."""
        if trainer.loggers:
            super().setup(trainer, pl_module, stage)


class RLHFCLI(LightningCLI):
    """LightningCLI with a task, a model name and a run directory that are set once."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """fit and validate."""
        skip = {"model", "train_dataloaders", "val_dataloaders", "datamodule", "dataloaders", "weights_only"}
        return {"fit": skip, "validate": skip}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """`--run_dir`, `--lm`, `--task.*`, handed to model and data."""
        parser.add_argument("--run_dir", type=str, default="out/run", help=RUN_DIR_HELP)
        parser.add_argument("--lm", type=str, default="gpt2", help=LM_HELP)
        parser.add_argument("--task", type=Task, help="The task; its fields are options too.")
        parser.add_argument(
            "--allow_changed", type=list[str], default=[], help="Options that may differ from the checkpoint's on resume."
        )
        parser.add_argument(ALLOW, type=bool, default=False, help="Start although memory is estimated not to suffice.")
        for target, source in LINKED.items():
            block, _, name = target.partition(".")
            parser.link_arguments(source, f"{block}.init_args.{name}", compute_fn=int if name == "seed" else None)

    def _set_seed(self) -> None:
        """As in LightningCLI, of a seed that there is."""
        seed = self.config[self.config.subcommand].get("seed_everything")
        if not 0 <= int(seed or 0) < 2**32:
            raise UsageError(f"seed_everything: found {seed}, expected 0 to {2**32 - 1}")
        super()._set_seed()

    def _parse_ckpt_path(self) -> None:
        """Nothing: LightningCLI would lay a checkpoint's hyperparameters over flags and YAML; here a difference is an error."""

    def instantiate_classes(self) -> None:
        """As in LightningCLI; what a class refuses of its arguments (UsageError is a ValueError) is the user's to change."""
        options = self.config[self.config.subcommand]
        problems = []
        for part in ("model", "data"):
            module, _, name = options[part].class_path.rpartition(".")
            problems += nulls(getattr(import_module(module), name), vars(options[part].init_args), self.parser, part)
        parser = cast(StageParser, self.parser)
        problems += nulls(Task, vars(options.task), parser, "task")
        values = {target: (source, options[source]) for target, source in LINKED.items()}
        problems += overruled(values, parser.files, parser.words)
        if problems:
            raise UsageError("\n".join(problems))
        try:
            super().instantiate_classes()
        except UsageError:
            raise
        except ValueError as error:
            raise UsageError(explained(str(error))) from None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """As in LightningCLI; what the Trainer cannot do here (a device, a strategy) is the user's to change."""
        try:
            return super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ImportError, TypeError, ValueError) as error:
            raise UsageError(f"trainer: {error}") from None

    def _check(self) -> None:
        """Raise UsageError with every problem that options and files show, before a model is loaded."""
        if problems := self._problems():
            raise UsageError("\n".join(problems))

    def _problems(self) -> list[str]:
        """Every problem that options and files show, in words."""
        subcommand = self.config[self.config.subcommand]
        resume = subcommand.get("ckpt_path")
        config = yaml.safe_load(self._parser(self.config.subcommand).dump(subcommand, skip_validation=True))
        self.model.record_options(config, self.datamodule.files, self.trainer)
        self.model.allowed_changes = frozenset(subcommand["allow_changed"])
        given = config["model"]["init_args"]
        reward = given.get("reward")
        directory = reward if isinstance(reward, str) and Path(reward).is_dir() else None
        problems = guard_problems(given.get("guard_comparisons"), given.get("guard_pairs"), directory)
        asked, got = str(config["trainer"].get("precision") or "32-true"), str(self.trainer.precision)
        if asked in ("16-mixed", "16") and got not in ("16-mixed", "16"):  # Lightning changes it with no more than a warning
            missing = f"trainer.precision: found {asked}, which is not to be had on this device; {got} is, or 32-true"
            problems += self.model.precision_problems(asked) or [missing]
        for check in (
            self.datamodule.check,
            lambda: self.model.check(self.datamodule, self.trainer, bool(resume) or self.config.subcommand == "validate"),
            lambda: self.model.check_checkpoint(resume, self.trainer.strategy) if resume else [],
            lambda: folder_problems(self.trainer) if self.config.subcommand == "fit" else [],
        ):
            try:
                problems += check()
            except (UsageError, DataError) as error:
                problems.append(str(error))
        return problems

    def before_fit(self) -> None:
        """As for every command; and the run must fit into memory."""
        self._check()
        problem = memory_problem(self.model, self.datamodule, self.trainer)
        if problem and not self.config["fit"]["allow_out_of_memory"]:
            raise UsageError(problem)
        if problem:
            rank_zero_warn(f"the run starts ALTHOUGH {problem}")

    def _run_subcommand(self, subcommand: str) -> None:
        """As in LightningCLI, which ends a run that was told to stop without a word, on SIGTERM as if all were well."""
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        path = next((c.path for c in callbacks if isinstance(c, StageCheckpoint)), None)
        writes = subcommand == "fit" and self.trainer.is_global_zero and path is not None and not unwritable(path.parent)
        try:
            with alone(path.parent, path.name) if writes and path else nullcontext():
                super()._run_subcommand(subcommand)
        except SystemExit as error:
            stopped = self.trainer.received_sigterm
            if not (stopped or isinstance(error.__context__, KeyboardInterrupt)):
                raise
            how = f"go on with --ckpt_path {path}" if path and path.exists() else "there is no checkpoint yet"
            if self.trainer.is_global_zero:
                print(f"{'stopped by SIGTERM' if stopped else 'interrupted'}; {how}", file=sys.stderr)
            raise SystemExit(143 if stopped else 130) from None

    def before_validate(self) -> None:
        """As before fit; and there must be something to validate with."""
        self._check()
        if not is_overridden("validation_step", self.model):
            raise UsageError(f"validate: {type(self.model).__name__} has no validation; use `python -m eval report`")
        if isinstance(self.model, RewardModule) and not self.config["validate"].get("ckpt_path"):
            raise UsageError("validate: --ckpt_path: not given, expected a checkpoint; without one the head is random")
        if not self.datamodule.files.get("val"):
            raise UsageError("validate: data.val: not given, expected a file of held-out records")


def folder_problems(trainer: Any) -> list[str]:
    """Folders that loggers and callbacks will write into, and cannot; in words. Every rank asks, so that nothing is made."""
    named = [(f"{type(logger).__name__}.save_dir", logger.save_dir) for logger in trainer.loggers]
    named += [(f"{type(c).__name__}.dirpath", getattr(c, "dirpath", None)) for c in trainer.callbacks]
    if trainer.default_root_dir != os.getcwd():  # given
        named += [("default_root_dir", trainer.default_root_dir)]
    problems = []
    for option, folder in named:
        if folder and "://" not in str(folder):
            path = Path(folder).absolute()
            there = next(parent for parent in (path, *path.parents) if parent.exists())
            if not (there.is_dir() and os.access(there, os.W_OK)):
                expected = "expected a folder that can be written to"
                problems.append(f"trainer: {option}: {folder}: cannot be made in {there}, {expected}")
    return problems


class EstimateCLI(RLHFCLI):
    """`fit` up to the options and the data; then the estimate, instead of the run."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """`--json`."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--json", type=bool, default=False, help="estimate: print JSON, in bytes.")

    def _run_subcommand(self, subcommand: str) -> None:
        """Print it, and what `fit` would refuse: files may be missing, and options are there to be tried."""
        with leaving_none(Path(self.model.output).parent):
            problems = self.datamodule.option_problems() + self.model.check(self.datamodule, self.trainer, True)
        try:
            found = estimate(self.model, self.datamodule, self.trainer)
        except (ArithmeticError, IndexError, RuntimeError, TypeError, ValueError) as error:
            if not problems or isinstance(error, UsageError):
                raise
            raise UsageError("\n".join(problems)) from None
        for problem in problems:
            print(f"fit would refuse this: {problem}", file=sys.stderr)
        print(json.dumps(found.as_dict(), indent=1) if self.config["fit"]["json"] else found.table())


CLI_OPTIONS: dict[str, Any] = dict(
    subclass_mode_model=True, subclass_mode_data=True, auto_configure_optimizers=False, seed_everything_default=1,
    save_config_callback=SaveConfig, parser_class=StageParser,
    parser_kwargs={"parser_mode": "omegaconf+", "allow_abbrev": False},  # no option by the beginning of its name
)  # fmt: skip


def run_fit(args: list[str]) -> None:
    """`fit` or `validate`."""
    _run(RLHFCLI, args)


class ParsedCLI(RLHFCLI):
    """`fit` up to the options, for a command that will run it later."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing."""


def parsed(args: list[str]) -> StageModule:
    """The module that `fit` would train, of options that are all well; nothing is read or loaded. Raises UsageError."""
    return _run(ParsedCLI, args).model  # type: ignore[no-any-return]


def run_estimate(args: list[str]) -> None:
    """`estimate`, with the options of `fit`."""
    _run(EstimateCLI, ["fit", *args[1:]])


def _run(cli: type[RLHFCLI], args: list[str]) -> RLHFCLI:
    """What Lightning says of its own options is a user's mistake like any other."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    try:
        return cli(StageModule, StageData, args=args, **CLI_OPTIONS)
    except MisconfigurationException as error:
        raise UsageError(str(error)) from None
