"""What the benchmarks share: models of a shape with random weights, prompts, the machine's matmul rate, the table's head."""

from __future__ import annotations

import json
import platform
import random
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from lightning_rlhf.models import find_lm, load_lm, load_tokenizer
from lightning_rlhf.runinfo import commit
from lightning_rlhf.scalar import ScalarModel, save_reward

SHAPES = ("tiny", "stories260k", "gpt2", "smollm2", "llama1b")
LLAMA_1B: dict[str, Any] = dict(  # the shape of Llama 3.2 1B: 1.24 billion parameters
    vocab_size=128_256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
    num_key_value_heads=8, head_dim=64, tie_word_embeddings=True, max_position_embeddings=4096, bos_token_id=1, eos_token_id=2,
)  # fmt: skip


def make_lm(shape: str, folder: Path) -> str:
    """A model's name or directory. With random weights: `gpt2` is GPT-2's shape (124M), `tiny` has two blocks of width 64."""
    if shape in ("stories260k", "smollm2"):
        return find_lm(shape)
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    size: dict[str, Any] = {} if shape == "gpt2" else {"n_layer": 2, "n_embd": 64, "n_head": 4, "vocab_size": 1000}
    with torch.device(here()):
        if shape == "llama1b":
            model: Any = LlamaForCausalLM(LlamaConfig(**LLAMA_1B)).bfloat16()
        else:
            model = GPT2LMHeadModel(GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **size))
    model.save_pretrained(folder)
    load_tokenizer("stories260k").save_pretrained(folder)
    return str(folder)


def make_reward(lm: str, folder: Path) -> str:
    """A reward directory of the model's shape, with a random head."""
    torch.manual_seed(0)
    with torch.device(here()):
        policy = load_lm(lm)
        width = policy.model.get_input_embeddings().weight.shape[1]
        scalar = ScalarModel(policy.model.base_model.to(here()), width, std=1.0)
        save_reward(folder, scalar, policy.tokenizer, {"task": "sentiment"})
    return str(folder)


def here() -> str:
    """Where to make models: on the GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def now(device: str) -> float:
    """Seconds on a clock, what was asked of the device done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def random_ids(rows: int, length: int, seed: int = 0) -> list[list[int]]:
    """Rows of ids that every shape has, and no special one."""
    rng = random.Random(seed)
    return [[rng.randrange(10, 500) for _ in range(length)] for _ in range(rows)]


def write_prompts(file: Path, rows: int, length: int) -> str:
    """Prompts of exactly `length` ids."""
    file.write_text("".join(json.dumps({"prompt": ids}) + "\n" for ids in random_ids(rows, length)), encoding="utf-8")
    return str(file)


def matmul_rate(dtype: torch.dtype = torch.float32, device: str = "cpu", seconds: float = 1.5) -> float:
    """The best GFLOP/s of a square matrix product on this machine, with the threads that are set."""
    size = 8192 if device == "cuda" else 1536
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best, end = float("inf"), now(device) + seconds
    while now(device) < end or best == float("inf"):
        began = now(device)
        torch.mm(a, b)
        best = min(best, now(device) - began)
    return 2 * size**3 / best / 1e9


def bandwidth(device: str, size: int = 2**32) -> float:
    """The best bytes a second of a copy within the device's memory, read and written."""
    a = torch.randint(255, (size,), dtype=torch.uint8, device=device)
    b, best = torch.empty_like(a), float("inf")
    for _ in range(10):
        began = now(device)
        b.copy_(a)
        best = min(best, now(device) - began)
    return 2 * size / best


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, and the range."""
    middle = f"{statistics.median(values):,.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def cpu_name() -> str:
    """The processor, as it calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def head(title: str, threads: int, packages: Sequence[str] = ("torch", "transformers")) -> str:
    """Date, commit, command, machine and versions, above a table."""
    versions = []
    for package in packages:
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            versions.append(f"{package} not installed")
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
    machine = torch.cuda.get_device_name() if "cuda" in sys.argv else f"{cpu_name()}, {threads} thread(s)"
    return f"{title}\n\n{date} UTC, commit {commit()}, {machine}, {', '.join(versions)}; `{command}`\n"


def save(text: str, output: str | None) -> None:
    """Print it, and keep it where asked."""
    print(text, flush=True)
    if output:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        Path(output).write_text(text + "\n", encoding="utf-8")
