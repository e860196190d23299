"""Who won each pair of samples, by a score that both have or by verdicts: what the report's win rates are made of.

A `Table` holds figures by policy and key; a key is (prompt's id, index of the sample). No torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from eval.winrate import paired_outcomes

Key = tuple[str, int]
Figures = Mapping[str, float]
Table = Mapping[str, Mapping[Key, Figures]]
Won = Mapping[tuple[Key, Key], float]  # (a's sample, b's sample) → 1 where a's won, ½ tied, 0 lost


class Judged(NamedTuple):
    """One pair of samples and who won it."""

    prompt: str
    a: Figures
    b: Figures
    outcome: float  # of a


def key_of(row: Mapping[str, Any]) -> Key:
    """A row's place among a policy's samples."""
    return str(row["id"]), row.get("index", 0)


@dataclass(frozen=True)
class Outcomes:
    """What one judge says of the samples of a table."""

    table: Table
    won: Mapping[tuple[str, str], Won]  # two policies, in one of the two orders

    def of(self, a: str, b: str) -> Won:
        """`a`'s outcomes against `b`; none where the judge did not compare them."""
        if (a, b) in self.won:
            return self.won[a, b]
        return {(x, y): 1 - value for (y, x), value in self.won.get((b, a), {}).items()}

    def between(self, a: str, x: Key, b: str, y: Key) -> float | None:
        """The outcome of one sample of `a` against one of `b`; None where it was not judged."""
        if (a, b) in self.won:
            return self.won[a, b].get((x, y))
        other = self.won.get((b, a), {}).get((y, x))
        return None if other is None else 1 - other

    def pairs(self, a: str, b: str) -> list[Judged]:
        """`a`'s outcomes against `b`, with the figures of both samples."""
        mine, other = self.table[a], self.table[b]
        return [Judged(x[0], mine[x], other[y], value) for (x, y), value in self.of(a, b).items() if x in mine and y in other]


def by_score(table: Table, score: str) -> Outcomes:
    """The higher score wins: each two policies, the later one first, on the keys that both have.

    Raises:
        ValueError: Two policies without a key that both have.
    """
    names, won = list(table), {}
    for j, a in enumerate(names):
        for b in names[:j]:
            keys = shared_keys(table, a, b)
            if not keys:
                raise ValueError(f"policies {a!r} and {b!r} share no (id, index), expected the same prompts")
            values = paired_outcomes([table[a][k][score] for k in keys], [table[b][k][score] for k in keys])
            won[a, b] = {(key, key): float(value) for key, value in zip(keys, values, strict=True)}
    return Outcomes(table, won)


def shared_keys(table: Table, a: str, b: str) -> Sequence[Key]:
    """The keys that both policies have, in a's order."""
    return [key for key in table[a] if key in table[b]]
