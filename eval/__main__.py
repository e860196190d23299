"""`python -m eval {sample,score,compare,report} --config configs/<task>/eval.yaml`: policies against baselines, and a report.

Each step reads the files of the one before it; `report` runs whatever is missing. Files made from the same inputs are kept.

    python -m eval report --config configs/sentiment/eval.yaml --config configs/sentiment/stories260k/eval.yaml
"""

from __future__ import annotations

import sys

from jsonargparse import set_parsing_settings

from eval.options import Options
from eval.steps import run_step
from lightning_rlhf.cli import one_message, quiet
from lightning_rlhf.parsing import Parser, check_yaml
from lightning_rlhf.tasks import LM_HELP, RUN_DIR_HELP, UsageError

STEPS = {
    "sample": "What each policy answers to the held-out prompts: prompts -> OUTPUT/samples/POLICY.jsonl.",
    "score": "ROUGE, length, copying, rewards, KL, perplexity: samples -> OUTPUT/scores.jsonl, summary.json and a table. "
    "Runs alone on samples of anyone's: python -m eval score --samples FOLDER --output OUTPUT",
    "compare": "Win rates of each policy against each: scores.jsonl -> OUTPUT/compare.json and a table.",
    "report": "All of these, and one page: OUTPUT/report.{html,json,md}.",
}


def main(args: list[str] | None = None) -> None:
    """Parse the options of a step and run it."""
    args = sys.argv[1:] if args is None else args
    quiet()
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    with one_message():
        check_yaml(args)
        if not args or args[0] not in STEPS:
            print(f"usage: python -m eval {{{','.join(STEPS)}}} --config CONFIG [--config OVERLAY …] [--OPTION VALUE …]\n")
            print(__doc__)
            print("\n".join(f"{step:8} {what}" for step, what in STEPS.items()))
            if args and args[0] not in ("-h", "--help"):
                raise UsageError(f"no step {args[0]!r}, expected one of: {', '.join(STEPS)}")
            return
        run_step(args[0], parse(args))


def parse(args: list[str]) -> Options:
    """The options of a step."""
    about = f"{STEPS[args[0]]} The steps share their options, so that one config serves them all."
    parser = Parser(prog=f"python -m eval {args[0]}", parser_mode="omegaconf+", description=about, allow_abbrev=False)
    parser.add_argument("-c", "--config", action="config", help="A YAML file of options; may be given several times.")
    parser.add_argument("--run_dir", type=str, default="out/run", help=RUN_DIR_HELP)
    parser.add_argument("--lm", type=str, default="gpt2", help=LM_HELP)
    parser.add_class_arguments(Options, skip={"run_dir", "lm"})
    return Options(**parser.values(Options, args[1:]))


if __name__ == "__main__":
    main()
