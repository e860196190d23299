"""What several tests start from: a toy task on the embedded model, files of records, a quiet trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytorch_lightning as L

from lightning_rlhf.tasks import Task

STORIES = "stories260k"
TASK = Task(name="toy", query_length=12, start_text=None, response_length=6, truncate_text=" a", truncate_after=1)
PROMPTS = ["Once upon a time", "Lily", "The big dog ran", "Tom was sad. He", "She said", "A cat and a dog", "They",
           "One day, a bird"]  # fmt: skip
REWARD = "def spaces(prompts, completions, **columns):\n    return [c.count(' ') - 0.1 * len(c) for c in completions]\n"


def write(path: Path, records: list[dict[str, Any]]) -> str:
    """JSON lines; the file's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return str(path)


def trainer_of(*callbacks: L.Callback, precision: Any = "32-true") -> L.Trainer:
    """One epoch in float32 on the CPU, without logger or progress bar."""
    return L.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, precision=precision, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, callbacks=list(callbacks),
    )  # fmt: skip


class Rows(L.Callback):
    """What was logged, one row a training batch."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.rows.append({k: float(v) for k, v in trainer.callback_metrics.items()})
