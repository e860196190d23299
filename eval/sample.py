"""Held-out prompts → what each policy answers to them: `samples/<policy>.jsonl`.

Models and servers are sampled; the texts of other policies are read or made (`eval.baselines`). A file that was made from the
same prompts, policy and options is kept, and every batch is on disk before the next one is asked for: an interrupted
evaluation goes on where it stopped, and ends as if it had not been interrupted.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from eval.baselines import Policy, few_shot, text_of
from eval.frontier import best_of_n_kl
from eval.server import TIMEOUT
from lightning_rlhf.files import DataError, append_jsonl, bad, file_sha256, unfinished, write_jsonl
from lightning_rlhf.generation import seed_for, truncate
from lightning_rlhf.labelers import Answers, Ask, answer, redrawn
from lightning_rlhf.models import LM, fingerprint, load_on_device, load_tokenizer, run_context
from lightning_rlhf.records import Prompt, Sample, read_prompts, read_samples
from lightning_rlhf.scoring import LearnedReward, call_reward, code_of, is_learned, load_reward
from lightning_rlhf.stage_data import placed
from lightning_rlhf.tasks import Task, TaskTokens, UsageError, task_dict, task_tokens
from lightning_rlhf.tokens import decode, encode, encode_continuation

Row = dict[str, Any]
REQUESTS = 8  # at a time to a server
MOST_TOKENS = 512  # of a response that a model scores; more are cut off and counted


# ------------------------------------------------------------------------------------------------ names, hashes, files


def slug(policy: str) -> str:
    """A policy's name as a file name; one with letters of another script has them as a hash."""
    plain = re.sub(r"[^a-z0-9]+", "-", policy.lower()).strip("-")
    if re.search(r"[^\W\d_a-z]", policy.lower()):
        plain = _hashed(plain, policy)
    return (plain if len(plain) <= 100 else _hashed(plain[:100], policy)) or "policy"


def _hashed(plain: str, policy: str) -> str:
    return f"{plain}-{hashlib.sha256(policy.encode()).hexdigest()[:8]}".strip("-")


def file_names(policies: Iterable[str]) -> dict[str, str]:
    """Policy → its file's name without a suffix; where names differ in case or punctuation alone, with a hash."""
    plain = {policy: slug(policy) for policy in policies}
    often = Counter(plain.values())
    return {policy: name if often[name] == 1 else _hashed(name, policy) for policy, name in plain.items()}


def made_by(reward: str) -> str:
    """What tells one reward from another."""
    return fingerprint(reward) if is_learned(reward) else code_of(reward)


def identity(policy: Policy) -> Row:
    """What tells one model or server from another, with its options where they are not the default ones."""
    key: Row = {"model": f"{policy.server} {policy.model}" if policy.server else fingerprint(policy.model)}
    if policy.demonstrations is not None:
        key |= {"demonstrations": file_sha256(policy.demonstrations), "shots": policy.shots}
    if policy.reward is not None:
        key |= {"best_of": policy.best_of, "reward": made_by(policy.reward)}
    return key


def keep(path: Path, key: Row) -> bool:
    """Whether a file made from exactly these inputs is there."""
    sidecar = path.with_suffix(".key.json")
    try:
        return path.is_file() and bool(json.loads(sidecar.read_text(encoding="utf-8")) == key)
    except (OSError, ValueError):  # not there, or cut off
        return False


def drawn_with(path: Path) -> str | None:
    """What told the model or server apart that the samples of a file are of; None where nothing tells."""
    try:
        found = json.loads(path.with_suffix(".key.json").read_text(encoding="utf-8")).get("model")
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, str) else None


def put(path: Path, rows: Sequence[Any], key: Row) -> None:
    """Write rows, then what they were made from."""
    sidecar = path.with_suffix(".key.json")
    sidecar.unlink(missing_ok=True)
    write_jsonl(path, rows)
    sidecar.write_text(json.dumps(key, indent=1), encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------- the prompts


@dataclass(frozen=True)
class HeldOut:
    """The prompts that every policy answers."""

    records: dict[str, Prompt]  # by id
    where: str  # the file, for messages
    source_column: str | None = None

    @cached_property
    def digest(self) -> str:
        """What tells one set of prompts from another."""
        told = json.dumps([(i, vars(r)) for i, r in self.records.items()], default=str)
        return hashlib.sha256(told.encode()).hexdigest()

    def source(self, id_: str) -> str:
        """The text that a response is about; raises DataError where the prompt lacks the column."""
        record = self.records[id_]
        text = record.prompt if self.source_column is None else record.meta.get(self.source_column)
        if not isinstance(text, str):
            found = "nothing" if text is None else type(text).__name__
            raise bad(f"{self.where}: id {id_!r}", self.source_column or "prompt", found, "a text")
        return text

    def columns(self, ids: Sequence[str]) -> dict[str, list[Any]]:
        """What a reward function gets beside prompts and completions: `reference` and every other column."""
        records = [self.records[i] for i in ids]
        names = {"reference"}.union(*(r.meta for r in records))
        return {k: [r.reference if k == "reference" else r.meta.get(k) for r in records] for k in sorted(names)}


def _only_text(value: Any, at: str, name: str) -> None:
    """Raise DataError for token ids and messages, which nothing here can measure."""
    if not isinstance(value, str) and not (name == "reference" and all(isinstance(v, str) for v in value)):
        raise bad(at, name, "token ids or messages", "a text")


def held_out(prompts: str | None, samples: str | None, limit: int | None, source_column: str | None = None) -> HeldOut:
    """The prompts of a file, by the field `id` or else the record's number; without a file those of the samples.

    Raises:
        UsageError, DataError: No file, an id that stands twice, samples that differ in the prompt of an id, no text.
    """
    records: dict[str, Prompt] = {}
    if prompts is not None:
        if not Path(prompts).is_file():
            raise UsageError(f"prompts: {prompts}: no such file")
        for i, (_, record) in enumerate(placed(prompts, read_prompts)[:limit]):
            id_ = str(record.meta.get("id", i))
            if id_ in records:
                raise UsageError(f"{prompts}: field 'id': {id_!r} stands twice, expected distinct ones")
            records[id_] = record
    elif samples is not None:
        for sample in read_samples(samples):
            record = records.setdefault(sample.id, Prompt(sample.prompt, sample.reference, sample.meta))
            if record.prompt != sample.prompt:
                raise UsageError(f"{samples}: id {sample.id!r}: found another prompt with policy {sample.policy!r}, expected one")
        records = dict(list(records.items())[:limit])
    else:
        raise UsageError("prompts: found null, expected a file of prompts, or samples")
    where = str(prompts or samples)
    for id_, record in records.items():
        _only_text(record.prompt, f"{where}: id {id_!r}", "prompt")
        if record.reference is not None:
            _only_text(record.reference, f"{where}: id {id_!r}", "reference")
    return HeldOut(records, where, source_column)


# ------------------------------------------------------------------------------------------------- all policies in turn


def sample_policies(
    task: Task,
    policies: dict[str, Policy],
    prompts: HeldOut,
    output: Path,
    lm: str,
    batch_size: int,
    precision: str,
    seed: int,
    texts_only: bool = False,
    server_timeout: float = TIMEOUT,
    redraws: int = 0,
) -> dict[str, Path]:
    """Every policy's answers to the held-out prompts; policies draw independently.

    Args:
        task: The task.
        policies: Checked by `policy_problems`.
        prompts: The prompts.
        output: Files go to `samples/` under it.
        lm: Whose tokens decide where a server's text is cut.
        batch_size: Responses at a time.
        precision: Of models: `32`, `bf16`, `auto`.
        seed: Each policy's own is this one and its number.
        texts_only: Leave out what needs a model or a server.
        server_timeout: Seconds that a server may take for an answer.
        redraws: Times that a response that has not ended as it should is drawn anew.

    Returns:
        Policy → its file of samples.

    Raises:
        UsageError, DataError: A policy's texts cannot be read or made; those that need no model are made first.
    """
    files = {policy: output / "samples" / f"{name}.jsonl" for policy, name in file_names(policies).items()}
    read: dict[str, dict[str, list[Sample]]] = {}
    for number, (name, policy) in enumerate(policies.items()):
        if policy.is_samples:
            if policy.model not in read:
                read[policy.model] = by_policy(policy.model)
            put(files[name], taken(name, policy.model, read[policy.model], prompts), asdict(policy))
        elif policy.is_text:
            put(files[name], made(name, policy, task, prompts, seed + number), {**asdict(policy), "seed": seed + number})
        else:
            policy_task(policy, task, prompts, seed)  # its demonstrations can be used
    for number, (name, policy) in enumerate(policies.items()):
        if not (texts_only or policy.is_text or policy.is_samples):
            sample_policy(
                name, policy, task, prompts, files[name], lm, batch_size, precision, seed, seed + number, server_timeout,
                redraws,
            )  # fmt: skip
    return files


def by_policy(path: str) -> dict[str, list[Sample]]:
    """The samples of a file or folder, by policy."""
    found: dict[str, list[Sample]] = {}
    for sample in read_samples(path):
        found.setdefault(sample.policy, []).append(sample)
    return found


def taken(name: str, path: str, found: dict[str, list[Sample]], prompts: HeldOut) -> list[Sample]:
    """The samples of one policy in a file of several, those of the prompts alone; says which prompts have none."""
    if name not in found and len(found) > 1:
        raise UsageError(f"policies.{name}: {path}: found the policies {sorted(found)}, expected {name!r} or a single one")
    samples = found[name] if name in found else next(iter(found.values()))
    kept = []
    for sample in samples:
        at = f"{path}: id {sample.id!r}, policy {sample.policy!r}"
        if (record := prompts.records.get(sample.id)) is None:
            continue
        if sample.prompt != record.prompt:
            raise DataError(f"{at}: field 'prompt': found another text than in {prompts.where}, expected the same prompts")
        _only_text(sample.response, at, "response")
        kept.append(replace(sample, policy=name, reference=sample.reference or record.reference))
    if not kept:
        raise UsageError(f"policies.{name}: {path}: none of its ids is in {prompts.where}; is it of another set of prompts?")
    without = len(prompts.records) - len({s.id for s in kept})
    if without or len(kept) < len(samples):
        said = f"{without} of {len(prompts.records)} prompts have no sample, {len(samples) - len(kept)} samples have no prompt"
        print(f"policies.{name}: {said}", file=sys.stderr)
    return kept


def made(name: str, policy: Policy, task: Task, prompts: HeldOut, seed: int) -> list[Row]:
    """Rows of a baseline that needs no model. The reference is not measured against itself: it keeps the other ones alone."""
    rows = []
    for id_, record in prompts.records.items():
        text = text_of(policy.model, id_, record, prompts.source(id_), prompts.where, seed)
        row = dict(id=id_, index=0, task=task.name, policy=name, prompt=record.prompt, response=text, seed=seed)
        reference = record.reference
        if policy.model in ("reference", "column:reference"):
            reference = reference[1:] if isinstance(reference, list) else None
        rows.append({**row, "reference": reference} if reference else row)
    return rows


# ------------------------------------------------------------------------------------------------- a model or a server


def sample_policy(
    name: str, policy: Policy, task: Task, prompts: HeldOut, path: Path, lm: str, batch_size: int, precision: str,
    seed: int, own_seed: int, server_timeout: float, redraws: int,
) -> None:  # fmt: skip
    """Sample one response to each prompt (best of n: n, of which the reward's first largest is kept), batch by batch."""
    drawn = dict(policy=name, limit=len(prompts.records), seed=own_seed, batch_size=batch_size, **identity(policy))
    drawn |= {"redraws": redraws} if redraws else {}
    key = {**drawn, "precision": precision, "prompts": prompts.digest, "task": task_dict(task)}
    if keep(path, key):
        return
    part = path.with_suffix(".part")
    done = {row["id"]: row for row in unfinished(part, key)}
    asked_task = policy_task(policy, task, prompts, seed)
    if policy.server:
        ask = ask_server(policy, asked_task, lm, server_timeout, redraws)
    else:
        ask = ask_model(policy, asked_task, prompts, precision, name, redraws)
    reward = load_reward(policy.reward) if policy.reward is not None else None
    size = 1 if policy.server else max(1, batch_size // policy.best_of)
    ids = list(prompts.records)
    batches = [(first, ids[first : first + size]) for first in range(0, len(ids), size)]
    missing = [batch for batch in batches if not all(id_ in done for id_ in batch[1])]

    bar = tqdm(total=len(ids), initial=len(ids) - sum(len(b) for _, b in missing), desc=f"sample {name}", unit="prompt")
    try:
        with bar:
            asked = lambda batch: (batch[1], ask([prompts.records[i].prompt for i in batch[1]], seed_for(own_seed, batch[0])))  # noqa: E731
            for of_batch, answers in each(asked, missing, REQUESTS if policy.server else 1):
                best = choose(reward, prompts, of_batch, answers.texts, precision)
                rows = [
                    sampled_row(name, policy, task, id_, prompts.records[id_], own_seed, texts[k], tokens[k], found[k], draws[k])
                    for id_, k, texts, tokens, found, draws in zip(of_batch, best, *answers, strict=True)
                ]
                append_jsonl(part, rows)
                done |= {row["id"]: row for row in rows}
                bar.update(len(rows))
    except UsageError as error:
        kept = f"{len(done)} of {len(ids)} answers are in {part}, and the same command goes on from there"
        raise UsageError(f"policies.{name}: {error}; {kept}") from None
    put(path, [done[id_] for id_ in ids], key)
    part.unlink()


def sampled_row(
    name: str, policy: Policy, task: Task, id_: str, record: Prompt, seed: int, text: str, tokens: list[int], found: bool,
    draws: int,
) -> Row:  # fmt: skip
    """A line of the samples' file."""
    row: Row = dict(id=id_, index=0, task=task.name, policy=name, prompt=record.prompt, response=text, seed=seed)
    if record.reference is not None:
        row["reference"] = record.reference
    row["found"] = found
    if draws > 1 and policy.best_of == 1:  # of several, the one that is kept says nothing of how often the policy ends
        row["draws"] = draws
    if tokens:
        row |= {"response_tokens": tokens, "n_tokens": len(tokens)}
    if policy.best_of > 1:
        row |= {"best_of": policy.best_of, "best_of_kl": best_of_n_kl(policy.best_of)}
    return row


def each(function: Callable[[Any], Any], items: Sequence[Any], workers: int) -> Iterator[Any]:
    """Results as they come, several at a time; after a failure no further item is begun, and what was under way is kept."""
    if workers == 1:
        yield from map(function, items)
        return
    failed: BaseException | None = None
    waiting = iter(items)
    running: set[Future[Any]] = set()
    with ThreadPoolExecutor(workers) as pool:
        while True:
            free = workers - len(running) if failed is None else 0
            running |= {pool.submit(function, item) for item in islice(waiting, free)}
            if not running:
                break
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                failed = failed or future.exception()
                if future.exception() is None:
                    yield future.result()
    if failed is not None:
        raise failed


def policy_task(policy: Policy, task: Task, prompts: HeldOut, seed: int) -> Task:
    """The task as the policy is asked it: few-shot, with its demonstrations in the prefix."""
    if policy.demonstrations is None:
        return task
    return few_shot(task, policy.demonstrations, policy.shots, {r.prompt for r in prompts.records.values()}, seed)


def ask_model(policy: Policy, task: Task, prompts: HeldOut, precision: str, name: str, redraws: int) -> Ask:
    """`ask(prompts, seed)` of a local model; raises UsageError where a prompt is longer than the model can read."""
    lm = load_on_device(policy.model)
    resolved = task_tokens(task, lm.tokenizer)
    frame = len(resolved.prefix) + len(resolved.suffix) + task.response_length
    check_room(lm, {i: frame + len(encode(lm.tokenizer, str(r.prompt))) for i, r in prompts.records.items()}, f"policies.{name}")

    def ask(texts: list[Any], seed: int) -> Answers:
        with run_context(precision, lm.model):
            return answer(lm, task, resolved, texts, seed, policy.best_of, redraws=redraws)

    return ask


def check_room(lm: LM, lengths: dict[str, int], option: str) -> None:
    """Raise UsageError where a prompt with its response has more tokens than the model can read."""
    most = getattr(lm.model.config, "max_position_embeddings", None)
    longest = max(lengths, key=lambda i: lengths[i])
    if most is not None and lengths[longest] > most:
        raise UsageError(
            f"{option}: {lm.name} reads {most} tokens; found {lengths[longest]} with the prompt of id {longest!r}, its frame "
            "and its response; expected shorter prompts, fewer shots or another model"
        )


def ask_server(policy: Policy, task: Task, lm: str, timeout: float, redraws: int) -> Ask:
    """`ask(prompts, seed)` of a server. Its tokens are its own: the task's truncation rule counts those of `lm`."""
    server, tokenizer = policy.api(timeout), load_tokenizer(lm)
    resolved = task_tokens(task, tokenizer)

    def ask(texts: list[Any], seed: int) -> Answers:
        answers = Answers([], [], [], [])
        for text in texts:
            prompt = f"{task.query_prefix}{text}{task.query_suffix}"
            told = server.complete(prompt, task.response_length, task.temperature, seed, policy.best_of)
            cuts = [cut(completion.text, task, resolved, tokenizer) for completion in told]
            answers.texts.append([c[0] for c in cuts])
            answers.tokens.append([[] for _ in cuts])
            answers.found.append([hit or completion.ended for (_, hit), completion in zip(cuts, told, strict=True)])
            answers.draws.append([1] * len(cuts))
        return answers

    return lambda texts, seed: redrawn(ask, texts, seed, redraws)


def cut(text: str, task: Task, resolved: TaskTokens, tokenizer: Any) -> tuple[str, bool]:
    """A text by the task's truncation rule: (what is left, whether the truncate token was found)."""
    ids = encode_continuation(tokenizer, text)[: task.response_length]
    if not ids:
        return text, False
    _, mask, found = truncate(torch.tensor([ids]), resolved.truncate, task.truncate_after, 0)
    return decode(tokenizer, ids[: int(mask.sum())], continuation=True), bool(found)


def choose(reward: Any, prompts: HeldOut, ids: Sequence[str], texts: list[list[str]], precision: str) -> list[int]:
    """For each prompt the number of the response that the reward scores highest, the first of equals; without one, 0."""
    if reward is None:
        return [0] * len(texts)
    of = [id_ for id_, several in zip(ids, texts, strict=True) for _ in several]
    values = iter(reward_values(reward, prompts, of, [t for several in texts for t in several], precision))
    scores = [[next(values) for _ in several] for several in texts]
    return [s.index(max(s)) for s in scores]


def reward_values(reward: Any, prompts: HeldOut, ids: Sequence[str], responses: list[str], precision: str) -> list[float]:
    """A reward's scores of responses to the prompts of these ids. A learned one reads at most MOST_TOKENS of each."""
    model = reward if isinstance(reward, torch.nn.Module) else None
    if model is not None and torch.cuda.is_available():
        model.to("cuda")
    told: list[Any] = list(responses)
    if isinstance(reward, LearnedReward):
        told = [encode_continuation(reward.tokenizer, r)[:MOST_TOKENS] for r in responses]
    with run_context(precision if model is not None else "32", model):
        return call_reward(reward, [prompts.records[i].prompt for i in ids], told, prompts.columns(ids))
