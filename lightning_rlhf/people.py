"""People as the labeler of `labels` and `online`: what they are asked, and their answers from a file (`file:PATH`).

The file is what the labelling page writes (`labeling.py`), or anything else that has `{id, best}` or `{id, ranks}` a line.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .fields import kind
from .files import check, read_jsonl, whole_lines, write_jsonl
from .records import Prompt
from .tasks import UsageError


def all_alike(responses: list[str]) -> bool:
    """Whether there is nothing to choose between."""
    return all(response == responses[0] for response in responses)


def answers_file(labeler: str) -> Path | None:
    """The file of people's answers that `file:PATH` names; None: the labeler is simulated."""
    return Path(labeler.removeprefix("file:")) if labeler.startswith("file:") else None


def answers_problem(labeler: str) -> str | None:
    """Why a labeler's `file:PATH` cannot be one; None where it can, or where the labeler is simulated."""
    if labeler == "file:" or ((people := answers_file(labeler)) is not None and people.is_dir()):
        return f"labeler: found {labeler!r}, expected file:PATH, a file of answers that is there or will be"
    return None


def unreadable(prompts: Iterable[tuple[str, Prompt]]) -> list[str]:
    """What keeps people from reading the first of the prompts that they cannot."""
    ids = next((at for at, prompt in prompts if kind(prompt.prompt) == "ids"), None)
    return [] if ids is None else [f"{ids}: field 'prompt': found token ids, expected a text or messages, which people can read"]


def request(split: str, number: int, prompt: Prompt, responses: list[str]) -> dict[str, Any]:
    """What people are asked: a label that is still to be given, by an id of its own."""
    reference = {"reference": prompt.reference} if prompt.reference is not None else {}
    return {"id": f"{split}-{number:06d}", "prompt": prompt.prompt, "responses": responses, **reference}


def answers_of_people(
    requests: Path, answers: Path, rows: list[dict[str, Any]], label_type: str = "best_of_n"
) -> list[dict[str, Any]]:
    """Comparisons that people judge: their answers `{id, best}` or `{id, ranks}` stand in a file, of several of an id the last.

    Responses that are all alike need no answer: the first is the best of them.

    Args:
        requests: Where the questions are written while answers are missing.
        answers: The file; answers about other responses (of another run) do not count.
        rows: The questions.
        label_type: `best_of_n`, or `ranked`, for which `best` alone is no answer.

    Raises:
        UsageError: Some are not answered yet, and the command can be run again; or an answer that does not say which responses
            it is about, where others were asked about before.
        DataError: An answer is out of range.
    """
    found: dict[str, dict[str, Any]] = {}
    other = 0
    asked = {r["id"]: r["responses"] for _, _, r in read_jsonl(requests)} if requests.is_file() else {}
    by_id = {r["id"]: r for r in rows if not all_alike(r["responses"])}
    for file, number, given in read_jsonl(answers) if whole_lines(answers) else ():
        row, at = by_id.get(str(given.get("id"))), f"{file}:{number}"
        if row is None or given.get("responses", row["responses"]) != row["responses"]:
            other += row is not None
            continue
        if "responses" not in given and asked.get(row["id"], row["responses"]) != row["responses"]:
            raise UsageError(
                f"{at}: found an answer without responses, and {requests} asked {row['id']} about other ones than these options "
                "draw; go back to the options that it was written with, or move both files away"
            )
        n, best, ranks = len(row["responses"]), given.get("best"), given.get("ranks")
        if ranks is None:
            check(type(best) is int and 0 <= best < n, best, at, "best", f"0 to {n - 1}")
            check(label_type != "ranked", best, at, "best", "ranks: label with --label_type ranked into another file")
        else:
            whole = isinstance(ranks, list) and len(ranks) == n and all(type(r) is int and 1 <= r <= n for r in ranks)
            check(whole and 1 in ranks, ranks, at, "ranks", f"{n} integers from 1, the best, to {n}")
        judged = {"best": best} if ranks is None else {"ranks": ranks}
        found[row["id"]] = judged | {k: given[k] for k in ("labeler", "seconds") if k in given}
    if missing := by_id.keys() - found.keys():
        write_jsonl(requests, [{k: v for k, v in r.items() if k != "reference"} for r in by_id.values()])
        flag = " --label_type ranked" if label_type == "ranked" else ""
        beside = f"; {other} of its answers are about other responses" if other else ""
        command = f"lightning-rlhf label --responses {requests} --output {answers}{flag}"
        wait = f"{len(missing)} of {len(by_id)} comparisons wait for an answer in {answers}{beside}"
        raise UsageError(f"{wait}: run `{command}`, then the same command again")
    return [{**r, **found.get(r["id"], {"best": 0})} for r in rows]


def with_best(row: dict[str, Any]) -> dict[str, Any]:
    """A label of people's with the best response in place of ranks, of several at the first rank one by lot; as it is where all
    are equal."""
    return row if len(set(row.get("ranks", (0,)))) == 1 else by_lot(row)


def by_lot(row: dict[str, Any]) -> dict[str, Any]:
    """A label with the best response in place of ranks, of several at the first rank one by lot."""
    first = [i for i, rank in enumerate(row["ranks"]) if rank == 1]
    return {k: v for k, v in row.items() if k != "ranks"} | {"best": random.Random(row["id"]).choice(first)}
