"""Mistakes in options: one message, with the place in the file and what was probably meant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from eval.__main__ import main as eval_main
from lightning_rlhf.parsing import place

PPO = "configs/sentiment/ppo.yaml"
FILES = {  # a config's text, and what is said of it
    "model:\n  init_args:\n    cliprage: 0.1\n": ":3: model.cliprage: found an unknown option, expected perhaps cliprange",
    "model:\n  init_args:\n    kl_coef: much\n": ":3: model.kl_coef: found much, expected float",
    "task:\n  query_lenght: 3\n": ":2: task.query_lenght: found an unknown option, expected perhaps query_length",
    "model:\n  init_args:\n    optimizer:\n      init_args:\n        lrr: 1\n":
        ":5: model.optimizer.lrr: found an unknown option, expected perhaps lr",
    "trainer:\n  callbacks:\n  - class_path: lightning_rlhf.stage.StageCheckpoint\n    init_args: {pth: x}\n":
        ":4: trainer.callbacks.pth: found an unknown option, expected perhaps path",
    "trainer:\n  max_epoch: 3\n": ":2: trainer.max_epoch: found an unknown option, expected perhaps trainer.max_epochs",
    "modl:\n  a: 1\n": "modl.a: found an unknown option",
    "model:\n  class_path: lightning_rlhf.ppo.PPO\n":
        ":2: model: found lightning_rlhf.ppo.PPO, expected a class that is there, by its import path",
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
    assert "required: lm, output" in refused(["prompts"])


def test_the_last_file_with_the_option_is_named(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.yaml", "b.yaml")]
    files[0].write_text("x: 1\nblock:\n  x: 2\n")
    files[1].write_text("# no x\nblock: {x: 3}\n")
    names = [str(f) for f in files]
    assert place("x", names) == f"{files[1]}:2: "
    assert place("x", names, "1") == f"{files[0]}:1: "
    assert place("block.x", names[:1]) == f"{files[0]}:3: "
    assert place("y", names) == "" and place("x", names, "9") == ""
