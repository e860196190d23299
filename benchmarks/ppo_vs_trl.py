"""One PPO iteration here and in TRL 1.12 (`trl.experimental.ppo`), side by side: seconds, memory, operations.

    pip install -e '.[bench]'
    python benchmarks/ppo_vs_trl.py --shape gpt2 --threads 2 --rounds 3 --output FILE.md
    python benchmarks/ppo_vs_trl.py --device cuda --precision bf16 --shape gpt2 --batch 512 --trl-micro 128 --iterations 4

The same weights, prompts, reward model, precision, threads and numbers of epochs; TRL with `gc.collect` switched off, so that
it is compared at its best. Rows: `shared` (value head on the policy's trunk, the default here), `separate` (a value network of
its own: TRL's work) and `trl`. The sides take turns, each in a process of its own, so that the peak memory is its own; the first
iteration of a process is not timed. Operations (of matrix products) are counted once, in a process that is not measured: the
counter keeps graphs alive. The rate of a plain matrix product is measured in every round. On a GPU the memory is the most that
was allocated, and the operations of a replayed graph (the sampler's steps but the first) are not counted.
"""

from __future__ import annotations

import argparse
import inspect
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import SHAPES, head, make_lm, make_reward, matmul_rate, now, save, spread, write_prompts

from lightning_rlhf.machine import peak_resident

SIDES = ("shared", "separate", "trl")


def attention_counts() -> dict[Any, Callable[..., int]]:
    """Operations of fused attention; torch before 2.13 counts none where queries share keys."""

    def forward(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return int(2 * query[0] * query[1] * query[2] * key[2] * (query[3] + value[3]))

    def backward(_: Any, query: Any, key: Any, value: Any, *__: Any, **___: Any) -> int:
        return int(2 * query[0] * query[1] * query[2] * key[2] * (3 * query[3] + 2 * value[3]))

    found: dict[Any, Callable[..., int]] = {}
    for kernel in ("flash", "efficient", "cudnn"):
        found[getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}_attention")] = forward
        found[getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}_attention_backward")] = backward
    return found


class Clock:
    """Ends of iterations and parts of them, or, where it counts, the operations of the first iteration."""

    def __init__(self, device: str, counts: bool) -> None:
        from torch.utils.flop_counter import FlopCounterMode

        self.device = device
        self.counter = FlopCounterMode(display=False, custom_mapping=attention_counts()) if counts else None
        self.flops = 0
        self.seconds: list[float] = []
        self.parts: dict[str, dict[str, Any]] = {}
        self.began = 0.0

    def start(self) -> None:
        """Before the first iteration."""
        self.began = now(self.device)
        if self.counter is not None:
            self.counter.__enter__()

    def lap(self) -> None:
        """After each iteration."""
        self.seconds.append(now(self.device) - self.began)
        if self.counter is not None and len(self.seconds) == 1:
            self.counter.__exit__(None, None, None)
            self.flops = self.counter.get_total_flops()
        self.began = now(self.device)

    def of(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose seconds and operations are kept."""

        def run(*args: Any, **kwargs: Any) -> Any:
            part, began = self.parts.setdefault(name, {"seconds": [], "flops": 0}), now(self.device)
            before = self.counter.get_total_flops() if self.counter else 0
            found = function(*args, **kwargs)
            part["seconds"].append(now(self.device) - began)
            part["flops"] += self.counter.get_total_flops() - before if self.counter else 0
            return found

        return run

    def found(self) -> dict[str, Any]:
        """As plain data; of the seconds those after the first iteration."""
        peak = torch.cuda.max_memory_allocated() if self.device == "cuda" else peak_resident()
        parts = {name: {**part, "seconds": part["seconds"][1:]} for name, part in self.parts.items()}
        return {"seconds": self.seconds[1:], "first": self.seconds[0], "flops": self.flops, "peak_mb": peak / 2**20,
                "parts": parts}  # fmt: skip


def ours(args: argparse.Namespace, files: dict[str, str], clock: Clock) -> None:
    """`PPOModule` under a Lightning Trainer."""
    import pytorch_lightning as L

    from lightning_rlhf import ppo
    from lightning_rlhf.cli import quiet
    from lightning_rlhf.data import PromptData
    from lightning_rlhf.ppo import PPOModule
    from lightning_rlhf.tasks import Task

    quiet()
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    more: dict[str, Any] = {}
    compiled = args.compile and not args.count
    if args.lora:
        from lightning_rlhf.lora import LoRA

        more = {"lora": LoRA(r=args.lora, alpha=2 * args.lora, target_modules=None)}  # peft's choice, as TRL's
    task = Task(name="sentiment", query_length=args.prompt, response_length=args.response, truncate_text=None,
                start_text=None, end_text=None, temperature=0.7)  # fmt: skip
    module = PPOModule(
        policy=files["lm"], reward=files["reward"], output=files["output"], task=task, allow_unguarded=True,
        num_ppo_epochs=args.epochs, micro_batch_size=args.micro, value=args.side, kl_tolerance=1e9,
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-6), gradient_checkpointing=args.checkpointing,
        compile_blocks=compiled, compile_sampler=compiled, **more,
    )  # fmt: skip
    module.update = clock.of("update", module.update)  # type: ignore[method-assign]
    ppo.sample_with = clock.of("rollout", ppo.sample_with)  # type: ignore[assignment]
    episodes = args.batch * (1 if args.count else args.iterations)
    data = PromptData(files["prompts"], files["lm"], task, batch_size=args.batch, total_episodes=episodes)

    class Laps(L.Callback):
        def on_train_start(self, *_: Any) -> None:
            clock.start()

        def on_train_batch_end(self, *_: Any) -> None:
            clock.lap()

    module.on_train_end = lambda: None  # type: ignore[method-assign]  # no export: TRL's is not measured either
    trainer = L.Trainer(
        accelerator=args.device, devices=1, precision="bf16-mixed" if args.precision == "bf16" else "32-true", max_epochs=1,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[Laps()],
        num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, data)


def trl(args: argparse.Namespace, files: dict[str, str], clock: Clock) -> None:
    """`trl.experimental.ppo.PPOTrainer`."""
    import gc

    gc.collect = lambda *_: 0  # type: ignore[assignment]
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    if args.precision == "bf16":
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(files["reward"], padding_side="left")  # its export has a pad token of its own
    lm = lambda: AutoModelForCausalLM.from_pretrained(files["lm"])  # noqa: E731
    scalar = lambda: AutoModelForSequenceClassification.from_pretrained(files["reward"], num_labels=1)  # noqa: E731
    policy, reference = lm(), lm()
    more: dict[str, Any] = {}
    if args.lora:
        from peft import LoraConfig

        reference, more = None, {"peft_config": LoraConfig(r=args.lora, lora_alpha=2 * args.lora, task_type="CAUSAL_LM")}
    for model in (policy, reference):
        if model is not None and tokenizer.pad_token_id >= model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(tokenizer.pad_token_id + 1)
    micro = args.trl_micro or args.micro or args.batch
    config = PPOConfig(
        output_dir=files["output"], per_device_train_batch_size=micro, gradient_accumulation_steps=args.batch // micro,
        num_mini_batches=1, num_ppo_epochs=args.epochs, total_episodes=args.batch * (1 if args.count else 2),
        response_length=args.response,
        local_rollout_forward_batch_size=args.trl_rollout or micro, temperature=0.7,
        num_sample_generations=0, whiten_rewards=args.batch >= 8,
        gradient_checkpointing=args.checkpointing, bf16=args.precision == "bf16", use_cpu=args.device == "cpu", report_to="none",
        save_strategy="no",
        learning_rate=1e-6, disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip

    class Laps(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            clock.start()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.lap()

    rows = [json.loads(line)["prompt"] for line in Path(files["prompts"]).read_text(encoding="utf-8").splitlines()]
    trainer = PPOTrainer(
        config, tokenizer, policy, reference, scalar(), Dataset.from_dict({"input_ids": rows}), scalar(), callbacks=[Laps()],
        eval_dataset=Dataset.from_dict({"input_ids": rows[:1]}), **more,
    )  # fmt: skip
    trainer.train()


def one_side(args: argparse.Namespace) -> None:
    """In a child: run, and write what was found."""
    torch.set_num_threads(args.threads)
    clock, files = Clock(args.device, args.count), json.loads(args.files)
    (trl if args.side == "trl" else ours)(args, files, clock)
    Path(files["found"]).write_text(json.dumps(clock.found()), encoding="utf-8")


def child(side: str, files: dict[str, str], *more: str) -> dict[str, Any]:
    """Run a side in a process of its own."""
    words = [sys.executable, *sys.argv, "--side", side, "--files", json.dumps(files), *more]
    done = subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} ended with status {done.returncode}:\n{done.stderr[-3000:]}")
    return dict(json.loads(Path(files["found"]).read_text(encoding="utf-8")))


def counted(side: str, files: dict[str, str]) -> dict[str, Any]:
    """The operations of a side, and of its parts."""
    found = child(side, files, "--count")
    return {"flops": found["flops"], "parts": {name: part["flops"] for name, part in found["parts"].items()}}


def check(args: argparse.Namespace) -> None:
    """What cannot run is told first."""
    from importlib.util import find_spec

    from lightning_rlhf.ppo import PPOModule

    if args.lora and "lora" not in inspect.signature(PPOModule.__init__).parameters:
        raise SystemExit("--lora: PPOModule has no option `lora` in this version, and a row without it would not be a comparison")
    if "trl" in args.sides and find_spec("trl") is None:
        raise SystemExit("trl is not installed: pip install -e '.[bench]' (trl==1.12.0), or --sides shared separate")


def measure(args: argparse.Namespace, folder: Path) -> tuple[dict[str, list[dict[str, Any]]], list[float]]:
    """All rounds: what each side found in each, with its operations, and the matmul rate of each round."""
    lm = make_lm(args.shape, folder / "lm")
    files = {"lm": lm, "reward": make_reward(lm, folder / "reward"), "found": str(folder / "found.json"),
             "prompts": write_prompts(folder / "prompts.jsonl", args.batch * args.iterations, args.prompt)}  # fmt: skip
    torch.set_num_threads(args.threads)
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in args.sides}
    operations = {side: counted(side, {**files, "output": str(folder / f"{side} counted")}) for side in args.sides}
    rates = []
    for number in range(args.rounds):
        rates.append(matmul_rate(torch.bfloat16 if args.precision == "bf16" else torch.float32, args.device))
        if args.device == "cuda":
            torch.cuda.empty_cache()
        for side in args.sides:
            run = child(side, {**files, "output": str(folder / f"{side}{number}")})
            for name, flops in operations[side]["parts"].items():
                run["parts"][name]["flops"] = flops
            found[side].append({**run, "flops": operations[side]["flops"]})
            print(f"round {number + 1}, {side}: {found[side][-1]}", file=sys.stderr, flush=True)
    return found, rates


def table(args: argparse.Namespace, found: dict[str, list[dict[str, Any]]], rates: list[float]) -> str:
    """As Markdown."""
    what = f"LoRA r {args.lora}" if args.lora else "all parameters"
    title = (
        f"PPO iteration: {args.shape}, batch {args.batch}, {args.prompt} + {args.response} tokens, {args.epochs} epochs, "
        f"{what}, {args.precision}; median (range) of {args.rounds} round(s)"
    )
    lines = [
        head(title, args.threads, ("torch", "transformers", "trl", "peft")),
        f"Matrix product: {spread(rates, 0)} GFLOP/s ({args.precision}). Operations are those of matrix products, counted.\n",
        "| side | seconds | first, s | tokens/s | peak, MB | TFLOP | share of the rate | times TRL's speed | of TRL's memory |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for side, runs in found.items():
        seconds = [min(run["seconds"]) for run in runs]
        tokens = [args.batch * args.response / s for s in seconds]
        share = [run["flops"] / s / 1e9 / rate for run, s, rate in zip(runs, seconds, rates, strict=True)]
        cells = [
            spread(seconds), spread([r["first"] for r in runs]), spread(tokens, 1), spread([r["peak_mb"] for r in runs], 0),
            f"{runs[0]['flops'] / 1e12:.3f}", spread(share),
        ]  # fmt: skip
        if "trl" in found:
            pairs = list(zip(found["trl"], runs, strict=True))
            cells.append(spread([min(t["seconds"]) / min(r["seconds"]) for t, r in pairs]))
            cells.append(spread([r["peak_mb"] / t["peak_mb"] for t, r in pairs]))
        else:
            cells += ["", ""]
        lines.append(f"| {side} | " + " | ".join(cells) + " |")
    lines += ["", "| side | sampling, s | tokens/s | update, s | TFLOP | share of the rate |", "|---|--:|--:|--:|--:|--:|"]
    for side, runs in found.items():
        if not runs[0]["parts"]:
            continue
        sampling, update = ([min(run["parts"][name]["seconds"]) for run in runs] for name in ("rollout", "update"))
        flops = [run["parts"]["update"]["flops"] for run in runs]
        share = [f / s / 1e9 / rate for f, s, rate in zip(flops, update, rates, strict=True)]
        cells = [
            spread(sampling, 3), spread([args.batch * args.response / s for s in sampling], 0), spread(update, 3),
            f"{flops[0] / 1e12:.3f}", spread(share),
        ]  # fmt: skip
        lines.append(f"| {side} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Read the options; be a child or the parent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--shape", default="gpt2", choices=SHAPES)
    add("--device", default="cpu", choices=("cpu", "cuda"))
    add("--batch", type=int, default=16, help="episodes an iteration")
    add("--prompt", type=int, default=64, help="tokens")
    add("--response", type=int, default=24, help="tokens")
    add("--epochs", type=int, default=4, help="inner epochs")
    add("--micro", type=int, default=None, help="episodes a forward pass of the update; default: all")
    add("--trl-micro", type=int, default=None, help="the same for TRL, where its logits do not fit; default: as --micro")
    add("--trl-rollout", type=int, default=None, help="episodes that TRL samples and scores together; default: as --trl-micro")
    add("--compile", action="store_true", help="model.compile_blocks and model.compile_sampler")
    add("--checkpointing", action="store_true", help="gradient checkpointing, on both sides")
    add("--precision", default="32", choices=("32", "bf16"))
    add("--lora", type=int, default=None, help="rank; default: all parameters train")
    add("--threads", type=int, default=2)
    add("--rounds", type=int, default=3, help="times that the sides take turns")
    add("--iterations", type=int, default=2, help="ours, in each process; the first is not timed. TRL's are two")
    add("--sides", nargs="+", default=list(SIDES), choices=SIDES)
    add("--output", default=None, help="Markdown file of the table")
    add("--side", default=None, choices=SIDES, help=argparse.SUPPRESS)
    add("--files", default=None, help=argparse.SUPPRESS)
    add("--count", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        one_side(args)
        return
    if args.iterations < 2:
        raise SystemExit(f"--iterations: found {args.iterations}, expected at least 2 (the first is not timed)")
    check(args)
    with tempfile.TemporaryDirectory() as folder:
        found, rates = measure(args, Path(folder))
    save(table(args, found, rates), args.output)


if __name__ == "__main__":
    main()
