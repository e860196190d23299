"""Held-out prompts → samples of each policy → scores of each sample.

`sample_policies` writes `samples/<policy>.jsonl`; `score_samples` adds the known and the learned reward, the KL to the
reference and the negative log-likelihood under it, and writes `scores.jsonl`. A file that was made from the same prompts,
policy files and options is kept, so that an interrupted evaluation goes on where it stopped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lightning_rlhf.files import file_sha256, read_jsonl, write_jsonl
from lightning_rlhf.generation import seed_for
from lightning_rlhf.labelers import answer
from lightning_rlhf.models import (
    LM,
    device_of,
    encode,
    find_lm,
    hidden_states,
    load_on_device,
    logits_of,
    pad_batch,
    run_context,
    token_logprobs,
)
from lightning_rlhf.records import Prompt, read_prompts
from lightning_rlhf.scoring import call_reward, is_learned, load_reward
from lightning_rlhf.tasks import Task, UsageError, task_dict, task_tokens

Row = dict[str, Any]


def slug(policy: str) -> str:
    """A policy's name as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", policy.lower()).strip("-") or "policy"


def fingerprint(name: str) -> str:
    """What tells one model from another without loading it: the hash of its weights, or its Hub id."""
    found = Path(find_lm(name))
    weights = (".safetensors", ".bin")
    files = sorted(f for f in found.iterdir() if f.suffix in weights or f.name == "reward.json") if found.is_dir() else [found]
    return "|".join(f"{f.name}:{file_sha256(f)}" if f.is_file() else name for f in files)


def code_of(reward: str) -> str:
    """A callable's name, with the hash of its file where it is one."""
    file = Path(reward.rpartition(":")[0])
    return f"{reward} {file_sha256(file)}" if file.is_file() else reward


def held_out(prompts: str, limit: int | None) -> list[tuple[str, Prompt]]:
    """(id, prompt) of the held-out prompts: the file's `id`, or the record's number."""
    records = list(read_prompts(prompts))[:limit]
    ids = [str(r.meta.get("id", i)) for i, r in enumerate(records)]
    if len(set(ids)) < len(ids):
        raise UsageError(f"{prompts}: field 'id': an id stands twice, expected distinct ones")
    return list(zip(ids, records, strict=True))


def keep(path: Path, key: dict[str, Any]) -> bool:
    """Whether a file made from exactly these inputs is there."""
    sidecar = path.with_suffix(".key.json")
    return path.is_file() and sidecar.is_file() and json.loads(sidecar.read_text(encoding="utf-8")) == key


def put(path: Path, rows: Sequence[Row], key: dict[str, Any]) -> None:
    """Write rows, then what they were made from."""
    sidecar = path.with_suffix(".key.json")
    sidecar.unlink(missing_ok=True)
    write_jsonl(path, rows)
    sidecar.write_text(json.dumps(key, indent=1), encoding="utf-8")


def sample_policies(
    task: Task,
    policies: dict[str, str],
    prompts: str,
    output: Path,
    limit: int | None,
    batch_size: int,
    precision: str,
    seed: int,
) -> dict[str, Path]:
    """Sample one response of each policy to each held-out prompt; policies draw independently.

    Returns:
        Policy → its file of samples.
    """
    records = held_out(prompts, limit)
    files = {}
    for number, (policy, name) in enumerate(policies.items()):
        path = output / "samples" / f"{slug(policy)}.jsonl"
        files[policy] = path
        drawn = dict(policy=policy, model=fingerprint(name), limit=limit, seed=seed + number, batch_size=batch_size)
        key = {**drawn, "precision": precision, "prompts": file_sha256(prompts), "task": task_dict(task)}
        if keep(path, key):
            continue
        lm = load_on_device(name)
        resolved = task_tokens(task, lm.tokenizer)
        rows: list[Row] = []
        bar = tqdm(total=len(records), desc=f"sample {policy}", unit="prompt")
        for first in range(0, len(records), batch_size):
            batch = records[first : first + batch_size]
            with run_context(precision, lm.model):
                texts, ids, found = answer(lm, task, resolved, [r.prompt for _, r in batch], seed_for(seed + number, first))
            for (id_, record), text, tokens, hit in zip(batch, texts, ids, found, strict=True):
                row = dict(id=id_, index=0, task=task.name, policy=policy, prompt=record.prompt, response=text[0])
                row["seed"] = seed + number
                if record.reference is not None:
                    row["reference"] = record.reference
                rows.append({**row, "found": hit[0], "response_tokens": tokens[0], "n_tokens": len(tokens[0])})
            bar.update(len(batch))
        bar.close()
        put(path, rows, key)
    return files


def response_logprobs(lm: LM, task: Task, rows: Sequence[Row], batch_size: int, precision: str) -> list[tuple[float, float]]:
    """Sums over the sampled tokens (untruncated) of log p, at the task's temperature and at 1: two floats a row, nats."""
    resolved = task_tokens(task, lm.tokenizer)
    sums: list[tuple[float, float]] = []
    for first in range(0, len(rows), batch_size):
        batch = rows[first : first + batch_size]
        lists = [[*resolved.prefix, *encode(lm.tokenizer, r["prompt"]), *resolved.suffix, *r["response_tokens"]] for r in batch]
        tokens, mask = (x.to(device_of(lm.model)) for x in pad_batch(lists, 0, "left"))
        length = len(batch[0]["response_tokens"])
        with run_context(precision, lm.model):
            logits = logits_of(lm.model, hidden_states(lm.model, tokens, mask)[:, -length - 1 : -1])
            pair = [token_logprobs(logits, tokens[:, -length:], t).sum(1).tolist() for t in (task.temperature, 1.0)]
        sums += list(zip(*pair, strict=True))
    return sums


def score_samples(
    task: Task,
    policies: dict[str, str],
    reference: str | None,
    learned_reward: str | None,
    known_reward: str | None,
    output: Path,
    batch_size: int,
    precision: str,
) -> Path:
    """Score every sample, a policy at a time (`scores/<policy>.jsonl`), and join them in `scores.jsonl`.

    Scores: `known` and `learned`, rewards of the truncated response (without the penalty); `kl` = Σ log π − log ρ over the
    sampled tokens at the task's temperature, under the policy that sampled them; `ref_nll` = −Σ log ρ at temperature 1.

    Raises:
        UsageError: A policy has no samples.
    """
    rewards = {k: v for k, v in {"known": known_reward, "learned": learned_reward}.items() if v is not None}
    made_by = {k: fingerprint(v) if is_learned(v) else code_of(v) for k, v in rewards.items()}
    base = None
    loaded: dict[str, Any] = {}
    rows: list[Row] = []
    for policy, name in policies.items():
        samples, path = output / "samples" / f"{slug(policy)}.jsonl", output / "scores" / f"{slug(policy)}.jsonl"
        if not samples.is_file():
            raise UsageError(f"{samples}: no samples of policy {policy!r}; run `python -m eval sample` first")
        models = dict(model=fingerprint(name), reference=reference and fingerprint(reference))
        key = {**models, "samples": file_sha256(samples), "rewards": made_by, "precision": precision}
        if not keep(path, key):
            of_policy = [{**r, "scores": {}} for _, _, r in read_jsonl(samples)]
            for kind, reward_name in rewards.items():
                loaded[kind] = loaded.get(kind) or load_reward(reward_name)
                add_reward(kind, loaded[kind], of_policy, batch_size, precision)
            if reference is not None:
                base = base or load_on_device(reference)
                own = None if name == reference else load_on_device(name)
                add_kl(of_policy, base, own, task, batch_size, precision)
            put(path, of_policy, key)
        rows += [r for _, _, r in read_jsonl(path)]
    write_jsonl(output / "scores.jsonl", rows)
    return output / "scores.jsonl"


def add_reward(kind: str, reward: Any, rows: list[Row], batch_size: int, precision: str) -> None:
    """Add one reward's score to each row, in place."""
    model = reward if isinstance(reward, torch.nn.Module) else None
    if model is not None and torch.cuda.is_available():
        model.to("cuda")
    bar = tqdm(total=len(rows), desc=f"{kind} reward of {rows[0]['policy']}", unit="sample")
    for first in range(0, len(rows), batch_size):
        batch = rows[first : first + batch_size]
        with run_context(precision if model is not None else "32", model):
            values = call_reward(reward, [r["prompt"] for r in batch], [r["response"] for r in batch], {})
        for r, value in zip(batch, values, strict=True):
            r["scores"][kind] = value
        bar.update(len(batch))
    bar.close()


def add_kl(rows: list[Row], base: LM, own: LM | None, task: Task, batch_size: int, precision: str) -> None:
    """Add `kl` and `ref_nll` to each row, in place; `own` None: the policy is the reference."""
    under_base = response_logprobs(base, task, rows, batch_size, precision)
    under_own = under_base if own is None else response_logprobs(own, task, rows, batch_size, precision)
    for r, (mine, _), (base_t, base_one) in zip(rows, under_own, under_base, strict=True):
        r["scores"]["kl"] = mine - base_t
        r["scores"]["ref_nll"] = -base_one
