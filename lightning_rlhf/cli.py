"""The command line: `fit` and `validate` are a LightningCLI (`fit.py`); the other commands are functions of their files.

Every command takes `-c FILE` any number of times, later ones over earlier ones; `${run_dir}` and `${lm}` stand for the
options of those names, so that one flag moves a whole run. Everything is checked before anything expensive starts, and a
mistake ends in one message and exit status 2.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from typing import Any

from jsonargparse import set_parsing_settings
from transformers.utils import logging as transformers_logging

from .files import DataError
from .parsing import Parser, check_yaml
from .tasks import RUN_DIR_HELP, UsageError

#: A command is a function of its file; imported when it is asked for, because Lightning takes seconds to import.
FUNCTIONS = {
    "prompts": "prompts:build_prompts", "labels": "labelers:label", "split": "splits:split_comparisons",
    "label": "labeling:label_page", "online": "online:online",
}  # fmt: skip
STAGES = {"fit": "fit:run_fit", "validate": "fit:run_fit", "estimate": "fit:run_estimate"}


def imported(where: str) -> Callable[..., Any]:
    """A function of this package from `module:function`."""
    module, name = where.split(":")
    return getattr(import_module(f".{module}", __package__), name)  # type: ignore[no-any-return]


def parse_function(name: str, args: list[str]) -> dict[str, Any]:
    """The options of a function's command: {name: value}."""
    function = imported(FUNCTIONS[name])
    parser = Parser(
        prog=f"lightning-rlhf {name}", parser_mode="omegaconf+", description=function.__doc__, allow_abbrev=False
    )
    parser.add_argument("-c", "--config", action="config", help="A YAML file of options; may be given several times.")
    parser.add_argument("--run_dir", type=str, default="out/run", help=RUN_DIR_HELP)
    parser.add_function_arguments(function, skip={"run_dir"})
    return {k: v for k, v in parser.values(function, args).items() if k != "run_dir"}


def quiet() -> None:
    """Silence what a user cannot act on."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for text in (
        ".*does not have many workers.*",
        ".*LeafSpec.*",
        ".*isinstance\\(treespec.*",
        ".*Consider setting `persistent_workers.*",
        ".*num_workers.*",
        ".*in eval mode at the start of training.*",
        ".*Total length of `list` across ranks is zero.*",  # no held-out records, which is an option
        ".*args parameter is intended to run from within.*",
        ".*data pointer of FakeTensor.*",  # a copy of one, in the estimate of memory
    ):
        warnings.filterwarnings("ignore", text)
    transformers_logging.disable_progress_bar()


@contextmanager
def one_message() -> Iterator[None]:
    """A user's mistake, or a model that PyTorch cannot compile, ends in one message and exit status 2; Ctrl-C in 130."""
    try:
        yield
    except (UsageError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        text = of_a_library(error)
        if text is None:
            raise
        print(f"error: {text}", file=sys.stderr)
        raise SystemExit(2) from None


def of_a_library(error: Exception) -> str | None:
    """What to do about an error of OmegaConf (a `${…}` of the options) or of PyTorch's compiler; None: it is another's."""
    if type(error).__module__ == "omegaconf.errors":
        option = str(getattr(error, "full_key", "")).removeprefix("fit.")
        return f"{option}: {str(error).splitlines()[0]}, expected ${{run_dir}}, ${{lm}} or another option's name"
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        cause = getattr(error, "inner_exception", error)
        reason = f"{type(cause).__name__}: {cause}".splitlines()[0]
        options = "model.compile_blocks, model.compile_sampler"
        return f"{options}: PyTorch {version('torch')} could not compile this model here ({reason}); expected both false"
    return None


def main(args: list[str] | None = None) -> None:
    """Run a command."""
    args = sys.argv[1:] if args is None else args
    quiet()
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)  # ${run_dir} inside a subcommand's own options
    with one_message():
        check_yaml(args)
        if args and args[0] in FUNCTIONS:
            imported(FUNCTIONS[args[0]])(**parse_function(args[0], args[1:]))
        elif args and args[0] in STAGES:
            imported(STAGES[args[0]])(args)
        else:
            known = ", ".join([*FUNCTIONS, *STAGES])
            print(f"usage: lightning-rlhf {{{known}}} -c CONFIG [-c OVERLAY …] [--OPTION VALUE …]\n\n{__doc__}")
            if args and args[0] not in ("-h", "--help"):
                raise UsageError(f"no command {args[0]!r}, expected one of: {known}")
