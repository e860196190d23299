"""Prompts → comparisons: the policy answers each prompt n times, and a simulated labeler picks the best (2019, mock study).

The labeler sees what a human would: the truncated response as text; and the prompt's other columns, such as `reference`. Its
choice is the largest known reward. Asked for more, it ranks all n (InstructGPT, 3.4) or rates each (2019's scalar_rating).

Or people label (`labeling.py`): with `--labeler file:answers.jsonl` the responses are written to `requests.jsonl`, and the same
command goes on when each has its answer.

    lightning-rlhf labels -c configs/sentiment/labels.yaml -c configs/sentiment/stories260k/labels.yaml
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tqdm import tqdm

from .chat import rendered
from .fields import is_empty
from .files import DataError, append_jsonl, file_sha256, unfinished, write_jsonl
from .folders import alone, made_elsewhere
from .generation import sample_with, seed_for, truncate
from .models import (
    LM,
    device_of,
    find_lm,
    fingerprint,
    load_on_device,
    load_tokenizer,
    position_problems,
    precision_problems,
    run_context,
)
from .people import all_alike, answers_file, answers_of_people, answers_problem, request, unreadable, with_best
from .records import Prompt, read_prompts
from .runinfo import RunInfo
from .scoring import call_problems, call_reward, code_of, fill_columns, load_callable
from .tasks import Task, TaskTokens, UsageError, task_tokens
from .tokens import decode, encode, pad_batch


class Answers(NamedTuple):
    """Responses to prompts: for each prompt, of each of its samples."""

    texts: list[list[str]]  # truncated
    tokens: list[list[list[int]]]  # as sampled, untruncated; empty where a server keeps them to itself
    found: list[list[bool]]  # whether the truncate token is there
    draws: list[list[int]]  # which draw it is, from 1


Ask = Callable[[list[Any], int], Answers]  # prompts, seed


def answer(
    lm: LM,
    task: Task,
    resolved: TaskTokens,
    prompts: list[Any],
    seed: int,
    num_samples: int = 1,
    whole: bool = True,
    redraws: int = 0,
) -> Answers:
    """Sample `num_samples` responses a prompt.

    Args:
        lm: The policy.
        task, resolved: The task and its tokens.
        prompts: Texts (or token ids).
        seed: Of the generator.
        whole: Sample on after the truncate token, as the policy of 2019 does; False: the ids after it mean nothing, and the texts
            come sooner.
        redraws: As in `redrawn`.
    """
    device = device_of(lm.model)
    ends = [] if whole or resolved.truncate is None else [resolved.truncate]

    def ask(asked: list[Any], seed: int) -> Answers:
        rows = [[*resolved.prefix, *encode(lm.tokenizer, p), *resolved.suffix] for p in asked]
        tokens, mask = pad_batch(rows, 0, "left")
        sampled = sample_with(
            lm.model, tokens.to(device), mask.to(device), task.response_length, task.temperature, seed, num_samples, stop=ends,
            stop_after=task.truncate_after,
        ).tokens  # fmt: skip
        _, kept, found = truncate(sampled, resolved.truncate, task.truncate_after, 0)
        ids = sampled.tolist()
        texts = [decode(lm.tokenizer, r[:n], continuation=True) for r, n in zip(ids, kept.sum(1).tolist(), strict=True)]
        group = lambda flat: [flat[i : i + num_samples] for i in range(0, len(flat), num_samples)]  # noqa: E731
        return Answers(group(texts), group(ids), group(found.tolist()), [[1] * num_samples for _ in asked])

    return redrawn(ask, prompts, seed, redraws)


def redrawn(ask: Ask, prompts: list[Any], seed: int, redraws: int) -> Answers:
    """Answers of which those that do not end as they should are drawn anew: rejection sampling, as for all that people are shown
    in 2019 (sections 3.1 and 3.2).

    Args:
        ask: Answers prompts with a seed, as many responses to each.
        prompts, seed: What it is asked first.
        redraws: Times that what has not ended is drawn anew, at most; what has not ended then stays.
    """
    answers = ask(prompts, seed)
    for again in range(1, redraws + 1):
        open_ = [i for i, found in enumerate(answers.found) if not all(found)]
        if not open_:
            break
        fresh = ask([prompts[i] for i in open_], seed_for(seed, again))
        for at, i in enumerate(open_):
            ended = (k for k, found in enumerate(fresh.found[at]) if found)
            for place, k in zip([k for k, found in enumerate(answers.found[i]) if not found], ended, strict=False):
                answers.texts[i][place], answers.tokens[i][place] = fresh.texts[at][k], fresh.tokens[at][k]
                answers.found[i][place], answers.draws[i][place] = True, 1 + again
    return answers


def redraw_problems(redraws: int, task: Task) -> list[str]:
    """What is wrong with a number of redraws, in words."""
    if redraws > 0 and task.truncate_text is None:
        return [f"redraws: found {redraws} with task.truncate_text null, expected 0: nothing tells a response that has not ended"]
    return [f"redraws: found {redraws}, expected at least 0"] if redraws < 0 else []


def label(
    lm: str,
    task: Task,
    prompts: str,
    output: str,
    labeler: str = "known:sentiment",
    num_samples: int = 4,
    per_prompt: int = 1,
    label_type: Literal["best_of_n", "ranked", "scalar_rating"] = "best_of_n",
    train: int | None = None,
    val: int | None = None,
    redraws: int = 0,
    batch_size: int = 64,
    precision: str = "auto",
    seed: int = 1,
) -> None:
    """Collect comparisons: sample, let the labeler choose, write {train,val}.jsonl and the chosen ones as demonstrations.

    Each batch goes to disk at once (`{train,val}.part`); the same command after a kill goes on from there.

    Args:
        lm: The policy that answers.
        task: The task.
        prompts: Folder with train.jsonl and val.jsonl.
        output: Folder of the comparisons.
        labeler: `known:NAME` or `module:function`, which picks the largest; or `file:PATH` of what people say, `{id, best}` or
            `{id, ranks}`, as `lightning-rlhf label` writes it.
        num_samples: Responses a comparison (4 in the paper).
        per_prompt: Comparisons of each training prompt, of responses of their own (1 in the paper): more labels where prompts are
            few. Validation prompts have one each; the demonstrations are the first comparisons' choices.
        label_type: What the labeler says of a prompt's responses: which is best, the rank of each, or a number for each.
        train: Label so many training prompts; null: all.
        val: Label so many validation prompts; null: all.
        redraws: Times that a response whose end is not there (`task.truncate_text`) is drawn anew (2019: until it is); 0: never.
        batch_size: Comparisons at a time.
        precision: `32`, `bf16`, or `auto`: bf16 where the hardware is fast at it.
        seed: Of the sampling.

    Raises:
        UsageError, DataError: An option or a file is wrong, or another process writes there; nothing has been sampled then. Or
            people's answers are missing.
    """
    least = {"num_samples": (num_samples, 2), "per_prompt": (per_prompt, 1), "batch_size": (batch_size, 1)}
    least |= {k: (v, 1) for k, v in (("train", train), ("val", val)) if v is not None}
    problems = task.problems() + [f"{k}: found {v}, expected at least {low}" for k, (v, low) in least.items() if v < low]
    problems += precision_problems(precision) + redraw_problems(redraws, task)
    files = {s: Path(prompts) / f"{s}.jsonl" for s in ("train", "val")}
    problems += [f"prompts: {file}: no such file" for file in files.values() if not file.is_file()]
    if problems:
        raise UsageError("\n".join(problems))
    people = answers_file(labeler)
    if people is not None and label_type == "scalar_rating":
        raise UsageError(f"label_type: found scalar_rating with labeler {labeler}, expected best_of_n or ranked")
    if problem := answers_problem(labeler):
        raise UsageError(problem)
    reward = None if people is not None else load_callable(labeler)
    find_lm(lm)
    if problems := position_problems(lm, task):
        raise UsageError("\n".join(problems))
    limits = {"train": train, "val": val}
    found = {s: list(read_prompts(file).placed())[: limits[s]] for s, file in files.items()}
    every_prompt = [row for rows in found.values() for row in rows]
    fill_columns([prompt for _, prompt in every_prompt])
    if unfit := unreadable(every_prompt) if people is not None else call_problems(labeler, every_prompt):
        raise DataError("\n".join(unfit))
    tokenizer = load_tokenizer(lm)
    splits = {split: [rendered(record, tokenizer, where) for where, record in rows] for split, rows in found.items()}
    if not list(Path(output).glob("*.part")) and (problem := made_elsewhere(output, [f"{split}.jsonl" for split in splits])):
        raise UsageError(problem)
    config = dict(lm=lm, task=vars(task), labeler=labeler, num_samples=num_samples, per_prompt=per_prompt)
    config |= dict(label_type=label_type, batch_size=batch_size, precision=precision)
    config |= {"redraws": redraws} if redraws else {}
    info = RunInfo("labels", seed, config, [*files.values(), *([people] if people is not None else [])])
    counts: dict[str, Any] = {}
    with alone(output):
        policy = load_on_device(lm)
        resolved = task_tokens(task, policy.tokenizer)
        made_by = {**config, "seed": seed, "model": fingerprint(lm), "code": None if people else code_of(labeler)}
        answered: dict[str, list[dict[str, Any]]] = {}
        for split, records in splits.items():
            each = per_prompt if split == "train" else 1
            part = Path(output) / f"{split}.part"
            at_once = max(1, batch_size // each)
            key = {**made_by, "prompts": file_sha256(files[split]), "limit": limits[split], "at_once": at_once}
            batches = {batch["first"]: batch["rows"] for batch in unfinished(part, key)}
            comparisons: list[dict[str, Any]] = [row for first in sorted(batches) for row in batches[first]]
            done = len(comparisons) // each
            bar = tqdm(total=len(records), initial=done, desc=f"labels {split}", unit="prompt")
            for first in range(done, len(records), at_once):
                batch = records[first : first + at_once]
                number = first // at_once + (1_000_000 if split == "val" else 0)
                with run_context(precision, policy.model):
                    asked = [r.prompt for r in batch]
                    drawn = answer(
                        policy, task, resolved, asked, seed_for(seed, number), num_samples * each, whole=False, redraws=redraws
                    )
                groups = [t[i : i + num_samples] for t in drawn.texts for i in range(0, len(t), num_samples)]
                if reward is None:
                    read = [r for _, r in found[split][first : first + at_once]]  # not rendered: messages stay messages
                    asked_of = [r for r in read for _ in range(each)]
                    rows = [request(split, first * each + i, p, t) for i, (p, t) in enumerate(zip(asked_of, groups, strict=True))]
                else:
                    asked_of = [r for r in batch for _ in range(each)]
                    rows = compare(reward, asked_of, groups, label_type)
                append_jsonl(part, [{"first": first, "rows": rows}])
                comparisons += rows
                bar.update(len(batch))
            bar.close()
            answered[split] = comparisons
        if people is not None:
            told = answers_of_people(Path(output) / "requests.jsonl", people, answered["train"] + answered["val"], label_type)
            told = [with_best(row) for row in told] if label_type == "best_of_n" else told
            count = len(answered["train"])
            answered = {"train": told[:count], "val": told[count:]}
        for split, comparisons in answered.items():
            each = per_prompt if split == "train" else 1
            counts[split] = write_labels(Path(output), split, comparisons, each, labeler)
        info.write(output, figures=counts)
        for split in splits:
            (Path(output) / f"{split}.part").unlink(missing_ok=True)
    print(f"{output}: {counts['train']} train and {counts['val']} val comparisons, {label_type} of {num_samples} by {labeler}")


def write_labels(output: Path, split: str, labels: list[dict[str, Any]], each: int, labeler: str) -> int:
    """Write a split's labels, and what was chosen first as demonstrations; returns how many labels.

    Labels that prefer nothing are left out, and those that have a response without text.

    Args:
        output: The folder.
        split: `train` or `val`.
        labels: As `compare` or `answers_of_people` give them, those of one prompt together.
        each: Labels of each prompt; the first of them is its demonstration.
        labeler: For messages; a simulated one's demonstration is the first of equals.

    Raises:
        DataError: None is left.
    """
    full = [c for c in labels if not any(map(is_empty, c["responses"]))]  # as `read_comparisons` has it
    if len(full) < len(labels):
        print(f"labels {split}: {len(labels) - len(full)} with a response without text were left out")
    kept = [c for c in full if preferred(c) is not None]
    if len(kept) < len(full):
        print(f"labels {split}: {len(full) - len(kept)} of responses that are all equally good were left out")
    if not kept and labels:
        equal = f"{labeler} likes the responses of each of {len(full)} comparisons equally"
        what = equal if full else f"each of {len(labels)} comparisons has a response without text"
        raise DataError(f"{output / split}.part: {what}")
    liked = [c for c in labels[::each] if answers_file(labeler) is None or preferred(c) is not None]
    firsts = [{"prompt": c["prompt"], "completion": c["responses"][preferred(c) or 0]} for c in liked]
    write_jsonl(output / f"demonstrations.{split}.jsonl", [d for d in firsts if not is_empty(d["completion"])])
    return write_jsonl(output / f"{split}.jsonl", kept)


def choice(scores: list[float]) -> int:
    """The response that the labeler likes best, the first of equals."""
    return scores.index(max(scores))


def preferred(label: dict[str, Any]) -> int | None:
    """The response that a label puts first, the first of equals; None where it likes all the same."""
    if "labeler_scores" in label:
        return choice(label["labeler_scores"]) if len(set(label["labeler_scores"])) > 1 else None
    if "ranks" in label:
        return label["ranks"].index(1) if len(set(label["ranks"])) > 1 else None
    return None if all_alike(label["responses"]) else label["best"]


def compare(reward: Any, prompts: list[Prompt], texts: list[list[str]], label_type: str = "best_of_n") -> list[dict[str, Any]]:
    """Labels `{prompt, responses, …, labeler_scores, id?, reference?}`.

    With `best`, the first largest reward; or that and `ranks`, 1 the best, equal ones sharing a rank; or `ratings`. Rewards are
    rounded to six digits first.
    """
    made = []
    for prompt, responses in zip(prompts, texts, strict=True):
        columns = {k: [v] * len(responses) for k, v in {"reference": prompt.reference, **prompt.meta}.items()}
        scores = [round(s, 6) for s in call_reward(reward, [prompt.prompt] * len(responses), responses, columns)]
        judged: dict[str, Any] = {"ratings": scores} if label_type == "scalar_rating" else {"best": choice(scores)}
        if label_type == "ranked":
            judged["ranks"] = [1 + sum(other > one for other in scores) for one in scores]
        named = {k: v for k, v in prompt.meta.items() if k == "id" and v is not None}
        named |= {"reference": prompt.reference} if prompt.reference is not None else {}
        made.append({"prompt": prompt.prompt, "responses": responses, **judged, "labeler_scores": scores, **named})
    return made
