"""Which automatic measure or reward model agrees with the experts of SummEval: Kendall's τ by system and by summary, as Markdown.

python runs/summeval_agreement.py DATA/summeval/ratings.jsonl.gz [RESAMPLES [REWARD_DIRECTORY …]]

A reward model reads an article's first 96 tokens, as the queries of the cnndm overlay have at most, and a summary.
Each line of the file: `{id, article, reference, references: [11], systems: {name: {summary, ratings: {axis: 1..5}}}}`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from eval.agreement import Agreement, tau_table
from eval.copying import distinct_n_within, novel_ngrams, words
from eval.rouge import rouge_scores
from lightning_rlhf.files import read_jsonl
from lightning_rlhf.scoring import LearnedReward
from lightning_rlhf.tokens import encode

AXES = ("coherence", "consistency", "fluency", "relevance")
QUERY = 96
TYPES = ("rouge1", "rouge2", "rougeL")


def cell(found: Agreement) -> str:
    """τ with its interval."""
    return f"{found.value:+.2f} ({found.low:+.2f} to {found.high:+.2f})"


def reward_scores(directory: str, documents: list[dict[str, Any]], systems: list[str]) -> list[float]:
    """A reward model's score of each system's summary of each document, document by document."""
    reward, found = LearnedReward(directory, batch_size=len(systems)), []
    for d in tqdm(documents, desc=directory, unit="article"):
        query = encode(reward.tokenizer, d["article"])[:QUERY]
        found += reward([query] * len(systems), [f" {d['systems'][s]['summary']}" for s in systems])
    return found


def main(path: str, resamples: int = 1000, *rewards: str) -> None:
    """Print the two tables."""
    documents = [d for _, _, d in read_jsonl(path)]
    systems = sorted(documents[0]["systems"])
    shape = (len(documents), len(systems))
    flat = [(d, d["systems"][s]) for d in documents for s in systems]
    texts = [x["summary"] for _, x in flat]

    def table(values: list[float]) -> np.ndarray:
        return np.array(values, dtype=float).reshape(shape)

    ratings = {axis: table([x["ratings"][axis] for _, x in flat]) for axis in AXES}
    ratings["sum"] = np.sum([ratings[axis] for axis in AXES], axis=0)
    length = [len(words(t)) for t in texts]
    measures = {"length in words (control)": table([float(n) for n in length])}
    for name, field in (("1 reference", "reference"), ("best of 11", "references")):
        references = [d[field] for d, _ in flat]
        for kind, found in rouge_scores(texts, references, TYPES).items():
            measures[f"ROUGE-{kind.removeprefix('rouge')} F1, {name}"] = table(found[:, 2].tolist())
    for n in (1, 2, 3):
        measures[f"novel {n}-grams"] = table([novel_ngrams(d["article"], x["summary"], n) for d, x in flat])
    measures["distinct bigrams within"] = table([distinct_n_within(t, 2) for t in texts])
    measures["compression (article / summary)"] = table(
        [len(words(d["article"])) / max(n, 1) for (d, _), n in zip(flat, length, strict=True)]
    )
    for directory in rewards:
        measures[f"reward model {Path(directory).name}"] = table(reward_scores(directory, documents, systems))
    rows = tau_table(measures, ratings, resamples)
    print(f"{shape[0]} documents, {shape[1]} systems; Kendall's τ-b (95 % bootstrap over documents, {resamples} resamples)")
    for level in ("system", "summary"):
        print(f"\n| {level}-level | {' | '.join(ratings)} |\n|---|{'--:|' * len(ratings)}")
        for name in measures:
            print(f"| {name} | {' | '.join(cell(r[level]) for r in rows if r['measure'] == name)} |")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:3]), *sys.argv[3:])
