"""A reward model on the same pairs here and in TRL 1.12's RewardTrainer: held-out accuracy, seconds, memory.

    pip install -e '.[bench]'
    runs/human_comparisons.sh DATA OUT                (its first step prepares the files)
    python benchmarks/reward_vs_trl.py OUT/hh_harmless/train.jsonl OUT/hh_harmless/val.jsonl --output FILE.md

The same start (a model's first blocks and the same head), pairs, batch, AdamW, linear schedule, precision and threads; one epoch,
nothing frozen, no gradient clipping, no normalisation. The orders differ. The sides take turns, each in a process of its own;
both are scored by the same function, each held-out response by itself. TRL reads chosen and rejected apart, the package a pair's
query once.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as L
import torch
from common import head, matmul_rate, save

from lightning_rlhf.heldout import accuracy, decisions
from lightning_rlhf.machine import peak_resident
from lightning_rlhf.models import load_lm, load_tokenizer
from lightning_rlhf.records import Comparison, read_comparisons
from lightning_rlhf.scalar import ScalarModel, load_scalar, save_reward
from lightning_rlhf.tasks import Task
from lightning_rlhf.trunks import first_blocks

SIDES = ("ours", "trl")


def pairs(path: str, most: int | None) -> list[Comparison]:
    """The first comparisons of a file; each of two responses, as token ids."""
    found = list(read_comparisons(path))[:most]
    if any(len(c.responses) != 2 or c.best is None or isinstance(c.prompt, str) for c in found):
        raise SystemExit(f"{path}: expected pairs of token ids with `best` (runs/human_comparisons.py prepare)")
    return found


class Clock(L.Callback):
    """Seconds of training, without what is read before and written after it."""

    seconds = began = 0.0

    def on_train_start(self, *_: Any) -> None:
        self.began = time.perf_counter()

    def on_train_end(self, *_: Any) -> None:
        self.seconds = time.perf_counter() - self.began


def ours(args: argparse.Namespace, folder: Path) -> float:
    """`RewardModule` under a Lightning Trainer; seconds of training."""
    from lightning_rlhf.cli import quiet
    from lightning_rlhf.data import PreferenceData
    from lightning_rlhf.reward import RewardModule

    quiet()
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    longest = 4096  # ids are cut already
    task = Task(name="pairs", query_length=longest, response_length=longest, truncate_text=None, start_text=None, end_text=None)
    module = RewardModule(
        args.lm, str(folder / "reward"), task, num_hidden_layers=args.blocks, normalise="none", seed=args.seed,
        optimizer=lambda p: torch.optim.AdamW(p, lr=args.lr, weight_decay=0.0),
    )  # fmt: skip
    data = PreferenceData(str(folder / "train.jsonl"), args.lm, task, batch_size=args.batch, seed=args.seed)
    module.configure_model()
    start, _, _ = load_scalar(folder / "start")
    module.scalar.load_state_dict(start.state_dict())
    trainer = L.Trainer(
        accelerator="cpu", devices=1, precision="32-true", max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, callbacks=[clock := Clock()],
    )  # fmt: skip
    trainer.fit(module, data)
    return clock.seconds


def trl(args: argparse.Namespace, folder: Path) -> float:
    """`trl.RewardTrainer`; seconds of training."""
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    rows = [(list(c.prompt), [list(r) for r in c.responses], c.best) for c in pairs(str(folder / "train.jsonl"), None)]
    data = Dataset.from_dict({
        "chosen_ids": [q + r[best] for q, r, best in rows], "rejected_ids": [q + r[1 - best] for q, r, best in rows],
    })  # fmt: skip
    model = AutoModelForSequenceClassification.from_pretrained(folder / "start", num_labels=1)
    config = RewardConfig(
        output_dir=str(folder / "trl"), per_device_train_batch_size=args.batch, num_train_epochs=1, learning_rate=args.lr,
        lr_scheduler_type="linear", warmup_steps=0, weight_decay=0.0, max_grad_norm=0.0, max_length=None, seed=args.seed,
        gradient_checkpointing=False, bf16=False, use_cpu=True, report_to="none", save_strategy="no", logging_strategy="no",
        disable_tqdm=True,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(folder / "start")
    trainer = RewardTrainer(model=model, args=config, train_dataset=data, processing_class=tokenizer)
    began = time.perf_counter()
    trainer.train()
    took = time.perf_counter() - began
    model.save_pretrained(folder / "reward")
    tokenizer.save_pretrained(folder / "reward")
    shutil.copy(folder / "start/reward.json", folder / "reward")
    return took


@torch.no_grad()
def held_out(folder: Path) -> dict[str, Any]:
    """Accuracy of the side's reward directory, each response read by itself."""
    scalar, _, _ = load_scalar(folder / "reward")
    found, wins = [], []
    for c in pairs(str(folder / "val.jsonl"), None):
        ids = [torch.tensor([[*c.prompt, *r]]) for r in c.responses]
        scores = [scalar(x, torch.ones_like(x, dtype=torch.bool)).item() for x in ids]
        found.append(decisions(scores, best=c.best))
        wins.append(torch.tensor(scores[c.best or 0] - scores[1 - (c.best or 0)]))
    loss = -torch.nn.functional.logsigmoid(torch.stack(wins)).mean().item()
    return {**accuracy(found), "log_loss": loss}


def one_side(args: argparse.Namespace) -> None:
    """In a child: train, score, and write what was found."""
    torch.set_num_threads(args.threads)
    folder = Path(args.folder)
    seconds = (trl if args.side == "trl" else ours)(args, folder)
    found = {**held_out(folder), "seconds": seconds, "peak_mb": peak_resident() / 2**20}
    (folder / f"{args.side}.json").write_text(json.dumps(found), encoding="utf-8")


def prepare(args: argparse.Namespace, folder: Path) -> None:
    """The files and the start that both sides take."""
    for split, path, most in (("train", args.train, args.pairs), ("val", args.val, None)):
        rows = [{"prompt": c.prompt, "responses": c.responses, "best": c.best} for c in pairs(path, most)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    torch.manual_seed(args.seed)
    trunk = load_lm(args.lm).model.base_model
    width = trunk.get_input_embeddings().weight.shape[1]
    scalar = ScalarModel(first_blocks(trunk, args.blocks) if args.blocks else trunk, width, std=(width + 1) ** -0.5)
    save_reward(folder / "start", scalar, load_tokenizer(args.lm), {"task": "pairs"})


def main() -> None:
    """Read the options; be a child or the parent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("train", help="pairs of token ids")
    add("val", help="held-out ones")
    add("--lm", default="smollm2")
    add("--blocks", type=int, default=8, help="first blocks of the model that are kept; 0: all")
    add("--pairs", type=int, default=None, help="train on so many; default: all")
    add("--batch", type=int, default=8)
    add("--lr", type=float, default=5e-5)
    add("--seed", type=int, default=1)
    add("--threads", type=int, default=2)
    add("--sides", nargs="+", default=list(SIDES), choices=SIDES)
    add("--output", default=None, help="Markdown file of the table")
    add("--side", default=None, choices=SIDES, help=argparse.SUPPRESS)
    add("--folder", default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.blocks = args.blocks or None
    if args.side:
        one_side(args)
        return
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(args.threads)
    lines = [
        head(f"Reward model on {Path(args.train).parent.name}: first {args.blocks or 'all'} blocks of {args.lm}, lr {args.lr}",
             args.threads, ("torch", "transformers", "trl")),
        f"Matrix product: {matmul_rate():,.0f} GFLOP/s.\n",
        "| side | held-out accuracy, 95 % interval | log-loss (chance 0.693) | n | seconds | peak, MB |",
        "|---|---|--:|--:|--:|--:|",
    ]  # fmt: skip
    took: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        prepare(args, Path(name))
        for side in args.sides:
            words = [sys.executable, *sys.argv, "--side", side, "--folder", name]
            done = subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{side} ended with status {done.returncode}:\n{done.stderr[-3000:]}")
            f = json.loads((Path(name) / f"{side}.json").read_text(encoding="utf-8"))
            took[side] = f["seconds"]
            lines.append(
                f"| {side} | {f['accuracy']:.3f} ({f['low']:.3f}–{f['high']:.3f}) | {f['log_loss']:.3f} | {f['n']} | "
                f"{f['seconds']:,.0f} | {f['peak_mb']:,.0f} |"
            )
            print(lines[-1], flush=True)
    if len(took) == len(SIDES):
        lines.append(f"\nTimes TRL's speed: {took['trl'] / took['ours']:.2f}")
    save("\n".join(lines), args.output)


if __name__ == "__main__":
    main()
