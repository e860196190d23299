"""SIGKILL at random moments of a small PPO run; each resume must end bit-equal to the uninterrupted run.

    python benchmarks/kill_resume.py --kills 30 --output FILE.md

stories260k, 6 iterations of 8 episodes, a checkpoint and a validation every second one. A callback notes the phase that the
run is in; this process kills it from outside, at a random moment of the uninterrupted run's length, so that it falls anywhere,
also into a checkpoint's write or the export. Then the same command goes on with `--ckpt_path` where there is a checkpoint
(before the first one: from the start), and weights, value head, counters, β and the optimizer's state are compared bit by bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import yaml
from common import head, make_reward, save, write_prompts
from safetensors.torch import load_file

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "sentiment"
KILLER = '''
import os
import time

import pytorch_lightning as L

from lightning_rlhf import ppo
from lightning_rlhf.ppo import PPOModule
from lightning_rlhf.stage import StageCheckpoint


class Killer(L.Callback):
    """Writes down the phase under way; an external SIGKILL ends the process at the moment asked for."""

    def __init__(self, file: str) -> None:
        self.file = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for owner, name, phase in (
            (ppo, "sample_with", "rollout"), (PPOModule, "score", "scoring"), (PPOModule, "update", "update"),
            (StageCheckpoint, "save", "checkpoint"), (PPOModule, "validation_step", "validation"),
            (PPOModule, "export", "export"),
        ):
            self.watch(owner, name, phase)

    def watch(self, owner, name, phase) -> None:
        function = getattr(owner, name)

        def watched(*args, **kwargs):
            before = self.phase
            self.note(phase)
            try:
                return function(*args, **kwargs)
            finally:
                self.note(before)

        setattr(owner, name, watched)

    phase = "start"

    def note(self, phase: str) -> None:
        self.phase = phase
        os.pwrite(self.file, f"{phase:<20}".encode(), 0)

    def on_train_start(self, trainer, pl_module) -> None:
        self.note("between")
        os.pwrite(self.file, f"{time.time():<20.6f}".encode(), 20)
'''


def command(folder: Path, files: dict[str, str]) -> list[str]:
    """The run's command, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    saver = {"class_path": "lightning_rlhf.stage.StageCheckpoint", "init_args": {"path": str(folder / "last.ckpt"), "every": 2}}
    killer = {"class_path": "killer.Killer", "init_args": {"file": str(folder / "phase")}}
    overlay = {
        "model": {"init_args": {"output": str(folder / "export"), "reward": files["reward"], "guard_comparisons": None,
                                "allow_unguarded": True, "kl_tolerance": 1e9}},
        "data": {"init_args": {"train": files["prompts"], "val": files["val"], "batch_size": 8, "total_episodes": 48}},
        "trainer": {"callbacks": [saver, killer], "logger": False, "val_check_interval": 2, "check_val_every_n_epoch": None},
    }  # fmt: skip
    (folder / "overlay.yaml").write_text(yaml.safe_dump(overlay), encoding="utf-8")
    words = [sys.executable, "-m", "lightning_rlhf", "fit"]
    for config in (CONFIGS / "ppo.yaml", CONFIGS / "stories260k" / "ppo.yaml", folder / "overlay.yaml"):
        words += ["-c", str(config)]
    quiet = ("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false", "--trainer.accelerator", "cpu")
    return [*words, "--trainer.precision", "32-true", *quiet]


def phase_of(folder: Path) -> tuple[str, float]:
    """The phase that was noted last, and when training began (0: not yet)."""
    text = (folder / "phase").read_text(encoding="utf-8") if (folder / "phase").is_file() else ""
    return text[:20].strip() or "start", float(text[20:].strip() or 0)


def run(words: list[str], environment: dict[str, str], folder: Path, kill_after: float | None = None) -> float:
    """Run to the end, or kill it so many seconds after training began; returns the seconds of training."""
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while process.poll() is None and kill_after is not None:
        began = phase_of(folder)[1]
        if began and time.time() >= began + kill_after:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.001)
    _, err = process.communicate()
    if process.returncode not in (0, -signal.SIGKILL):
        raise SystemExit(f"status {process.returncode}: {err.decode()[-2000:]}")
    return time.time() - phase_of(folder)[1]


def differences(whole: Path, resumed: Path) -> list[str]:
    """What of the two ends is not bit-equal."""
    found = []
    for name in ("model.safetensors", "value_head.safetensors"):
        a, b = (load_file(folder / "export" / name) for folder in (whole, resumed))
        found += [f"{name}: {k}" for k in a.keys() | b.keys() if k not in a or k not in b or not torch.equal(a[k], b[k])]
    a, b = (torch.load(folder / "last.ckpt", weights_only=True) for folder in (whole, resumed))
    found += ["stage state"] if a["stage"]["state"] != b["stage"]["state"] else []
    flat = [torch.utils._pytree.tree_leaves(x["optimizer_states"]) for x in (a, b)]
    same = len(flat[0]) == len(flat[1]) and all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(*flat, strict=True)
    )
    return found if same else [*found, "optimizer state"]


def main() -> None:
    """Run, kill, resume, compare, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    parser.add_argument("--output", default=None, help="Markdown file of the table")
    args = parser.parse_args()
    rng, rows, unequal = random.Random(args.seed), [], 0
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "killer.py").write_text(KILLER, encoding="utf-8")
        path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        files = {"reward": make_reward("stories260k", root / "reward"), "prompts": write_prompts(root / "p.jsonl", 48, 24),
                 "val": write_prompts(root / "v.jsonl", 8, 24)}  # fmt: skip
        whole = root / "whole"
        length = run(command(whole, files), environment, whole)
        for number in range(args.kills):
            folder = root / f"kill{number}"
            moment = rng.uniform(0, length)
            words = command(folder, files)
            run(words, environment, folder, moment)
            phase, ended = phase_of(folder)[0], (folder / "export" / "run.json").is_file()
            checkpoint = folder / "last.ckpt"
            saved = torch.load(checkpoint, weights_only=True)["stage"]["state"]["updates"] if checkpoint.is_file() else 0
            partial = [p.name for p in folder.glob(".last.ckpt*")]
            if not ended:
                resume = ["--ckpt_path", str(checkpoint)] if checkpoint.is_file() else []
                run([*words, *resume, "--model.overwrite", "true"], environment, folder)
            found = differences(whole, folder)
            unequal += bool(found)
            rows.append((number + 1, moment, "after the end" if ended else phase, saved, bool(partial), found))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    save(table(rows, unequal, length), args.output)


def table(rows: list[Any], unequal: int, length: float) -> str:
    """As Markdown."""
    phases = Counter(row[2] for row in rows)
    lines = [
        head(f"SIGKILL at {len(rows)} random moments of a PPO run of {length:.1f} s, each resumed", 1),
        f"Not bit-equal to the uninterrupted run: **{unequal} of {len(rows)}**. Phases hit: "
        + ", ".join(f"{phase} {n}" for phase, n in phases.most_common())
        + ".\n",
        "| kill | second | phase | iterations in the checkpoint | half-written file beside it | differences at the end |",
        "|--:|--:|---|--:|---|---|",
    ]
    for number, moment, phase, saved, partial, found in rows:
        lines.append(
            f"| {number} | {moment:.2f} | {phase} | {saved} | {'yes' if partial else 'no'} | {', '.join(found) or 'none'} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
