"""Policies of which each prompt has several responses: every pair of draws compared, the prompt as cluster.

    python runs/several_draws.py zero-shot=a.jsonl,b.jsonl rlhf=c.jsonl,d.jsonl [--reward known:rouge]

The files are those of `python -m eval sample`, each of another `--seed`, on the same prompts. One response a prompt leaves the
noise of the draw in a comparison; several take it out, and what is left is the prompts'.
"""

from __future__ import annotations

import argparse
from itertools import combinations, product

import numpy as np

from eval.winrate import mean_interval, win_rate
from lightning_rlhf.records import read_samples
from lightning_rlhf.scoring import call_reward, load_callable

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policies", nargs="+", help="NAME=FILE,FILE…; each is compared with those before it")
    parser.add_argument("--reward", default="known:rouge")
    args = parser.parse_args()
    reward, ids, scores = load_callable(args.reward), [], {}
    for name, files in (given.split("=", 1) for given in args.policies):
        draws = []
        for file in files.split(","):
            rows = sorted(read_samples(file), key=lambda row: row.id)
            if ids and [row.id for row in rows] != ids:
                raise SystemExit(f"{file}: found other prompts than in the files before it")
            ids = [row.id for row in rows]
            columns = {"reference": [row.reference for row in rows]}
            draws.append(call_reward(reward, [row.prompt for row in rows], [row.response for row in rows], columns))
        scores[name] = np.array(draws)  # (draws, prompts)
        print(f"{name}: {len(draws)} draws of {len(ids)} prompts, mean {scores[name].mean():.4f}")
    for before, name in combinations(scores, 2):
        pairs = [(a, b, i) for i, id_ in enumerate(ids) for a, b in product(scores[name][:, i], scores[before][:, i])]
        outcomes = [0.5 if abs(a - b) < 1e-9 else float(a > b) for a, b, _ in pairs]
        won = win_rate(outcomes, clusters=[ids[i] for *_, i in pairs])
        gain = mean_interval((scores[name].mean(0) - scores[before].mean(0)).tolist(), ids)
        rate = f"{won.rate:.3f} ({won.low:.3f} to {won.high:.3f}), p {won.p_value:.2g}"
        print(f"{name} over {before}: {rate}; mean {gain.mean:+.4f} ({gain.low:.4f} to {gain.high:.4f})")
