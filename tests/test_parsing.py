"""Mistakes in options: one message, with the place in the file and what was probably meant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from eval.__main__ import main as eval_main
from lightning_rlhf.parsing import ConfigFile, explained, place

PPO, LABELS = "configs/sentiment/ppo.yaml", "configs/sentiment/labels.yaml"
FILES = {  # a config's text, and what is said of it
    "model:\n  init_args:\n    cliprage: 0.1\n": ":3: model.cliprage: found an unknown option, expected perhaps cliprange",
    "model:\n  init_args:\n    kl_coef: much\n": ":3: model.kl_coef: found much, expected float",
    "task:\n  query_lenght: 3\n": ":2: task.query_lenght: found an unknown option, expected perhaps query_length",
    "model:\n  init_args:\n    optimizer:\n      init_args:\n        lrr: 1\n":
        ":5: model.optimizer.lrr: found an unknown option, expected perhaps lr",
    "trainer:\n  callbacks:\n  - class_path: lightning_rlhf.stage.StageCheckpoint\n    init_args: {pth: x}\n":
        ":4: trainer.callbacks.pth: found an unknown option, expected perhaps path",
    "model:\n  init_args:\n    kl_target: much\n": ":3: model.kl_target: found much, expected float or null",
    "model:\n  init_args:\n    reward: 3\n": ":3: model.reward: found 3, expected str or list[WeightedReward]",
    "model:\n  init_args:\n    lora: 3\n": ":3: model.lora: found 3, expected LoRA or null",
    "model:\n  init_args:\n    kl_estimator: k9\n": ":3: model.kl_estimator: found k9, expected 'k1' or 'k2' or 'k3' or 'full'",
    "model:\n  init_args:\n    kl_coef: null\n": ":3: model.kl_coef: found null, expected float",
    "model:\n  init_args:\n    reward: null\n": ":3: model.reward: found nothing, expected a value",
    "model:\n  init_args:\n    optimizer:\n      init_args:\n        lr: fast\n":
        ":5: model.optimizer.lr: found fast, expected float",
    "model:\n  init_args:\n    batch_size: 4\ndata:\n  init_args:\n    batch_size: 8\n":
        ":3: model.batch_size: found an unknown option",
    "data:\n  init_args:\n    kl_coef: 4\nmodel:\n  init_args:\n    kl_coef: 0.1\n":
        ":3: data.kl_coef: found an unknown option",
    "trainer:\n  max_epochs: x\n": ":2: trainer.max_epochs: found x, expected int or null",
    "task.query_length: x\n": ":1: task.query_length: found x, expected int",
    "model:\n  dict_kwargs:\n    a: 1\n": "PPOSetup.__init__() got an unexpected keyword argument 'a'",
    "run_dir: ${nope}\n": "Interpolation key '.nope' not found",
    "run_dir: ${run_dir}/x\n": "run_dir: extraneous input",
    "trainer:\n  max_epoch: 3\n": ":2: trainer.max_epoch: found an unknown option, expected perhaps trainer.max_epochs",
    "modl:\n  a: 1\n": "modl.a: found an unknown option",
    "model:\n  class_path: lightning_rlhf.ppo.PPO\n":
        ":2: model: found lightning_rlhf.ppo.PPO, expected a class that is there, by its import path (module",
}  # fmt: skip


@pytest.mark.usefixtures("no_models")
@pytest.mark.parametrize("text", FILES)
def test_the_place_of_a_mistake_in_a_file(text: str, tmp_path: Path, refused: Callable[..., str]) -> None:
    file = tmp_path / "over.yaml"
    file.write_text(text, encoding="utf-8")
    message = refused(["fit", "-c", PPO, "-c", str(file)])
    assert FILES[text] in message
    assert len(message.splitlines()) == 1
    if FILES[text].startswith(":"):
        assert f"{file}{FILES[text]}" in message


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model.kl_coef", "much"], "error: model.kl_coef: found much, expected float"),  # no line: the file's value is right
        (["--trainer.max_epoch", "3"], "--trainer.max_epoch 3: found an unknown option, expected perhaps trainer.max_epochs"),
        (["--model.optimizer", "Nope"], "model.optimizer: found Nope, expected a class"),
        (["--model.optimizer.lr", "x"], "error: model.optimizer.lr: found x, expected float"),
        (["--model.batch_size", "4"], "error: model.batch_size: found an unknown option, expected perhaps micro_batch_size"),
        (["stray"], "stray: found a word, expected options alone"),
    ],
)
def test_mistakes_in_flags(flags: list[str], said: str, refused: Callable[..., str]) -> None:
    assert said in refused(["fit", "-c", PPO, *flags])


def test_the_other_commands(tmp_path: Path, refused: Callable[..., str]) -> None:
    file = tmp_path / "over.yaml"
    file.write_text("run_dir: x\njudg: known\ntrain: some\n", encoding="utf-8")
    config = ["-c", "configs/sentiment/eval.yaml", "-c", str(file)]
    assert f"{file}:2: judg: found an unknown option, expected perhaps judge" in refused(["report", *config], eval_main)
    file.write_text("run_dir: x\ntrain: some\n", encoding="utf-8")
    config = ["-c", "configs/sentiment/prompts.yaml", "-c", str(file)]
    assert f"{file}:2: train: found some, expected int" in refused(["prompts", *config])
    assert refused(["prompts"]) == "error: lm: found nothing, expected a value\noutput: found nothing, expected a value\n"


@pytest.mark.parametrize("way", ["-c {}", "--config {}", "-c={}", "-c{}", "--config={}"])
def test_a_relative_file_however_it_is_given(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    """jsonargparse changes into a config's folder while it reads it."""
    config = str(Path("configs/sentiment/eval.yaml").absolute())
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "over.yaml").write_text("seed: much\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    message = refused(["report", "-c", config, *way.format("c/over.yaml").split()], eval_main)
    assert message.startswith("error: c/over.yaml:1: seed: found much, expected int")


def test_nulls_of_the_other_commands(tmp_path: Path, refused: Callable[..., str]) -> None:
    file = tmp_path / "over.yaml"
    file.write_text("batch_size: null\ntask: null\n", encoding="utf-8")
    for words, main in ((["report", "-c", "configs/sentiment/eval.yaml"], eval_main), (["labels", "-c", LABELS], None)):
        message = refused([*words, "-c", str(file)], main)
        assert f"{file}:1: batch_size: found null, expected int" in message
        assert f"{file}:2: task: found null, expected Task" in message


def test_a_message_that_is_not_understood_is_told_as_it_is() -> None:
    assert explained("Something else\n  happened.") == "Something else happened."
    assert explained('Parser key "a.b":\n  ' + "x" * 900).startswith("a.b: xxx") and len(explained("x" * 900)) == 400


def test_the_last_file_with_the_option_is_named(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.yaml", "b.yaml")]
    paths[0].write_text("x: 1\nblock:\n  init_args: {x: 2, y: &loop [*loop]}\n")
    paths[1].write_text("# no x\nblock: {x: 3}\nblock.z: 4\n")
    files = [ConfigFile(p.name, p) for p in paths]
    assert place("block.x", files) == "b.yaml:2: "
    assert place("block.x", files, value="2") == "a.yaml:3: "
    assert place("block.x", files, ["--block.init_args.x=7"]) == ""
    assert place("x", files) == "a.yaml:1: " and place("block.z", files) == "b.yaml:3: "
    assert place("y", files) == "" and place("other.x", files) == ""
