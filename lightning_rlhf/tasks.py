"""The four tasks of Ziegler et al. 2019 (arXiv 1909.08593, table of hyperparameters): how a query is cut from a text,
how the policy sees it, how long a response is, and what becomes of a response before it is scored.

No Lightning and no model here: a task is data, and `build_query` a function of token lists.

To add a task, add a `Task` to `TASKS` (or write the block `task:` in a config: the two are the same thing).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

RUN_DIR_HELP = "Folder of the whole run; configs refer to it as ${run_dir}."
LM_HELP = "The language model: embedded name, directory, GGUF file, checkpoint or Hub id; configs refer to it as ${lm}."

#: The TL;DR query of 2020 (Stiennon et al., arXiv 2009.01325, its published code).
QUERY_2020 = "SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"


class UsageError(ValueError):
    """Something that the user can put right: an option, a name or a combination of them."""


def told(check: Callable[..., Any], *args: Any) -> list[str]:
    """A check that raises, as a list of problems."""
    try:
        check(*args)
    except UsageError as error:
        return [str(error)]
    return []


@dataclass(frozen=True)
class Task:
    """What is asked of the policy. Lengths are in tokens, texts are resolved with the policy's tokenizer.

    Args:
        name: Written into every artefact; a reward model made for one task is refused by another.
        query_length: Longest query in tokens; shorter ones are padded on the left.
        query_prefix: Text put before the query for the policy alone (the reward model never sees it).
        query_suffix: Text put after the query for the policy alone.
        start_text: A query begins after the first such token of its text; null: at the text's beginning.
        end_text: A query ends with the last such token within its length; null: at its length.
        response_length: Exactly so many tokens are sampled; EOS does not stop.
        truncate_text: The response that is scored ends with the first such token at index >= truncate_after.
        truncate_after: First token index (from 0) at which truncate_text counts.
        penalty: The score of a response that has no such token, in place of its own; null: its own.
        temperature: Sampling temperature; every log-probability of a response is taken at it.
    """

    name: str = "sentiment"
    query_length: int = 64
    query_prefix: str = ""
    query_suffix: str = ""
    start_text: str | None = "."
    end_text: str | None = "."
    response_length: int = 24
    truncate_text: str | None = "."
    truncate_after: int = 16
    penalty: float | None = -1.0
    temperature: float = 0.7

    def problems(self) -> list[str]:
        """Every impossible or contradictory value, in words; empty where the task is sound."""
        found = []
        if self.query_length < 1:
            found.append(f"task.query_length: found {self.query_length}, expected at least 1")
        if self.response_length < 1:
            found.append(f"task.response_length: found {self.response_length}, expected at least 1")
        if not 0 <= self.truncate_after < self.response_length:
            default = " (the default, of 2019's sentiment task)" if self.truncate_after == Task.truncate_after else ""
            expected = f"expected 0 to response_length - 1 = {self.response_length - 1}"
            found.append(f"task.truncate_after: found {self.truncate_after}{default}, {expected}")
        if not 0 < self.temperature < math.inf:
            found.append(f"task.temperature: found {self.temperature}, expected above 0")
        if self.penalty is not None and not math.isfinite(self.penalty):
            found.append(f"task.penalty: found {self.penalty}, expected a finite number, or null for none")
        return found


_STYLE: dict[str, Any] = {}
_SUMMARY: dict[str, Any] = dict(
    query_length=500, query_suffix="\n\nTL;DR:", start_text=None, end_text=None, response_length=75,
    truncate_text="\n", truncate_after=55,
)  # fmt: skip
TASKS: dict[str, Task] = {
    "sentiment": Task(name="sentiment", **_STYLE),
    "descriptiveness": Task(name="descriptiveness", **_STYLE),
    "tldr": Task(name="tldr", **_SUMMARY),
    "cnndm": Task(
        name="cnndm", **{**_SUMMARY, "query_prefix": "Article:\n\n", "end_text": "\n", "temperature": 0.5}
    ),
}


def build_query(
    tokens: list[int], length: int, start_token: int | None = None, end_token: int | None = None, pad_id: int = 0
) -> list[int] | None:
    """One query from one text, by the rule of 2019 (lm-human-preferences, `language/datasets.py`).

    Keep what follows the *first* start token (the whole text where that is its last token), cut to `length`, then cut
    just after the *last* end token, then pad on the right to exactly `length`.

    Args:
        tokens: The text's token ids, any length.
        length: Length of the result in tokens.
        start_token, end_token: Token ids, or None for no such rule.
        pad_id: Fills the result up.

    Returns:
        A list of exactly `length` ids, or None where the text is skipped: it has no start token, or no end token within
        its length, or no token at all.

    Raises:
        ValueError: `length` is below 1.
    """
    if length < 1:
        raise ValueError(f"length: found {length}, expected at least 1")
    if start_token is not None:
        if start_token not in tokens:
            return None
        first = tokens.index(start_token) + 1
        tokens = tokens[first:] if first < len(tokens) else tokens
    tokens = tokens[:length]
    if end_token is not None:
        if end_token not in tokens:
            return None
        tokens = tokens[: len(tokens) - tokens[::-1].index(end_token)]
    if not tokens:
        return None
    return tokens + [pad_id] * (length - len(tokens))


def fields_2020(query: str) -> dict[str, str] | None:
    """The subreddit, title and post of a query in the form of 2020; None where it has another."""
    found = re.fullmatch(
        r"SUBREDDIT: r/(?P<subreddit>.*?)\n\nTITLE: (?P<title>.*?)\n\nPOST: (?P<post>.*)\n\nTL;DR:", query, re.DOTALL
    )
    return found.groupdict() if found else None


def query_2020(subreddit: str, title: str, post: str, length: int, count: Callable[[str], int]) -> str | None:
    """One TL;DR query in the form of 2020: too long, its *post* is cut at its last newline, again and again, else by a character.

    The subreddit and the title are never cut. Where the post is far too long, several characters go at a time, never so many
    that a fitting post could be passed over (a character is at most four tokens of a byte-level vocabulary).

    Args:
        subreddit, title, post: The fields.
        length: Most tokens of the whole query.
        count: Text → its number of tokens.

    Returns:
        The query, or None where it is too long even without a post.

    Raises:
        ValueError: `length` is below 1.
    """
    if length < 1:
        raise ValueError(f"length: found {length}, expected at least 1")
    while True:
        query = QUERY_2020.format(subreddit=subreddit, title=title, post=post)
        over = count(query) - length
        if over <= 0:
            return query
        if not post:
            return None
        newline = post.rfind("\n")
        post = post[:newline] if newline >= 0 else post[: -max(1, over // 4)]


def single_token(tokenizer: Any, text: str | None, field: str = "text") -> int | None:
    """The id of `text` as it stands inside running text: the ids of ``"a" + text`` minus those of ``"a"``.

    Args:
        tokenizer: A Hugging Face tokenizer.
        text: The text, or None (then None is returned).
        field: The option's name, for the error.

    Raises:
        UsageError: The tokenizer needs more than one token for it, or merges it with what stands before.
    """
    if text is None:
        return None
    before = tokenizer.encode("a", add_special_tokens=False)
    both = tokenizer.encode("a" + text, add_special_tokens=False)
    if both[: len(before)] != before or len(both) != len(before) + 1:
        raise UsageError(
            f"{field}: {text!r} is {both[len(before) :]} after 'a' in this tokenizer, expected exactly one token; "
            "choose another text"
        )
    return int(both[-1])


def stop_ids(tokenizer: Any, stop_token: str | int | None, field: str = "stop_token") -> tuple[int, ...]:
    """Ids that end a response (Stiennon et al. 2020): the tokenizer's EOS, and the stop token where one is given.

    Args:
        tokenizer: A Hugging Face tokenizer.
        stop_token: An id, or a text that is one token, special (`<s>`) or as it stands inside running text.
        field: The option's name, for the error.

    Raises:
        UsageError: Neither is there, the text is not one token, or the id is not in the vocabulary.
    """
    eos = tokenizer.eos_token_id
    stop = stop_token if isinstance(stop_token, int) else single_token(tokenizer, stop_token, field)
    if stop is None and eos is None:
        raise UsageError(f"{field}: not given, and the tokenizer has no EOS; expected a text or a token's id")
    if stop is not None and not 0 <= stop < len(tokenizer):
        raise UsageError(f"{field}: found id {stop}, expected 0 to {len(tokenizer) - 1}")
    return tuple(dict.fromkeys(i for i in (eos, stop) if i is not None))


@dataclass(frozen=True)
class TaskTokens:
    """A task's texts as token ids of one tokenizer. `prefix` begins with the tokenizer's own BOS, where it has one."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    start: int | None
    end: int | None
    truncate: int | None


def task_tokens(task: Task, tokenizer: Any) -> TaskTokens:
    """Resolve a task's texts with a tokenizer. Raises ValueError where one of them is not a single token."""
    from .tokens import bos_ids, encode, encode_continuation

    prefix = bos_ids(tokenizer) + (encode(tokenizer, task.query_prefix) if task.query_prefix else [])
    suffix = encode_continuation(tokenizer, task.query_suffix) if task.query_suffix else []
    return TaskTokens(
        prefix=tuple(prefix),
        suffix=tuple(suffix),
        start=single_token(tokenizer, task.start_text, "task.start_text"),
        end=single_token(tokenizer, task.end_text, "task.end_text"),
        truncate=single_token(tokenizer, task.truncate_text, "task.truncate_text"),
    )


def task_dict(task: Task) -> dict[str, Any]:
    """A task as a plain dictionary, for run.json and reward.json."""
    return {f.name: getattr(task, f.name) for f in fields(task)}
