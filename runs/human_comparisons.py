"""Real human comparisons for the reward model: prepare them, and print its accuracy beside what length and ROUGE alone reach.

    python runs/human_comparisons.py prepare hh_harmless DATA OUT smollm2 256 128
    python runs/human_comparisons.py table OUT

DATA holds hh_harmless/comparisons.jsonl.gz (dialogues; the first 1,600 train, the last 400 are held out) and
summeval/ratings.jsonl.gz (articles with 16 rated summaries each; the last fifth of the articles is held out, and a summary's
rank is by the sum of its four mean ratings). Texts are cut in tokens: of a dialogue the end is kept, of the rest the beginning.

A baseline sees one kind of feature of the two responses: the log of the length in characters, or ROUGE-1, -2, -L against the
human references (dialogues have none: against the prompt). Logistic regression without an intercept on training pairs weighs
them, so that it cannot know which response stands first. The last column is the reward model's share of right choices minus
the baseline's on the same records, with a t interval over records.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from eval.rouge import rouge_scores
from eval.winrate import mean_interval
from lightning_rlhf.files import read_jsonl, write_jsonl
from lightning_rlhf.heldout import Decision, accuracy, decisions
from lightning_rlhf.models import load_tokenizer
from lightning_rlhf.records import Comparison, read_comparisons
from lightning_rlhf.scoring import comparison_scores, load_reward, prefers
from lightning_rlhf.tokens import encode, encode_continuation

HELD_OUT = {"hh_harmless": 400, "summeval": 20}
AXES = ("coherence", "consistency", "fluency", "relevance")
ROUGE = ("rouge1", "rouge2", "rougeL")
SETS = {"hh_harmless": "comparisons.jsonl.gz", "summeval": "ratings.jsonl.gz"}


def ranked(row: dict[str, Any]) -> dict[str, Any]:
    """An article with its rated summaries → {prompt, responses, ranks, references}."""
    rated = list(row["systems"].values())
    totals = [round(sum(r["ratings"][axis] for axis in AXES), 6) for r in rated]
    ranks = [1 + sum(other > total for other in totals) for total in totals]
    responses = [" " + r["summary"] for r in rated]
    return {"prompt": row["article"], "responses": responses, "ranks": ranks, "references": row["references"]}


def features(comparison: Comparison) -> dict[str, list[list[float]]]:
    """What the baselines see of each response."""
    texts = [str(r) for r in comparison.responses]
    against = comparison.meta.get("references") or str(comparison.prompt)
    scores = rouge_scores(texts, [against] * len(texts), ROUGE)
    rouge = np.stack([scores[name][:, 2] for name in ROUGE], 1)
    return {"length": [[math.log(1 + len(t.strip()))] for t in texts], "rouge": rouge.tolist()}


def prepare(name: str, data: str, out: str, lm: str, query_length: str, response_length: str) -> None:
    """Write OUT/NAME/{train,val}.jsonl: token ids, labels and the baselines' features."""
    rows = [row for _, _, row in read_jsonl(Path(data) / name / SETS[name])]
    if name == "summeval":
        rows = [ranked(row) for row in rows]
    tokenizer, query, response = load_tokenizer(lm), int(query_length), int(response_length)
    suffix = [] if name == "hh_harmless" else encode_continuation(tokenizer, "\n\nTL;DR:")
    cut = slice(-query, None) if name == "hh_harmless" else slice(query - len(suffix))
    held_out = min(HELD_OUT[name], len(rows) // 5)
    for split, part in (("train", rows[:-held_out]), ("val", rows[-held_out:])):
        folder = Path(out) / name
        write_jsonl(folder / f"{split}.texts.jsonl", part)
        reader, made = read_comparisons(folder / f"{split}.texts.jsonl"), []
        for c in reader:
            ids = encode(tokenizer, str(c.prompt))[cut] + suffix
            responses = [encode_continuation(tokenizer, str(r))[:response] for r in c.responses]
            label = {"best": c.best} if c.best is not None else {"ranks": c.ranks}
            made.append({"prompt": ids, "responses": responses, **label, "features": features(c)})
        skipped = {reason: len(lines) for reason, lines in reader.skipped.items()}
        print(f"{name}: {write_jsonl(folder / f'{split}.jsonl', made)} {split} records; left out: {skipped or 'none'}")


def baseline(train: list[Comparison], val: list[Comparison], feature: str) -> list[list[Decision]]:
    """Held-out decisions of a logistic regression on differences of one kind of feature."""
    x, weights = [], []
    for c in train:
        own = np.array(c.meta["features"][feature])
        place = c.ranks or [int(i != c.best) for i in range(len(own))]
        pairs = [(i, j) for i in range(len(own)) for j in range(len(own)) if place[i] < place[j]]
        x += [own[i] - own[j] for i, j in pairs]
        weights += [1 / len(pairs)] * len(pairs)
    both, sides = np.concatenate([x, np.negative(x)]), np.repeat([1, 0], len(x))
    scale = both.std(0) + 1e-12
    fitted = LogisticRegression(fit_intercept=False).fit(both / scale, sides, sample_weight=np.tile(weights, 2))
    weigh = lambda c: (np.array(c.meta["features"][feature]) / scale @ fitted.coef_[0]).tolist()  # noqa: E731
    return [decisions(weigh(c), best=c.best, ranks=c.ranks) for c in val]


def shares(records: list[list[Decision]]) -> np.ndarray:
    """The share of right choices of each record."""
    return np.array([np.mean([d.right for d in record]) for record in records])


def table(out: str) -> str:
    """The figures of every set under OUT that has a reward model, as a Markdown table; also written as JSON."""
    lines = ["| comparisons | scorer | held-out accuracy | 95 % interval | n | margin |", "|---|---|---|---|---|---|"]
    found: dict[str, Any] = {}
    for name in SETS:
        folder = Path(out) / name
        if not (folder / "reward" / "reward.json").is_file():
            continue
        info = json.loads((folder / "reward" / "reward.json").read_text(encoding="utf-8"))
        train, val = ([c for c in read_comparisons(folder / f"{split}.jsonl") if prefers(c)] for split in ("train", "val"))
        scores = comparison_scores(load_reward(str(folder / "reward")), val)
        own = [decisions(s, best=c.best, ranks=c.ranks) for s, c in zip(scores, val, strict=True)]
        figures = info["held_out_figures"]
        found[name] = {"held_out_figures": figures}
        baselines = {f"{feature} alone": baseline(train, val, feature) for feature in ("length", "rouge")}
        for scorer, records in {f"reward model ({info['base']})": own, **baselines}.items():
            f = accuracy(records)
            more = mean_interval(shares(own) - shares(records))
            found[name][scorer] = {**f, "more": [more.mean, more.low, more.high]}
            gain = "" if records is own else f"{more.mean:+.3f} ({more.low:+.3f} to {more.high:+.3f})"
            lines.append(f"| {name} | {scorer} | {f['accuracy']:.3f} | {f['low']:.3f} to {f['high']:.3f} | {f['n']} | {gain} |")
        lines.append(
            f"| {name} | chance | {figures['chance']:.3f} | log-loss {figures['log_loss']:.3f} (chance "
            f"{figures['log_loss_chance']:.3f}), calibration error {figures['calibration_error']:.3f} | | |"
        )
    (Path(out) / "human_comparisons.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    return "\n".join(lines)


if __name__ == "__main__":
    command, *words = sys.argv[1:] or [""]
    if command == "prepare" and len(words) == 6:
        prepare(*words)
    elif command == "table" and len(words) == 1:
        print(table(*words))
    else:
        raise SystemExit(__doc__)
