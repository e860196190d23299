"""The LightningDataModules of the three training stages, over records on disk, in an order that survives a kill.

`SFTData` reads demonstrations, `PreferenceData` comparisons, `PromptData` prompts. Everything is read and checked when the
command starts (`check`), before a model is loaded. Readers and record types are in `records.py`.
"""

from __future__ import annotations

import glob
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytorch_lightning as L
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from .chat import first_in_messages, need_template, rendered
from .files import is_there
from .loader import BatchLoader
from .models import load_tokenizer, positions_of
from .records import (
    MAX_SKIPPED,
    Comparison,
    DataError,
    Demonstration,
    Prompt,
    RecordReader,
    label_type,
    read_comparisons,
    read_demonstrations,
    read_prompts,
)
from .splits import normalised
from .tasks import Task, TaskTokens, fields_2020, query_2020, task_tokens
from .tokens import bos_ids, decode, encode, encode_continuation, pad_batch

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


class StageData(L.LightningDataModule):
    """What the three have in common: a tokenizer by model name, a task, a seed, files checked before anything is loaded."""

    def __init__(self, tokenizer: str, task: Task, batch_size: int, seed: int, strict: bool) -> None:
        super().__init__()
        self.strict = strict
        self.tokenizer_name, self.task, self.batch_size, self.seed = tokenizer, task, batch_size, seed
        self.read_done, self.tokenised, self.records = False, False, {}
        self.train_loader: BatchLoader | None = None
        self.resume_at: dict[str, int] | None = None

    files: dict[str, str | None]
    records: dict[str, list[tuple[str, Any]]]  # of each split, once read: where it is from, and the record
    items: dict[str, Any]  # `train` and `val`, once `setup` has run
    even_val = False  # whether validation is as many batches on each rank, where all must make as many forward passes

    def check(self) -> list[str]:
        """Every problem that can be told from the options and files alone, in words."""
        problems = self.task.problems()
        if self.batch_size < 1:
            problems.append(f"data.batch_size: found {self.batch_size}, expected at least 1")
        for option, path in self.files.items():
            if path is not None and not is_there(path) and not glob.has_magic(path):  # an empty glob says so when read
                problems.append(f"data.{option}: {path}: no such file")
        if not problems:
            try:
                self.read()
                self.check_template()
                self.check_leaks()
            except DataError as error:
                problems.append(str(error))
        return problems

    def check_template(self) -> None:
        """Raise DataError where a record is in messages and the tokenizer has no chat template."""
        for where, record in (row for rows in self.records.values() for row in rows):
            if field := first_in_messages(record):
                need_template(load_tokenizer(self.tokenizer_name), f"{where}: field {field!r}")
                return

    def check_leaks(self) -> None:
        """Warn where held-out records have a query, or a near-duplicate of one, that is trained on."""
        trained = {normalised(record.prompt) for _, record in self.records.get("train", ())}
        held_out = [normalised(record.prompt) for _, record in self.records.get("val", ())]
        if leaked := sum(query in trained for query in held_out):
            rank_zero_warn(
                f"data.val: {leaked} of {len(held_out)} held-out records have a query that data.train has too, so that their "
                "figures flatter (lightning-rlhf split parts a file by query)"
            )

    @property
    def batches(self) -> int:
        """Training batches of an epoch, over all devices; the records have been read."""
        return -(-len(self.records["train"]) // self.batch_size)

    def read(self) -> None:
        """Read the records into memory; raises DataError."""
        raise NotImplementedError

    def prepare_tokens(self) -> TaskTokens:
        """Load the tokenizer once, and resolve the task with it."""
        if not hasattr(self, "tokenizer"):
            self.tokenizer = load_tokenizer(self.tokenizer_name)
            self.resolved = task_tokens(self.task, self.tokenizer)
            self.positions = positions_of(self.tokenizer_name)
        return self.resolved

    def setup(self, stage: str | None = None) -> None:
        """Tokenise, once: the estimate of memory has asked for the items before the trainer does."""
        if not self.tokenised:
            self.read()
            self.prepare_tokens()
            self.items = {split: self.tokenise(split) for split in self.records}
            self.tokenised = True

    def tokenise(self, split: str) -> list[Any]:
        """The items of a split. Records of too many tokens are left out with a warning where they are few and not `strict`.

        Raises:
            DataError: A record cannot be tokenised, or too many are too long.
        """
        items, kept, long = [], [], list[TooLong]()
        for where, record in self.records[split]:
            try:
                items.append(self.item(record, where))
                kept.append((where, record))
            except TooLong as error:
                long.append(error)
        if not long:
            return items
        count, most = len(self.records[split]), max(error.found for error in long)
        of = f"data.{split}: {len(long)} of {count} records have more tokens than fit, the longest {most}"
        if self.strict or len(long) > MAX_SKIPPED * count:
            raise DataError(f"{long[0]}\n{of}")
        rank_zero_warn(f"{of}; they were left out: {'; '.join(str(e) for e in long[:8])}")
        self.records[split] = kept
        return items

    def item(self, record: Any, where: str) -> Any:
        """A record → what the loader hands on of it. Raises DataError."""
        raise NotImplementedError

    def known_ids(self, ids: list[int], text: Any, where: str, field: str) -> list[int]:
        """The ids of a text; raises DataError where the file gave them and the tokenizer does not have one."""
        if not isinstance(text, str) and (unknown := [i for i in ids if not 0 <= i < len(self.tokenizer)]):
            expected = f"ids of {self.tokenizer_name}'s tokenizer, below {len(self.tokenizer)}"
            raise DataError(f"{where}: field '{field}': found the token id {unknown[0]}, expected {expected}")
        return ids

    def answer_ids(self, query: list[int], text: Any, where: str, field: str) -> list[int]:
        """A completion as token ids. Raises DataError, also where the model has too few positions for it after its `query`."""
        ids = self.known_ids(encode_continuation(self.tokenizer, text), text, where, field)
        if self.positions is not None and len(query) + len(ids) > self.positions:
            raise TooLong(
                f"{where}: field '{field}': found {len(ids)} tokens after {len(query)} of its prompt, expected at most "
                f"{self.positions} together, which are the positions of {self.tokenizer_name}",
                len(query) + len(ids),
            )
        return ids

    def query_ids(self, text: Any, where: str) -> list[int]:
        """A record's prompt as token ids, at most `query_length` of them. Raises DataError where it is longer."""
        ids = self.known_ids(encode(self.tokenizer, text), text, where, "prompt")
        if len(ids) > self.task.query_length:
            most = self.task.query_length
            expected = f"expected at most task.query_length = {most}"
            raise TooLong(f"{where}: field 'prompt': found {len(ids)} tokens, {expected}", len(ids))
        return ids

    def loader(
        self,
        items: Sequence[Any],
        collate: Callable[[list[Any]], Any],
        shuffle: bool,
        num_batches: int | None = None,
        even: bool = False,
    ) -> BatchLoader:
        """A loader for this rank."""
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return BatchLoader(items, self.batch_size, collate, num_batches, self.seed if shuffle else None, rank, world, even)

    def training_loader(
        self, items: Sequence[Any], collate: Callable[[list[Any]], Any], num_batches: int | None = None
    ) -> BatchLoader:
        """The shuffled one, which goes on where a checkpoint left it."""
        self.train_loader = self.loader(items, collate, shuffle=True, num_batches=num_batches)
        if self.resume_at:
            self.train_loader.load_state_dict(self.resume_at)
        return self.train_loader

    def val_dataloader(self) -> BatchLoader | list[Any]:
        """In file order; none where there is no file."""
        return self.loader(self.items["val"], self.collate, shuffle=False, even=self.even_val) if self.items["val"] else []

    def collate(self, items: list[Any]) -> Any:
        """A batch."""
        raise NotImplementedError

    def weight(self, item: Any) -> int:
        """What an item counts for in the mean loss of an optimizer step."""
        return 1

    def step_weight(self, batch: int, accumulated: int) -> int:
        """What the items of the whole optimizer step count for, on all ranks, that a batch of the present epoch belongs to.

        Args:
            batch: Its number in the epoch.
            accumulated: Batches an optimizer step (`trainer.accumulate_grad_batches`); an epoch's last step may have fewer.
        """
        loader = self.train_loader
        assert loader is not None and self.trainer is not None
        first = batch - batch % accumulated
        batches = range(first, min(first + accumulated, int(self.trainer.num_training_batches)))
        return sum(self.weight(loader.items[i]) for b in batches for i in loader.indices(b))

    # The position is kept here: Lightning restores a loader's own state only where nothing has asked for the loader
    # before, and the schedules do (`estimated_stepping_batches`).

    def state_dict(self) -> dict[str, Any]:
        """The training loader's position."""
        return {"train": self.train_loader.state_dict() if self.train_loader else None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it up; a strategy that restores a checkpoint after its set-up has asked for the loader before."""
        self.resume_at = state_dict["train"]
        if self.train_loader is not None and self.resume_at:
            self.train_loader.load_state_dict(self.resume_at)


class TooLong(DataError):
    """A record of more tokens than the task or the model takes."""

    def __init__(self, message: str, found: int) -> None:
        super().__init__(message)
        self.found = found


def placed(path: str | None, read: Callable[..., RecordReader[Any]], strict: bool = False) -> list[tuple[str, Any]]:
    """A file's records, and where each is from; none without a file. What is left out of it is listed in a warning."""
    if not path:
        return []
    reader = read(path, strict=strict)
    rows = list(reader.placed())
    if reader.skipped:
        rank_zero_warn(f"{path}: of {reader.count} records were left out: {reader.reasons()}")
    return rows


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
