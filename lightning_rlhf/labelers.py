"""Prompts → comparisons: the policy answers each prompt n times, and a simulated labeler picks the best (2019, mock study).

The labeler sees what a human would: the truncated response as text; and the prompt's other columns, such as `reference`. Its
choice is the largest known reward. Asked for more, it ranks all n (InstructGPT, 3.4) or rates each (2019's scalar_rating).

    lightning-rlhf labels -c configs/sentiment/labels.yaml -c configs/sentiment/stories260k/labels.yaml
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from .chat import rendered
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
from .records import Prompt, read_prompts
from .runinfo import RunInfo
from .scoring import call_problems, call_reward, code_of, load_callable
from .tasks import Task, TaskTokens, UsageError, task_tokens
from .tokens import decode, encode, pad_batch


def answer(
    lm: LM, task: Task, resolved: TaskTokens, prompts: list[Any], seed: int, num_samples: int = 1, whole: bool = True
) -> tuple[list[list[str]], list[list[list[int]]], list[list[bool]]]:
    """Sample `num_samples` responses a prompt.

    Args:
        lm: The policy.
        task, resolved: The task and its tokens.
        prompts: Texts (or token ids).
        seed: Of the generator.
        whole: Sample on after the truncate token, as the policy of 2019 does; False: the ids after it mean nothing, and the texts
            come sooner.

    Returns:
        For each prompt and sample: the truncated text, the sampled token ids (untruncated), whether the truncate token is there.
    """
    device = device_of(lm.model)
    rows = [[*resolved.prefix, *encode(lm.tokenizer, p), *resolved.suffix] for p in prompts]
    tokens, mask = pad_batch(rows, 0, "left")
    ends = [] if whole or resolved.truncate is None else [resolved.truncate]
    sampled = sample_with(
        lm.model, tokens.to(device), mask.to(device), task.response_length, task.temperature, seed, num_samples, stop=ends,
        stop_after=task.truncate_after,
    ).tokens  # fmt: skip
    _, kept, found = truncate(sampled, resolved.truncate, task.truncate_after, 0)
    ids = sampled.tolist()
    texts = [decode(lm.tokenizer, r[:n], continuation=True) for r, n in zip(ids, kept.sum(1).tolist(), strict=True)]
    group = lambda flat: [flat[i : i + num_samples] for i in range(0, len(flat), num_samples)]  # noqa: E731
    return group(texts), group(ids), group(found.tolist())


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
        labeler: `known:NAME` or `module:function`; it picks the largest.
        num_samples: Responses a comparison (4 in the paper).
        per_prompt: Comparisons of each training prompt, of responses of their own (1 in the paper): more labels where prompts are
            few. Validation prompts have one each; the demonstrations are the first comparisons' choices.
        label_type: What the labeler says of a training prompt's responses: which is best, the rank of each, or a number for each.
            Of the validation prompts it says which is best, so that reward models of all types compare.
        train: Label so many training prompts; null: all.
        val: Label so many validation prompts; null: all.
        batch_size: Comparisons at a time.
        precision: `32`, `bf16`, or `auto`: bf16 where the hardware is fast at it.
        seed: Of the sampling.

    Raises:
        UsageError, DataError: An option or a file is wrong, or another process writes there; nothing has been sampled then.
    """
    least = {"num_samples": (num_samples, 2), "per_prompt": (per_prompt, 1), "batch_size": (batch_size, 1)}
    least |= {k: (v, 1) for k, v in (("train", train), ("val", val)) if v is not None}
    problems = task.problems() + [f"{k}: found {v}, expected at least {low}" for k, (v, low) in least.items() if v < low]
    problems += precision_problems(precision)
    files = {s: Path(prompts) / f"{s}.jsonl" for s in ("train", "val")}
    problems += [f"prompts: {file}: no such file" for file in files.values() if not file.is_file()]
    if problems:
        raise UsageError("\n".join(problems))
    reward = load_callable(labeler)
    find_lm(lm)
    if problems := position_problems(lm, task):
        raise UsageError("\n".join(problems))
    limits = {"train": train, "val": val}
    found = {s: list(read_prompts(file).placed())[: limits[s]] for s, file in files.items()}
    if unfit := call_problems(labeler, [row for rows in found.values() for row in rows]):
        raise DataError("\n".join(unfit))
    tokenizer = load_tokenizer(lm)
    splits = {split: [rendered(record, tokenizer, where) for where, record in rows] for split, rows in found.items()}
    if not list(Path(output).glob("*.part")) and (problem := made_elsewhere(output, [f"{split}.jsonl" for split in splits])):
        raise UsageError(problem)
    config = dict(lm=lm, task=vars(task), labeler=labeler, num_samples=num_samples, per_prompt=per_prompt)
    config |= dict(label_type=label_type, batch_size=batch_size, precision=precision)
    info = RunInfo("labels", seed, config, list(files.values()))
    counts: dict[str, Any] = {}
    with alone(output):
        policy = load_on_device(lm)
        resolved = task_tokens(task, policy.tokenizer)
        made_by = {**config, "seed": seed, "model": fingerprint(lm), "code": code_of(labeler)}
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
                    texts, _, _ = answer(policy, task, resolved, asked, seed_for(seed, number), num_samples * each, whole=False)
                groups = [t[i : i + num_samples] for t in texts for i in range(0, len(t), num_samples)]
                said = label_type if split == "train" else "best_of_n"
                rows = compare(reward, [r for r in batch for _ in range(each)], groups, said)
                append_jsonl(part, [{"first": first, "rows": rows}])
                comparisons += rows
                bar.update(len(batch))
            bar.close()
            kept = [c for c in comparisons if len(set(c["labeler_scores"])) > 1]
            if len(kept) < len(comparisons):
                print(f"labels {split}: {len(comparisons) - len(kept)} of responses that are all equally good were left out")
            if not kept and comparisons:
                raise DataError(f"{part}: {labeler} likes the responses of each of {len(comparisons)} comparisons equally")
            counts[split] = write_jsonl(Path(output) / f"{split}.jsonl", kept)
            firsts = [(c["prompt"], c["responses"][choice(c["labeler_scores"])]) for c in comparisons[::each]]
            write_jsonl(Path(output) / f"demonstrations.{split}.jsonl", [{"prompt": p, "completion": r} for p, r in firsts])
        info.write(output, figures=counts)
        for split in splits:
            (Path(output) / f"{split}.part").unlink(missing_ok=True)
    print(f"{output}: {counts['train']} train and {counts['val']} val comparisons, {label_type} of {num_samples} by {labeler}")


def choice(scores: list[float]) -> int:
    """The response that the labeler likes best, the first of equals."""
    return scores.index(max(scores))


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
        named = {k: v for k, v in prompt.meta.items() if k == "id"}
        named |= {"reference": prompt.reference} if prompt.reference is not None else {}
        made.append({"prompt": prompt.prompt, "responses": responses, **judged, "labeler_scores": scores, **named})
    return made
