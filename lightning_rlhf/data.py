"""The LightningDataModules of the three training stages, over records on disk, in an order that survives a kill.

`SFTData` reads demonstrations, `PreferenceData` comparisons, `PromptData` prompts. Everything is read and checked when the
command starts (`check`), before a model is loaded. What they share is in `stage_data.py`; readers and record types are in
`records.py`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .chat import rendered
from .loader import BatchLoader
from .records import (
    Comparison,
    DataError,
    Demonstration,
    Prompt,
    label_type,
    read_comparisons,
    read_demonstrations,
    read_prompts,
)
from .scoring import fill_columns
from .stage_data import StageData, placed
from .tasks import Task, TaskTokens, fields_2020, query_2020
from .tokens import bos_ids, decode, encode, pad_batch

__all__ = ["Comparison", "DataError", "PreferenceData", "PromptData", "SFTData", "read_comparisons"]


class PromptBatch(NamedTuple):
    """Prompts of one rank's share of a global batch, B of them."""

    tokens: Tensor  # (B, P) long: prefix + query + suffix, left-padded, as the policy sees them
    mask: Tensor  # (B, P) bool
    queries: list[list[int]]  # what the reward model sees: BOS + raw query
    texts: list[str]
    columns: dict[str, list[Any]]  # `reference` and every other column of the file


class Judged(NamedTuple):
    """A labelled record as token ids: N responses to a query, and the judgements of its `Comparison`."""

    query: list[int]  # with BOS
    responses: list[list[int]]
    best: int | None = None
    ranks: list[int] | None = None
    ratings: list[float] | None = None
    margin: float | None = None


class ComparisonBatch(NamedTuple):
    """B labelled records of up to N responses each. What a record's label does not have is 0 (`margin`: NaN)."""

    tokens: Tensor  # (B * N, T) long: query + response, right-padded
    mask: Tensor  # (B * N, T) bool; a row without a real token stands for no response
    best: Tensor  # (B,) long
    ranks: Tensor  # (B, N) long, 1 best
    ratings: Tensor  # (B, N) float
    margin: Tensor  # (B,) float
    kinds: list[str]  # B label types; none where this rank has no share of the last batch: its row is then a stand-in


class SFTBatch(NamedTuple):
    """B demonstrations; the loss is over the response's tokens alone."""

    tokens: Tensor  # (B, T) long: prefix + query + suffix + response, right-padded
    mask: Tensor  # (B, T) bool: prompt and response
    response: Tensor  # (B, T) bool: response


def policy_prompt(query: list[int], resolved: TaskTokens) -> list[int]:
    """Query as the policy sees it: prefix (with BOS) + query + suffix."""
    return [*resolved.prefix, *query, *resolved.suffix]


class SFTData(StageData):
    """Demonstrations `{prompt, completion}` for supervised fine-tuning.

    Args:
        train: JSON lines of demonstrations.
        tokenizer: Name of the model whose tokenizer is used.
        task: The task (set once, at the top of the config).
        val: Held-out demonstrations, or null.
        batch_size: Demonstrations an optimizer step, over all devices.
        seed: Of the order.
        strict: A record that can train nothing (an empty side) is an error; false: it is left out and listed, 1 % at most.
    """

    def __init__(
        self, train: str, tokenizer: str, task: Task, val: str | None = None, batch_size: int = 32, seed: int = 1,
        strict: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(tokenizer, task, batch_size, seed, strict)
        self.files = {"train": train, "val": val}

    def read(self) -> None:
        """Read both files."""
        if not self.read_done:
            self.records = {split: placed(path, read_demonstrations, self.strict) for split, path in self.files.items()}
            self.read_done = True

    def item(self, record: Demonstration, where: str) -> tuple[list[int], list[int]]:
        """A record → (prompt ids as the policy sees them, response ids)."""
        record = rendered(record, self.tokenizer, where)
        prompt = policy_prompt(self.query_ids(record.prompt, where), self.resolved)
        return prompt, self.answer_ids(prompt, record.completion, where, "completion")

    def weight(self, item: tuple[list[int], list[int]]) -> int:
        """Tokens that are predicted: the response's, but a first one without anything before it."""
        prompt, response = item
        return len(response) - (not prompt and bool(response))

    @staticmethod
    def collate(rows: list[tuple[list[int], list[int]]]) -> SFTBatch:
        """Pairs of prompt and response ids → batch; of none, a row without a response."""
        rows = rows or [([0], [])]
        tokens, mask = pad_batch([p + r for p, r in rows], pad_id=0, side="right")
        response = mask.clone()
        for i, (prompt, _) in enumerate(rows):
            response[i, : len(prompt)] = False
        return SFTBatch(tokens, mask, response)

    def train_dataloader(self) -> BatchLoader:
        """Shuffled."""
        return self.training_loader(self.items["train"], self.collate)


class PreferenceData(StageData):
    """Labelled responses for the reward model, of any label type that `read_comparisons` reads, one file or several.

    A record's label is its untied `ranks`, else `best`, else `ratings`, else `margin`; files of different types train together.

    Args:
        train: Comparisons or ratings: a file, directory or glob, or a list of them.
        tokenizer: Name of the model whose tokenizer is used.
        task: The task (set once, at the top of the config).
        val: Held-out ones, likewise, or null.
        batch_size: Records an optimizer step, over all devices.
        seed: Of the order.
        references: Demonstrations `{prompt, completion}` whose mean reward becomes 0 (`normalise: reference_summaries`).
        strict: A record that can train nothing (an empty side, prompts that differ) is an error; false: it is left out and
            listed, 1 % at most.
    """

    def __init__(
        self,
        train: str | list[str],
        tokenizer: str,
        task: Task,
        val: str | list[str] | None = None,
        batch_size: int = 32,
        seed: int = 1,
        references: str | None = None,
        strict: bool = False,
    ) -> None:
        super().__init__(tokenizer, task, batch_size, seed, strict)
        self.files = {}
        self.paths: dict[str, list[str]] = {}
        for split, given in (("train", train), ("val", val)):
            self.paths[split] = given if isinstance(given, list) else [given] if given else []
            self.files[split] = self.paths[split][0] if self.paths[split] else None
            self.files.update({f"{split}[{i}]": path for i, path in enumerate(self.paths[split]) if i})
        self.files["references"] = references

    def check(self) -> list[str]:
        """As for every stage; and there is a file to train on."""
        none = [] if self.paths["train"] else ["data.train: found no file, expected at least one"]
        return none + super().check()

    def read(self) -> None:
        """Read every file."""
        if self.read_done:
            return
        for split, paths in self.paths.items():
            self.records[split] = [row for path in paths for row in placed(path, read_comparisons, self.strict)]
        self.references = placed(self.files["references"], read_demonstrations, self.strict)
        self.read_done = True

    def item(self, record: Comparison, where: str) -> Judged:
        """A record → its ids and its label."""
        record = rendered(record, self.tokenizer, where)
        query = bos_ids(self.tokenizer) + self.query_ids(self.shortened(record.prompt), where)
        responses = [self.answer_ids(query, r, where, f"responses[{i}]") for i, r in enumerate(record.responses)]
        return Judged(query, responses, record.best, record.ranks, record.ratings, record.margin)

    def shortened(self, prompt: Any) -> Any:
        """A query in the form of 2020, with its post cut as there where it is too long; anything else as it is."""
        fields = fields_2020(prompt) if isinstance(prompt, str) else None
        if fields is None:
            return prompt
        return query_2020(**fields, length=self.task.query_length, count=lambda t: len(encode(self.tokenizer, t))) or prompt

    def reference_rows(self) -> list[list[int]]:
        """Query and text of each reference, as token ids with BOS."""
        rows = []
        for where, found in self.references:
            record = rendered(found, self.tokenizer, where)
            query = bos_ids(self.tokenizer) + self.query_ids(self.shortened(record.prompt), where)
            rows.append(query + self.answer_ids(query, record.completion, where, "completion"))
        return rows

    @staticmethod
    def collate(rows: list[Any]) -> ComparisonBatch:
        """Items → batch; a record with fewer responses than the batch's most is filled up with empty rows."""
        judged = [Judged(*row) for row in rows]
        padded = judged or [Judged([0], [[]])]  # a stand-in, so that every rank has a forward and a backward pass
        most = max(len(r.responses) for r in padded)
        flat: list[list[int]] = []
        for r in padded:
            flat += [r.query + response for response in r.responses] + [[]] * (most - len(r.responses))
        tokens, mask = pad_batch(flat, pad_id=0, side="right")
        fill = lambda values: [*(values or []), *[0] * (most - len(values or []))]  # noqa: E731
        return ComparisonBatch(
            tokens,
            mask,
            best=torch.tensor([r.best or 0 for r in padded]),
            ranks=torch.tensor([fill(r.ranks) for r in padded]),
            ratings=torch.tensor([fill(r.ratings) for r in padded], dtype=torch.float32),
            margin=torch.tensor([math.nan if r.margin is None else r.margin for r in padded], dtype=torch.float32),
            kinds=[label_type(r) for r in judged],
        )

    def train_dataloader(self) -> BatchLoader:
        """Shuffled."""
        return self.training_loader(self.items["train"], self.collate)


class PromptData(StageData):
    """Prompts for PPO. Its train loader yields exactly ⌈total_episodes / batch_size⌉ global batches, cycling the prompts.

    Args:
        train: JSON lines of prompts.
        tokenizer: Name of the model whose tokenizer is used.
        task: The task (set once, at the top of the config).
        batch_size: Episodes a PPO iteration, over all devices.
        total_episodes: Episodes of the whole run; the lr schedule reads the same number.
        seed: Of the order.
        val: Held-out prompts for the validation loop (`trainer.val_check_interval`: every so many iterations), or null.
        strict: A record that is no prompt (an empty one) is an error; false: it is left out and listed, 1 % at most.
    """

    even_val = True

    def __init__(
        self,
        train: str,
        tokenizer: str,
        task: Task,
        batch_size: int = 512,
        total_episodes: int = 1_000_000,
        seed: int = 1,
        val: str | None = None,
        strict: bool = False,
    ) -> None:
        super().__init__(tokenizer, task, batch_size, seed, strict)
        self.files = {"train": train, "val": val}
        self.total_episodes = total_episodes

    @property
    def batches(self) -> int:
        """PPO iterations of the run: ⌈total_episodes / batch_size⌉."""
        return -(-self.total_episodes // self.batch_size)

    def check(self) -> list[str]:
        """As for every stage; and the episodes must be at least one batch."""
        problems = super().check()
        if self.total_episodes < self.batch_size:
            problems.append(
                f"data.total_episodes: found {self.total_episodes}, expected at least data.batch_size = {self.batch_size}"
            )
        return problems

    def read(self) -> None:
        """Read the prompts."""
        if not self.read_done:
            self.records = {split: placed(path, read_prompts, self.strict) for split, path in self.files.items()}
            fill_columns([record for rows in self.records.values() for _, record in rows])
            self.read_done = True

    def item(self, record: Prompt, where: str) -> tuple[Prompt, list[int]]:
        """A record, its messages as a text, and the query's ids."""
        record = rendered(record, self.tokenizer, where)
        return record, self.query_ids(record.prompt, where)

    def collate(self, rows: list[tuple[Any, list[int]]]) -> PromptBatch:
        """Items → batch."""
        bos = bos_ids(self.tokenizer)
        tokens, mask = pad_batch([policy_prompt(q, self.resolved) for _, q in rows], pad_id=0, side="left")
        texts = [r.prompt if isinstance(r.prompt, str) else decode(self.tokenizer, q) for r, q in rows]
        keys = set().union(*({"reference", *r.meta} for r, _ in rows))
        columns = {k: [r.reference if k == "reference" else r.meta.get(k) for r, _ in rows] for k in sorted(keys)}
        return PromptBatch(tokens, mask, [bos + q for _, q in rows], texts, columns)

    def train_dataloader(self) -> BatchLoader:
        """Shuffled, ⌈total_episodes / batch_size⌉ batches."""
        return self.training_loader(self.items["train"], self.collate, self.batches)
