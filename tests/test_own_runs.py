"""What a user of Lightning does that the shipped configs do not: modules without the command line, dry runs, own folders."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import PROMPTS, STORIES, TASK, trainer_of, write

from eval.__main__ import main as eval_main
from lightning_rlhf.cli import main
from lightning_rlhf.data import SFTData
from lightning_rlhf.models import find_policy, load_lm, load_tokenizer
from lightning_rlhf.ppo import PPOModule
from lightning_rlhf.sft import SFTModule
from lightning_rlhf.tasks import Task, UsageError


def length(prompts: list[Any], completions: list[Any]) -> list[float]:
    return [float(len(text)) for text in completions]


@pytest.fixture
def refuses(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must be refused; returns what it says."""

    def run(*words: str, by: Callable[[list[str]], None] = main) -> str:
        with pytest.raises(SystemExit) as stopped:
            by(list(words))
        assert stopped.value.code == 2
        return capsys.readouterr().err

    return run


def test_a_folder_that_is_no_export_survives_a_module_of_ones_own(tmp_path: Path) -> None:
    data = write(tmp_path / "train.jsonl", [{"prompt": p, "completion": " a dog"} for p in PROMPTS])
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")

    def fit(**options: Any) -> None:
        module = SFTModule(STORIES, str(precious), TASK, **options)
        trainer_of().fit(module, SFTData(data, STORIES, TASK, batch_size=4))

    for options in ({}, {"overwrite": True}):
        with pytest.raises(UsageError, match="model.output: .*precious"):
            fit(**options)
        assert [f.name for f in precious.iterdir()] == ["thesis.txt"]
    (precious / "thesis.txt").unlink()
    fit(overwrite=True)
    assert (precious / "config.json").is_file()
    with pytest.raises(UsageError, match="exists; give another"):
        fit()
    module = SFTModule(STORIES, str(tmp_path / "twice"), TASK)
    for _ in range(2):  # what it replaces is its own
        trainer_of().fit(module, SFTData(data, STORIES, TASK, batch_size=4))


def test_no_precision_is_that_of_lightning_and_a_dry_run_writes_nothing(
    tiny_run: Path, tmp_path: Path, command: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    for stage, more in (("sft", []), ("reward", []), ("ppo", ["--model.reward", str(tiny_run / "reward")])):
        words = command(stage, tmp_path / "run", *more)
        options = yaml.safe_load(Path(words[words.index("-c") + 1]).read_text(encoding="utf-8"))
        options["trainer"].pop("precision")
        (tmp_path / f"{stage}.yaml").write_text(yaml.safe_dump(options), encoding="utf-8")
        words[words.index("-c") + 1] = str(tmp_path / f"{stage}.yaml")
        shutil.copytree(tiny_run / "prompts", tmp_path / "run/prompts", dirs_exist_ok=True)
        shutil.copytree(tiny_run / "labels", tmp_path / "run/labels", dirs_exist_ok=True)
        main([*words, "--trainer.fast_dev_run", "true"])
        assert not (tmp_path / "run" / stage).exists()
        assert not (tmp_path / "run/checkpoints").exists() or not list((tmp_path / "run/checkpoints").glob("*.ckpt"))
    main([*command("sft", tmp_path / "run"), "--data.batch_size", "60"])
    assert f"{tmp_path}/run/sft: train/loss " in capsys.readouterr().out


def test_folders_and_lengths_that_cannot_be_are_told_before_anything_is_loaded(
    tiny_run: Path, tmp_path: Path, command: Callable[..., list[str]], refuses: Callable[..., str], no_models: None
) -> None:
    (tmp_path / "file").write_text("")
    below, output = str(tmp_path / "file/below"), ("--model.output", str(tmp_path / "new"))
    words = command("sft", tiny_run, *output)
    assert f"default_root_dir: {below}: cannot be made in {tmp_path}/file" in refuses(*words, "--trainer.default_root_dir", below)
    callback = ["--trainer.callbacks+", "ModelCheckpoint", "--trainer.callbacks.dirpath", below]
    enabled = ("--trainer.enable_checkpointing", "true")
    assert f"ModelCheckpoint.dirpath: {below}: cannot be made in" in refuses(*words, *enabled, *callback)
    assert "trainer.max_steps: found 0, which is no training" in refuses(*words, "--trainer.max_steps", "0")
    assert "trainer.max_epochs: found -1, a run without an end" in refuses(*words, "--trainer.max_epochs", "-1")
    assert "trainer.limit_train_batches: found 0, which is no" in refuses(*words, "--trainer.limit_train_batches", "0")
    absent = refuses(*words, "--trainer.logger", "WandbLogger")  # its package is no part of the project
    assert "WandbLogger': " in absent and "wandb" in absent.split("WandbLogger': ")[1]
    assert "expected perhaps model.optimizer.lr" in refuses(*words, "--model.lr", "1e-4")
    ppo = command("ppo", tiny_run, *output)
    assert "found 1.0, expected null: PPO has model.max_grad_norm" in refuses(*ppo, "--trainer.gradient_clip_val", "1.0")
    assert "found 2, expected 1: PPO has model.micro_batch_size" in refuses(*ppo, "--trainer.accumulate_grad_batches", "2")
    short = refuses(*words, "--task.response_length", "8", "--task.truncate_after", "16")
    assert "task.truncate_after: found 16 (the default, of 2019's sentiment task), expected 0 to" in short
    report = ("report", "--policies", "{zero: stories260k}", "--prompts", str(tiny_run / "prompts/test.jsonl"))
    assert f"output: {below}: cannot be made" in refuses(*report, "--output", below, by=eval_main)


def test_a_reward_model_writes_no_text(tiny_run: Path, tmp_path: Path, refuses: Callable[..., str]) -> None:
    reward = str(tiny_run / "reward")
    for load in (find_policy, load_lm):
        with pytest.raises(UsageError, match=r"found a reward model \(reward.json\), expected a language model"):
            load(reward)
    prompts = ("--prompts", str(tiny_run / "prompts/test.jsonl"), "--output", str(tmp_path / "report"))
    assert "expected a language model" in refuses("sample", "--policies", f"{{ft: {reward}}}", *prompts, by=eval_main)


def test_a_model_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(Path(find_policy(STORIES)) / name, bare / name)
    with pytest.raises(UsageError, match=r"model '.*bare': its tokenizer could not be loaded \(.*expected its files"):
        load_tokenizer(str(bare))


def test_a_function_is_a_reward_of_the_module(tmp_path: Path) -> None:
    module = PPOModule(STORIES, length, str(tmp_path / "ppo"), Task())  # type: ignore[arg-type]
    assert module.parts[0].reward == f"{__name__}:length"
    with pytest.raises(UsageError, match=r"found <function .*expected a name, or a function at the top of a module"):
        PPOModule(STORIES, lambda prompts, completions: [0.0], str(tmp_path / "ppo"), Task())  # type: ignore[arg-type]
