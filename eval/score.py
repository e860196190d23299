"""Samples → scores: rewards, KL and perplexity by models, and the measures of `eval.measures`.

A policy at a time (`scores/<policy>.jsonl`, kept while nothing that it was made from changes), joined in `scores.jsonl`;
`summary.json` holds the means by policy, with intervals. Every batch is on disk before the next one is begun
(`scores/<policy>.part`): interrupted, it goes on where it stopped, and ends as if it had not been.

1. `kl` needs a policy that is loaded here and has the reference's vocabulary: Σ log π − log ρ over the sampled tokens,
   untruncated, at the task's temperature (Ziegler et al. 2019); for best-of-n, log n − (n−1)/n is added to that of the kept
   responses. Other policies have none.
2. `ref_nll` of texts that were not sampled here is over the reference's own tokens of the text, at most MOST_TOKENS.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from eval.baselines import Policy
from eval.measures import measure, other_scripts, perplexity, summarise, table
from eval.sample import (
    MOST_TOKENS,
    HeldOut,
    Row,
    check_room,
    drawn_with,
    file_names,
    identity,
    keep,
    made_by,
    policy_task,
    put,
    reward_values,
)
from lightning_rlhf.files import append_jsonl, file_sha256, read_jsonl, unfinished, write_jsonl
from lightning_rlhf.logprobs import logits_of, token_logprobs
from lightning_rlhf.models import LM, device_of, fingerprint, load_on_device, run_context
from lightning_rlhf.scoring import load_reward
from lightning_rlhf.tasks import Task, UsageError, task_dict, task_tokens
from lightning_rlhf.tokens import encode, encode_continuation, pad_batch, vocabulary
from lightning_rlhf.trunks import hidden_states

CHUNK = 50  # texts that are measured at a time


class Part:
    """What there is of a policy's scores while they are made: batches in a file, one a line.

    Args:
        path: The file; one with another key is begun anew.
        key: Whatever decides the scores and their batches.
        policy: Its name, for the progress bars.
    """

    def __init__(self, path: Path, key: Row, policy: str) -> None:
        self.path, self.policy = path, policy
        self.done = {(row["what"], *row["rows"]): row["values"] for row in unfinished(path, key)}

    def values(self, what: str, title: str, batches: Sequence[list[int]], of: Callable[[list[int]], list[Any]]) -> dict[int, Any]:
        """Each row's value, by its number: `of` its batch, where the file has none.

        Args:
            what: Tells these values from others of the same rows.
            title: Of the progress bar.
            batches: Numbers of rows.
            of: The values of a batch, of what JSON can hold.
        """
        found: dict[int, Any] = {}
        there = sum(len(batch) for batch in batches if (what, *batch) in self.done)
        with tqdm(total=sum(map(len, batches)), initial=there, desc=title, unit="sample") as bar:
            for batch in batches:
                values = self.done.get((what, *batch))
                if values is None:
                    values = of(batch)
                    append_jsonl(self.path, [{"what": what, "rows": batch, "values": values}])
                    bar.update(len(batch))
                found.update(zip(batch, values, strict=True))
        return found


def split(count: int, size: int) -> list[list[int]]:
    """Rows 0 to `count` − 1, so many at a time."""
    return [list(range(first, min(first + size, count))) for first in range(0, count, size)]


def score_samples(
    task: Task,
    policies: dict[str, Policy],
    prompts: HeldOut,
    reference: str | None,
    learned_reward: str | None,
    known_reward: str | None,
    output: Path,
    batch_size: int,
    precision: str,
    seed: int,
    use_stemmer: bool = True,
) -> Path:
    """Score every sample.

    Each line of `scores.jsonl` is the sample with `scores` (what the samples' file had already; `known` and `learned`, rewards
    of the truncated response without the penalty; `kl`, `ref_nll`) and `measures` (see `eval.measures.measure`; `tokens` of
    the response under the reference's tokenizer, and `cut`: 1 where models read only its beginning).

    Raises:
        UsageError: A policy has no samples, or its weights are others by now.
    """
    rewards = {k: v for k, v in {"known": known_reward, "learned": learned_reward}.items() if v is not None}
    common: Row = dict(reference=reference and fingerprint(reference), rewards={k: made_by(v) for k, v in rewards.items()})
    common |= dict(precision=precision, prompts=prompts.digest, source=prompts.source_column, stemmer=use_stemmer)
    common["task"] = task_dict(task)
    loaded: dict[str, Any] = {}
    rows: list[Row] = []
    names = file_names(policies)
    for name, policy in policies.items():
        samples, path = (output / folder / f"{names[name]}.jsonl" for folder in ("samples", "scores"))
        if not samples.is_file():
            raise UsageError(f"{samples}: no samples of policy {name!r}; run `python -m eval sample` first")
        made_with = identity(policy) if policy.is_local else None
        if made_with is not None and drawn_with(samples) not in (None, made_with["model"]):
            said = f"made with other weights than {policy.model} has now"
            raise UsageError(f"{samples}: {said}; run `python -m eval sample` again")
        key = {**common, "policy": made_with, "samples": file_sha256(samples)}
        if not keep(path, key):
            of_policy = [{**r, "scores": dict(r.get("scores") or {})} for _, _, r in read_jsonl(samples)]
            of_policy = [r for r in of_policy if r["id"] in prompts.records]
            if not of_policy or any(r["prompt"] != prompts.records[r["id"]].prompt for r in of_policy):
                raise UsageError(f"{samples}: answers to other prompts than {prompts.where}'s; run `python -m eval sample` again")
            leave_out_partial(name, of_policy)
            part = Part(path.with_suffix(".part"), {**key, "batch_size": batch_size}, name)
            add_measures(of_policy, prompts, use_stemmer, part)
            for kind, reward_name in rewards.items():
                loaded[kind] = loaded.get(kind) or load_reward(reward_name)
                add_reward(kind, loaded[kind], of_policy, prompts, batch_size, precision, part)
            if reference is not None:
                loaded["reference"] = base = loaded.get("reference") or load_on_device(reference)
                own = None
                if policy.is_local:
                    own = base if policy.model == reference else load_on_device(policy.model)
                add_reference(of_policy, base, own, task, policy_task(policy, task, prompts, seed), batch_size, precision, part)
            put(path, of_policy, key)
            part.path.unlink()
        rows += [r for _, _, r in read_jsonl(path)]
    write_jsonl(output / "scores.jsonl", rows)
    summary = summarise(rows)
    (output / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    print(table(summary))
    if unread := other_scripts({policy: s["means"].get("other_script") for policy, s in summary.items()}):
        print(unread, file=sys.stderr)
    return output / "scores.jsonl"


def leave_out_partial(policy: str, rows: list[Row]) -> None:
    """Take scores off that only some of a policy's samples came with, and say so: no mean of them would be the policy's."""
    for name in sorted({name for r in rows for name in r["scores"]}):
        having = sum(name in r["scores"] for r in rows)
        if having < len(rows):
            print(f"{policy}: {having} of {len(rows)} samples have the score {name!r}; it is left out")
            for r in rows:
                r["scores"].pop(name, None)


def add_measures(rows: list[Row], prompts: HeldOut, use_stemmer: bool, part: Part) -> None:
    """Add what needs no model to each row, in place."""

    def of(batch: list[int]) -> list[Any]:
        return measure([rows[i] for i in batch], [prompts.source(rows[i]["id"]) for i in batch], use_stemmer)

    for i, measures in part.values("measures", f"measure {part.policy}", split(len(rows), CHUNK), of).items():
        rows[i]["measures"] = measures


def add_reward(kind: str, reward: Any, rows: list[Row], prompts: HeldOut, batch_size: int, precision: str, part: Part) -> None:
    """Add one reward's score to each row, in place."""

    def of(batch: list[int]) -> list[Any]:
        return reward_values(reward, prompts, [rows[i]["id"] for i in batch], [rows[i]["response"] for i in batch], precision)

    for i, value in part.values(kind, f"{kind} reward of {part.policy}", split(len(rows), batch_size), of).items():
        rows[i]["scores"][kind] = value


def add_reference(
    rows: list[Row], base: LM, own: LM | None, task: Task, own_task: Task, batch_size: int, precision: str, part: Part
) -> None:
    """Add `ref_nll` and, of a policy that is loaded, `kl` to each row's scores, and `tokens` to its measures, in place.

    Args:
        rows: Samples of one policy.
        base: The reference.
        own: The policy that sampled them; the reference itself where it is one; None where it is not to be had.
        task, own_task: The task as the reference and as the policy was asked it.
        part: Where the batches are kept.
    """
    texts = [encode_continuation(base.tokenizer, r["response"]) for r in rows]
    sampler = own if own is base or (own and vocabulary(own.tokenizer) == vocabulary(base.tokenizer)) else None
    for r, ids in zip(rows, texts, strict=True):
        r["measures"] |= {"tokens": len(ids), "cut": int(len(ids) > MOST_TOKENS)}
    responses = [r["response_tokens"] for r in rows] if sampler else [ids[:MOST_TOKENS] for ids in texts]
    under_base = response_logprobs("reference", base, task, rows, responses, batch_size, precision, part)
    for r, ids, (_, at_one) in zip(rows, responses, under_base, strict=True):
        r["scores"]["ref_nll"] = -at_one
        r["n_tokens"] = len(ids)
        r["measures"]["perplexity"] = perplexity(-at_one, len(ids))
    if sampler:
        same = sampler is base and own_task == task
        under_own = under_base
        if not same:
            under_own = response_logprobs("policy", sampler, own_task, rows, responses, batch_size, precision, part)
        for r, (mine, _), (theirs, _) in zip(rows, under_own, under_base, strict=True):
            r["scores"]["kl"] = mine - theirs + r.get("best_of_kl", 0.0)


def response_logprobs(
    what: str, lm: LM, task: Task, rows: Sequence[Row], responses: Sequence[list[int]], batch_size: int, precision: str,
    part: Part,
) -> list[Sequence[float]]:  # fmt: skip
    """Sums of log p over each response's tokens, at the task's temperature and at 1: two floats a row, nats.

    Args:
        what: Tells these sums from another model's.
        rows: Their `prompt` is what was asked.
        responses: Token ids, any number each; 0 where there is none.
        batch_size: Responses of the task's length at a time, fewer of longer ones.
        part: Where the batches are kept.
    """
    resolved = task_tokens(task, lm.tokenizer)
    queries = [[*resolved.prefix, *encode(lm.tokenizer, r["prompt"]), *resolved.suffix] for r in rows]
    check_room(lm, {r["id"]: len(q) + len(a) for r, q, a in zip(rows, queries, responses, strict=True)}, "reference")
    order = sorted((i for i in range(len(rows)) if responses[i]), key=lambda i: -len(responses[i]))  # stable: equal ones stay
    batches = []
    while order:
        size = max(1, batch_size * task.response_length // max(len(responses[order[0]]), task.response_length))
        batches.append(order[:size])
        order = order[size:]

    def of(batch: list[int]) -> list[Any]:
        length = len(responses[batch[0]])
        tokens, mask = (x.to(device_of(lm.model)) for x in pad_batch([queries[i] + responses[i] for i in batch], 0, "left"))
        _, real = (x.to(tokens.device) for x in pad_batch([responses[i] for i in batch], 0, "left", length))
        with run_context(precision, lm.model):
            logits = logits_of(lm.model, hidden_states(lm.model, tokens, mask)[:, -length - 1 : -1])
            both = [token_logprobs(logits, tokens[:, -length:], t) for t in (task.temperature, 1.0)]
        return list(zip(*(logprobs.masked_fill(~real, 0.0).sum(1).tolist() for logprobs in both), strict=True))

    found = part.values(what, f"{part.policy} under {lm.name}", batches, of)
    return [found.get(i, (0.0, 0.0)) for i in range(len(rows))]
