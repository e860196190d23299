"""Who says which of two responses is better: scores, people, language models, behind one protocol.

A judge takes the rows (lines of `scores.jsonl`) of two policies, paired by prompt, and returns verdicts. In a verdict
`policy_a` is the one that was shown first.

    known, learned, …       the higher score wins (`ScoreJudge`): one verdict a pair
    verdicts:FILE           what people said (`FileJudge`): as many verdicts as the file has, by any number of judges
    lm:NAME                 a local causal LM (`eval.local.LocalModel`): the likelier of the answers "A" and "B"
    reward:DIR              the response that a reward directory scores higher (`RewardJudge`): one verdict a pair
    server:MODEL@URL        an OpenAI-compatible server (`RemoteModel`), URL as in http://localhost:8000/v1; the key, where one is
                            needed, from the environment's OPENAI_API_KEY

A language model is asked about each pair in both orders. Its answer counts only if it is A, B or TIE and nothing else; others
are `unparsable`, and a question without an answer is `failed`: both are counted, neither is guessed. An answer is on disk as
soon as it is there; a further run asks only what has none yet (known by a hash of the question and the model).

No torch here; `local.py` and `lightning_rlhf.scoring` have it, imported when a local model or a reward judges.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from eval.remote import RemoteModel
from eval.server import TIMEOUT
from lightning_rlhf.files import bad, check, read_jsonl
from lightning_rlhf.tasks import UsageError

Row = Mapping[str, Any]
Sample = tuple[str, str, int]  # id, policy, index
KINDS = ("verdicts", "reward", "lm", "server")
EXPECTED = "a score's name, verdicts:FILE, reward:DIR, lm:NAME or server:MODEL@URL"
WINNERS = ("a", "b", "tie", "unparsable", "failed")
QUESTION = """Two responses to the same prompt are to be compared.

Prompt:
{prompt}

Response A:
{a}

Response B:
{b}

Which response is better? Answer with one letter, A or B, or with the word TIE if neither is better."""
ANSWER = re.compile(r"\W*(?:response\s+)?(a|b|tie)\W*", re.IGNORECASE)


@dataclass(frozen=True)
class Verdict:
    """One judgement of two samples of one prompt; `policy_a`'s was shown first. `seconds`: how long it took."""

    id: str
    policy_a: str
    index_a: int
    policy_b: str
    index_b: int
    winner: str  # one of WINNERS
    judge: str
    seconds: float | None = None

    @property
    def a(self) -> Sample:
        """The sample that was shown first."""
        return self.id, self.policy_a, self.index_a

    @property
    def b(self) -> Sample:
        """The other one."""
        return self.id, self.policy_b, self.index_b


class Judge(Protocol):
    """Says which of two policies' responses are better."""

    def check(self, rows: Sequence[Row]) -> None:
        """Raise DataError where the judge could not judge these rows (all policies'), before anything is asked."""
        ...

    def prepare(self, pairs: Iterable[tuple[Row, Row]]) -> None:
        """Hear of every pair that will be judged, so that what is alike may be asked together; no need to."""
        return

    def __call__(self, a: Sequence[Row], b: Sequence[Row]) -> list[Verdict]:
        """Verdicts about two policies' rows, a[i] and b[i] answering the same prompt."""
        ...


def verdict(first: Row, second: Row, winner: str, judge: str, seconds: float | None = None) -> Verdict:
    """The verdict about two rows."""
    at = (first["policy"], first.get("index", 0), second["policy"], second.get("index", 0))
    return Verdict(str(first["id"]), *at, winner, judge, seconds)


# ------------------------------------------------------------------------------------------------- scores and files


class ScoreJudge(Judge):
    """The higher score, or measure, wins; the same ties."""

    def __init__(self, name: str) -> None:
        self.name = name

    def check(self, rows: Sequence[Row]) -> None:
        """Every row has the score, and it is a finite number."""
        for row in rows:
            at = f"sample {row['id']!r} of policy {row['policy']!r}"
            scores = self._figures(row)
            if self.name not in scores:
                raise bad(at, "scores", f"only {', '.join(scores) or 'none'}", f"the score {self.name!r} to judge by")
            value = scores[self.name]
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            check(number, value, at, f"scores.{self.name}", "a finite number")

    def __call__(self, a: Sequence[Row], b: Sequence[Row]) -> list[Verdict]:
        """One verdict a pair."""
        found = []
        for x, y in zip(a, b, strict=True):
            left, right = self._figures(x)[self.name], self._figures(y)[self.name]
            found.append(verdict(x, y, "a" if left > right else "b" if right > left else "tie", self.name))
        return found

    def _figures(self, row: Row) -> dict[str, Any]:
        """A row's scores, and its measures that are defined."""
        measures = {k: v for k, v in (row.get("measures") or {}).items() if v is not None}
        return {**measures, **row.get("scores", {})}


class RewardJudge(ScoreJudge):
    """The response that a learned reward scores higher wins; a reward other than `learned`, say of other labels."""

    def __init__(self, name: str, reward: Callable[[Sequence[Row]], list[float]]) -> None:
        super().__init__(name)
        self.reward = reward
        self.scores: dict[tuple[str, str], float] = {}  # of prompt and response: the same text has the same score

    def check(self, rows: Sequence[Row]) -> None:
        """Prompts and responses are texts."""
        check_texts(rows)

    def prepare(self, pairs: Iterable[tuple[Row, Row]]) -> None:
        """Score every text once, those to one prompt after one another: it is then read once."""
        new = {_texts(row): row for pair in pairs for row in pair if _texts(row) not in self.scores}
        rows = sorted(new.values(), key=lambda row: str(row["id"]))
        if rows:
            self.scores.update(zip(map(_texts, rows), self.reward(rows), strict=True))

    def __call__(self, a: Sequence[Row], b: Sequence[Row]) -> list[Verdict]:
        """One verdict a pair."""
        self.prepare(zip(a, b, strict=True))
        return super().__call__(a, b)

    def _figures(self, row: Row) -> dict[str, Any]:
        return {self.name: self.scores[_texts(row)]}


def _texts(row: Row) -> tuple[str, str]:
    return row["prompt"], row["response"]


def check_texts(rows: Sequence[Row]) -> None:
    """Raise DataError where a prompt or a response is no text."""
    for row in rows:
        for name in ("prompt", "response"):
            check(isinstance(row[name], str), row[name], f"sample {row['id']!r} of policy {row['policy']!r}", name, "a text")


def reward_scores(name: str, directory: str, batch_size: int, precision: str) -> Callable[[Sequence[Row]], list[float]]:
    """A reward directory as a function of rows, as the score step scores them."""
    from eval.sample import HeldOut, reward_values
    from lightning_rlhf.records import Prompt
    from lightning_rlhf.scoring import load_reward

    reward = load_reward(directory)

    def score(rows: Sequence[Row]) -> list[float]:
        prompts = HeldOut({str(row["id"]): Prompt(row["prompt"]) for row in rows}, name)
        found: list[float] = []
        with tqdm(total=len(rows), desc=f"judge {name}", unit="sample") as bar:
            for first in range(0, len(rows), batch_size):
                batch = rows[first : first + batch_size]
                found += reward_values(
                    reward, prompts, [str(row["id"]) for row in batch], [row["response"] for row in batch], precision
                )
                bar.update(len(batch))
        return found

    return score


def read_verdicts(path: str | Path) -> list[Verdict]:
    """Read `{id, policy_a, index_a, policy_b, index_b, winner, judge, seconds?}`; an index defaults to 0.

    Raises:
        DataError: as `files.read_jsonl`; a field that is missing or of the wrong type, a winner that is not a, b or tie (or
            unparsable, as a language model's file has), a sample against itself, or the same question judged twice by the same
            judge. The other order is another question.
    """
    return [v for _, v in _verdicts(path)]


def _verdicts(path: str | Path) -> Iterator[tuple[str, Verdict]]:
    """`file:line` and verdict."""
    seen: dict[tuple[Any, ...], str] = {}
    for file, line, record in read_jsonl(path):
        at = f"{file}:{line}"
        for name in ("id", "policy_a", "policy_b", "winner", "judge"):
            value = record.get(name)
            kinds, expected = ((str, int), "a string or an integer") if name == "id" else ((str,), "a string")
            check(type(value) in kinds, value, at, name, expected)
        check(record["winner"] in WINNERS[:4], record["winner"], at, "winner", "a, b or tie")
        indices = [record.get(name, 0) for name in ("index_a", "index_b")]
        for name, value in zip(("index_a", "index_b"), indices, strict=True):
            check(type(value) is int and value >= 0, value, at, name, "an integer from 0")
        seconds = record.get("seconds")
        check(seconds is None or type(seconds) in (int, float), seconds, at, "seconds", "a number")
        names = [record[k] for k in ("policy_a", "policy_b")]
        v = Verdict(str(record["id"]), names[0], indices[0], names[1], indices[1], record["winner"], record["judge"], seconds)
        if v.a == v.b:
            raise bad(at, "policy_b", f"{v.policy_b!r}, index {v.index_b}, against itself", "two samples")
        first = seen.setdefault((v.a, v.b, v.judge), at)
        if first != at:
            raise bad(at, "id", f"{v.id!r} judged by {v.judge!r} as at {first}", "each pair in each order once a judge")
        yield at, v


class FileJudge(Judge):
    """Verdicts of people (or of anything else) from a file."""

    def __init__(self, path: str) -> None:
        self.read, self.left_out = list(_verdicts(path)), 0

    @property
    def verdicts(self) -> list[Verdict]:
        """Those that are used."""
        return [v for _, v in self.read]

    def keep(self, prompts: Collection[str], of: Collection[str]) -> None:
        """Leave out verdicts on prompts that are there (`of`) but not used now; they count as unused."""
        kept = [(at, v) for at, v in self.read if v.id in prompts or v.id not in of]
        self.left_out, self.read = len(self.read) - len(kept), kept

    def check_names(self, policies: Collection[str], ids: Collection[str]) -> None:
        """Every verdict is about policies and prompts that there are; raises DataError."""
        for at, v in self.read:
            for id_, policy, _ in (v.a, v.b):
                if policy not in policies:
                    raise bad(at, "policy", f"a verdict on {policy!r}", f"one of the policies {sorted(policies)}")
                if id_ not in ids:
                    raise bad(at, "id", f"a verdict on prompt {id_!r}", "the id of a prompt that was sampled")

    def check(self, rows: Sequence[Row]) -> None:
        """Every verdict is about samples that are there."""
        there = {(str(r["id"]), r["policy"], r.get("index", 0)) for r in rows}
        self.check_names({s[1] for s in there}, {s[0] for s in there})
        for at, v in self.read:
            for sample in (v.a, v.b):
                if sample not in there:
                    found = f"a verdict on sample {sample[2]} of policy {sample[1]!r} to prompt {sample[0]!r}"
                    raise bad(at, "index", found, "a sample that is there")

    def __call__(self, a: Sequence[Row], b: Sequence[Row]) -> list[Verdict]:
        """All of the file's verdicts on the two policies, whatever the samples' indices."""
        wanted = {a[0]["policy"], b[0]["policy"]} if a and b else set()
        return [v for v in self.verdicts if {v.policy_a, v.policy_b} == wanted]


# ---------------------------------------------------------------------------------------------------- language models


class Answers(Protocol):
    """A model that answers questions; `identity` changes where its answers may."""

    identity: str
    seconds: dict[str, float]  # how long each question took, where that is known

    def __call__(self, questions: Sequence[str]) -> Iterator[str | None]:
        """An answer a question, in order, each as soon as it is there; None: no answer was to be had."""
        ...


def parse_answer(text: str | None) -> str:
    """A model's answer → "a", "b", "tie"; "unparsable" for any other text, "failed" for none."""
    if text is None:
        return "failed"
    found = ANSWER.fullmatch(text.strip())
    return found[1].lower() if found else "unparsable"


class AskedJudge(Judge):
    """A language model that is asked about each pair in both orders; its answers are kept in a file, one a line."""

    def __init__(self, name: str, model: Answers, path: Path) -> None:
        self.name, self.model, self.path = name, model, path
        self.known = self._read()
        self.failed: set[str] = set()  # questions that got no answer when all were asked

    def check(self, rows: Sequence[Row]) -> None:
        """Prompts and responses are texts."""
        check_texts(rows)

    def prepare(self, pairs: Iterable[tuple[Row, Row]]) -> None:
        """Ask about all pairs, those of one prompt together: a local model reads what is the same at their start once."""
        self.failed = set()
        self.failed = self._ask(sorted(pairs, key=lambda pair: str(pair[0]["id"])))

    def __call__(self, a: Sequence[Row], b: Sequence[Row]) -> list[Verdict]:
        """Two verdicts a pair, one in each order."""
        pairs = list(zip(a, b, strict=True))
        failed = self.failed | self._ask(pairs)
        found = []
        for key, _, x, y in self._questions(pairs):
            winner, seconds = ("failed", None) if key in failed else self.known[key]
            found.append(verdict(x, y, winner, self.name, seconds))
        return found

    def _questions(self, pairs: Iterable[tuple[Row, Row]]) -> Iterator[tuple[str, str, Row, Row]]:
        """(key, question, the row shown first, the other), in both orders of each pair; the same texts have the same key."""
        for x, y in (ordered for pair in pairs for ordered in (pair, pair[::-1])):
            question = QUESTION.format(prompt=x["prompt"], a=x["response"], b=y["response"])
            yield hashlib.sha256(f"{self.model.identity}\n{question}".encode()).hexdigest()[:32], question, x, y

    def _ask(self, pairs: Iterable[tuple[Row, Row]]) -> set[str]:
        """Ask what has no answer yet, and keep each answer as it comes; returns the questions that got none."""
        done = self.known.keys() | self.failed
        questions = {key: (question, x, y) for key, question, x, y in self._questions(pairs) if key not in done}
        failed: set[str] = set()
        if not questions:
            return failed
        self.path.parent.mkdir(parents=True, exist_ok=True)
        answers = self.model([q for q, _, _ in questions.values()])
        with self.path.open("ab") as file, tqdm(total=len(questions), desc=f"judge {self.name}", unit="question") as bar:
            for (key, (question, x, y)), text in zip(questions.items(), answers, strict=True):
                winner, seconds = parse_answer(text), self.model.seconds.pop(question, None)
                bar.update(1)
                if text is None:
                    failed.add(key)
                    continue
                record = {**asdict(verdict(x, y, winner, self.name, seconds)), "answer": text[:200], "question": key}
                file.write(json.dumps(record).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
                self.known[key] = (winner, seconds)
        return failed

    def _read(self) -> dict[str, tuple[str, float | None]]:
        """Question → (winner, seconds) of the answers that are there; a last line that was cut off is dropped from the file."""
        if not self.path.is_file():
            return {}
        whole = self.path.read_bytes()
        kept = whole[: whole.rfind(b"\n") + 1]
        if len(kept) < len(whole):
            os.truncate(self.path, len(kept))
        found = {}
        for file, line, record in read_jsonl(self.path) if kept.strip() else ():
            at = f"{file}:{line}"
            check(isinstance(record.get("question"), str), record.get("question"), at, "question", "a string")
            check(record.get("winner") in WINNERS[:4], record.get("winner"), at, "winner", "one of a, b, tie, unparsable")
            found[record["question"]] = (record["winner"], record.get("seconds"))
        return found


# ------------------------------------------------------------------------------------------------------------- by name


def gives_verdicts(name: str) -> bool:
    """Whether a judge of that name gives verdicts; else it is a score's name."""
    return name.partition(":")[0] in KINDS


def find_judge(name: str) -> tuple[str, str]:
    """Check, without loading a model or asking anything, what a judge's name says: (kind, rest).

    Raises:
        UsageError, DataError: There is no such kind, file or model, or a server's name is not MODEL@URL.
    """
    kind, colon, rest = name.partition(":")
    if not colon:
        return "score", name
    if kind == "verdicts":
        if not Path(rest).is_file():
            raise UsageError(f"judge {name!r}: no such file")
    elif kind == "reward":
        from lightning_rlhf.scalar import read_reward_info

        read_reward_info(rest)
    elif kind == "lm":
        from lightning_rlhf.models import find_lm

        find_lm(rest)
    elif kind == "server":
        if not re.fullmatch(r".+@https?://\S+", rest):
            raise UsageError(f"judge {name!r}: found {rest!r}, expected MODEL@URL, such as my-model@http://localhost:8000/v1")
    else:
        raise UsageError(f"judge {name!r}: no kind {kind!r}, expected {EXPECTED}")
    return kind, rest


def load_judge(name: str, folder: Path, batch_size: int = 8, precision: str = "32", timeout: float = TIMEOUT) -> Judge:
    """The judge of that name; a language model's answers are kept in `folder`. `timeout`: seconds that a server may take."""
    kind, rest = find_judge(name)
    if kind == "score":
        return ScoreJudge(name)
    if kind == "verdicts":
        return FileJudge(rest)
    if kind == "reward":
        return RewardJudge(name, reward_scores(name, rest, batch_size, precision))
    model: Answers
    if kind == "lm":
        from eval.local import LocalModel

        model = LocalModel(rest, batch_size, precision)
    else:
        model = RemoteModel(rest.rpartition("@")[0], rest.rpartition("@")[2], timeout=timeout)
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return AskedJudge(name, model, folder / f"{slug}.jsonl")
