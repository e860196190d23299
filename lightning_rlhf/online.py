"""Online collection: rounds of sample → label → retrain the reward model → PPO (Ziegler et al. 2019, §2.3).

The reward model is trained before the first episode and at equal spacing after it, each time from a fresh head on the
original language model, one epoch on all labels so far. PPO is one run throughout: its optimizer, its learning rate and its
KL coefficient go on from round to round. New labels are of the current policy; held-out ones compare two responses of it
with two of the reference. How many labels a round wants follows a quadratic rule, front-loaded.

Everything is on disk: `labels/{train,val}.jsonl` only ever grow, `round-NN/` holds a round's configs, reward model and
policy, `reward` and `ppo` point at the latest. A run that was killed anywhere goes on with the same command.

    lightning-rlhf online -c configs/sentiment/online.yaml -c configs/sentiment/stories260k/online.yaml
"""

from __future__ import annotations

import json
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning import LightningModule, Trainer
from tqdm import tqdm

from .chat import rendered
from .fields import is_empty
from .files import append_jsonl, bad, whole_lines
from .fit import parsed, run_fit
from .folders import point
from .generation import seed_for
from .labelers import answer, compare, redraw_problems
from .models import LM, find_lm, load_on_device, load_tokenizer, position_problems, precision_problems, run_context
from .people import all_alike, answers_file, answers_of_people, answers_problem, by_lot, request, unreadable, with_best
from .ppo import PPOModule
from .records import Prompt, read_prompts
from .reward import RewardModule
from .runinfo import RunInfo
from .scoring import call_problems, fill_columns, load_callable
from .splits import normalised
from .stage import StageCheckpoint, StageModule
from .tasks import Task, TaskTokens, UsageError, task_tokens

REDRAWN = 8  # times that a comparison of equal responses is drawn anew

# ------------------------------------------------------------------------------------------------------------ schedule


def labels_wanted(episodes: int, total_episodes: int, first: int, total: int) -> int:
    """Labels wanted after n of N episodes: l₀ + (L − l₀)(1 − (1 − n/N)²), rounded to the nearest.

    Args:
        episodes, total_episodes: n and N.
        first, total: l₀, before the first episode, and L, after the last.
    """
    left = 1 - episodes / total_episodes
    return round(first + (total - first) * (1 - left * left))


def round_starts(iterations: int, rounds: int) -> list[int]:
    """PPO iterations before which the reward model is trained: equal spacing, the first at 0."""
    return [k * iterations // rounds for k in range(rounds)]


class RoundEnd(StageCheckpoint):
    """Ends PPO after an iteration, with a checkpoint that the next round goes on from.

    Args:
        path: The stage's checkpoint.
        iteration: The last iteration of the round, counted from 1.
    """

    def __init__(self, path: str, iteration: int) -> None:
        super().__init__(path)
        self.iteration = iteration

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run that was killed between the checkpoint and the export has nothing left but the export."""
        trainer.should_stop = getattr(pl_module, "updates", 0) >= self.iteration

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save and stop, where it is time."""
        if batch_idx + 1 == self.iteration:
            self.save(trainer)
            trainer.should_stop = True


# -------------------------------------------------------------------------------------------------------------- labels


class Collector:
    """Samples comparisons of one round's policy and has them judged.

    Args:
        lm: The reference, by name.
        policy: The policy, by name or directory.
        task: The task.
        labeler: `known:NAME`, `module:function`, or `file:PATH` of people's answers.
        output: Folder of the run.
        seed: Of the sampling.
        batch_size: Prompts at a time.
        precision: `32`, `bf16`, `auto`.
        redraws: As in `labelers.redrawn`.
    """

    def __init__(
        self, lm: str, policy: str, task: Task, labeler: str, output: Path, seed: int, batch_size: int, precision: str,
        redraws: int = 0,
    ) -> None:  # fmt: skip
        self.lm, self.policy, self.task, self.labeler, self.output = lm, policy, task, labeler, output
        self.seed, self.batch_size, self.precision, self.redraws = seed, batch_size, precision, redraws
        self.models: tuple[LM, LM, TaskTokens] | None = None
        self.people = answers_file(labeler)
        self.asked: list[tuple[Path, list[dict[str, Any]]]] = []  # of people: labels that are to be given, and their file

    def _load(self) -> tuple[LM, LM, TaskTokens]:
        """Policy, reference and the task's tokens, once."""
        if self.models is None:
            policy = load_on_device(self.policy)
            reference = policy if self.policy == self.lm else load_on_device(self.lm)
            self.models = policy, reference, task_tokens(self.task, policy.tokenizer)
        return self.models

    def sample(self, split: str, prompts: list[Prompt], number: int, num_samples: int) -> list[list[str]]:
        """Responses to each prompt: all of the policy for training; for validation half of it, half of the reference."""
        policy, reference, resolved = self._load()
        texts = [rendered(p, policy.tokenizer, "prompts").prompt for p in prompts]
        seeds = [seed_for(self.seed, number + offset, 7 if split == "train" else 8) for offset in (0, 1)]
        drawn = partial(answer, task=self.task, resolved=resolved, prompts=texts, whole=False, redraws=self.redraws)
        with run_context(self.precision, policy.model):
            if split == "train":
                return drawn(policy, seed=seeds[0], num_samples=num_samples).texts
            own = drawn(policy, seed=seeds[0], num_samples=num_samples // 2).texts
            other = drawn(reference, seed=seeds[1], num_samples=num_samples - num_samples // 2).texts
        return [a + b for a, b in zip(own, other, strict=True)]

    def draw(
        self, split: str, prompts: list[Prompt], first: int, count: int, num_samples: int, round_number: int
    ) -> list[dict[str, Any]]:
        """Labels number first … first + count − 1, or what is to be asked, of the prompts in turn; where nothing is to choose
        (responses that are all alike, as those of a policy that is sure of itself may be, or liked equally, or one without
        text), the prompt leaves its place to a later one, `REDRAWN` times at most."""
        places = list(range(count))
        rows: list[dict[str, Any]] = [{}] * count
        for again in range(REDRAWN + 1):
            picked = [prompts[(first + again * count + i) % len(prompts)] for i in places]
            texts = self.sample(split, picked, first + 2 * again, num_samples)
            for i, row in zip(places, self.judge(split, picked, texts, [first + i for i in places], round_number), strict=True):
                rows[i] = row
            places = [i for i in places if undecided(rows[i])]
            if not places:
                return rows
        what = "nothing can be preferred" if self.people else "nothing is preferred, so that the best is drawn by lot,"
        print(f"labels {split}: in {len(places)} of {count} {what} after {REDRAWN} other prompts")
        return rows

    def collect(self, split: str, prompts: list[Prompt], begin: int, end: int, num_samples: int, round_number: int) -> None:
        """Append labels number begin … end − 1, those that are not there yet; prompts are gone through in turn.

        The batches are the same whenever it is called, so that a run that was killed draws the same responses.
        """
        file = self.output / "labels" / f"{split}.jsonl"
        have = whole_lines(file)
        bar = tqdm(total=end - begin, initial=max(0, have - begin), desc=f"round {round_number} labels {split}", unit="label")
        for first in range(begin, end, self.batch_size):
            last = min(first + self.batch_size, end)
            if have >= last:
                continue
            rows = self.draw(split, prompts, first, last - first, num_samples, round_number)[max(0, have - first) :]
            if self.people is None:
                append_jsonl(file, rows)
            else:
                self.asked.append((file, rows))
            bar.update(last - max(first, have))
        bar.close()

    def judge(
        self, split: str, prompts: list[Prompt], texts: list[list[str]], numbers: list[int], round_number: int
    ) -> list[dict[str, Any]]:
        """The labeler's comparisons, with a number and the round; what is to be asked, where people label."""
        asked = [
            {**request(split, number, prompt, responses), "round": round_number}
            for number, prompt, responses in zip(numbers, prompts, texts, strict=True)
        ]
        if self.people is not None:
            return asked
        told = [rendered(p, self._load()[0].tokenizer, "prompts") for p in prompts]
        rows = compare(load_callable(self.labeler), told, texts, "ranked")
        rows = [{**r, "id": a["id"], "round": round_number} for r, a in zip(rows, asked, strict=True)]
        # of several that are liked best, or of all, one by lot: in a validation label the policy's stand before the reference's
        return [by_lot(row) for row in rows]

    def ask_people(self) -> None:
        """Append the labels that people give; the questions of both splits are asked at once.

        Raises:
            UsageError: Some are not there yet.
            DataError: One is wrong, or prefers nothing.
        """
        if self.people is None or not self.asked:
            return
        rows = [row for _, rows in self.asked for row in rows]
        said = [with_best(row) for row in answers_of_people(self.output / "labels" / "requests.jsonl", self.people, rows)]
        if equal := [row["id"] for row in said if "best" not in row]:
            raise bad(str(self.people), "ranks", f"nothing preferred in {', '.join(equal)}", "a best one; label these again")
        told = iter(said)
        for file, rows in self.asked:
            append_jsonl(file, list(islice(told, len(rows))))


# -------------------------------------------------------------------------------------------------------------- rounds


def undecided(row: dict[str, Any]) -> bool:
    """Whether no label can come of a comparison: its responses are all alike, or liked equally, or one is without text."""
    liked = row.get("labeler_scores", ())
    return all_alike(row["responses"]) or any(map(is_empty, row["responses"])) or len(set(liked)) == 1


def held_out_prompts(prompts: list[Prompt], share: float) -> tuple[list[Prompt], list[Prompt]]:
    """(train, val): the last prompts are held out, a share of them and at least one, without those that training has too."""
    count = min(max(1, round(share * len(prompts))), len(prompts) - 1)
    train = prompts[: len(prompts) - count]
    known = {normalised(p.prompt) for p in train}
    return train, [p for p in prompts[len(train) :] if normalised(p.prompt) not in known]


def stage_config(file: Path, options: dict[str, Any]) -> Path:
    """Write what a round changes of a stage's config, as an overlay that can be given to `fit` by hand too."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(options, sort_keys=False), encoding="utf-8")
    return file


def fit_words(configs: list[str], *more: Path) -> list[str]:
    """The command of a stage."""
    return ["fit", *(word for file in [*configs, *map(str, more)] for word in ("-c", file))]


def starts_from(ppo: StageModule, reward: Path) -> bool:
    """Whether the value network starts from this reward model, by whatever name."""
    name = getattr(ppo, "value_init", None)
    return name is not None and Path(name).resolve() == reward.resolve()


def fit(configs: list[str], overlay: Path, checkpoint: Path) -> None:
    """`lightning-rlhf fit`, from the checkpoint where there is one; each round has a reward model of its own."""
    anew = '["model.reward", "model.value_init"]'  # that a value network began from the first one stays so
    resumed = ["--ckpt_path", str(checkpoint), "--allow_changed", anew] if checkpoint.exists() else []
    run_fit([*fit_words(configs, overlay), *resumed])


def online(
    lm: str,
    task: Task,
    prompts: str,
    output: str,
    reward: list[str],
    ppo: list[str],
    total_episodes: int,
    ppo_batch_size: int,
    total_labels: int,
    first_labels: int,
    val_labels: int,
    rounds: int = 20,
    num_samples: int = 4,
    labeler: str = "known:sentiment",
    redraws: int = 0,
    batch_size: int = 64,
    precision: str = "auto",
    seed: int = 1,
) -> None:
    """Train a policy on labels that are collected from it as it learns.

    Args:
        lm: The language model that the policy and each reward model start from; the reference.
        task: The task.
        prompts: JSON lines of training prompts, for PPO and labels; of the last of them, as large a share as that of val_labels,
            come the held-out labels and no others.
        output: Folder of labels, rounds and the final `ppo` and `reward`.
        reward: Config files of the reward stage, in order.
        ppo: Config files of the PPO stage, in order.
        total_episodes: Episodes of the whole run.
        ppo_batch_size: Episodes an iteration.
        total_labels: Training labels that the schedule ends at.
        first_labels: Training labels before the first episode.
        val_labels: Held-out labels that the schedule ends at, at a constant rate.
        rounds: Trainings of the reward model.
        num_samples: Responses a comparison.
        labeler: `known:NAME` or `module:function`, which picks the largest; or `file:PATH` of what people say, `{id, best}`, as
            `lightning-rlhf label` writes it.
        redraws: Times that a label's response whose end is not there (`task.truncate_text`) is drawn anew; 0: never.
        batch_size: Prompts at a time, for labels.
        precision: Of the sampling for labels: `32`, `bf16` or `auto`.
        seed: Of everything.

    Raises:
        UsageError, DataError: An option or a file is wrong; or people's answers are missing.
    """
    options = {k: v for k, v in locals().items() if isinstance(v, (str, int, list))}
    iterations = -(-total_episodes // ppo_batch_size)
    problems = task.problems()
    least = {
        "ppo_batch_size": (ppo_batch_size, 1), "first_labels": (first_labels, 1), "val_labels": (val_labels, rounds),
        "total_labels": (total_labels, first_labels), "rounds": (rounds, 1), "num_samples": (num_samples, 2),
        "batch_size": (batch_size, 1), "total_episodes": (total_episodes, ppo_batch_size * rounds),
    }  # fmt: skip
    problems += [f"{k}: found {v}, expected at least {low}" for k, (v, low) in least.items() if v < low]
    problems += precision_problems(precision) + redraw_problems(redraws, task)
    if problem := answers_problem(labeler):
        problems.append(problem)
    stages: dict[str, tuple[list[str], type[StageModule]]] = {"reward": (reward, RewardModule), "ppo": (ppo, PPOModule)}
    for stage, (configs, made) in stages.items():
        missing = [f"{stage}: {f}: no such file" for f in configs if not Path(f).is_file()]
        problems += missing if configs else [f"{stage}: found no config file, expected at least one"]
        if configs and not missing:
            try:
                found = parsed(fit_words(configs))
                if not isinstance(found, made):
                    problems.append(f"{stage}: found configs of {type(found).__name__}, expected those of {made.__name__}")
            except UsageError as error:
                problems.append(f"{stage}: {error}")
    if not Path(prompts).is_file():
        problems.append(f"prompts: {prompts}: no such file")
    if problems:
        raise UsageError("\n".join(problems))
    find_lm(lm)
    if problems := position_problems(lm, task):
        raise UsageError("\n".join(problems))
    queries = list(read_prompts(prompts).placed())
    fill_columns([query for _, query in queries])
    tokenizer = load_tokenizer(lm)
    for where, query in queries:
        rendered(query, tokenizer, where)
    people = answers_file(labeler)
    problems += call_problems(labeler, queries) if people is None else unreadable(queries)
    asked, held_queries = held_out_prompts([query for _, query in queries], val_labels / (total_labels + val_labels))
    if not (asked and held_queries):
        problems.append(f"prompts: {prompts}: found {len(queries)}, too few different ones to hold any out for validation")
    if problems:
        raise UsageError("\n".join(problems))
    folder = Path(output)
    _same_options(folder / "online.json", {**options, "task": vars(task)})
    info = RunInfo("online", seed, options, [prompts, *([people] if people is not None else [])])
    starts = round_starts(iterations, rounds)
    shares = [(labels_wanted(s * ppo_batch_size, total_episodes, first_labels, total_labels)) for s in starts]
    held = [round(val_labels * (k + 1) / rounds) for k in range(rounds)]
    previous = lm
    for k, (start, end) in enumerate(pairwise([*starts, iterations])):
        here = folder / f"round-{k:02d}"
        if not (here / "ppo" / "run.json").is_file():
            # 1. labels of the current policy
            collector = Collector(lm, previous, task, labeler, folder, seed, batch_size, precision, redraws)
            collector.collect("train", asked, shares[k - 1] if k else 0, shares[k], num_samples, k)
            collector.collect("val", held_queries, held[k - 1] if k else 0, held[k], num_samples, k)
            collector.ask_people()
            del collector
            # 2. a fresh reward model on all labels so far
            labels = {"train": f"{folder}/labels/train.jsonl", "val": f"{folder}/labels/val.jsonl"}
            common = {"run_dir": str(here), "lm": lm, "seed_everything": seed, "task": vars(task)}
            if not (here / "reward" / "run.json").is_file():
                overlay = stage_config(here / "reward.yaml", {**common, "data": {"init_args": labels}})
                fit(reward, overlay, here / "checkpoints" / "reward.ckpt")
            point(folder / "reward", here / "reward")
            # 3. PPO goes on, to the end of the round
            checkpoint = folder / "checkpoints" / "ppo.ckpt"
            stop = {"class_path": "lightning_rlhf.online.RoundEnd", "init_args": {"path": str(checkpoint), "iteration": end}}
            sizes = {"train": prompts, "batch_size": ppo_batch_size, "total_episodes": total_episodes}
            model = {"output": str(here / "ppo")}
            changes = {
                **common, "run_dir": str(folder), "model": {"init_args": model}, "data": {"init_args": sizes},
                "trainer": {"callbacks+": [stop]},
            }  # fmt: skip
            overlay = stage_config(here / "ppo.yaml", changes)
            if k and starts_from(parsed(fit_words(ppo, overlay)), here / "reward"):
                model["value_init"] = str(folder / "round-00" / "reward")  # of whose frozen weights a checkpoint holds nothing
                overlay = stage_config(overlay, changes)
            fit(ppo, overlay, checkpoint)
        point(folder / "ppo", here / "ppo")
        previous = str(here / "ppo")
        print(f"round {k}: iterations {start + 1} to {end} of {iterations}, {shares[k]} labels, {held[k]} held out")
    info.write(folder, figures={"labels": shares, "held_out": held, "round_ends": [*starts[1:], iterations]})
    print(f"policy: {folder / 'ppo'}\nreward: {folder / 'reward'}")


def _same_options(file: Path, options: dict[str, Any]) -> None:
    """A run goes on with the options that it began with; raises UsageError where one differs."""
    options = json.loads(json.dumps(options))
    if file.is_file():
        then = json.loads(file.read_text(encoding="utf-8"))
        then.setdefault("redraws", 0)  # of runs that began before there were any
        changed = [k for k in sorted({*then, *options}) if then.get(k) != options.get(k)]
        if changed:
            lines = [f"{k}: found {options.get(k)!r}, the run in {file.parent} began with {then.get(k)!r}" for k in changed]
            raise UsageError("\n".join(lines))
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}")
    partial.write_text(json.dumps(options, indent=1), encoding="utf-8")
    partial.replace(file)
