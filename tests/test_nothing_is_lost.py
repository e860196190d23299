"""What a run must not destroy, and what it must say before it trains."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_rlhf.files import write_jsonl
from lightning_rlhf.folders import alone
from lightning_rlhf.models import ASSETS, load_lm
from lightning_rlhf.optim import AdamTF
from lightning_rlhf.scalar import ScalarModel, load_scalar, save_reward
from lightning_rlhf.scoring import call_reward, is_learned, load_callable
from lightning_rlhf.stage import StageCheckpoint, output_problems
from lightning_rlhf.tasks import Task, UsageError

LABELS = ["labels", "-c", "configs/sentiment/labels.yaml", "-c", "configs/sentiment/stories260k/labels.yaml"]
PROMPTS = ["prompts", "-c", "configs/sentiment/prompts.yaml", "-c", "configs/sentiment/stories260k/prompts.yaml"]
ROOT = Path(__file__).resolve().parent.parent


def test_only_an_export_is_replaced(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    (mine / "sub").mkdir(parents=True)
    (mine / "thesis.txt").write_text("x")
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    assert "is no export (it has no config.json), and is not replaced" in output_problems(mine)[0]
    assert "is no export" in output_problems(mine / "thesis.txt")[0]
    assert "cannot be made (File exists)" in output_problems(mine / "thesis.txt" / "ppo")[0]
    assert "expected the name of a new folder" in output_problems(Path("."))[0]
    assert not [p for name in ("export", "empty", "new/ppo") for p in output_problems(tmp_path / name)]


@pytest.mark.parametrize(("command", "folder", "file"), [(LABELS, "labels", "train.jsonl"), (PROMPTS, "prompts", "val.jsonl")])
def test_records_of_ones_own_are_not_replaced(
    tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, command: list[str], folder: str, file: str
) -> None:
    monkeypatch.chdir(ROOT)
    for split in ("train", "val"):
        write_jsonl(tmp_path / "prompts" / f"{split}.jsonl", [{"prompt": "Once upon a time"}])
    write_jsonl(tmp_path / folder / file, [mine := {"prompt": "p", "responses": ["a", "b"], "best": 0}])
    error = refused([*command, "--run_dir", str(tmp_path)])
    assert "is there and was not made by this command (no run.json); expected another folder" in error
    assert json.loads((tmp_path / folder / file).read_text()) == mine


def test_the_checkpoint_of_an_earlier_run_is_kept(tmp_path: Path) -> None:
    def trainer(ckpt_path: str | None, text: str) -> Any:
        strategy = SimpleNamespace(barrier=lambda: None)
        save = lambda path: Path(path).write_text(text)  # noqa: E731
        return SimpleNamespace(
            ckpt_path=ckpt_path, is_global_zero=True, strategy=strategy, save_checkpoint=save, callbacks=[callback_of_mine]
        )

    callback_of_mine = object()

    path = tmp_path / "deep" / "ppo.ckpt"
    for number, resumed in ((1, None), (2, None), (3, str(path))):
        callback, run = StageCheckpoint(str(path)), trainer(None, f"run {number}")
        run.callbacks.insert(0, callback)
        callback.setup(run, None, "fit")
        assert run.callbacks == [callback_of_mine, callback]  # whose state is that of the same batch
        run.ckpt_path = resumed  # not known to Lightning before
        callback.save(run)
        callback.save(run)
    assert path.read_text() == "run 3"
    assert path.with_name("ppo.ckpt.old").read_text() == "run 1"  # the third resumed the second
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"StageCheckpoint\.path: .*file: cannot be made \(File exists\)"):
        StageCheckpoint(str(tmp_path / "file" / "x.ckpt")).setup(trainer(None, ""), None, "fit")


def test_a_reward_function_gets_the_columns_that_it_names(tmp_path: Path) -> None:
    def plain(prompts: list[str], completions: list[str]) -> list[float]:
        return [1.0] * len(completions)

    def one(prompts: list[str], completions: list[str], reference: list[str]) -> list[float]:
        return [float(len(r)) for r in reference]

    columns: dict[str, list[Any]] = {"id": ["x"], "reference": ["four"]}
    assert call_reward(plain, ["p"], ["c"], columns) == [1.0]
    assert call_reward(one, ["p"], ["c"], columns) == [4.0]
    with pytest.raises(UsageError, match="have a column 'completions', an argument's name"):
        call_reward(plain, ["p"], ["c"], {"completions": ["c"]})
    (tmp_path / "wrong.py").write_text("undefined\n")
    with pytest.raises(UsageError, match="NameError: name 'undefined' is not defined; expected a reward directory"):
        load_callable(f"{tmp_path}/wrong.py:f")
    (tmp_path / "12:30").mkdir()
    assert is_learned(str(tmp_path / "12:30"))  # a directory, whatever its name


def test_damaged_models_are_told_by_name(tmp_path: Path) -> None:
    shutil.copytree(ASSETS / "stories260k", tmp_path / "lm")
    weights = tmp_path / "lm" / "model.safetensors"
    lm = load_lm(str(tmp_path / "lm"))
    save_reward(tmp_path / "reward", ScalarModel(lm.model.base_model, 64, std=1.0), lm.tokenizer, {"task": "toy"})
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UsageError, match=r"model '.*lm': its weights cannot be read"):
        load_lm(str(tmp_path / "lm"))
    file = tmp_path / "reward" / "reward.json"
    file.write_text(file.read_text()[:20])
    with pytest.raises(UsageError, match=r"reward\.json: .*expected the file that the reward stage wrote"):
        load_scalar(tmp_path / "reward")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_none(value: float) -> None:
    task = Task(name="toy", query_length=4, start_text=None, response_length=4, truncate_text=None, truncate_after=0)
    for option in ("temperature", "penalty"):
        problems = Task(**{**vars(task), option: value}).problems()
        assert any(p.startswith(f"task.{option}: found {value}") for p in problems)
    with pytest.raises(UsageError, match=f"lr: found {value}"):
        AdamTF([torch.nn.Parameter(torch.ones(1))], lr=value)


def test_two_runs_do_not_share_a_checkpoint(
    tiny_run: Path, tmp_path: Path, command: Callable[..., list[str]], refused: Callable[..., str]
) -> None:
    """Nor does a lock outlive its process: other stages write beside it."""
    path = tmp_path / "checkpoints" / "sft.ckpt"
    saver = [{"class_path": "lightning_rlhf.stage.StageCheckpoint", "init_args": {"path": str(path)}}]
    words = command("sft", tiny_run, "--model.output", str(tmp_path / "out"), "--trainer.callbacks", json.dumps(saver))
    with alone(path.parent, path.name):
        assert f"{path}: another process is writing there, expected none" in refused(words)
        with alone(path.parent, "reward.ckpt"):
            pass
    assert not (tmp_path / "out").exists()
    with alone(path.parent, path.name):
        pass
