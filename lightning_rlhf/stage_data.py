"""What the data modules of all stages share: read and checked before a model is loaded, tokenised once, and an order that
survives a kill.

A stage's own (`data.py`) says how its files are read, what a record comes to in tokens, and how items make a batch.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as L
from pytorch_lightning.utilities import rank_zero_warn

from .chat import first_in_messages, need_template
from .files import is_there
from .loader import BatchLoader
from .models import load_tokenizer, positions_of
from .records import MAX_SKIPPED, DataError, RecordReader
from .splits import normalised
from .tasks import Task, TaskTokens, task_tokens
from .tokens import encode, encode_continuation


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

    def option_problems(self) -> list[str]:
        """Those of the options alone."""
        few = [f"data.batch_size: found {self.batch_size}, expected at least 1"] if self.batch_size < 1 else []
        return self.task.problems() + few

    def check(self) -> list[str]:
        """Every problem that can be told from the options and files alone, in words."""
        problems = self.option_problems()
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
