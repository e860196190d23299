"""`python -m eval {sample,score,compare,report} --config configs/<task>/eval.yaml`: policies against baselines, and a report.

Each step reads the files of the one before it; `report` runs whatever is missing. Files made from the same inputs are kept.

    python -m eval report --config configs/sentiment/eval.yaml --config configs/sentiment/stories260k/eval.yaml
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, set_parsing_settings

from eval.report import build_report, read_curves, write_report
from eval.sample import sample_policies, score_samples
from eval.winrate import paired_outcomes, win_rate
from lightning_rlhf.cli import LM_HELP, RUN_DIR_HELP, check_yaml, one_message, quiet
from lightning_rlhf.files import read_jsonl
from lightning_rlhf.models import find_lm, read_reward_info
from lightning_rlhf.records import read_comparisons
from lightning_rlhf.runinfo import RunInfo
from lightning_rlhf.scoring import comparison_accuracy, find_reward, load_callable, load_reward
from lightning_rlhf.tasks import Task, UsageError

STEPS = ("sample", "score", "compare", "report")
STAGES = ("prompts", "labels", "sft", "reward", "ppo")


def evaluate(
    step: str,
    run_dir: str,
    lm: str,
    task: Task,
    prompts: str,
    output: str,
    policies: dict[str, str],
    reference: str | None = None,
    learned_reward: str | None = None,
    known_reward: str | None = None,
    judge: str = "known",
    comparisons: str | None = None,
    logs: str | None = None,
    second_draw: str | None = None,
    limit: int | None = None,
    n_samples: int = 10,
    batch_size: int = 64,
    precision: str = "auto",
    seed: int = 1,
) -> None:
    """Evaluate policies on held-out prompts.

    Args:
        step: sample, score, compare or report.
        run_dir: Folder of the whole run; its stages' run.json files are the report's provenance.
        lm: The language model; configs refer to it as ${lm}.
        task: The task.
        prompts: JSON lines of held-out prompts.
        output: Folder of samples, scores and report.
        policies: Name in the report → embedded name, directory, GGUF file or Hub id.
        reference: Model that KL and perplexity are taken under; null: neither.
        learned_reward: Reward directory; null: no learned score.
        known_reward: `known:NAME` or `module:function`; null: no known score.
        judge: The score by which pairs are won: known or learned.
        comparisons: Held-out comparisons on which the learned reward is checked beside the labeler; null: not checked.
        logs: Folder of the stages' metrics.csv files, for learning curves; null: none.
        second_draw: Policy that is sampled a second time, as a check that it ties with itself; null: none.
        limit: Use so many prompts; null: all.
        n_samples: Prompts shown side by side in the report.
        batch_size: Prompts at a time.
        precision: `32`, `bf16`, or `auto`: bf16 where the hardware is fast at it.
        seed: Of the sampling.

    Raises:
        UsageError, DataError: An option or a file is wrong; nothing has been sampled then.
    """
    if second_draw is not None:
        if second_draw not in policies:
            raise UsageError(f"second_draw: found {second_draw!r}, expected one of the policies {sorted(policies)}")
        policies = {**policies, f"{second_draw} (second draw)": policies[second_draw]}
    for name in {*policies.values(), *([reference] if reference else [])}:
        find_lm(name)
    for reward in (learned_reward, known_reward):
        if reward:
            find_reward(reward, task.name)
    if {"known": known_reward, "learned": learned_reward}.get(judge) is None:
        raise UsageError(f"judge: found {judge!r}, expected known or learned, with its reward given")
    if not Path(prompts).is_file():
        raise UsageError(f"prompts: {prompts}: no such file")
    folder = Path(output)
    options = {"policies": policies, "task": asdict(task), "limit": limit, "batch_size": batch_size, "precision": precision}
    info = RunInfo("eval", seed, options, [prompts])
    if step in ("sample", "report"):
        sample_policies(task, policies, prompts, folder, limit, batch_size, precision, seed)
    if step in ("score", "report"):
        score_samples(task, policies, reference, learned_reward, known_reward, folder, batch_size, precision)
    if step in ("compare", "report"):
        file = folder / "scores.jsonl"
        if not file.is_file():
            raise UsageError(f"{file}: not there; run `python -m eval score` first")
        rows = [r for _, _, r in read_jsonl(file)]
        print(compare(rows, list(policies), judge, folder))
    if step == "report":
        reward_model = judge_reward(learned_reward, known_reward, comparisons)
        files = [Path(run_dir) / stage / "run.json" for stage in STAGES]
        runs = [json.loads(f.read_text(encoding="utf-8")) for f in files if f.is_file()]
        guard = next((r["figures"].get("guard") for r in runs if r["stage"] == "ppo"), None)
        report = build_report(
            rows, title=f"{task.name}, {lm}: policies on held-out prompts", task=task.name, judge=judge, curves=curves(logs),
            reward_model=reward_model, guard=guard, provenance=[*runs, info.record()], n_samples=n_samples, seed=seed,
            command=shlex.join(["python", "-m", "eval", *sys.argv[1:]]),
        )  # fmt: skip
        paths = write_report(report, folder)
        print("\n".join(f"{kind}: {path}" for kind, path in paths.items()))


def compare(rows: list[dict[str, Any]], policies: list[str], judge: str, folder: Path) -> str:
    """Win rates of each policy against each, paired by prompt; writes `compare.json`, returns a table."""
    scores = {p: {(r["id"], r["index"]): r["scores"][judge] for r in rows if r["policy"] == p} for p in policies}
    lines, found = [f"win rates by {judge} reward (95 % intervals)"], []
    for a in policies:
        for b in policies:
            if a == b:
                continue
            keys = sorted(scores[a].keys() & scores[b].keys())
            result = win_rate(paired_outcomes([scores[a][k] for k in keys], [scores[b][k] for k in keys]), [k[0] for k in keys])
            found.append({"a": a, "b": b, **asdict(result)})
            lines.append(f"  {a:>24} over {b:<24} {result.rate:.3f} ({result.low:.3f} to {result.high:.3f}), n = {result.n}")
    (folder / "compare.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    return "\n".join(lines)


def judge_reward(learned: str | None, known: str | None, comparisons: str | None) -> dict[str, Any] | None:
    """The learned reward's accuracy on held-out comparisons, beside chance and the labeler's agreement with itself."""
    if not (learned and comparisons):
        return None
    held_out = [c for c in read_comparisons(comparisons) if c.best is not None]
    found = comparison_accuracy(load_reward(learned), held_out)
    info = read_reward_info(learned)
    more = {k: info.get(k) for k in ("gain", "bias", "labels", "base")}
    labeler = comparison_accuracy(load_callable(known), held_out)["accuracy"] if known else None
    return {**found, **more, "labeler_accuracy": labeler}


def curves(logs: str | None) -> dict[str, Any]:
    """The latest metrics.csv of each stage."""
    found = {}
    for stage in ("sft", "reward", "ppo"):
        files = sorted(Path(logs or "").glob(f"{stage}/version_*/metrics.csv"), key=lambda f: int(f.parent.name.split("_")[1]))
        if logs and files:
            found[stage] = read_curves(str(files[-1]))
    return found


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
            if args and args[0] not in ("-h", "--help"):
                raise UsageError(f"no step {args[0]!r}, expected one of: {', '.join(STEPS)}")
            return
        evaluate(step=args[0], **parse(args))


def parse(args: list[str]) -> dict[str, Any]:
    """Options of a step: {name: value}."""
    run: Callable[..., None] = evaluate
    parser = ArgumentParser(prog=f"python -m eval {args[0]}", parser_mode="omegaconf+", description=run.__doc__)
    parser.add_argument("-c", "--config", action="config", help="A YAML file of options; may be given several times.")
    parser.add_argument("--run_dir", type=str, default="out/run", help=RUN_DIR_HELP)
    parser.add_argument("--lm", type=str, default="gpt2", help=LM_HELP)
    parser.add_function_arguments(run, skip={"step", "run_dir", "lm"})
    config = parser.instantiate(parser.parse_args(args[1:]))
    return {k: getattr(config, k) for k in vars(config) if k != "config"}


if __name__ == "__main__":
    main()
