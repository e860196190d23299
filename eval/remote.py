"""A language model behind an OpenAI-compatible server that is asked which of two responses is better."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from eval.server import TIMEOUT, NoAnswer, Refused, post_json
from lightning_rlhf.files import show
from lightning_rlhf.tasks import UsageError


class RemoteModel:
    """An OpenAI-compatible chat/completions server, asked at temperature 0 with bounded retries and time-outs.

    A time-out, a broken connection, status 408, 429 or 5xx, and a reply that is not a completion are tried again after 1, 2, 4 …
    times `pause` seconds; then the question has no answer, nor has one that the server refuses for itself (status 400, 413 or
    422: too long, say). `patience` questions without an answer in a row, or any other status, stop the run; what was answered by
    then is kept.
    """

    def __init__(
        self,
        model: str,
        url: str,
        attempts: int = 4,
        timeout: float = TIMEOUT,
        pause: float = 1.0,
        patience: int = 8,
        workers: int = 4,
    ) -> None:
        self.model, self.url, self.identity = model, url.rstrip("/"), f"server {model}@{url.rstrip('/')}"
        self.attempts, self.timeout, self.pause, self.patience, self.workers = attempts, timeout, pause, patience, workers
        self.trouble = ""  # what went wrong last
        self.seconds: dict[str, float] = {}
        self.answered = 0  # questions so far

    def __call__(self, questions: Sequence[str]) -> Iterator[str | None]:
        """As `Answers`, `workers` questions at a time."""
        missed = refused = 0
        with ThreadPoolExecutor(self.workers) as pool:
            for first in range(0, len(questions), self.workers):
                stopped: BaseException | None = None  # raised when the others' answers are kept
                for asked in [pool.submit(self.ask, question) for question in questions[first : first + self.workers]]:
                    error = asked.exception()
                    if isinstance(error, Refused):  # of this question alone; of all, where it has not answered any
                        refused, self.trouble = refused + 1, str(error)
                    else:
                        stopped = stopped or error
                    text = None if error is not None else asked.result()
                    if error is None:
                        missed = missed + 1 if text is None else 0
                        self.answered += text is not None
                    yield text
                    wrong = missed >= self.patience or (not self.answered and refused >= self.patience)
                    if wrong and stopped is None:
                        raise UsageError(
                            f"judge server {self.url}: {max(missed, refused)} questions in a row got no answer ({self.trouble}); "
                            "what was answered is kept, and the same command goes on from there"
                        )
                if stopped is not None:
                    raise stopped

    def ask(self, question: str) -> str | None:
        """The answer to one question, or None.

        Raises:
            UsageError: The server refuses (401, 404, …): asking again would not help. `Refused`: it refuses this question.
        """
        body = {"model": self.model, "temperature": 0, "max_tokens": 16, "messages": [{"role": "user", "content": question}]}
        waits = [self.pause * 2**n for n in range(self.attempts - 1)]
        url, key = f"{self.url}/chat/completions", os.environ.get("OPENAI_API_KEY")
        began = time.perf_counter()
        try:
            return post_json(url, body, key, waits=waits, timeout=self.timeout, parse=_content)
        except NoAnswer as trouble:
            self.trouble = str(trouble)
            return None
        finally:
            self.seconds[question] = round(time.perf_counter() - began, 3)


def _content(answer: Any) -> str:
    """The text of a chat completion."""
    text = answer["choices"][0]["message"]["content"]
    if not isinstance(text, str):
        raise TypeError(f"the reply's content is {show(text)}")
    return text
