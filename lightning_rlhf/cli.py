"""The command line: `fit` and `validate` are a LightningCLI; `prompts` and `labels` are functions of their files.

Every command takes `-c FILE` any number of times, later ones over earlier ones; `${run_dir}` and `${lm}` stand for the
options of those names, so that one flag moves a whole run. Everything is checked before anything expensive starts, and a
mistake ends in one message and exit status 2.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from transformers.utils import logging as transformers_logging

from .data import StageData
from .labelers import label
from .prompts import build_prompts
from .records import DataError
from .stage import StageModule
from .tasks import Task, UsageError

FUNCTIONS: dict[str, Callable[..., None]] = {"prompts": build_prompts, "labels": label}
RUN_DIR_HELP = "Folder of the whole run; configs refer to it as ${run_dir}."
LM_HELP = "The language model: embedded name, directory, GGUF file or Hub id; configs refer to it as ${lm}."


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
        parser.link_arguments("task", "model.init_args.task")
        parser.link_arguments("task", "data.init_args.task")
        parser.link_arguments("lm", "data.init_args.tokenizer")
        for part in ("model", "data"):
            parser.link_arguments("seed_everything", f"{part}.init_args.seed", compute_fn=int)

    def _check(self) -> None:
        subcommand = self.config[self.config.subcommand]
        resuming = bool(subcommand.get("ckpt_path"))
        problems = self.datamodule.check() + self.model.check(self.datamodule, self.trainer, resuming)
        if resuming and not os.path.isfile(subcommand.ckpt_path):
            problems.append(f"--ckpt_path: {subcommand.ckpt_path}: no such file")
        if problems:
            raise UsageError("\n".join(problems))
        self.model.run_config = yaml.safe_load(self._parser(self.config.subcommand).dump(subcommand, skip_validation=True))
        self.model.run_files = [f for f in self.datamodule.files.values() if f]

    before_fit = _check
    before_validate = _check


def run_function(name: str, args: list[str]) -> None:
    """Parse a function's options and call it."""
    parser = ArgumentParser(prog=f"lightning-rlhf {name}", parser_mode="omegaconf+", description=FUNCTIONS[name].__doc__)
    parser.add_argument("-c", "--config", action="config", help="A YAML file of options; may be given several times.")
    parser.add_argument("--run_dir", type=str, default="out/run", help=RUN_DIR_HELP)
    parser.add_function_arguments(FUNCTIONS[name])
    config = parser.instantiate(parser.parse_args(args))
    options = config.as_dict() if hasattr(config, "as_dict") else dict(vars(config))
    for extra in ("config", "run_dir"):
        options.pop(extra, None)
    FUNCTIONS[name](**{k: getattr(config, k) for k in options})


def quiet() -> None:
    """Silence what a user cannot act on."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for text in (".*does not have many workers.*", ".*LeafSpec.*", ".*isinstance\\(treespec.*", ".*Consider setting `persistent_workers.*", ".*num_workers.*", ".*in eval mode at the start of training.*", ".*args parameter is intended to run from within.*"):
        warnings.filterwarnings("ignore", text)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()


def main(args: list[str] | None = None) -> None:
    """Run a command; a user's mistake ends in one message on standard error and exit status 2."""
    args = sys.argv[1:] if args is None else args
    quiet()
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)  # ${run_dir} inside a subcommand's own options
    try:
        if args and args[0] in FUNCTIONS:
            run_function(args[0], args[1:])
        elif args and args[0] in RLHFCLI.subcommands():
            RLHFCLI(
                StageModule, StageData, subclass_mode_model=True, subclass_mode_data=True, auto_configure_optimizers=False,
                seed_everything_default=1, parser_kwargs={"parser_mode": "omegaconf+"}, args=args,
            )  # fmt: skip
        else:
            known = ", ".join([*FUNCTIONS, *RLHFCLI.subcommands()])
            print(f"usage: lightning-rlhf {{{known}}} -c CONFIG [-c OVERLAY …] [--OPTION VALUE …]\n\n{__doc__}")
            if args and args[0] not in ("-h", "--help"):
                raise UsageError(f"no command {args[0]!r}, expected one of: {known}")
    except (UsageError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
