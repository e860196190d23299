"""A run killed with SIGKILL and resumed ends as the uninterrupted one, bit for bit; what cannot be resumed is refused."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import pytorch_lightning as L
import torch
import yaml
from safetensors.torch import load_file

from lightning_rlhf.cli import main
from lightning_rlhf.folders import put_in_place
from lightning_rlhf.stage import StageCheckpoint
from lightning_rlhf.tasks import UsageError

KILLER = '''
import os
import signal

from pytorch_lightning import Callback


class Kill(Callback):
    """Ends its own process, without a chance to clean up, in the nth optimizer step."""

    def __init__(self, step: int) -> None:
        self.left = step

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
'''
KILLER_IN = '''
import os
import signal

from pytorch_lightning import Callback

from lightning_rlhf import ppo


class KillIn(Callback):
    """Ends its own process in the middle of a phase: a rollout, a checkpoint's write, or a validation."""

    def __init__(self, phase: str, left: int) -> None:
        self.phase, self.left = phase, left

    def count(self) -> None:
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)

    def setup(self, trainer, pl_module, stage) -> None:
        owner, name = {
            "rollout": (ppo, "sample_with"), "checkpoint": (trainer, "save_checkpoint"),
            "validation": (pl_module, "validation_step"),
        }[self.phase]
        plain = getattr(owner, name)

        def before(*args, **kwargs):
            if self.phase == "checkpoint" and self.left == 1:
                args[0].write_bytes(b"half of it")
            self.count()
            return plain(*args, **kwargs)

        setattr(owner, name, before)
'''
FLAGS = {
    "sft": ("--data.batch_size", "30", "--trainer.precision", "32-true"),  # 6 batches
    "reward": ("--data.batch_size", "30", "--trainer.precision", "32-true"),
    # 4 iterations of 4 inner epochs
    "ppo": ("--data.batch_size", "8", "--data.total_episodes", "32", "--trainer.precision", "32-true", "--model.kl_coef", "0.15",
            "--model.num_ppo_epochs", "4"),
}  # fmt: skip
EVERY = {"sft": 2, "reward": 2, "ppo": 1}
KILL_AT = {"sft": 4, "reward": 4, "ppo": 10}  # the 4th of 6 batches; the 2nd of 4 inner epochs of the 3rd iteration
DONE = {"sft": 2, "reward": 2, "ppo": 2}  # batches that the last checkpoint before that holds
BATCHES = {"sft": 6, "reward": 6, "ppo": 4}
CLOCKS = ("elapsed/fps", "elapsed/time")


class Runs(NamedTuple):
    """What the tests compare: two run folders, and what each stage's resume was given."""

    whole: Path
    killed: Path
    arguments: Callable[..., list[str]]


def rows(folder: Path, version: int) -> list[dict[str, str]]:
    """The training rows of a metrics.csv, without the clocks."""
    with (folder / "logs" / f"version_{version}" / "metrics.csv").open(encoding="utf-8") as handle:
        return [{k: v for k, v in row.items() if k not in CLOCKS} for row in csv.DictReader(handle)]


def started(folder: Path, commands: dict[str, list[str]]) -> dict[str, subprocess.Popen[str]]:
    """Processes of their own, by name, which find what stands in a folder; with as many threads as this one: their number decides
    the order of sums."""
    path = f"{folder}:{os.environ.get('PYTHONPATH', '')}"
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return {
        name: subprocess.Popen(
            [sys.executable, "-m", "lightning_rlhf", *words],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for name, words in commands.items()
    }  # fmt: skip


@pytest.fixture(scope="module")
def runs(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory, command: Callable[..., list[str]]) -> Runs:
    """Each stage uninterrupted (in process), and killed (processes of their own), then resumed."""
    root = tmp_path_factory.mktemp("resume")
    (root / "killer.py").write_text(KILLER, encoding="utf-8")

    def arguments(stage: str, folder: Path, *flags: str, kill: bool = False) -> list[str]:
        here = folder / stage
        here.mkdir(parents=True, exist_ok=True)
        saver = {"class_path": "lightning_rlhf.stage.StageCheckpoint",
                 "init_args": {"path": str(here / "last.ckpt"), "every": EVERY[stage]}}  # fmt: skip
        logger = {"init_args": {"save_dir": str(here), "name": "logs"}}
        overlays = [
            {"model": {"init_args": {"output": str(here / "export")}}, "trainer": {"callbacks": [saver], "logger": logger}}
        ]
        if kill:
            overlays.append({"trainer": {"callbacks+": [{"class_path": "killer.Kill", "init_args": {"step": KILL_AT[stage]}}]}})
        more: list[str] = []
        for i, overlay in enumerate(overlays):
            (here / f"overlay{i}.yaml").write_text(yaml.safe_dump(overlay), encoding="utf-8")
            more += ["-c", str(here / f"overlay{i}.yaml")]
        return command(stage, tiny_run, *FLAGS[stage], *more, *flags)

    whole, killed = root / "whole", root / "killed"
    processes = started(root, {stage: arguments(stage, killed, kill=True) for stage in KILL_AT})
    for stage in KILL_AT:
        main(arguments(stage, whole))
    for stage, process in processes.items():
        _, err = process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL, err
        assert not (killed / stage / "export").exists()
        saved = torch.load(killed / stage / "last.ckpt", weights_only=True)
        # a half-written newer one, as a kill within the save leaves it, must not be taken
        (killed / stage / ".last.ckpt.partial").write_bytes(b"half")
        assert saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["processed"] == DONE[stage]
        main(arguments(stage, killed, "--ckpt_path", str(killed / stage / "last.ckpt")))
    return Runs(whole, killed, arguments)


@pytest.mark.parametrize("stage", KILL_AT)
def test_resumed_weights_are_bit_equal(runs: Runs, stage: str) -> None:
    files = sorted(f.name for f in (runs.whole / stage / "export").glob("*.safetensors"))
    assert files == (["model.safetensors", "value_head.safetensors"] if stage == "ppo" else ["model.safetensors"])
    for name in files:
        whole, resumed = (load_file(folder / stage / "export" / name) for folder in (runs.whole, runs.killed))
        assert whole.keys() == resumed.keys()
        for key, tensor in whole.items():
            assert torch.equal(tensor, resumed[key]), f"{name}: {key}"


def test_weights_did_train(runs: Runs, tiny_run: Path) -> None:
    from lightning_rlhf.models import ASSETS

    before = load_file(ASSETS / "stories260k" / "model.safetensors")
    after = load_file(runs.whole / "ppo" / "export" / "model.safetensors")
    assert any(not torch.equal(before[k], after[k][: len(before[k])]) for k in before)


@pytest.mark.parametrize("stage", KILL_AT)
def test_resumed_metrics_are_equal(runs: Runs, stage: str) -> None:
    """The resumed run logs the batches after the checkpoint, and the same figures in each."""
    whole, resumed = rows(runs.whole / stage, 0), rows(runs.killed / stage, 1)
    name = "objective/kl" if stage == "ppo" else "train/loss"
    figures = [row for row in whole if row[name]], [row for row in resumed if row[name]]
    assert [len(f) for f in figures] == [BATCHES[stage], BATCHES[stage] - DONE[stage]]
    assert figures[0][DONE[stage] :] == figures[1]


def test_resumed_stage_state_is_equal(runs: Runs) -> None:
    """β, the counters, the data's position and the optimizer's state, at the end."""
    whole, resumed = (torch.load(f / "ppo" / "last.ckpt", weights_only=True) for f in (runs.whole, runs.killed))
    assert whole["stage"]["state"] == resumed["stage"]["state"]
    assert whole["PromptData"] == resumed["PromptData"] == {"train": {"epoch": 0, "position": 4}}
    assert whole["stage"]["state"]["updates"] == 4
    assert whole["stage"]["state"]["episodes"] == 32
    assert whole["stage"]["state"]["kl"]["coef"] != 0.15
    assert whole["lr_schedulers"] == resumed["lr_schedulers"]
    assert str(whole["optimizer_states"]) == str(resumed["optimizer_states"])
    figures = [json.loads((f / "ppo/export/run.json").read_text())["figures"] for f in (runs.whole, runs.killed)]
    assert figures[0]["beta"] == figures[1]["beta"]


def test_reward_json_is_equal(runs: Runs) -> None:
    whole, resumed = (json.loads((f / "reward/export/reward.json").read_text()) for f in (runs.whole, runs.killed))
    assert whole == resumed


PHASES = {  # the how-many-th call of what ends the process
    "rollout": ("rollout", 7), "checkpoint": ("checkpoint", 2), "validation": ("validation", 4), "end": ("validation", 6),
}  # fmt: skip
LAST = {"rollout": 2, "checkpoint": 1, "validation": 2, "end": 4}  # iterations that the last checkpoint before that holds


def test_killed_in_each_phase(tiny_run: Path, tmp_path: Path, command: Callable[..., list[str]]) -> None:
    """In a rollout (beside those of validation), half-way through a checkpoint's file, in a validation after a checkpoint, in the
    last one, when nothing is left to train."""
    (tmp_path / "killer_in.py").write_text(KILLER_IN, encoding="utf-8")

    def arguments(name: str, *flags: str) -> list[str]:
        here = tmp_path / name
        here.mkdir(exist_ok=True)
        saver = {"class_path": "lightning_rlhf.stage.StageCheckpoint", "init_args": {"path": str(here / "last.ckpt"), "every": 1}}
        callbacks: list[dict[str, Any]] = [saver]
        if name in PHASES and "--ckpt_path" not in flags:
            phase, left = PHASES[name]
            callbacks.append({"class_path": "killer_in.KillIn", "init_args": {"phase": phase, "left": left}})
        overlay = {
            "model": {"init_args": {"output": str(here / "export")}},
            "data": {"init_args": {"val": str(tiny_run / "prompts/val.jsonl")}},
            "trainer": {
                "callbacks": callbacks, "val_check_interval": 2, "limit_val_batches": 2,
                "logger": {"init_args": {"save_dir": str(here), "name": "logs"}},
            },
        }  # fmt: skip
        (here / "overlay.yaml").write_text(yaml.safe_dump(overlay), encoding="utf-8")
        return command("ppo", tiny_run, *FLAGS["ppo"], "-c", str(here / "overlay.yaml"), *flags)

    processes = started(tmp_path, {name: arguments(name) for name in PHASES})
    main(arguments("whole"))
    expected = load_file(tmp_path / "whole/export/model.safetensors")
    tables = {f.name: f.read_bytes() for f in (tmp_path / "whole/export.samples").iterdir()}
    assert sorted(tables) == ["000000.jsonl", "000002.jsonl", "000004.jsonl"]
    figures = run_figures(tmp_path / "whole/export")
    assert {"objective/kl", "ppo/ratio_error", "val/score", "val/beats_first"} <= figures.keys()
    for name, process in processes.items():
        _, err = process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL, err
        here = tmp_path / name
        saved = torch.load(here / "last.ckpt", weights_only=True)
        assert saved["stage"]["state"]["updates"] == LAST[name]
        assert (here / ".last.ckpt.partial").exists() == (name == "checkpoint")
        main(arguments(name, "--ckpt_path", str(here / "last.ckpt")))
        found = load_file(here / "export/model.safetensors")
        assert all(torch.equal(tensor, found[key]) for key, tensor in expected.items()), name
        assert {f.name: f.read_bytes() for f in (here / "export.samples").iterdir()} == tables, name
        assert run_figures(here / "export") == figures, name


VALIDATIONS = {"first": 1, "epoch's end": 2, "second epoch": 3, "last": 4}  # the one in which the process ends, of two batches


def test_a_validation_that_a_kill_kept_from_running_is_made_up(
    tiny_run: Path, tmp_path: Path, command: Callable[..., list[str]]
) -> None:
    """Two epochs of six batches with a validation after each three, killed in each of them: the resume logs the same rows."""
    (tmp_path / "killer_in.py").write_text(KILLER_IN, encoding="utf-8")

    def arguments(name: str, *flags: str) -> list[str]:
        here = tmp_path / name
        here.mkdir(exist_ok=True)
        saver = {"class_path": "lightning_rlhf.stage.StageCheckpoint", "init_args": {"path": str(here / "last.ckpt"), "every": 3}}
        callbacks: list[dict[str, Any]] = [saver]
        if name in VALIDATIONS and not flags:
            killer = {"class_path": "killer_in.KillIn", "init_args": {"phase": "validation", "left": 2 * VALIDATIONS[name]}}
            callbacks.append(killer)
        trainer = {
            "callbacks": callbacks, "max_epochs": 2, "val_check_interval": 3,
            "logger": {"init_args": {"save_dir": str(here), "name": "logs"}},
        }  # fmt: skip
        overlay = {"model": {"init_args": {"output": str(here / "export")}}, "trainer": trainer}
        (here / "overlay.yaml").write_text(yaml.safe_dump(overlay), encoding="utf-8")
        return command("reward", tiny_run, *FLAGS["reward"], "-c", str(here / "overlay.yaml"), *flags)

    def of_validations(name: str, version: int) -> list[dict[str, str]]:
        found = [row for row in rows(tmp_path / name, version) if row["val/loss"]]
        return [{k: v for k, v in row.items() if v and k != "epoch"} for row in found]  # a full epoch is over in a resume

    processes = started(tmp_path, {name: arguments(name) for name in VALIDATIONS})
    main(arguments("whole"))
    expected, figures = of_validations("whole", 0), run_figures(tmp_path / "whole/export")
    assert len(expected) == len(VALIDATIONS)
    for name, process in processes.items():
        _, err = process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL, err
        main(arguments(name, "--ckpt_path", str(tmp_path / name / "last.ckpt")))
        assert of_validations(name, 1) == expected[VALIDATIONS[name] - 1 :], name
        found = run_figures(tmp_path / name / "export")  # nothing was left to train where the last one was made up
        assert {k: found.get(k, v if name == "last" and k.startswith("train/") else None) for k, v in figures.items()} == figures


def run_figures(export: Path) -> dict[str, Any]:
    """The figures of run.json, without clocks."""
    found = json.loads((export / "run.json").read_text(encoding="utf-8"))["figures"]
    return {k: v for k, v in found.items() if not k.startswith(("elapsed/", "tok/s"))}


@pytest.mark.parametrize("stage", KILL_AT)
def test_killed_after_the_last_checkpoint(runs: Runs, stage: str) -> None:
    """A run that was killed while it exported has nothing left to train: the resume exports the same weights and figures."""
    export = runs.killed / stage / "export"
    before = load_file(export / "model.safetensors")
    figures = run_figures(export)
    record = (export / "reward.json").read_text(encoding="utf-8") if stage == "reward" else ""
    for file in export.iterdir():
        file.unlink()
    main(runs.arguments(stage, runs.killed, "--ckpt_path", str(runs.killed / stage / "last.ckpt")))
    after = load_file(export / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    now = run_figures(export)
    assert {k: now.get(k) for k in figures if k.startswith("val/")} == {k: v for k, v in figures.items() if k.startswith("val/")}
    assert stage != "reward" or (json.loads(record)["held_out_figures"] and (export / "reward.json").read_text() == record)


def test_a_checkpoint_takes_its_name_in_one_step(tmp_path: Path) -> None:
    """A file or a folder replaces either; what was replaced is gone."""
    name, aside = tmp_path / "last.ckpt", tmp_path / ".last.ckpt.partial"

    def put(content: str, folder: bool) -> None:
        if folder:
            aside.mkdir()
        (aside / "shard" if folder else aside).write_text(content, encoding="utf-8")
        put_in_place(aside, name)
        assert (name / "shard" if folder else name).read_text(encoding="utf-8") == content
        assert len(list(tmp_path.iterdir())) == 1 + folder  # the folder, and the link to it

    (tmp_path / ".last.ckpt.17").mkdir()  # a kill came between its name and the link
    for content, folder in (("a", False), ("b", True), ("c", True), ("d", False), ("e", False)):
        put(content, folder)


def test_what_a_link_points_at_is_left_alone(tmp_path: Path) -> None:
    name, aside, elsewhere = tmp_path / "last.ckpt", tmp_path / "aside", tmp_path / "elsewhere"
    for folder in (aside, elsewhere):
        folder.mkdir()
        (folder / "shard").write_text("mine", encoding="utf-8")
    name.symlink_to(elsewhere)
    put_in_place(aside, name)
    assert name.resolve() != elsewhere and (elsewhere / "shard").is_file()


def test_an_interrupted_checkpoint_is_ignored_with_a_warning(tmp_path: Path) -> None:
    saver = StageCheckpoint(str(tmp_path / "last.ckpt"))
    saver.partial.mkdir()
    with pytest.warns(UserWarning, match=r"\.last\.ckpt\.partial: a checkpoint that was interrupted; ignored"):
        saver.setup(L.Trainer(logger=False), None, "fit")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match=r"StageCheckpoint\.path: found the folder .*folder, expected a file's name"):
        StageCheckpoint(str(tmp_path / "folder")).setup(L.Trainer(logger=False), None, "fit")


@pytest.mark.usefixtures("no_models")
def test_a_folder_is_refused_where_nothing_reads_it(runs: Runs, tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "0.distcp").write_bytes(b"half")  # the shards of a save that was killed
    message = refused(runs.arguments("sft", runs.killed, "--ckpt_path", str(tmp_path)))
    assert f"--ckpt_path: {tmp_path}: found a folder, which ModelParallelStrategy alone reads" in message


CHANGED = [
    ("ppo", "--model.kl_coef", "0.2", "model.kl_coef: found 0.2, the checkpoint was made with 0.15"),
    ("ppo", "--model.optimizer.init_args.lr", "0.1", "model.optimizer.lr: found 0.1, the checkpoint was made with 0.0006"),
    ("ppo", "--data.batch_size", "16", "data.batch_size: found 16, the checkpoint was made with 8"),
    ("ppo", "--data.total_episodes", "64", "data.total_episodes: found 64, the checkpoint was made with 32"),
    ("ppo", "--seed_everything", "2", "seed_everything: found 2, the checkpoint was made with 1"),
    ("ppo", "--task.temperature", "0.5", "task.temperature: found 0.5, the checkpoint was made with 0.7"),
    ("ppo", "--trainer.precision", "bf16-mixed", "trainer.precision: found 'bf16-mixed'"),
    ("ppo", "--trainer.limit_val_batches", "3", "trainer.limit_val_batches: found 3"),
    ("ppo", "--trainer.val_check_interval", "3", "trainer.val_check_interval: found 3"),
    ("sft", "--trainer.max_epochs", "2", "trainer.max_epochs: found 2, the checkpoint was made with 1"),
    ("reward", "--model.normalise_samples", "64", "model.normalise_samples: found 64, the checkpoint was made with 32"),
]


@pytest.mark.usefixtures("no_models")
def test_changed_options_are_refused_by_name(runs: Runs, refused: Callable[..., str]) -> None:
    """All differences of a stage in one message, before a model is loaded."""
    for stage in KILL_AT:
        mine = [c for c in CHANGED if c[0] == stage]
        flags = [word for c in mine for word in c[1:3]]
        message = refused(runs.arguments(stage, runs.killed, "--ckpt_path", str(runs.killed / stage / "last.ckpt"), *flags))
        for _, _, _, expected in mine:
            assert f"--ckpt_path: {expected}" in message
        assert message.count("the checkpoint was made with") == len(mine), message


def overlay(file: Path, *callbacks: tuple[str, dict[str, Any]]) -> list[str]:
    """The words of a config that adds callbacks."""
    added = [{"class_path": name, "init_args": options} for name, options in callbacks]
    file.write_text(yaml.safe_dump({"trainer": {"callbacks+": added}}), encoding="utf-8")
    return ["-c", str(file)]


def test_what_a_resume_may_change_counts(runs: Runs, tmp_path: Path, refused: Callable[..., str]) -> None:
    """β and the learning rate are the new ones, on the schedule of the whole run; a run that has ended gets no longer."""
    last = tmp_path / "ppo/last.ckpt"
    stop = ("lightning_rlhf.online.RoundEnd", {"path": str(last), "iteration": 2})
    main(runs.arguments("ppo", tmp_path, *overlay(tmp_path / "stop.yaml", stop)))
    allowed = ("--allow_changed", '["model.kl_coef", "model.optimizer.lr"]')
    changes = ("--model.kl_coef", "0.9", "--model.optimizer.init_args.lr", "1e-5")
    main(runs.arguments("ppo", tmp_path, "--ckpt_path", str(last), *allowed, *changes))
    found = [row for row in rows(tmp_path / "ppo", 1) if row["objective/kl"]]
    assert len(found) == 2 and float(found[0]["objective/kl_coef"]) == pytest.approx(0.9)
    assert [float(row["ppo/lr"]) for row in found] == pytest.approx([5e-6, 2.5e-6])
    longer = ("--data.total_episodes", "64", "--allow_changed", '["data.total_episodes"]')
    message = refused(runs.arguments("ppo", tmp_path, "--ckpt_path", str(last), *changes, *longer))
    assert "data.total_episodes: found 64, and the checkpoint's run has ended after 32; a new run may start" in message


def test_an_average_of_the_weights_is_resumed(runs: Runs, tmp_path: Path) -> None:
    """A callback that averages has its own entries beside the parameters that train, and no others are missing. Its state in a
    checkpoint is that of the checkpoint's batch, though it stands behind in the config."""
    average = overlay(tmp_path / "average.yaml", ("pytorch_lightning.callbacks.EMAWeightAveraging", {"decay": 0.5}))
    main(runs.arguments("sft", tmp_path, *average))
    export, last = tmp_path / "sft/export/model.safetensors", tmp_path / "sft/last.ckpt"
    before, saved = load_file(export), torch.load(last, weights_only=True)
    assert any(not torch.equal(tensor, load_file(runs.whole / "sft/export/model.safetensors")[k]) for k, tensor in before.items())
    assert int(saved["averaging_state"]["n_averaged"]) == BATCHES["sft"]
    main(runs.arguments("sft", tmp_path, *average, "--ckpt_path", str(last)))
    assert all(torch.equal(tensor, load_file(export)[k]) for k, tensor in before.items())


def test_a_sharded_checkpoint_of_an_earlier_run_is_kept(tmp_path: Path) -> None:
    """A link to a folder is renamed with the file's rule, and the folder that it points at stays."""
    name = tmp_path / "last.ckpt"
    for run in ("a", "b", "c"):
        aside = tmp_path / ".last.ckpt.partial"
        aside.mkdir()
        (aside / "shard").write_text(run, encoding="utf-8")
        if name.exists():
            name.replace(tmp_path / "last.ckpt.old")
        put_in_place(aside, name)
    assert [(tmp_path / f / "shard").read_text(encoding="utf-8") for f in ("last.ckpt", "last.ckpt.old")] == ["c", "b"]
    assert len([f for f in tmp_path.iterdir() if not f.is_symlink()]) == 2
    saver = StageCheckpoint(str(name))
    assert saver.of_another_run(SimpleNamespace(ckpt_path=None))  # type: ignore[arg-type]
    assert not saver.of_another_run(SimpleNamespace(ckpt_path=str(name)))  # type: ignore[arg-type]


def test_another_reward_of_the_same_name_is_refused(runs: Runs, tmp_path: Path, refused: Callable[..., str]) -> None:
    """Its weights or its gain; and a difference that is allowed by name is none."""
    saved = torch.load(runs.killed / "ppo/last.ckpt", weights_only=True)
    (part,) = saved["stage"]["options"]["model.reward"]
    assert part["content"].startswith("weights ")
    saved["stage"]["options"]["model.reward"] = [{**part, "content": "weights 0"}]
    torch.save(saved, tmp_path / "other.ckpt")
    words = runs.arguments("ppo", runs.killed, "--ckpt_path", str(tmp_path / "other.ckpt"))
    message = refused(words)
    assert "--ckpt_path: model.reward: found [{" in message and "'content': 'weights 0'" in message
    assert "(--allow_changed '[\"model.reward\"]' goes on all the same)" in message
    message = refused([*words, "--allow_changed", '["model.reward"]', "--model.kl_coef", "0.2"])
    assert "model.reward" not in message and "model.kl_coef: found 0.2" in message


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGTERM, 143, "stopped by SIGTERM"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_run_that_is_told_to_stop_says_how_to_go_on(
    runs: Runs, tmp_path: Path, number: signal.Signals, status: int, word: str
) -> None:
    """And does not end as if all were well."""
    (tmp_path / "killer.py").write_text(KILLER.replace("SIGKILL", number.name), encoding="utf-8")
    words = runs.arguments("sft", tmp_path, kill=True)
    ended = subprocess.run(
        [sys.executable, "-m", "lightning_rlhf", *words], env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, timeout=300, check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a job in the background ignores
    )  # fmt: skip
    assert ended.returncode == status, ended.stderr
    assert ended.stderr.splitlines()[-1] == f"{word}; go on with --ckpt_path {tmp_path / 'sft/last.ckpt'}"
    assert not (tmp_path / "sft/export").exists()


@pytest.mark.usefixtures("no_models")
def test_changed_optimizer_and_data_are_refused(runs: Runs, tiny_run: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    overlay: dict[str, Any] = {
        "model": {"init_args": {"optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 5e-4}}}}
    }
    (tmp_path / "adam.yaml").write_text(yaml.safe_dump(overlay), encoding="utf-8")
    lines = (tiny_run / "labels/demonstrations.train.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "train.jsonl").write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")
    message = refused(runs.arguments(
        "sft", runs.killed, "--ckpt_path", str(runs.killed / "sft/last.ckpt"), "-c", str(tmp_path / "adam.yaml"),
        "--data.train", str(tmp_path / "train.jsonl"),
    ))  # fmt: skip
    assert (
        "model.optimizer: found 'torch.optim.Adam'" in message
        or "model.optimizer.class_path: found 'torch.optim.Adam'" in message
    )
    assert "data.train: found 'sha256 " in message


@pytest.mark.usefixtures("no_models")
def test_changed_weights_of_the_start_are_refused(runs: Runs, tmp_path: Path, refused: Callable[..., str]) -> None:
    """A checkpoint holds what trains: the rest of the policy must be what it was; so must the number of devices."""
    saved = torch.load(runs.killed / "ppo/last.ckpt", weights_only=True)
    options = saved["stage"]["options"]
    assert options["model.policy"].endswith(")") and "(weights " in options["model.policy"]
    options["model.policy"] = options["model.policy"][:-4] + "000)"
    options["trainer.devices (in all)"] = 2
    torch.save(saved, tmp_path / "other.ckpt")
    message = refused(runs.arguments("ppo", runs.killed, "--ckpt_path", str(tmp_path / "other.ckpt")))
    assert "--ckpt_path: model.policy: found 'stories260k (weights" in message
    assert "--ckpt_path: trainer.devices (in all): found 1, the checkpoint was made with 2" in message


@pytest.mark.usefixtures("no_models")
def test_moved_file_with_the_same_content_is_no_difference(runs: Runs, tiny_run: Path, tmp_path: Path) -> None:
    """Files count by content, so that a run directory may be moved: the resume gets as far as loading the model."""
    moved = tmp_path / "train.jsonl"
    moved.write_bytes((tiny_run / "labels/demonstrations.train.jsonl").read_bytes())
    with pytest.raises(AssertionError, match="a model was loaded"):
        main(runs.arguments("sft", runs.killed, "--ckpt_path", str(runs.killed / "sft/last.ckpt"), "--data.train", str(moved)))


@pytest.mark.usefixtures("no_models")
def test_checkpoint_that_cannot_be_used(runs: Runs, tmp_path: Path, refused: Callable[..., str]) -> None:
    message = refused(runs.arguments("ppo", runs.killed, "--ckpt_path", str(runs.killed / "sft/last.ckpt")))
    assert "--ckpt_path: found a checkpoint of stage 'sft', expected 'ppo'" in message
    message = refused(runs.arguments("ppo", runs.killed, "--ckpt_path", str(tmp_path / "none.ckpt")))
    assert f"--ckpt_path: {tmp_path / 'none.ckpt'}: no such file" in message
    whole = (runs.killed / "sft/last.ckpt").read_bytes()
    for name, content in {"half.ckpt": whole[: len(whole) // 2], "empty.ckpt": b"", "text.ckpt": b"not a checkpoint"}.items():
        (tmp_path / name).write_bytes(content)
        message = refused(runs.arguments("sft", runs.killed, "--ckpt_path", str(tmp_path / name)))
        assert f"--ckpt_path: {tmp_path / name}: found no whole checkpoint there" in message
    saved = torch.load(runs.killed / "ppo/last.ckpt", weights_only=True)
    del saved["stage"]["options"]["model.compile_blocks"]  # which an older version did not have
    saved["stage"]["options"]["trainer.strategy"] = "ModelParallelStrategy"
    torch.save(saved, tmp_path / "sharded.ckpt")
    given = ("--ckpt_path", str(tmp_path / "sharded.ckpt"), "--allow_changed", '["trainer.strategy"]')
    message = refused(runs.arguments("ppo", runs.killed, *given))
    assert "found SingleDeviceStrategy, and the optimizer of sharded networks has other groups" in message
    message = refused(runs.arguments("sft", runs.killed, "--trainer.precision", "64-true", "--model.overwrite", "true"))
    assert "trainer.precision: found 64-true, expected 32-true, bf16-mixed or bf16-true" in message
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    message = refused(runs.arguments("sft", runs.killed, "--ckpt_path", str(tmp_path / "other.ckpt")))
    assert "found a checkpoint of stage None, expected 'sft'" in message


# ------------------------------------------------------------------------------------------------- StageCheckpoint


class _Trainer:
    """As much of a Trainer as the callback touches."""

    num_training_batches, is_global_zero, accumulate_grad_batches, ckpt_path = 5, True, 1, None

    def __init__(self, fail: bool = False) -> None:
        self.fail, self.saved = fail, 0
        self.strategy = self

    def barrier(self) -> None: ...

    def save_checkpoint(self, path: Path) -> None:
        self.saved += 1
        path.write_bytes(b"new")
        if self.fail:
            raise OSError("No space left on device")


def test_checkpoint_every_so_many_batches_and_at_the_last(tmp_path: Path) -> None:
    trainer, callback = _Trainer(), StageCheckpoint(str(tmp_path / "folder/last.ckpt"), every=2)
    counts = []
    for batch in range(5):
        callback.on_train_batch_end(trainer, None, None, None, batch)  # type: ignore[arg-type]
        counts.append(trainer.saved)
    assert counts == [0, 1, 1, 2, 3]
    assert [f.name for f in (tmp_path / "folder").iterdir()] == ["last.ckpt"]


def test_checkpoint_is_whole_or_the_one_before(tmp_path: Path) -> None:
    """A save that fails half-way leaves the file of the save before."""
    (tmp_path / "last.ckpt").write_bytes(b"old")
    callback = StageCheckpoint(str(tmp_path / "last.ckpt"), every=1)
    with pytest.raises(OSError, match="No space"):
        callback.on_train_batch_end(_Trainer(fail=True), None, None, None, 0)  # type: ignore[arg-type]
    assert (tmp_path / "last.ckpt").read_bytes() == b"old"
    callback.on_train_batch_end(_Trainer(), None, None, None, 0)  # type: ignore[arg-type]
    assert (tmp_path / "last.ckpt").read_bytes() == b"new"


def test_checkpoint_every_is_checked() -> None:
    with pytest.raises(UsageError, match=r"StageCheckpoint\.every: found 0, expected at least 1"):
        StageCheckpoint("x.ckpt", every=0)
