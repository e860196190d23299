"""The steps: sample, score, compare, report. Each reads the files of the one before it, after all that is wrong has been told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eval.alarms import BASELINE, MAIN
from eval.baselines import Policy, as_policies, policy_problems
from eval.compare import compare, policy_pairs
from eval.curves import stage_curves
from eval.judges import FileJudge, ScoreJudge, find_judge, gives_verdicts, load_judge
from eval.measures import measure_names
from eval.methods import METHODS
from eval.options import Options
from eval.outcomes import Won
from eval.report import build_report, write_report
from eval.reward_model import judge_reward
from eval.rouge import ROUGE_TYPES
from eval.sample import HeldOut, by_policy, held_out, sample_policies
from eval.score import score_samples
from eval.server import timeout_problems
from lightning_rlhf.files import DataError, bad, list_files, members, read_jsonl
from lightning_rlhf.folders import never_writable
from lightning_rlhf.labelers import redraw_problems
from lightning_rlhf.models import find_lm, precision_problems
from lightning_rlhf.records import Prompt, Sample, read_comparisons, read_samples
from lightning_rlhf.runinfo import RunInfo
from lightning_rlhf.scoring import find_reward, prefers
from lightning_rlhf.tasks import UsageError, told

MADE = ("known", "learned", "kl", "ref_nll")  # scores that the score step makes, in place of those that samples come with
SCORED = ("id", "policy", "prompt", "response", "scores", "measures")
STAGES = ("prompts", "labels", "sft", "start", "reward", "ppo")


@dataclass(frozen=True)
class Plan:
    """What the options come to."""

    policies: dict[str, Policy]
    prompts: HeldOut
    judge: str | None  # of the report
    others: dict[str, Any]  # run → its PPO's curves
    info: RunInfo


def run_step(step: str, options: Options) -> None:
    """Run a step, and those before it whose files are missing.

    Args:
        step: sample, score, compare or report.
        options: Of all steps.

    Raises:
        UsageError, DataError: An option or a file is wrong; nothing has been sampled then.
    """
    o, plan, folder = options, checked(step, options), Path(options.output)
    if step != "compare":
        sample_policies(
            o.task, plan.policies, plan.prompts, folder, o.lm, o.batch_size, o.precision, o.seed, step == "score",
            o.server_timeout, o.redraws,
        )  # fmt: skip
    if step in ("score", "report"):
        score_samples(
            o.task, plan.policies, plan.prompts, o.reference, o.learned_reward, o.known_reward, folder, o.batch_size, o.precision,
            o.seed, o.use_stemmer,
        )  # fmt: skip
    if step in ("compare", "report"):
        rows, won = compared(o, plan, folder)
        if step == "report":
            reported(o, plan, folder, rows, won)


# ------------------------------------------------------------------------------------------------------------- checks


def checked(step: str, o: Options) -> Plan:
    """Everything that options and files alone show to be wrong, told at once."""
    chosen = as_policies(o.policies or {})
    if o.samples is not None:
        chosen |= {name: Policy(o.samples) for name in by_policy(o.samples) if name not in chosen}
    sampled = any(not (p.is_text or p.is_samples) for p in chosen.values())
    problems = policy_problems(chosen, o.task.name, o.allow_other_task) if step != "compare" else []
    for option, least in (("limit", 1), ("batch_size", 1), ("n_samples", 0), ("n_browse", 0)):
        if (number := getattr(o, option)) is not None and number < least:
            problems.append(f"{option}: found {number}, expected at least {least}")
    problems += redraw_problems(o.redraws, o.task) if step != "compare" and sampled else []
    problems += precision_problems(o.precision) + timeout_problems(o.server_timeout)
    if Path(o.output).exists() and not Path(o.output).is_dir():
        problems.append(f"output: {o.output}: found a file, expected a folder or nothing")
    elif problem := never_writable(Path(o.output)):
        problems.append(f"output: {problem}")
    if not chosen:
        problems.append("policies: found none, expected at least one, or samples")
    if o.second_draw is not None:
        if o.second_draw not in chosen:
            problems.append(f"second_draw: found {o.second_draw!r}, expected one of the policies {sorted(chosen)}")
        else:
            chosen[f"{o.second_draw} (second draw)"] = chosen[o.second_draw]
    problems += judge_problems(step, o, chosen)
    others: dict[str, Any] = {}
    for option, path in [("logs", o.logs), *((f"more_logs.{run}", path) for run, path in (o.more_logs or {}).items())]:
        try:
            seen = stage_curves(path)
        except ValueError as error:
            problems.append(f"{option}: {error}")
            continue
        if step == "report" and option == "logs" and path is not None and not seen:
            where = "{sft,reward,ppo}/version_*/metrics.csv"
            problems.append(f"logs: {path}: found no {where} there, expected the stages' logs (null: none)")
        elif option != "logs" and "ppo" not in seen:
            problems.append(f"{option}: {path}: found no ppo/version_*/metrics.csv there")
        elif option != "logs":
            others[option.removeprefix("more_logs.")] = seen["ppo"]
    problems += told(policy_pairs, list(chosen), o.baselines)
    problems += [f"differences: found {d:g}, expected above 0 and at most 0.5" for d in o.differences or [] if not 0 < d <= 0.5]
    if o.main_policy is not None and (o.main_policy not in chosen or o.main_policy in (o.baselines or [])):
        problems.append(f"main_policy: found {o.main_policy!r}, expected one of the policies {list(chosen)}, and no baseline")
    asked = None
    try:
        for name in (o.reference, o.lm if any(p.server for p in chosen.values()) else None):
            if name is not None and step != "compare":
                find_lm(name)
        rewards = [("known_reward", o.known_reward), ("learned_reward", o.learned_reward)]
        rewards += [("judges", name.partition(":")[2]) for name in asked_of(o, o.judge) if name.startswith("reward:")]
        for option, reward in [*rewards, *(("ensemble", member) for member in o.ensemble or [])]:
            if reward is not None:
                find_reward(reward, o.task.name, o.allow_other_task, option, "--allow_other_task")
        asked = held_out(o.prompts, o.samples, o.limit, o.source_column)
        unknown = [id_ for id_ in o.hide or [] if id_ not in asked.records]
        problems += [f"hide: found {unknown[0]!r}, expected ids of prompts"] if unknown and o.limit is None else []
        problems += (comparison_problems(o.comparisons) if step == "report" else []) + text_problems(step, o, chosen, asked)
        verdicts = [name for name in asked_of(o, o.judge) if name.startswith("verdicts:")]
        everything = held_out(o.prompts, o.samples, None, o.source_column) if verdicts and o.limit is not None else asked
        for name in verdicts:
            FileJudge(find_judge(name)[1]).check_names(chosen, everything.records)
    except (UsageError, DataError) as error:
        problems += [str(error)] if str(error) not in problems else []
    if problems or asked is None:
        raise UsageError("\n".join(problems))
    judge = o.judge
    if judge is None and (step == "report" or (step == "compare" and not o.judges)):
        judge = default_judge(o, chosen, asked)
    return Plan(chosen, asked, judge, others, record_of(o, chosen, judge))


def judge_problems(step: str, o: Options, policies: dict[str, Policy]) -> list[str]:
    """What is wrong with whom the options let judge, in words."""
    problems = []
    scores = [name for name in [o.judge, *(o.judges or [])] if name is not None and not gives_verdicts(name)]
    rewards = {"known": o.known_reward, "learned": o.learned_reward}
    there = {kind for kind, reward in rewards.items() if reward is not None} | measure_names()
    if o.reference is not None:
        there |= {"kl", "ref_nll", "tokens", "perplexity"}
    if set(scores) - there:
        there |= own_scores(policies)
    scored = Path(o.output) / "scores.jsonl"
    if step == "compare" and scored.is_file():  # by whatever options it was made
        first = next((row for _, _, row in read_jsonl(scored)), {})
        there |= {*(first.get("scores") or {}), *(first.get("measures") or {})}
    for option, names in (("judge", [o.judge]), ("judges", o.judges or [])):
        for name in filter(None, names):
            problem = [] if name in there else told(find_judge, name)
            if option == "judges" and name in rewards.keys() - there:
                problem = [f"judges: found {name!r}, expected its reward to be given, or all samples to have that score"]
            elif not problem and name not in there and not gives_verdicts(name):
                problem = [
                    f"{option}: found {name!r}, expected known or learned with its reward given, a measure such as rougeL, a "
                    "score that all samples have, verdicts:FILE, reward:DIR, lm:NAME or server:MODEL@URL"
                ]
            problems += [text for text in problem if text not in problems]
    if o.ensemble and not (o.learned_reward and o.comparisons):
        problems.append(f"ensemble: found {o.ensemble}, expected learned_reward and comparisons with it")
    return problems


def comparison_problems(path: str | None) -> list[str]:
    """What is wrong with the comparisons that the learned reward is checked on, in words."""
    if path is None:
        return []
    if not members(path):
        return [f"comparisons: {path}: no such file"]
    try:
        usable = [prefers(record) for record in read_comparisons(path)]
    except DataError as error:
        return [f"comparisons: {error}"]
    return [] if any(usable) else [f"comparisons: {path}: found none that says which response is best, expected one at least"]


def text_problems(step: str, o: Options, policies: dict[str, Policy], prompts: HeldOut) -> list[str]:
    """Samples that lack prompts of other policies, and references that ROUGE judges by, in words; known before any is sampled.

    The steps sample and score take what samples there are; compare reads what is scored, and tells all of this at once.
    """
    if step == "compare":
        return []
    read = {p.model: by_policy(p.model) for p in policies.values() if p.is_samples}
    samples: dict[str, dict[str, list[Sample]]] = {}  # policy → id → its samples
    for name, policy in policies.items():
        found = read.get(policy.model, {})
        if policy.is_samples and (name in found or len(found) == 1):
            own: dict[str, list[Sample]] = {}
            for s in found[name] if name in found else next(iter(found.values())):
                own.setdefault(s.id, []).append(s)
            samples[name] = {i: of for i, of in own.items() if i in prompts.records}
    problems = []
    every = set(prompts.records) if len(samples) < len(policies) else {i for own in samples.values() for i in own}
    for name, answered in samples.items() if step == "report" else ():
        missing = [i for i in prompts.records if i in every and i not in answered]
        if missing and answered:
            problems.append(
                f"policies.{name}: {policies[name].model}: found no sample to {len(missing)} of {len(every)} prompts (the first "
                f"is id {missing[0]!r}), expected the same prompts for every policy"
            )
    rouge = [name for name in dict.fromkeys([o.judge, *(o.judges or [])]) if name in ROUGE_TYPES]
    for name, policy in policies.items() if rouge and not set(rouge) <= own_scores(policies) else ():
        itself = policy.model in ("reference", "column:reference")
        ids = list(samples.get(name, prompts.records))
        without = [i for i in ids if not all(map(says, references(prompts.records[i], samples.get(name, {}).get(i), itself)))]
        if without:
            where = f"at {len(without)} of {len(ids)} prompts (the first is id {without[0]!r})"
            what = f"no reference{' beside itself' if itself else ''} for policy {name!r}"
            problems.append(f"judge: found {rouge[0]!r} and {what} {where}, expected one of every prompt")
    return problems


def references(record: Prompt, samples: list[Sample] | None, itself: bool) -> list[list[Any]]:
    """What ROUGE compares each response to a prompt with; the reference itself is measured against the further ones."""
    given: list[Any] = [s.reference or record.reference for s in samples] if samples else [record.reference]
    texts = [[reference] if isinstance(reference, str) else list(reference or []) for reference in given]
    return [several[1:] for several in texts] if itself else texts


def says(texts: list[Any]) -> bool:
    """Whether any of the texts is not empty."""
    return any(str(text).strip() for text in texts)


def asked_of(o: Options, judge: str | None) -> list[str]:
    """The judges of the compare step; the report's too, where that one gives verdicts."""
    more = [judge] if judge is not None and (not o.judges or gives_verdicts(judge)) else []
    return list(dict.fromkeys([*more, *(o.judges or [])]))


def default_judge(o: Options, policies: dict[str, Policy], prompts: HeldOut) -> str:
    """What pairs are won by where nothing was asked for: a reward that is given, a score that all samples have, ROUGE-L."""
    rewards = {"known": o.known_reward, "learned": o.learned_reward}
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
    lacks = [id_ for id_, record in prompts.records.items() if not all(map(says, references(record, None, False)))]
    if not lacks and not against_itself:
        return "rougeL"
    where = f"; {len(lacks)} of {len(prompts.records)} prompts have none (the first is id {lacks[0]!r})" if lacks else ""
    raise UsageError(
        "judge: found nothing to judge by, expected known_reward, learned_reward, a score that all samples have, a reference "
        f"of each prompt (for rougeL; none of the policies may be that reference{where}), or a judge that is named, were it "
        "a measure such as words"
    )


def own_scores(policies: dict[str, Policy]) -> set[str]:
    """The scores that all samples come with; none where a policy is no file of samples."""
    if not all(p.is_samples for p in policies.values()):
        return set()
    every = [set(s.scores or {}) for p in {p.model for p in policies.values()} for s in read_samples(p)]
    return set.intersection(*every) if every else set()


def record_of(o: Options, policies: dict[str, Policy], judge: str | None) -> RunInfo:
    """run.json's options and the files that are read."""
    shown = {name: asdict(p) if isinstance(p, Policy) else p for name, p in (o.policies or {}).items()}
    names = ("samples", "prompts", "judges", "baselines", "reference", "known_reward", "learned_reward", "use_stemmer", "limit")
    more = ("source_column", "comparisons", "ensemble", "logs", "more_logs", "second_draw", "redraws")
    same = {name: getattr(o, name) for name in (*names, *more, "batch_size", "precision")}
    options = {"policies": shown, "task": asdict(o.task), "judge": judge, **same}
    verdicts = [name.partition(":")[2] for name in asked_of(o, judge) if name.startswith("verdicts:")]
    texts = [p.model for p in policies.values() if p.is_samples]
    shots = [p.demonstrations for p in policies.values()]
    paths = [path for path in (o.prompts, *texts, *verdicts, *shots, o.comparisons) if path is not None]
    read = [file for path in dict.fromkeys(paths) for file in list_files(path)]
    return RunInfo("eval", o.seed, options, list(read))


# ------------------------------------------------------------------------------------------------ compare and report


def compared(o: Options, plan: Plan, folder: Path) -> tuple[list[dict[str, Any]], Mapping[tuple[str, str], Won] | None]:
    """The compare step: prints its table; returns the scored samples, and who won where the report's judge gives verdicts."""
    file = folder / "scores.jsonl"
    if not file.is_file():
        raise UsageError(f"{file}: not there; run `python -m eval score` first")
    rows = []
    for _, line, row in read_jsonl(file):
        if lacks := [name for name in SCORED if name not in row]:
            raise bad(f"{file}:{line}", lacks[0], f"only {', '.join(row)}", f"the fields {', '.join(SCORED)}")
        if row["id"] in plan.prompts.records and row["policy"] in plan.policies:
            rows.append(row)
    if o.samples is not None:
        of_samples = [r for r in rows if plan.policies[r["policy"]].model == o.samples]
        check_fresh(of_samples, o.samples, file, plan)
    judges = {
        name: load_judge(name, folder / "verdicts", o.batch_size, o.precision, o.server_timeout)
        if gives_verdicts(name)
        else ScoreJudge(name)
        for name in asked_of(o, plan.judge)
    }
    for judge in judges.values():
        if o.limit is not None and isinstance(judge, FileJudge):
            judge.keep(plan.prompts.records, held_out(o.prompts, o.samples, None, o.source_column).records)
    found = compare(rows, list(plan.policies), judges, folder, o.baselines, o.differences or ())
    print(found.text)
    return rows, found.won.get(str(plan.judge)) if gives_verdicts(str(plan.judge)) else None


def check_fresh(rows: list[dict[str, Any]], samples: str, scored: Path, plan: Plan) -> None:
    """Raise UsageError where samples are others than when they were scored: which there are, their texts, or their own scores."""
    records = plan.prompts.records
    ours = {name for name, policy in plan.policies.items() if policy.model == samples}
    now = {(s.id, s.policy, s.index): s for s in read_samples(samples) if s.id in records and s.policy in ours}
    then = {(str(row["id"]), row["policy"], row.get("index", 0)): row for row in rows}
    for key in dict.fromkeys([*now, *then]):
        sample, row, wrong = now.get(key), then.get(key), None
        if sample is None or row is None:
            wrong = "a sample that is not there any more, but" if sample is None else "a sample that is not"
        elif sample.response != row["response"]:
            wrong = "another response than"
        elif (sample.reference or records[sample.id].reference, sample.prompt) != (row.get("reference"), row["prompt"]):
            wrong = "another reference or prompt than"
        elif any(value != row["scores"].get(name, value) for name, value in (sample.scores or {}).items() if name not in MADE):
            wrong = "other scores than"
        if wrong:
            at = f"{samples}: id {key[0]!r}, policy {key[1]!r}, index {key[2]}"
            raise UsageError(f"{at}: {wrong} in {scored}; run `python -m eval score` again")


def reported(
    o: Options, plan: Plan, folder: Path, rows: list[dict[str, Any]], won: Mapping[tuple[str, str], Won] | None
) -> None:
    """The report step: writes the page and prints where it is."""
    reward_model, calibration, ensemble = judge_reward(o.learned_reward, o.known_reward, o.comparisons, o.ensemble or [])
    files = [Path(o.run_dir) / stage / "run.json" for stage in STAGES]
    runs = [json.loads(f.read_text(encoding="utf-8")) for f in files if f.is_file()]
    guard = next((r["figures"].get("guard") for r in runs if r["stage"] == "ppo"), None)
    curves = stage_curves(o.logs)
    made = {k: v for k, v in plan.info.write(folder).items() if k not in ("date", "seconds", "peak_memory_mb")}  # in run.json
    title, task = f"{o.task.name}, {o.lm}: policies on held-out prompts", o.task.name
    if o.samples is not None and all(p.is_samples for p in plan.policies.values()):  # of models that the samples do not tell
        title = f"{Path(o.samples).name}: {len(plan.policies)} policies on {len(plan.prompts.records)} prompts"
        named = {r.get("task") for r in rows}
        task = str(named.pop()) if len(named) == 1 and None not in named else ""
    order = None
    if o.baselines or o.main_policy:
        first = o.baselines or [name for name in plan.policies if name == BASELINE]
        rank = {f"{o.second_draw} (second draw)": 0, o.main_policy or MAIN: 2}
        rest = sorted((name for name in plan.policies if name not in first), key=lambda name: rank.get(name, 1))
        order = [*first, *rest]
    report = build_report(
        rows, title=title, task=task, judge=str(plan.judge), won=won, baselines=o.baselines, order=order, curves=curves,
        reward_model=reward_model, calibration=calibration, ensemble=ensemble, guard=guard,
        compared=json.loads((folder / "compare.json").read_text(encoding="utf-8")),
        runs={"ppo": curves["ppo"], **plan.others} if "ppo" in curves else plan.others,
        provenance=[*runs, made], n_samples=o.n_samples, n_browse=o.n_browse, hide=o.hide or (), seed=o.seed,
        command=made["command"],
        methods=None if o.use_stemmer else {"ROUGE": METHODS["ROUGE"].replace("with stemming", "without stemming")},
    )  # fmt: skip
    print("\n".join(f"{kind}: {path}" for kind, path in write_report(report, folder).items()))
