"""Real human comparisons for the reward model: prepare them, and print its accuracy beside what length and ROUGE alone reach.

    python runs/human_comparisons.py prepare hh_harmless DATA OUT smollm2 96 64
    python runs/human_comparisons.py table OUT
    python runs/human_comparisons.py probe OUT/hh_harmless smollm2 4 8 12 16

DATA holds hh_harmless/comparisons.jsonl.gz (dialogues; the first 1,600 train, the last 400 are held out) and
summeval/ratings.jsonl.gz (articles with 16 rated summaries each; the last fifth of the articles is held out, and a summary's
rank is by the sum of its four mean ratings). Texts are cut in tokens: of a dialogue the end is kept, of the rest the beginning.

A baseline sees one kind of feature of the two responses: the log of the length in characters, or ROUGE-1, -2, -L against the
human references (dialogues have none: against the prompt). Logistic regression without an intercept on training pairs weighs
them, so that it cannot know which response stands first. The last column is the reward model's share of right choices minus
the baseline's on the same records, with a t interval over records. `probe` asks what the language model holds before anything
is trained: a logistic regression, its penalty by four-fold cross-validation on the training records, on the state after a
block, at a response's last token (where the reward model reads) and in the mean over its tokens.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from tqdm import tqdm

from eval.rouge import rouge_scores
from eval.winrate import mean_interval
from lightning_rlhf.files import read_jsonl, write_jsonl
from lightning_rlhf.heldout import Decision, accuracy, decisions
from lightning_rlhf.models import load_lm, load_tokenizer
from lightning_rlhf.records import Comparison, read_comparisons
from lightning_rlhf.scoring import comparison_scores, load_reward, prefers
from lightning_rlhf.tokens import encode, encode_continuation, pad_batch, position_ids
from lightning_rlhf.trunks import first_blocks

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


def baseline(
    train: list[Comparison], val: list[Comparison], feature: str, strength: float = 1.0, scaled: bool = True
) -> list[list[Decision]]:
    """Held-out decisions of a logistic regression on differences of one kind of feature; strength: scikit-learn's C."""
    x, weights = [], []
    for c in train:
        own = np.array(c.meta["features"][feature])
        place = c.ranks or [int(i != c.best) for i in range(len(own))]
        pairs = [(i, j) for i in range(len(own)) for j in range(len(own)) if place[i] < place[j]]
        x += [own[i] - own[j] for i, j in pairs]
        weights += [1 / len(pairs)] * len(pairs)
    both, sides = np.concatenate([x, np.negative(x)]), np.repeat([1, 0], len(x))
    scale = both.std(0) + 1e-12 if scaled else 1.0
    model = LogisticRegression(fit_intercept=False, C=strength, max_iter=1000)
    fitted = model.fit(both / scale, sides, sample_weight=np.tile(weights, 2))
    weigh = lambda c: (np.array(c.meta["features"][feature]) / scale @ fitted.coef_[0]).tolist()  # noqa: E731
    return [decisions(weigh(c), best=c.best, ranks=c.ranks) for c in val]


def shares(records: list[list[Decision]]) -> np.ndarray:
    """The share of right choices of each record."""
    return np.array([np.mean([d.right for d in record]) for record in records])


@torch.inference_mode()
def states(lm: Any, comparisons: list[Comparison], blocks: list[int]) -> list[np.ndarray]:
    """After each block, of each comparison: (N, 2, blocks, D), at the responses' last tokens and in the mean over them. After
    the largest comes the model's final norm, as in a reward model of so many blocks."""
    trunk, found = first_blocks(lm.model.base_model, max(blocks)), []
    for c in tqdm(comparisons, desc="states", unit="comparison"):
        query, n = torch.tensor([c.prompt]), len(c.responses)
        tokens, mask = pad_batch([[*r] for r in c.responses], 0, "right")
        cache = trunk(query, use_cache=True).past_key_values
        cache.batch_repeat_interleave(n)
        real = torch.cat([torch.ones(n, query.shape[1], dtype=torch.bool), mask], 1)
        given = dict(attention_mask=real.long(), position_ids=position_ids(real)[:, query.shape[1] :], past_key_values=cache)
        hidden = trunk(tokens, output_hidden_states=True, **given).hidden_states
        of = torch.stack([hidden[b] for b in blocks], 2)  # (N, T, blocks, D)
        last = of[torch.arange(n), mask.sum(1) - 1]
        mean = (of * mask[:, :, None, None]).sum(1) / mask.sum(1)[:, None, None]
        found.append(torch.stack([last, mean], 1).numpy())
    return found


def probe(folder: str, name: str, *blocks: str) -> str:
    """Held-out accuracy of regressions on frozen states, as a Markdown table."""
    lm, chosen = load_lm(name), [int(b) for b in blocks]
    splits = [[c for c in read_comparisons(Path(folder) / f"{s}.jsonl") if prefers(c)] for s in ("train", "val")]
    held = [states(lm, split, chosen) for split in splits]
    lines = ["| block | state | held-out accuracy | 95 % interval | by cross-validation |", "|--:|---|---|---|---|"]
    fold = np.random.default_rng(0).permutation(len(splits[0])) % 4
    for at, block in enumerate(chosen):
        for place, where in enumerate(("last token", "mean over the tokens")):
            scale = np.concatenate([x[:, place, at] for x in held[0]]).std(0) + 1e-6
            for c, x in zip(splits[0] + splits[1], held[0] + held[1], strict=True):
                c.meta["features"] = {"state": (x[:, place, at] / scale).tolist()}
            inside = {}
            for strength in (1e-5, 1e-4, 1e-3, 1e-2):
                right = []
                for k in range(4):
                    apart = [[c for c, f in zip(splits[0], fold, strict=True) if (f == k) == own] for own in (False, True)]
                    right.append(shares(baseline(*apart, "state", strength, scaled=False)))
                inside[strength] = float(np.mean(np.concatenate(right)))
            best = max(inside, key=lambda strength: inside[strength])
            f = accuracy(baseline(*splits, "state", best, scaled=False))
            figures = f"{f['accuracy']:.3f} | {f['low']:.3f} to {f['high']:.3f} | {inside[best]:.3f}"
            lines.append(f"| {block} | {where} | {figures} |")
    return "\n".join(lines)


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
    elif command == "probe" and len(words) > 2:
        print(probe(*words))
    elif command == "table" and len(words) == 1:
        print(table(*words))
    else:
        raise SystemExit(__doc__)
