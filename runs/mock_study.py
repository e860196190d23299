"""Table and figure of the mock study (`runs/mock_study.sh`), over one or more seeds.

    python runs/mock_study.py out/mock/stories260k-seed{1,2,3} --plot docs/mock_study.png

Known reward: mean log p(positive) on 256 held-out queries. RL: the last validation of a run. Best-of-n: the best of n by a
learned reward among 64 zero-shot samples of each of 128 queries, in expectation over which n of them were drawn.
Over-optimisation: the runs with a weak KL penalty, each validation a point.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from eval.curves import stage_curves
from eval.frontier import best_of_n, over_optimised, run_of
from eval.winrate import mean_interval
from lightning_rlhf.generation import seed_for
from lightning_rlhf.labelers import answer
from lightning_rlhf.models import load_lm
from lightning_rlhf.records import read_prompts
from lightning_rlhf.scoring import load_reward
from lightning_rlhf.tasks import Task, task_tokens

LABELS = (250, 1000, 5000)
N = (4, 16, 64)
QUERIES, DRAWN = 128, 64


def validations(folder: Path) -> Any:
    """The validations of the PPO run in a folder: KL, the reward that was trained on, and the known one."""
    found = run_of(str(folder), stage_curves(str(folder / "logs")).get("ppo", {}), "val/kl", "val/score", "val/held_out")
    if found is None:
        raise SystemExit(f"{folder}/logs/ppo: no validation with val/kl, val/score and val/held_out")
    return found


def best_of(study: Path) -> dict[str, dict[str, float]]:
    """Expected known reward of best-of-n, by reward model; `known` picks by the known reward itself."""
    config = json.loads((study / "labels" / "run.json").read_text(encoding="utf-8"))["config"]
    task, lm = Task(**config["task"]), load_lm(config["lm"])
    prompts = [str(p.prompt) for p in read_prompts(study / "val.jsonl")][:QUERIES]
    resolved, texts = task_tokens(task, lm.tokenizer), []
    for first in range(0, len(prompts), 16):
        texts += answer(lm, task, resolved, prompts[first : first + 16], seed_for(7, first), DRAWN, whole=False)[0]
    names = {str(n): str(study / f"labels-{n}" / "reward") for n in LABELS} | {"known": "known:sentiment"}
    rewards = {name: load_reward(where) for name, where in names.items()}
    scores = {name: [reward([p] * DRAWN, rs) for p, rs in zip(prompts, texts, strict=True)] for name, reward in rewards.items()}
    gold = scores["known"]
    figures = {name: {f"best of {n}": best_of_n(proxy, gold, n).gold or 0.0 for n in N} for name, proxy in scores.items()}
    figures["zero-shot"] = {"mean": sum(map(sum, gold)) / (len(gold) * DRAWN)}
    return figures


def study_figures(study: Path) -> dict[str, Any]:
    """What one seed found; kept in its folder, so that another table draws no samples again."""
    names = [*(f"labels-{n}" for n in LABELS), "known"]
    runs = {name: {"rl": validations(study / name), "weak": validations(study / name / "weak")} for name in names}
    kept = study / "best_of_n.json"
    if not kept.is_file():
        kept.write_text(json.dumps(best_of(study), indent=1) + "\n", encoding="utf-8")
    accuracy = {n: json.loads((study / f"labels-{n}/reward/reward.json").read_text(encoding="utf-8"))["accuracy"] for n in LABELS}
    return {"runs": runs, "best_of": json.loads(kept.read_text(encoding="utf-8")), "accuracy": accuracy}


def cell(values: list[float], digits: int = 2) -> str:
    """A mean, with its 95 % t interval where there are several seeds."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}"
    found = mean_interval(values)
    return f"{found.mean:.{digits}f} ({found.low:.{digits}f} to {found.high:.{digits}f})"


def table(studies: list[dict[str, Any]]) -> str:
    """Markdown."""
    heads = ["reward", "held-out accuracy", "RL: known reward", "at KL", *(f"best of {n}" for n in N)]
    lines = [f"| {' | '.join(heads)} |", "|---|" + "--:|" * (len(heads) - 1)]
    for name in [*(f"labels-{n}" for n in LABELS), "known"]:
        key = name.removeprefix("labels-")
        rl = [s["runs"][name]["rl"] for s in studies]
        cells = [
            cell([s["accuracy"][int(key)] for s in studies], 3) if key != "known" else "–",
            cell([run.gold[-1] for run in rl]), cell([run.kl[-1] for run in rl], 1),
            *(cell([s["best_of"][key][f"best of {n}"] for s in studies]) for n in N),
        ]  # fmt: skip
        title = "the known reward itself" if key == "known" else f"{int(key):,} labels"
        lines.append(f"| {title} | {' | '.join(cells)} |")
    lines += ["", f"Zero-shot: {cell([s['best_of']['zero-shot']['mean'] for s in studies])}.", ""]
    for name in (f"labels-{n}" for n in LABELS):
        for seed, s in enumerate(studies, 1):
            run = s["runs"][name]["weak"]
            turn = over_optimised(run, 3)
            best = max(range(len(run.kl)), key=lambda i: run.gold[i])
            said = f"over-optimised from a KL of {turn.kl:.0f} on" if turn else "no turn that stands out of the noise"
            peak = f"the known reward is highest, {run.gold[best]:.2f}, at KL {run.kl[best]:.0f}"
            end = f"at the end {run.gold[-1]:.2f} at KL {run.kl[-1]:.0f}, learned {run.proxy[-1]:.2f}"
            lines.append(f"- weak penalty, {name}, seed {seed}: {peak}; {end}; {said}")
    return "\n".join(lines)


def plot(studies: list[dict[str, Any]], path: str) -> None:
    """Known reward against labels; known and learned reward against KL under a weak penalty (the first seed)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    blue, grey = "#1f5fa8", "#777777"
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    rl = [mean([s["runs"][f"labels-{n}"]["rl"].gold[-1] for s in studies]) for n in LABELS]
    left.plot(LABELS, rl, "o-", color=blue, label="RL on the learned reward")
    for s in studies if len(studies) > 1 else []:
        left.plot(LABELS, [s["runs"][f"labels-{n}"]["rl"].gold[-1] for n in LABELS], ".", color=blue, alpha=0.5)
    for n, style in zip(N, (":", "--", "-"), strict=True):
        picked = [mean([s["best_of"][str(labels)][f"best of {n}"] for s in studies]) for labels in LABELS]
        left.plot(LABELS, picked, style, color=grey, label=f"best of {n} by it")
    known = mean([s["runs"]["known"]["rl"].gold[-1] for s in studies])
    zero = mean([s["best_of"]["zero-shot"]["mean"] for s in studies])
    for y, text in ((known, "RL on the known reward itself"), (zero, "zero-shot")):
        left.axhline(y, color="black", linewidth=0.8)
        left.annotate(text, (LABELS[0], y), xytext=(0, 3), textcoords="offset points", fontsize=8)
    left.set(xscale="log", xticks=LABELS, xticklabels=[f"{n:,}" for n in LABELS], xlabel="labels")
    left.set_ylabel("known reward, mean log p(positive)")
    left.minorticks_off()
    left.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 0.07))
    for labels, colour in zip(LABELS, ("#c1440e", "#b08a00", blue), strict=True):
        run = studies[0]["runs"][f"labels-{labels}"]["weak"]
        right.plot(run.kl, run.gold, "-", color=colour, label=f"{labels:,} labels: known")
        right.plot(run.kl, run.proxy, "--", color=colour, label=f"{labels:,} labels: learned", linewidth=1)
    run = studies[0]["runs"]["known"]["weak"]
    right.plot(run.kl, run.gold, "-", color="black", label="RL on the known reward")
    right.set(xlabel="KL to the reference, nats a response", ylabel="reward")
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Print the table; draw the figure."""
    parser = argparse.ArgumentParser(description="Table and figure of the mock study.")
    parser.add_argument("studies", nargs="+", help="folders that runs/mock_study.sh made")
    parser.add_argument("--plot", help="PNG to draw")
    given = parser.parse_args()
    torch.set_grad_enabled(False)
    studies = [study_figures(Path(s)) for s in given.studies]
    print(table(studies))
    if given.plot:
        plot(studies, given.plot)


if __name__ == "__main__":
    main()
