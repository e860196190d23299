"""What people are asked on the labelling page (`labeling.py`), and their labels in a file. No HTTP here.

A `Labels` hands out `Item`s, one to a labeler at a time, and writes a line of JSON for each label.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from .fields import Unusable, a_text, kind
from .files import append_jsonl, bad, check, read_jsonl, read_rows, whole_lines, write_jsonl
from .records import Sample, read_samples
from .tasks import UsageError

LENT = 900.0  # seconds for which an item that one labeler was shown is not shown to another
READABLE = "a text or messages, which people can read"
Record = dict[str, Any]
Key = tuple[Any, ...]


@dataclass(frozen=True)
class Item:
    """Responses to be compared; `record` is what a label of them begins with, `names` the samples that they are, if any."""

    key: Key
    prompt: Any
    responses: tuple[Any, ...]
    record: Record
    names: tuple[tuple[str, int], ...] = ()  # (policy, index)


# ----------------------------------------------------------------------------------------------------- what is labelled


def items_of_responses(path: str) -> list[Item]:
    """One item a record `{id?, prompt, responses}`; without an id its number is it.

    Raises:
        DataError: A field is missing or of the wrong type, an id stands twice, or a text is token ids.
    """
    items: dict[str, Item] = {}
    for number, (at, _, row) in enumerate(read_rows(path)):
        check("prompt" in row and "responses" in row, ", ".join(row), at, None, "the fields prompt and responses")
        prompt, responses = row["prompt"], row["responses"]
        check(isinstance(responses, list) and len(responses) > 1, responses, at, "responses", "a list of two or more")
        for name, text in [("prompt", prompt), *(("responses", text) for text in responses)]:
            try:
                check(kind(a_text(text, at, name)) != "ids", text, at, name, READABLE)
            except Unusable as error:
                raise bad(at, name, str(error), "texts, or messages of text") from None
        id_ = str(number if row.get("id") is None else row["id"])
        if id_ in items:
            raise bad(at, "id", f"{id_!r} a second time", "each id once")
        items[id_] = Item((id_,), prompt, tuple(responses), {"id": id_, "prompt": prompt, "responses": responses})
    return list(items.values())


def items_of_samples(path: str, policies: Sequence[str] | None, baselines: Sequence[str] | None) -> list[Item]:
    """One item a prompt, sample index and pair of policies.

    Raises:
        UsageError: A policy that there is not, or no pair.
        DataError: The samples cannot be read, their prompts differ, or a text is token ids.
    """
    by_policy: dict[str, dict[tuple[str, int], Sample]] = {}
    for at, sample in read_samples(path).placed():
        for name in ("prompt", "response"):
            text = getattr(sample, name)
            check(kind(text) != "ids", text, at, name, READABLE)
        by_policy.setdefault(sample.policy, {})[sample.id, sample.index] = sample
    for option, wanted in (("policies", policies), ("baselines", baselines)):
        if unknown := [name for name in wanted or () if name not in by_policy]:
            raise UsageError(f"{option}: found {unknown}, expected policies of {path}: {sorted(by_policy)}")
    named = list(dict.fromkeys([*(policies or by_policy), *(baselines or ())]))
    pairs = [(a, b) for a, b in combinations(named, 2) if baselines is None or {a, b} & set(baselines)]
    items = []
    for a, b in pairs:
        for sample in by_policy[a].values():
            other = by_policy[b].get((sample.id, sample.index))
            if other is None:
                continue
            if other.prompt != sample.prompt:
                raise bad(path, "prompt", f"another one of {b!r} than of {a!r} for id {sample.id!r}", "the same prompts")
            names = ((a, sample.index), (b, sample.index))
            key = (sample.id, frozenset(names))
            items.append(Item(key, sample.prompt, (sample.response, other.response), {"id": sample.id}, names))
    if not items:
        raise UsageError(f"samples: {path}: found the policies {sorted(named)}, expected two that answer the same prompts")
    return items


def chosen(items: Iterable[Item], limit: int | None, seed: int) -> list[Item]:
    """The items of `limit` prompts, drawn by the seed, without those whose responses are all alike; in a drawn order."""
    kept = [item for item in items if any(r != item.responses[0] for r in item.responses)]
    ids = list(dict.fromkeys(item.key[0] for item in kept))
    random.Random(f"{seed} prompts").shuffle(ids)
    wanted = set(ids[:limit])
    kept = [item for item in kept if item.key[0] in wanted]
    random.Random(f"{seed} items").shuffle(kept)
    return kept


class Elsewhere(ValueError):
    """The page shows an item that is not the labeler's any more."""


# ------------------------------------------------------------------------------------------------------------- labels


@dataclass
class Labels:
    """Items, the labels of them in a file, and who is looking at which. Not for several threads at once.

    Args:
        items: As `chosen` gives them.
        output: JSON lines of labels; those that are there count, those of other items stay there.
        label_type: `best_of_n` or `ranked`, of items that are responses.
        votes: Labels wanted of each item, each of another labeler.
        seed: Of the orders that labelers see.

    Raises:
        DataError: The file has a label of another type.
    """

    items: list[Item]
    output: Path
    label_type: str = "best_of_n"
    votes: int = 1
    seed: int = 1
    given: list[tuple[str, Key, Record]] = field(default_factory=list)  # (labeler, item, line), as in the file
    others: list[Record] = field(default_factory=list)  # lines of other items
    lent: dict[str, tuple[Key, float]] = field(default_factory=dict)  # labeler → item and since when
    later: dict[str, list[Key]] = field(default_factory=dict)  # labeler → items that were put off, the earliest first

    def __post_init__(self) -> None:
        self.by_key = {item.key: item for item in self.items}
        self.number = {item.key: number for number, item in enumerate(self.items)}
        self.turn: dict[str, dict[Key, int]] = {}  # labeler → the order that they see the items in
        kind_of_line = "winner" if self.items[0].names else self._field
        for file, line, row in read_jsonl(self.output) if whole_lines(self.output) else ():
            at, key = f"{file}:{line}", self._key(row)
            labeler = row.get("judge", row.get("labeler", ""))
            check(isinstance(labeler, str), labeler, at, "judge" if "winner" in row else "labeler", "a name")
            check(kind_of_line in row, ", ".join(row), at, kind_of_line, "labels of the same type as are given now")
            item = self.by_key.get(key)
            if item is not None and row.get("responses", item.record.get("responses")) == item.record.get("responses"):
                self.given.append((str(labeler), key, row))
            else:
                self.others.append(row)
        if self.others:
            print(f"{self.output}: {len(self.others)} of its labels are of other items, and stay there")

    @property
    def _field(self) -> str:
        return "ranks" if self.label_type == "ranked" else "best"

    @staticmethod
    def _key(row: Record) -> Key:
        id_ = str(row.get("id"))
        if "winner" not in row:
            return (id_,)
        return id_, frozenset({(row.get("policy_a"), row.get("index_a", 0)), (row.get("policy_b"), row.get("index_b", 0))})

    @property
    def wanted(self) -> int:
        """Labels wanted in all."""
        return self.votes * len(self.items)

    @property
    def done(self) -> int:
        """Labels that are there, those beyond what is wanted of an item not counted."""
        counts = Counter(key for _, key, _ in self.given)
        return sum(min(self.votes, counts[key]) for key in self.by_key)

    def shown(self, labeler: str, item: Item) -> list[int]:
        """The order in which a labeler sees the responses of an item."""
        order = list(range(len(item.responses)))
        random.Random(f"{self.seed} {labeler} {sorted(map(str, item.names))} {item.key[0]}").shuffle(order)
        return order

    def next(self, labeler: str, now: float = 0.0) -> Item | None:
        """What a labeler is to see: the item that they saw last and have not labelled, or the next one; None: there is none."""
        mine = {key for who, key, _ in self.given if who == labeler}
        counts = Counter(key for _, key, _ in self.given)
        taken = Counter(key for who, (key, since) in self.lent.items() if who != labeler and now - since < LENT)
        open_ = [i for i in self.items if i.key not in mine and counts[i.key] + taken[i.key] < self.votes]
        put_off = self.later.get(labeler, [])
        if labeler not in self.turn:
            turn = [item.key for item in self.items]
            random.Random(f"{self.seed} {labeler}").shuffle(turn)
            self.turn[labeler] = {key: place for place, key in enumerate(turn)}
        open_.sort(key=lambda i: (put_off.index(i.key) + 1 if i.key in put_off else 0, self.turn[labeler][i.key]))
        current = self.lent.get(labeler, (None, 0.0))[0]
        found = next((i for i in open_ if i.key == current), open_[0] if open_ else None)
        self.lent.pop(labeler, None)
        if found is not None:
            self.lent[labeler] = found.key, now
        return found

    def expect(self, labeler: str, number: Any) -> None:
        """Raise Elsewhere where the item of that number is not the one that the labeler was shown last, or has its labels."""
        key = self.lent.get(labeler, (None, 0.0))[0]
        there = sum(k == key for _, k, _ in self.given)
        if key is None or number != self.number[key] or there >= self.votes:
            raise Elsewhere("this was labelled or changed elsewhere; what is shown now comes next")

    def put_off(self, labeler: str) -> None:
        """Show the labeler's item to them again when all others have been labelled."""
        key, _ = self.lent.pop(labeler, (None, 0.0))
        if key is not None:
            put_off = self.later.setdefault(labeler, [])
            self.later[labeler] = [k for k in put_off if k != key] + [key]

    def add(self, labeler: str, picks: list[int], seconds: float) -> Record:
        """Write a labeler's label of the item that they were shown.

        Args:
            labeler: Who.
            picks: Places on the page, the best first; of a ranking the rest share the last rank, of two responses none is a tie.
            seconds: How long it took.

        Raises:
            ValueError: There is no such item, or these are not places that a label can have.
        """
        if labeler not in self.lent:
            raise ValueError("no response was shown, or it has been labelled")
        item = self.by_key[self.lent[labeler][0]]
        order, n = self.shown(labeler, item), len(item.responses)
        least, most = (0, 1) if item.names else (1, 1) if self.label_type == "best_of_n" else (0, n)
        whole = all(type(p) is int and 0 <= p < n for p in picks) and len(set(picks)) == len(picks)
        if not (whole and least <= len(picks) <= most):
            raise ValueError(f"found the places {picks}, expected {least} to {most} different ones of 0 to {n - 1}")
        best = [order[p] for p in picks]
        told: Record = {"labeler": labeler, "seconds": round(seconds, 1), "shown": order}
        if item.names:
            (a, index_a), (b, index_b) = (item.names[i] for i in order)
            winner = "ab"[picks[0]] if picks else "tie"
            told = dict(policy_a=a, index_a=index_a, policy_b=b, index_b=index_b, winner=winner)
            told |= {"judge": labeler, "seconds": round(seconds, 1)}
        elif self.label_type == "best_of_n":
            told = {"best": best[0], **told}
        else:
            told = {"ranks": [best.index(i) + 1 if i in best else len(best) + 1 for i in range(n)], **told}
        row = {**item.record, **told}
        append_jsonl(self.output, [row])
        self.given.append((labeler, item.key, row))
        del self.lent[labeler]
        return row

    def undo(self, labeler: str) -> None:
        """Take back a labeler's last label, if there is one, and show its item again."""
        last = max((i for i, (who, _, _) in enumerate(self.given) if who == labeler), default=None)
        if last is None:
            return
        left = self.given[:last] + self.given[last + 1 :]
        write_jsonl(self.output, [*self.others, *(row for _, _, row in left)])
        self.lent[labeler] = self.given[last][1], time.monotonic()
        self.given = left

    def page(self, labeler: str) -> Record:
        """What the page shows a labeler now."""
        item = self.next(labeler, time.monotonic())
        told: Record = {"done": self.done, "wanted": self.wanted, "mine": sum(who == labeler for who, _, _ in self.given)}
        if item is not None:
            told["item"] = self.number[item.key]
            told["prompt"] = item.prompt
            told["responses"] = [item.responses[i] for i in self.shown(labeler, item)]
            told["type"] = "pair" if item.names else self.label_type
        return told
