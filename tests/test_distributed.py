"""Two processes do what one does with the same global batch: replicas (DDP) and sharded networks (FSDP2), over gloo on a CPU.

The processes are forked once and run one job after the other; each job's weights and figures are compared with a run of the same
options in this process. Sampling draws from a seed a rank, so the one process draws the ranks' rows apart (`both_ranks`).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import pytorch_lightning as L
import torch
from pytorch_lightning.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from safetensors.torch import load_file
from tiny import PROMPTS
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader
from transformers import GPT2Config, GPT2LMHeadModel

from lightning_rlhf import ppo
from lightning_rlhf.data import PreferenceData, PromptData, SFTData
from lightning_rlhf.generation import Drawn, sample_with
from lightning_rlhf.lora import LoRA
from lightning_rlhf.models import load_lm
from lightning_rlhf.optim import AdamTF
from lightning_rlhf.ppo import PPOModule
from lightning_rlhf.reward import RewardModule
from lightning_rlhf.sft import SFTModule
from lightning_rlhf.stage import StageCheckpoint
from lightning_rlhf.tasks import Task

LM = "stories260k"
TASK = Task(name="toy", query_length=12, start_text=None, response_length=6, truncate_text=None, truncate_after=0)
TEXTS = [" and ran away", " sat on it", " is big", " was very happy to see the bird"]
REWARD = """
def length(prompts, completions, **columns):
    return [c.count(" ") - 0.1 * len(c) + 0.01 * len(p) for p, c in zip(prompts, completions, strict=True)]
"""


class Figures(L.Callback):
    """The figures of all ranks' items, after each step and at the end; not clocks, nor a rank's own (train/…)."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        names = ("objective/", "ppo/", "val/")
        self.rows.append({k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(names)})

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.on_train_batch_end(trainer)


class Kill(L.Callback):
    """Ends a rank, without a chance to clean up, before the nth optimizer step."""

    def __init__(self, rank: int, step: int, mark: Path) -> None:
        self.rank, self.left, self.mark = rank, step, mark

    def on_before_optimizer_step(self, trainer: Any, *_: Any) -> None:
        self.left -= 1
        if not self.left and trainer.global_rank == self.rank:
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def write(path: Path, content: str | list[dict[str, Any]]) -> str:
    """A text or JSON lines, by rename: several processes write the same file."""
    aside = path.with_suffix(f".{os.getpid()}")
    aside.write_text(content if isinstance(content, str) else "".join(json.dumps(r) + "\n" for r in content), encoding="utf-8")
    aside.replace(path)
    return str(path)


def sharded(folder: bool = False) -> ModelParallelStrategy:
    return ModelParallelStrategy(
        data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=folder, timeout=timedelta(seconds=60)
    )


def replicated() -> DDPStrategy:
    return DDPStrategy(timeout=timedelta(seconds=60))


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05)


def adam(parameters: Any) -> torch.optim.Optimizer:
    return AdamTF(parameters, lr=1e-3)


def stage(folder: Path, output: Path, name: str, **options: Any) -> tuple[Any, Any]:
    """A stage's module and data. Ragged everywhere; the last batch of sft and reward leaves the second rank without a share."""
    if name == "sft":
        told = [{"prompt": PROMPTS[i % 5], "completion": TEXTS[i % 3]} for i in range(7)]
        train = write(folder / "sft.jsonl", told)
        given: dict[str, Any] = dict(policy=str(folder / "lm"), optimizer=adam)
        return SFTModule(output=str(output), task=TASK, **{**given, **options}), SFTData(train, LM, TASK, train, batch_size=3)
    if name == "reward":
        judged = [{"prompt": PROMPTS[i % 5], "responses": TEXTS[: 3 + i % 2], "best": i % 3} for i in range(7)]
        train = write(folder / "labels.jsonl", judged)
        given = dict(policy=str(folder / "lm"), normalise_samples=16, rollout_batch_size=16, optimizer=sgd)
        data: Any = PreferenceData(train, LM, TASK, train, batch_size=3)
        return RewardModule(output=str(output), task=TASK, **{**given, **options}), data
    write(folder / "rewards.py", REWARD)
    prompts = write(folder / "prompts.jsonl", [{"prompt": p} for p in PROMPTS])
    held_out = write(folder / "held_out.jsonl", [{"prompt": p} for p in PROMPTS[:5]])
    given = dict(
        policy=str(folder / "lm"),
        reward=f"{folder / 'rewards.py'}:length",
        mode="eos",
        stop_token=419,
        num_ppo_epochs=2,
        optimizer=adam,
    )
    given |= dict(kl_target=0.5, kl_horizon=50.0, allow_unguarded=True)
    module = PPOModule(output=str(output), task=TASK, **{**given, **options})
    return module, PromptData(prompts, LM, TASK, batch_size=4, total_episodes=8, val=held_out)


def fit(
    folder: Path,
    output: Path,
    name: str,
    strategy: Any = "auto",
    resume: str | None = None,
    more: Any = (),
    clip: float | None = None,
    **options: Any,
) -> list[dict[str, float]]:
    """Run a stage; its checkpoint of each step stands beside its output. Returns the figures of each step."""
    module, data = stage(folder, output, name, **options)
    figures, saver = Figures(), StageCheckpoint(str(output.with_suffix(".ckpt")), every=1)
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", devices=1 if strategy == "auto" else 2, strategy=strategy, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        callbacks=[figures, saver, *more], gradient_clip_val=clip,
    )  # fmt: skip
    assert module.check(data, trainer, resume is not None) == []
    trainer.fit(module, data, ckpt_path=resume)
    return figures.rows


def both_ranks(model: Any, tokens: Tensor, mask: Tensor, length: int, temperature: float, seed: int, **_: Any) -> Drawn:
    """What two ranks sample of a global batch: the first has every second row from 0, and its seed; the second the rest."""
    parts = [sample_with(model, tokens[r::2], mask[r::2], length, temperature, seed + r) for r in range(min(2, len(tokens)))]
    join = lambda xs: torch.stack([x[i] for i in range(len(xs[0])) for x in xs if i < len(x)])  # noqa: E731
    return Drawn(join([p.tokens for p in parts]), join([p.logprobs for p in parts]), None)


class Ranks:
    """Two forked processes that run a function of their rank, as torchrun would start them."""

    def __init__(self, folder: Path, function: Callable[[], Any]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.folder, self.function = folder, function
        folder.mkdir(parents=True)
        context = get_context("fork")
        self.processes = [context.Process(target=self.run, args=(rank, port)) for rank in (0, 1)]
        for process in self.processes:
            process.start()

    def run(self, rank: int, port: int) -> None:
        os.environ.update(
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2",
            LOCAL_WORLD_SIZE="2", GROUP_RANK="0", TORCHELASTIC_RUN_ID="test",
        )  # fmt: skip
        try:
            self.function()
        except BaseException:
            (self.folder / f"{rank}.txt").write_text(traceback.format_exc(), encoding="utf-8")
            os._exit(1)
        os._exit(0)

    def join(self, seconds: float) -> list[int | None]:
        """Their exit codes; a process that has not ended by then is ended, and has none."""
        until = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, until - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
        return codes

    def errors(self) -> str:
        return "".join(f.read_text(encoding="utf-8") for f in sorted(self.folder.glob("*.txt")))


def models(folder: Path) -> None:
    """`lm`: three blocks of the embedded model, one embedding; `gpt2`: a GPT-2 whose output embedding is not the input's."""
    lm = load_lm(LM)
    layers = lm.model.model.layers
    lm.model.model.layers = torch.nn.ModuleList([layers[0], layers[3], layers[4]])
    lm.model.config.num_hidden_layers = 3
    lm.model.save_pretrained(folder / "lm")
    lm.tokenizer.save_pretrained(folder / "lm")
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=512, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2,
                        tie_word_embeddings=False)  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder / "gpt2")
    lm.tokenizer.save_pretrained(folder / "gpt2")


# ------------------------------------------------------------------------------------------------- two do what one does

JOBS: dict[str, tuple[str, Callable[[], Any], dict[str, Any]]] = {
    "ppo, replicas": ("ppo", replicated, {}),
    "sft, shards, GPT-2 with its own head": ("sft", sharded, {"policy": "gpt2", "clip": 0.5}),
    "reward, shards": ("reward", sharded, {"clip": 0.5}),
    "reward, shards, first blocks": ("reward", sharded, {"clip": 0.5, "num_hidden_layers": 2}),
    "ppo, shards": ("ppo", sharded, {"max_grad_norm": 0.2, "micro_batch_size": 2, "reward": "reward", "kl_loss": 1.0}),
    "ppo, shards, adapters": ("ppo", sharded, {
        "lora": LoRA(r=2, alpha=4.0), "value": "separate", "gradient_checkpointing": True,
    }),
}  # fmt: skip


class Runs(NamedTuple):
    """Where both stand, and their figures of each step."""

    folder: Path
    one: dict[str, list[dict[str, float]]]
    two: dict[str, list[dict[str, float]]]


def given(folder: Path, name: str) -> dict[str, Any]:
    """A job's options."""
    return {k: str(folder / v) if v in ("gpt2", "reward") else v for k, v in JOBS[name][2].items()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Every job by one process and by two."""
    folder = tmp_path_factory.mktemp("jobs")
    models(folder)
    fit(folder, folder / "reward", "reward")

    def job(processes: str, name: str) -> list[dict[str, float]]:
        stage, strategy, _ = JOBS[name]
        return fit(
            folder,
            folder / processes / name / "export",
            stage,
            strategy() if processes == "two" else "auto",
            **given(folder, name),
        )

    def two() -> None:
        found = {name: job("two", name) for name in JOBS}
        if os.environ["RANK"] == "0":
            (folder / "two.json").write_text(json.dumps(found), encoding="utf-8")

    ranks = Ranks(folder / "ranks", two)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ppo, "sample_with", both_ranks)
        one = {name: job("one", name) for name in JOBS}
    assert ranks.join(300) == [0, 0], ranks.errors()
    return Runs(folder, one, json.loads((folder / "two.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", JOBS)
def test_two_processes_end_with_the_weights_of_one(runs: Runs, name: str) -> None:
    one, two = (runs.folder / processes / name for processes in ("one", "two"))
    files = sorted(str(f.relative_to(one)) for f in one.rglob("*.safetensors"))
    assert files == sorted(str(f.relative_to(two)) for f in two.rglob("*.safetensors"))
    for file in files:
        expected, found = load_file(one / file), load_file(two / file)
        assert expected.keys() == found.keys()
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor, rtol=1e-5, atol=5e-6, msg=lambda m: f"{file}: {key}: {m}")  # noqa: B023


@pytest.mark.parametrize("name", JOBS)
def test_two_processes_have_the_figures_of_one(runs: Runs, name: str) -> None:
    assert len(runs.one[name]) == len(runs.two[name]) == (3 if JOBS[name][0] == "ppo" else 4)
    for expected, found in zip(runs.one[name], runs.two[name], strict=True):
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            if key == "val/beats_first" and "reward" in JOBS[name][2]:
                continue  # equal responses are a tie but for the last digits of a learned reward
            assert found[key] == pytest.approx(value, rel=1e-3, abs=1e-4), key
    assert "val/score" in runs.one[name][-1] if JOBS[name][0] == "ppo" else "val/loss" in runs.one[name][-1]


def test_responses_end_unevenly(runs: Runs) -> None:
    """Else the jobs would show nothing of responses of different lengths."""
    figures = runs.two["ppo, replicas"]
    assert any(0 < f["objective/found"] < 1 for f in figures)
    assert any(1 < f["objective/length"] < 6 for f in figures)
    assert figures[-1]["objective/kl"] > 1e-4


# ---------------------------------------------------------------------------------------------------- a rank that dies


@pytest.mark.parametrize("folder", [False, True])
def test_a_rank_that_dies_ends_the_job_and_its_checkpoint_is_good(runs: Runs, tmp_path: Path, folder: bool) -> None:
    """The second rank is killed in the second of two iterations; the resume of two ranks ends as if nothing had happened."""
    name, output = "ppo, shards", tmp_path / "export"

    def killed() -> None:
        killer = Kill(rank=1, step=4, mark=tmp_path / "mark")
        fit(runs.folder, output, "ppo", sharded(folder), more=[killer], **given(runs.folder, name))

    ranks = Ranks(tmp_path / "killed", killed)
    assert ranks.join(300) == [1, -signal.SIGKILL], ranks.errors()
    assert time.time() - (tmp_path / "mark").stat().st_mtime < 60
    assert "RuntimeError" in ranks.errors()  # the first rank's, of a peer that closed the connection
    assert not output.exists()
    checkpoint = output.with_suffix(".ckpt")
    saved = torch.load(checkpoint / "meta.pt" if folder else checkpoint, weights_only=True)
    assert saved["stage"]["state"]["updates"] == 1
    if folder:
        assert sorted(f.suffix for f in checkpoint.iterdir()) == ["", ".distcp", ".distcp", ".pt"]
        saved_names = FileSystemReader(checkpoint).read_metadata().state_dict_metadata
        assert any("policy" in name for name in saved_names)
        assert not any("reference" in name or "reward" in name for name in saved_names)  # frozen: reloaded from where they were
        assert [f for f in tmp_path.iterdir() if f.is_dir() and f.name.startswith(".")] == [checkpoint.resolve()]

    def resumed() -> None:
        fit(runs.folder, output, "ppo", sharded(folder), resume=str(checkpoint), **given(runs.folder, name))

    ranks = Ranks(tmp_path / "resumed", resumed)
    assert ranks.join(300) == [0, 0], ranks.errors()
    for file in ("model.safetensors", "value_head.safetensors"):
        expected, found = load_file(runs.folder / "two" / name / "export" / file), load_file(output / file)
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items()), file


# ------------------------------------------------------------------------------------------------------------- refusals


def trainer_of(strategy: Any, devices: int = 2) -> Any:
    """As much of a Trainer as the checks read."""
    return SimpleNamespace(precision="32-true", world_size=devices, strategy=strategy)


@pytest.mark.usefixtures("no_models")
def test_a_folder_without_a_whole_checkpoint_is_refused(tmp_path: Path) -> None:
    module, _ = stage(tmp_path, tmp_path / "export", "ppo", policy=LM)
    (tmp_path / "last.ckpt").mkdir()
    (problem,) = module.check_checkpoint(str(tmp_path / "last.ckpt"), sharded(folder=True))
    assert "last.ckpt: found no whole checkpoint there" in problem


@pytest.mark.usefixtures("no_models")
@pytest.mark.parametrize(
    ("strategy", "options", "message"),
    [
        (sharded, {"trainable_layers": 2}, "model.trainable_layers: found 2 with ModelParallelStrategy"),
        (lambda: ModelParallelStrategy(save_distributed_checkpoint=False), {},
         "trainer.strategy: found data_parallel_size auto and tensor_parallel_size auto, expected 2 and 1"),
        (FSDPStrategy, {}, "trainer.strategy: found FSDPStrategy, expected ModelParallelStrategy"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_by_name(tmp_path: Path, strategy: Any, options: dict, message: str) -> None:
    module, data = stage(tmp_path, tmp_path / "export", "ppo", policy=LM, **options)
    (problem,) = module.check(data, trainer_of(strategy()), False)
    assert message in problem
    assert module.check(data, trainer_of(replicated()), False) == []
