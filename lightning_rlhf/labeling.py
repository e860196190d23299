"""A page on which people label: responses to one prompt side by side, in an order and without names that could sway.

    lightning-rlhf label --responses out/run/labels/requests.jsonl --output answers.jsonl --label_type ranked
    lightning-rlhf label --samples out/run/eval/samples --baselines '["zero-shot"]' --output verdicts.jsonl

Of responses come comparisons `{id, prompt, responses, best | ranks, labeler, seconds, shown}`, which `labels` and `online` take
as `file:answers.jsonl` and the reward stage as they are (but for more than 1 % of all-equal ranks); of samples come verdicts
`{id, policy_a, index_a, policy_b, index_b, winner, judge, seconds}`, which `python -m eval compare` takes as
`verdicts:verdicts.jsonl`.

1. Each labeler gets the items in an order of their own, and each item's responses in one of their own (`shown`; of a verdict
   policy_a stood first). No name of a policy and no reference reaches the browser.
2. A label is on disk before the next item is shown; the same command goes on where it was stopped.
3. Every request names the item that the page shows: what was labelled elsewhere meanwhile is not labelled by mistake.
4. The address has a key, and no other request is answered: neither another user of the machine nor another web page can label.

The server is the standard library's, the page `assets/label.html`, without any request elsewhere.
"""

from __future__ import annotations

import json
import random
import secrets
import socket
import sys
import time
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import combinations
from pathlib import Path
from threading import Lock
from typing import Any, Literal

from tqdm import tqdm

from .fields import a_text, kind
from .files import DataError, append_jsonl, bad, check, read_jsonl, read_rows, show, whole_lines, write_jsonl
from .folders import alone, unwritable
from .records import Sample, read_samples
from .tasks import UsageError

PAGE = Path(__file__).parent / "assets" / "label.html"
LENT = 900.0  # seconds for which an item that one labeler was shown is not shown to another
LONGEST = 1 << 16  # bytes of a request
LONGEST_NAME = 80  # characters
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
        prompt, responses = a_text(row["prompt"], at, "prompt"), row["responses"]
        check(isinstance(responses, list) and len(responses) > 1, responses, at, "responses", "a list of two or more")
        for text in responses:
            a_text(text, at, "responses")
        for name, text in [("prompt", prompt), *(("responses", text) for text in responses)]:
            check(kind(text) != "ids", text, at, name, READABLE)
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


# ------------------------------------------------------------------------------------------------------------- server


class LabelServer(ThreadingHTTPServer):
    """The page and its requests: `POST /next`, `/label`, `/later`, `/undo`, `/finish`, each with a labeler's name."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], labels: Labels, question: str, labeler: str | None) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.labels, self.lock, self.token = labels, Lock(), secrets.token_urlsafe(12)
        self.bar: Any = None  # a progress bar
        told = json.dumps({"question": question, "labeler": labeler}).replace("<", "\\u003c")
        self.html = PAGE.read_text(encoding="utf-8").replace("/*SETTINGS*/null", told).encode()
        super().__init__(address, _Handler)

    @property
    def url(self) -> str:
        """Where the page is, with its key."""
        host, port = str(self.server_address[0]), self.server_address[1]
        host = socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
        return f"http://{host}:{port}/?key={self.token}"

    def answer(self, action: str, asked: Record) -> Record:
        """What a request changes, and what the page is to show then; with `error` where it showed something else.

        Raises:
            ValueError: The request is not one.
            OSError: Nothing could be written, and nothing is changed.
        """
        labeler = asked.get("labeler")
        if not is_name(labeler):
            raise ValueError(f"the name: found {show(labeler)}, expected 1 to {LONGEST_NAME} characters")
        assert isinstance(labeler, str)
        with self.lock:
            try:
                self._change(action, labeler, asked)
            except Elsewhere as error:
                return {**self.labels.page(labeler), "error": str(error)}
            return self.labels.page(labeler)

    def _change(self, action: str, labeler: str, asked: Record) -> None:
        item = asked.get("item")
        if action == "label":
            picks, seconds = asked.get("picks"), asked.get("seconds")
            if not (isinstance(picks, list) and isinstance(seconds, (int, float)) and 0 <= seconds < 1e6):
                raise ValueError(f"found {show(asked)}, expected picks, a list, and seconds, a number")
            self.labels.expect(labeler, item)
            self.labels.add(labeler, picks, seconds)
        elif action == "later":
            self.labels.expect(labeler, item)
            self.labels.put_off(labeler)
        elif action == "undo":
            shown = self.labels.lent.get(labeler)
            if item != (None if shown is None else self.labels.number[shown[0]]):
                raise Elsewhere("something was labelled elsewhere; what is shown now comes next")
            self.labels.undo(labeler)
        elif action != "next":
            raise ValueError(f"found /{action}, expected /next, /label, /later, /undo or /finish")

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no news."""
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


def is_name(labeler: Any) -> bool:
    """Whether a labeler can be called so."""
    if not isinstance(labeler, str) or not labeler.strip() or len(labeler) > LONGEST_NAME:
        return False
    return not any(unicodedata.category(c) in ("Cc", "Cs") for c in labeler)


class _Handler(BaseHTTPRequestHandler):
    server: LabelServer
    timeout = 30  # seconds for a request to come

    def do_GET(self) -> None:
        """The page."""
        path, _, query = self.path.partition("?")
        if path != "/" or not secrets.compare_digest(query.encode(), f"key={self.server.token}".encode()):
            self._send(403, b"The address needs its key: open the one that the command printed.", "text/plain")
        else:
            self._send(200, self.server.html, "text/html")

    def do_POST(self) -> None:
        """A request of the page."""
        if not secrets.compare_digest(self.headers.get("X-Key", "").encode(), self.server.token.encode()):
            self._send(403, b'{"error": "the key is missing or of another run"}', "application/json")
            return
        try:
            length = self.headers.get("Content-Length", "0")
            if not length.isdecimal() or int(length) > LONGEST:
                raise ValueError(f"Content-Length: found {length[:20]!r}, expected at most {LONGEST} bytes")
            asked = json.loads(self.rfile.read(int(length)) or b"{}")
            if self.path == "/finish":
                try:
                    self._send(200, b"{}", "application/json")
                finally:
                    self.server.shutdown()
                return
            status, told = 200, self._answer(asked if isinstance(asked, dict) else {})
        except (ValueError, RecursionError) as error:
            status, told = 400, {"error": str(error)}
        self._send(status, json.dumps(told).encode(), "application/json")
        if self.server.bar is not None:
            self.server.bar.n = self.server.labels.done
            self.server.bar.refresh()

    def _answer(self, asked: Record) -> Record:
        try:
            return self.server.answer(self.path.strip("/"), asked)
        except OSError as error:  # the disk is full, or the folder gone: nothing is lost on the page
            raise ValueError(f"nothing was written: {error}") from None

    def _send(self, status: int, body: bytes, kind_: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind_}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing; the progress bar tells."""


def label_page(
    output: str,
    responses: str | None = None,
    samples: str | None = None,
    policies: list[str] | None = None,
    baselines: list[str] | None = None,
    label_type: Literal["best_of_n", "ranked"] = "best_of_n",
    question: str = "Which response is better?",
    labeler: str | None = None,
    limit: int | None = None,
    votes: int = 1,
    host: str = "127.0.0.1",
    port: int = 0,
    seed: int = 1,
) -> None:
    """Serve the labelling page until the page is told to finish, or until Ctrl-C, which ends with status 130 where labels are
    missing; nothing is lost.

    Args:
        output: JSON lines of labels, to which this adds.
        responses: JSON lines `{id?, prompt, responses}` to be compared; null: `samples`.
        samples: File or folder of samples `{id, policy, prompt, response}`, whose policies are compared; null: `responses`.
        policies: Of the samples, these alone; null: all.
        baselines: Of the samples, the policies that the others are compared with; null: each with each.
        label_type: Of responses: which is best, or their ranks.
        question: Stands above the responses; what labelers are to go by.
        labeler: Who labels; null: the page asks.
        limit: Use so many prompts (of responses: records), drawn by the seed; null: all.
        votes: Labels wanted of each item, each of another labeler; of samples, two and more tell how much they agree.
        host: Address to listen at; 0.0.0.0 lets other machines in, by the key in the address. Nothing is encrypted.
        port: Port; 0: a free one.
        seed: Of the order of items and responses.

    Raises:
        UsageError, DataError: An option or a file is wrong, or another process labels into the same file.
    """
    problems = [f"{k}: found {v}, expected at least {low}" for k, v, low in (("votes", votes, 1), ("port", port, 0)) if v < low]
    if limit is not None and limit < 1:
        problems.append(f"limit: found {limit}, expected at least 1")
    if (responses is None) == (samples is None):
        problems.append(f"responses, samples: found {responses} and {samples}, expected one of the two")
    for name, given in (("policies", policies), ("baselines", baselines)):
        if given and samples is None:
            problems.append(f"{name}: found {given}, expected it with samples alone")
    if label_type != "best_of_n" and responses is None:
        problems.append(f"label_type: found {label_type}, expected it with responses alone")
    if labeler is not None and not is_name(labeler):
        problems.append(f"labeler: found {show(labeler)}, expected 1 to {LONGEST_NAME} characters")
    path = Path(output).resolve()  # through a link, which an undo would replace
    if not output or path.is_dir() or path.suffix.lower() == ".gz":
        problems.append(f"output: found {output!r}, expected a file of JSON lines, not zipped")
    elif responses is not None and path == Path(responses).resolve():
        problems.append(f"output: found {output!r}, which is the file of responses; expected another")
    elif problem := unwritable(path.parent):
        problems.append(f"output: {problem}")
    if problems:
        raise UsageError("\n".join(problems))
    found = items_of_responses(str(responses)) if samples is None else items_of_samples(samples, policies, baselines)
    items = chosen(found, limit, seed)
    if not items:
        raise DataError(f"{responses or samples}: the responses to each prompt are all alike, expected some to choose from")
    if len(items) < len(found) and limit is None:
        print(f"{len(found) - len(items)} of {len(found)} are left out: all of their responses are the same text")
    with alone(path.parent, path.name):
        labels = Labels(items, path, label_type, votes, seed)
        began = labels.done
        try:
            server = LabelServer((host, port), labels, question, labeler)
        except (OSError, OverflowError) as error:
            said = f"cannot listen at {host}:{port} ({error}), expected an address of this machine and a free port"
            raise UsageError(f"host, port: {said}") from None
        print(f"Label at {server.url}\n(Ctrl-C ends; the same command goes on)", flush=True)
        with tqdm(total=labels.wanted, initial=began, desc="labels", unit="label") as server.bar:
            interrupted = False
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                interrupted = True
            finally:
                server.server_close()
    print(f"{output}: {labels.done} of {labels.wanted} labels, {labels.done - began} of them new")
    if interrupted and labels.done < labels.wanted:
        raise KeyboardInterrupt
