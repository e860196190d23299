"""An OpenAI-compatible completion server as a source of text: `POST URL/completions`, by the standard library alone.

What may pass (no connection, a timeout, status 408, 429 or 5xx, half an answer) is tried again after the `WAITS`; what will
not pass (another status, an answer without texts) is told at once. The key goes into the request's header and nowhere else.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from lightning_rlhf.tasks import UsageError

WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before each further try
LONGEST_WAIT = 60.0  # seconds, whatever the server asks for
TIMEOUT = 300.0  # seconds a try
LONGEST_TIMEOUT = 86_400.0  # seconds; far longer ones a socket does not take
LONGEST_ANSWER = 1 << 26  # bytes
REFUSED = (400, 413, 422)  # what was asked, not who asked
PASSING = (408, 429)  # and all from 500 on
T = TypeVar("T")


class Completion(NamedTuple):
    """A text of the server's."""

    text: str
    ended: bool  # it ended by itself, rather than at the limit of tokens


@dataclass(frozen=True)
class Server:
    """A server, the name of its model, the key where it wants one, and how many seconds a try may take."""

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    timeout: float = TIMEOUT

    def complete(self, prompt: str, max_tokens: int, temperature: float, seed: int, n: int = 1) -> list[Completion]:
        """n texts after a prompt, of at most `max_tokens` of the server's own tokens each.

        Raises:
            UsageError: The server could not be reached, refused, or answered something else.
        """
        asked = {"model": self.model, "prompt": prompt, "max_tokens": max_tokens, "temperature": temperature}
        url = f"{self.url.rstrip('/')}/completions"
        answer: Any = post_json(url, {**asked, "n": n, "seed": seed % 2**31}, self.key, timeout=self.timeout)
        choices = answer.get("choices") if isinstance(answer, dict) else None
        if not isinstance(choices, list) or len(choices) != n or not all(isinstance(_text(c), str) for c in choices):
            raise UsageError(f"{url}: found {json.dumps(answer)[:200]}, expected `choices`, a list of {n} with a `text` each")
        return [Completion(c["text"], c.get("finish_reason") == "stop") for c in choices]


def _text(choice: Any) -> Any:
    return choice.get("text") if isinstance(choice, dict) else None


def _read(reply: Any, until: float) -> bytes:
    """An answer's bytes. A server that sends some now and then never times out by itself: raises TimeoutError after `until`."""
    parts, size = [], 0
    while (part := reply.read1(1 << 16)) and size < LONGEST_ANSWER:
        parts.append(part)
        size += len(part)
        if time.monotonic() > until:
            raise TimeoutError("the answer did not end in time")
    return b"".join(parts)


def timeout_problems(timeout: float) -> list[str]:
    """What is wrong with the option `server_timeout`, in words."""
    if 0 < timeout <= LONGEST_TIMEOUT:
        return []
    return [f"server_timeout: found {timeout:g}, expected seconds above 0, a day ({LONGEST_TIMEOUT:g}) at most"]


class NoAnswer(UsageError):
    """Every try failed, each in a way that may pass."""


class Refused(UsageError):
    """The server refused this question, and may answer another."""


def post_json(
    url: str,
    body: dict[str, Any],
    key: str | None = None,
    *,
    waits: Sequence[float] | None = None,
    timeout: float = TIMEOUT,
    parse: Callable[[Any], T] = lambda answer: answer,
) -> T:
    """Post JSON, and again where that may help; returns what `parse` makes of the answer's JSON.

    Args:
        waits: Seconds before each further try; None: `WAITS`. A server's Retry-After, up to a minute, is heeded.
        timeout: Seconds a try.
        parse: Its ValueError, LookupError or TypeError makes the answer one that may pass.

    Raises:
        NoAnswer: Every try failed.
        UsageError: One failed in a way that no further try will mend; `Refused` where that lies in what was asked.
    """
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    waits = WAITS if waits is None else waits
    problem = ""
    for wait in (*waits, None):
        asked_for = 0.0
        try:
            began = time.monotonic()
            with urllib.request.urlopen(request, timeout=timeout) as reply:
                return parse(json.loads(_read(reply, began + timeout)))
        except urllib.error.HTTPError as error:
            said = b""
            with suppress(OSError, http.client.HTTPException):  # its body may never come
                said = error.read(300)
            problem = f"status {error.code}: {said.decode(errors='replace').strip() or error.reason}"
            if error.code not in PASSING and error.code < 500:
                raise (Refused if error.code in REFUSED else UsageError)(f"{url}: {problem}") from None
            after = error.headers.get("Retry-After") or ""
            asked_for = float(after) if after.isdigit() else 0.0
        # URLError and time-outs are OSErrors; the others are answers that are not what was asked for
        except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
            problem = f"{type(error).__name__}: {getattr(error, 'reason', error)}"
        if wait is not None:
            time.sleep(min(max(wait, asked_for), LONGEST_WAIT))
    raise NoAnswer(f"{url}: no answer in {len(waits) + 1} tries; the last: {problem}")
