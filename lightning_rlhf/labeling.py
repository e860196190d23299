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
import secrets
import socket
import sys
import unicodedata
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any, Literal

from tqdm import tqdm

from .files import DataError, show
from .folders import alone, unwritable
from .label_items import Elsewhere, Labels, Record, chosen, items_of_responses, items_of_samples
from .tasks import UsageError

PAGE = Path(__file__).parent / "assets" / "label.html"
LONGEST = 1 << 16  # bytes of a request
LONGEST_NAME = 80  # characters


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
