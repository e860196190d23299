"""`python -m eval {sample,score,compare,report} --config configs/<task>/eval.yaml`: policies against baselines, and a report.

Each step reads the files of the one before it; `report` runs whatever is missing. Files made from the same inputs are kept.

    python -m eval report --config configs/sentiment/eval.yaml --config configs/sentiment/stories260k/eval.yaml
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, set_parsing_settings

from eval.alarms import MAIN
from eval.baselines import Policy, as_policies, policy_problems
from eval.calibration import calibrate
from eval.calibration import ensemble as ensembled
from eval.compare import compare, policy_pairs
from eval.copying import words
from eval.judges import FileJudge, find_judge, load_judge
from eval.measures import measure_names
from eval.report import build_report, read_curves, write_report
from eval.sample import HeldOut, by_policy, held_out, sample_policies
from eval.score import score_samples
from lightning_rlhf.cli import check_yaml, one_message, quiet
from lightning_rlhf.files import DataError, list_files, read_jsonl
from lightning_rlhf.models import find_lm
from lightning_rlhf.records import read_comparisons, read_samples
from lightning_rlhf.runinfo import RunInfo
from lightning_rlhf.scoring import LearnedReward, comparison_accuracy, comparison_scores, find_reward, load_callable
from lightning_rlhf.tasks import LM_HELP, RUN_DIR_HELP, Task, UsageError, told

STEPS = {
    "sample": "What each policy answers to the held-out prompts: prompts -> OUTPUT/samples/POLICY.jsonl.",
    "score": "ROUGE, length, copying, rewards, KL, perplexity: samples -> OUTPUT/scores.jsonl, summary.json and a table. "
    "Runs alone on samples of anyone's: python -m eval score --samples FOLDER --output OUTPUT",
    "compare": "Win rates of each policy against each: scores.jsonl -> OUTPUT/compare.json and a table.",
    "report": "All of these, and one page: OUTPUT/report.{html,json,md}.",
}
LEAST_CALIBRATED = 40  # held-out comparisons, below which halves and bins say nothing
STAGES = ("prompts", "labels", "sft", "reward", "ppo")


def evaluate(
    step: str,
    run_dir: str,
    lm: str,
    task: Task,
    output: str,
    prompts: str | None = None,
    policies: dict[str, str | Policy | None] | None = None,
    samples: str | None = None,
    source_column: str | None = None,
    reference: str | None = None,
    learned_reward: str | None = None,
    known_reward: str | None = None,
    allow_other_task: bool = False,
    use_stemmer: bool = True,
    judge: str | None = None,
    judges: list[str] | None = None,
    baselines: list[str] | None = None,
    comparisons: str | None = None,
    ensemble: list[str] | None = None,
    logs: str | None = None,
    more_logs: dict[str, str] | None = None,
    second_draw: str | None = None,
    limit: int | None = None,
    n_samples: int = 10,
    n_browse: int = 500,
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
        output: Folder of samples, scores and report.
        prompts: JSON lines of held-out prompts, `{id?, prompt, reference?, …}`; null: those of `samples`.
        policies: Name in the report → embedded name, directory, GGUF file, Hub id, file or folder of samples, `reference`,
            `lead-N`, `random-sentence` or `column:NAME`; or a block with `model` and `server`, `demonstrations` or `best_of`;
            null: left out.
        samples: File or folder of samples; each policy in it is evaluated beside `policies`; null: none.
        source_column: Column of the prompts' file with the text that responses are about; null: the prompt.
        reference: Model that KL and perplexity are taken under; null: neither.
        learned_reward: Reward directory; null: no learned score.
        known_reward: `known:NAME` or `module:function`; null: no known score.
        allow_other_task: Use rewards that were made for another task all the same.
        use_stemmer: ROUGE compares the Porter stems of words.
        judge: The score or measure by which pairs are won in the report: known, learned, one that the samples have, rouge1,
            rouge2, rougeL, …; null: the known reward, else the learned one, else the samples' own score, else rougeL.
        judges: Judges of the compare step: a score's or measure's name, verdicts:FILE, lm:NAME, server:MODEL@URL; null: `judge`
            alone.
        baselines: Policies that the others are compared with, and whose win rates the report shows first; null: each with each.
        comparisons: Held-out comparisons on which the learned reward is checked beside the labeler; null: not checked.
        ensemble: Further reward directories, of other seeds: what they and `learned_reward` say of `comparisons` together.
        logs: Folder of the stages' metrics.csv files, for learning curves; null: none.
        more_logs: Name in the report → the logs folder of another run, whose PPO stands beside this one's on the frontier.
        second_draw: Policy that is sampled a second time, as a check that it ties with itself; null: none.
        limit: Use so many prompts; null: all.
        n_samples: Prompts shown side by side in the report.
        n_browse: Prompts that the report's browser holds.
        batch_size: Prompts at a time.
        precision: `32`, `bf16`, or `auto`: bf16 where the hardware is fast at it.
        seed: Of the sampling.

    Raises:
        UsageError, DataError: An option or a file is wrong; nothing has been sampled then.
    """
    chosen = as_policies(policies or {})
    if samples is not None:
        chosen |= {name: Policy(samples) for name in by_policy(samples) if name not in chosen}
    problems = policy_problems(chosen, task.name, allow_other_task) if step != "compare" else []
    if not chosen:
        problems.append("policies: found none, expected at least one, or samples")
    if second_draw is not None:
        if second_draw not in chosen:
            problems.append(f"second_draw: found {second_draw!r}, expected one of the policies {sorted(chosen)}")
        else:
            chosen[f"{second_draw} (second draw)"] = chosen[second_draw]
    rewards = {"known": known_reward, "learned": learned_reward}
    own = own_scores(chosen) if judge is not None else set()
    given = {kind for kind, reward in rewards.items() if reward is not None} | ({"kl", "ref_nll"} if reference else set())
    if judge is not None and judge not in given | own | measure_names():
        problems.append(
            f"judge: found {judge!r}, expected known or learned with its reward given, a measure such as rougeL, or a score that "
            "all samples have"
        )
    for asked_judge in judges or []:
        problems += told(find_judge, asked_judge)
        if asked_judge in rewards and rewards[asked_judge] is None:
            problems.append(f"judges: found {asked_judge!r}, expected its reward to be given")
    if ensemble and not (learned_reward and comparisons):
        problems.append(f"ensemble: found {ensemble}, expected learned_reward and comparisons with it")
    others = {run: found["ppo"] for run, path in (more_logs or {}).items() if "ppo" in (found := curves(path))}
    for run, path in (more_logs or {}).items():
        if run not in others:
            problems.append(f"more_logs.{run}: {path}: found no ppo/version_*/metrics.csv there")
    problems += told(policy_pairs, list(chosen), baselines)
    try:
        for name in (reference, lm if any(p.server for p in chosen.values()) else None):
            if name is not None and step != "compare":
                find_lm(name)
        for kind, reward in rewards.items():
            if reward is not None:
                find_reward(reward, task.name, allow_other_task, f"{kind}_reward", "--allow_other_task")
        for member in ensemble or []:
            find_reward(member, task.name, allow_other_task, "ensemble", "--allow_other_task")
        asked = held_out(prompts, samples, limit, source_column)
    except (UsageError, DataError) as error:
        problems.append(str(error))
    if problems:
        raise UsageError("\n".join(problems))
    if judge is None and (step == "report" or (step == "compare" and not judges)):
        judge = default_judge(rewards, chosen, asked)
    folder = Path(output)
    shown = {name: asdict(p) if isinstance(p, Policy) else p for name, p in (policies or {}).items()}
    options: dict[str, Any] = {"policies": shown, "samples": samples, "prompts": prompts, "task": asdict(task), "judge": judge}
    options |= {"judges": judges, "baselines": baselines, "reference": reference, "known_reward": known_reward}
    options |= {"learned_reward": learned_reward, "use_stemmer": use_stemmer, "limit": limit}
    options |= {"batch_size": batch_size, "precision": precision}
    verdicts = [name.partition(":")[2] for name in judges or [] if name.startswith("verdicts:")]
    texts = [p.model for p in chosen.values() if p.is_samples]
    read = [file for path in dict.fromkeys([*filter(None, [prompts]), *texts, *verdicts]) for file in list_files(path)]
    info = RunInfo("eval", seed, options, list(read))
    if step != "compare":
        sample_policies(task, chosen, asked, folder, lm, batch_size, precision, seed, texts_only=step == "score")
    if step in ("score", "report"):
        score_samples(
            task, chosen, asked, reference, learned_reward, known_reward, folder, batch_size, precision, seed, use_stemmer
        )
    if step in ("compare", "report"):
        file = folder / "scores.jsonl"
        if not file.is_file():
            raise UsageError(f"{file}: not there; run `python -m eval score` first")
        rows = [r for _, _, r in read_jsonl(file) if r["id"] in asked.records and r["policy"] in chosen]
        if samples is not None:
            check_fresh([r for r in rows if chosen[r["policy"]].model == samples], samples, file)
        loaded = {name: load_judge(name, folder / "verdicts", batch_size, precision) for name in judges or [str(judge)]}
        for of_people in loaded.values():
            if limit is not None and isinstance(of_people, FileJudge):
                of_people.keep(asked.records, held_out(prompts, samples, None, source_column).records)
        print(compare(rows, list(chosen), loaded, folder, baselines))
    if step == "report":
        reward_model, calibration, together = judge_reward(learned_reward, known_reward, comparisons, ensemble or [])
        compared = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
        files = [Path(run_dir) / stage / "run.json" for stage in STAGES]
        runs = [json.loads(f.read_text(encoding="utf-8")) for f in files if f.is_file()]
        guard = next((r["figures"].get("guard") for r in runs if r["stage"] == "ppo"), None)
        learned = curves(logs)
        record = info.write(folder)
        made = {k: v for k, v in record.items() if k not in ("date", "seconds", "peak_memory_mb")}  # those are in run.json
        title, of_task = f"{task.name}, {lm}: policies on held-out prompts", task.name
        if samples is not None and all(p.is_samples for p in chosen.values()):  # of models that the samples do not tell
            title = f"{Path(samples).name}: {len(chosen)} policies on {len(asked.records)} prompts"
            named = {r.get("task") for r in rows}
            of_task = str(named.pop()) if len(named) == 1 and None not in named else ""
        order = None
        if baselines:
            rank = {f"{second_draw} (second draw)": 0, MAIN: 2}
            order = [*baselines, *sorted((name for name in chosen if name not in baselines), key=lambda name: rank.get(name, 1))]
        report = build_report(
            rows, title=title, task=of_task, judge=str(judge), baselines=baselines, order=order, curves=learned,
            reward_model=reward_model, calibration=calibration, ensemble=together, compared=compared, guard=guard,
            runs={"ppo": learned["ppo"], **others} if "ppo" in learned else others,
            provenance=[*runs, made], n_samples=n_samples, n_browse=n_browse, seed=seed,
            command=made["command"],
        )  # fmt: skip
        paths = write_report(report, folder)
        print("\n".join(f"{kind}: {path}" for kind, path in paths.items()))


def default_judge(rewards: dict[str, str | None], policies: dict[str, Policy], prompts: HeldOut) -> str:
    """What pairs are won by where nothing was asked for: a reward that is given, a score that all samples have, ROUGE-L."""
    for kind, reward in rewards.items():
        if reward is not None:
            return kind
    own = own_scores(policies) - {"kl", "ref_nll"}
    for kind in rewards:
        if kind in own:
            return kind
    if len(own) > 1:
        raise UsageError(f"judge: found the scores {', '.join(sorted(own))} in all samples, expected one of them to be named")
    if own:
        return own.pop()
    against_itself = any(p.model in ("reference", "column:reference") for p in policies.values())  # ROUGE would say nothing of it
    if all(r.reference for r in prompts.records.values()) and not against_itself:
        return "rougeL"
    raise UsageError(
        "judge: found nothing to judge by, expected known_reward, learned_reward, a score that all samples have, or a reference "
        "of each prompt (for rougeL; none of the policies may be that reference)"
    )


def own_scores(policies: dict[str, Policy]) -> set[str]:
    """The scores that all samples come with; none where a policy is no file of samples."""
    if not all(p.is_samples for p in policies.values()):
        return set()
    every = [set(s.scores or {}) for p in {p.model for p in policies.values()} for s in read_samples(p)]
    return set.intersection(*every) if every else set()


def check_fresh(rows: list[dict[str, Any]], samples: str, scored: Path) -> None:
    """Raise UsageError where samples are others than when they were scored."""
    texts = {(s.id, s.policy, s.index): s.response for s in read_samples(samples)}
    for row in rows:
        key = str(row["id"]), row["policy"], row.get("index", 0)
        if texts.get(key, row["response"]) != row["response"]:
            at = f"{samples}: id {key[0]!r}, policy {key[1]!r}"
            raise UsageError(f"{at}: another response than in {scored}; run `python -m eval score` again")


def judge_reward(learned: str | None, known: str | None, comparisons: str | None, others: list[str]) -> tuple[Any, Any, Any]:
    """The learned reward on held-out comparisons: its accuracy beside chance and the labeler's own, its calibration, and
    what it says together with other reward models."""
    if not (learned and comparisons):
        return None, None, None
    held_out, model = list(read_comparisons(comparisons)), LearnedReward(learned)
    scores = comparison_scores(model, held_out)
    found = comparison_accuracy(model, held_out, scores=scores)
    more = {k: model.info.get(k) for k in ("gain", "bias", "labels", "base")}
    labeler = comparison_accuracy(load_callable(known), held_out, model.tokenizer)["accuracy"] if known else None
    best = [i for i, c in enumerate(held_out) if c.best is not None]
    choices, prompts = [held_out[i].best or 0 for i in best], [str(held_out[i].prompt) for i in best]

    def trained(reward: LearnedReward, given: list[list[float]]) -> list[list[float]]:
        """Scores in the scale that was trained, before the last normalisation divided by the spread: probabilities are of it."""
        spread = next((n["std"] for n in reward.info.get("normalisations", []) if n["when"] == "after training"), 1.0)
        return [[s * spread for s in given[i]] for i in best]

    rows = trained(model, scores)
    lengths = [[len(words(r)) if isinstance(r, str) else len(r) for r in held_out[i].responses] for i in best]
    named = [held_out[i].meta.get("labeler", held_out[i].meta.get("worker")) for i in best]
    labelers = [None if x is None else str(x) for x in named] if any(x is not None for x in named) else None
    enough = len(best) >= LEAST_CALIBRATED
    calibration = asdict(calibrate(rows, choices, lengths, labelers=labelers, prompts=prompts)) if enough else None
    members = [rows] + [trained(other, comparison_scores(other, held_out)) for other in map(LearnedReward, others)]
    together = asdict(ensembled(members, choices, prompts)) if others and best else None
    return {**found, **more, "labeler_accuracy": labeler}, calibration, together


def curves(logs: str | None) -> dict[str, Any]:
    """Each stage's metrics.csv of all versions: a resumed run goes on in a further one, in place of what it does again."""
    found = {}
    for stage in ("sft", "reward", "ppo"):
        files = sorted(Path(logs or "").glob(f"{stage}/version_*/metrics.csv"), key=lambda f: int(f.parent.name.split("_")[1]))
        joined: dict[str, list[list[float | None]]] = {}
        for file in files if logs else ():
            new = read_curves(str(file))
            start = min((x for points in new.values() for x, _ in points if x is not None), default=math.inf)
            joined = {name: [p for p in points if p[0] is not None and p[0] < start] for name, points in joined.items()}
            for name, points in new.items():
                joined.setdefault(name, []).extend(points)
        if joined:
            found[stage] = joined
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
            print("\n".join(f"{step:8} {what}" for step, what in STEPS.items()))
            if args and args[0] not in ("-h", "--help"):
                raise UsageError(f"no step {args[0]!r}, expected one of: {', '.join(STEPS)}")
            return
        evaluate(step=args[0], **parse(args))


def parse(args: list[str]) -> dict[str, Any]:
    """Options of a step: {name: value}."""
    run: Callable[..., None] = evaluate
    about = f"{STEPS[args[0]]} The steps share their options, so that one config serves them all."
    parser = ArgumentParser(prog=f"python -m eval {args[0]}", parser_mode="omegaconf+", description=about)
    parser.add_argument("-c", "--config", action="config", help="A YAML file of options; may be given several times.")
    parser.add_argument("--run_dir", type=str, default="out/run", help=RUN_DIR_HELP)
    parser.add_argument("--lm", type=str, default="gpt2", help=LM_HELP)
    parser.add_function_arguments(run, skip={"step", "run_dir", "lm"})
    config = parser.instantiate(parser.parse_args(args[1:]))
    return {k: getattr(config, k) for k in vars(config) if k != "config"}


if __name__ == "__main__":
    main()
