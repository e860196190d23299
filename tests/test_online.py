"""Online collection: the schedule by hand, a whole small run, killed at every kind of place, and verdicts from a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import lightning_rlhf.online as module
from lightning_rlhf.cli import main
from lightning_rlhf.online import Collector, held_out_prompts, labels_wanted, round_starts, undecided
from lightning_rlhf.ppo import PPOModule
from lightning_rlhf.records import Prompt
from lightning_rlhf.tasks import Task

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


class Stopped(BaseException):
    """What a test throws where a run is to be killed; nothing catches it."""


def test_labels_by_hand() -> None:
    # 100 + 300 (1 − (1 − n/N)²) at n/N = 0, 1/4, 1/2, 1: 1 − 9/16 = 7/16, 1 − 1/4 = 3/4
    assert [labels_wanted(n, 400, 100, 400) for n in (0, 100, 200, 400)] == [100, 231, 325, 400]
    assert round_starts(40, 5) == [0, 8, 16, 24, 32]
    assert round_starts(7, 3) == [0, 2, 4]


@pytest.fixture
def arguments(tiny_run: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """The words of a small run in a folder: 2 rounds, 4 iterations of 8 episodes."""
    small = {
        "model": {"init_args": {"normalise_samples": 32, "rollout_batch_size": 32}},
        "data": {"init_args": {"batch_size": 8}},
        "trainer": {"enable_progress_bar": False, "enable_model_summary": False},
    }
    (tmp_path / "reward.yaml").write_text(yaml.safe_dump({**small, "trainer": {**small["trainer"], "max_epochs": 3}}))
    ppo = {"trainer": small["trainer"], "model": {"init_args": {"allow_unguarded": True}}}
    (tmp_path / "ppo.yaml").write_text(yaml.safe_dump(ppo))

    def words(folder: str, *flags: str) -> list[str]:
        found = ["online"]
        for config in ("sentiment", "sentiment/stories260k"):
            found += ["-c", str(CONFIGS / config / "online.yaml")]
        for stage in ("reward", "ppo"):
            files = [str(CONFIGS / "sentiment" / f"{stage}.yaml"), str(CONFIGS / "sentiment/stories260k" / f"{stage}.yaml"),
                     str(CONFIGS / "hardware/cpu.yaml"), str(tmp_path / f"{stage}.yaml")]  # fmt: skip
            found += [f"--{stage}", json.dumps(files)]
        sizes = dict(total_episodes=32, ppo_batch_size=8, total_labels=60, first_labels=32, val_labels=40, rounds=2)
        for key, value in {**sizes, "batch_size": 10}.items():
            found += [f"--{key}", str(value)]
        return [*found, "--prompts", f"{tiny_run}/prompts/train.jsonl", "--output", str(tmp_path / folder), *flags]

    return words


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_a_run_and_the_same_run_killed_everywhere(
    arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    main(arguments("whole"))
    whole = tmp_path / "whole"
    # the quadratic rule: 32 at 0 of 32 episodes, 32 + 28 · 3/4 = 53 at 16; the held-out ones in equal parts
    train, val = rows(whole / "labels/train.jsonl"), rows(whole / "labels/val.jsonl")
    assert [r["round"] for r in train] == [0] * 32 + [1] * 21
    assert [r["round"] for r in val] == [0] * 20 + [1] * 20
    assert len({r["id"] for r in train}) == 53
    assert all(len(r["responses"]) == 4 for r in train + val)
    assert [json.loads((whole / f"round-0{k}/reward/reward.json").read_text())["labels"] for k in (0, 1)] == [32, 53]
    weights = [load_file(whole / f"round-0{k}/ppo/model.safetensors") for k in (0, 1)]
    assert any(not torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    assert (whole / "ppo").resolve() == (whole / "round-01/ppo").resolve()
    # PPO is one run: the second round begins at the third of four iterations, with half of the learning rate left
    first, second = (
        [line.split(",") for line in (whole / f"logs/ppo/version_{k}/metrics.csv").read_text().splitlines()] for k in (0, 1)
    )
    column = lambda table, name: [float(r[table[0].index(name)]) for r in table[1:] if r[table[0].index(name)]]  # noqa: E731
    assert column(first, "elapsed/updates") == [1, 2]
    assert column(second, "elapsed/updates") == [3, 4]
    rates = column(first, "ppo/lr") + column(second, "ppo/lr")
    assert [a - b for a, b in pairwise(rates)] == pytest.approx([6e-4 / 4] * 3)  # linear over both rounds

    def throws(
        patch: pytest.MonkeyPatch, name: str, call: int, owner: Any = module, first_do: Callable[..., Any] | None = None
    ) -> None:
        """The nth call of a function ends the run, after doing a part of its work where `first_do` says which."""
        original, left = getattr(owner, name), [call]

        def replaced(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                if first_do:
                    first_do(*args)
                raise Stopped
            return original(*args, **kwargs)

        patch.setattr(owner, name, replaced)

    def half_a_line(file: Path, lines: list[dict[str, Any]]) -> None:
        whole = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in lines).encode()
        with file.open("ab") as handle:  # the last line is not whole
            handle.write(whole[: -len(json.dumps(lines[-1])) // 2])

    kills: list[Callable[[pytest.MonkeyPatch], None]] = [
        lambda p: throws(p, "append_jsonl", 3, first_do=half_a_line),  # while labels are written
        lambda p: throws(p, "fit", 1),  # labels there, no reward model yet
        lambda p: throws(p, "point", 1),  # reward model there, not pointed at
        lambda p: throws(p, "rollout", 2, PPOModule),  # inside the first round's PPO
        lambda p: throws(p, "export", 1, PPOModule),  # after the round's checkpoint, before its policy
        lambda p: throws(p, "append_jsonl", 2),  # labels of the second round
        lambda p: throws(p, "rollout", 2, PPOModule),
    ]
    for kill in kills:
        with pytest.MonkeyPatch.context() as patch:
            kill(patch)
            with pytest.raises(Stopped):
                main(arguments("killed"))
    main(arguments("killed"))
    killed = tmp_path / "killed"
    for split in ("train", "val"):
        assert (killed / f"labels/{split}.jsonl").read_bytes() == (whole / f"labels/{split}.jsonl").read_bytes()
    for directory in ("round-00/reward", "round-00/ppo", "round-01/reward", "round-01/ppo"):
        expected, found = (load_file(folder / directory / "model.safetensors") for folder in (whole, killed))
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[k], found[k]) for k in expected), directory


def test_held_out_labels_are_of_other_prompts() -> None:
    """Of the last ones, none of which training has, not even in other letters; of two prompts one."""
    prompts = [Prompt(text) for text in ("one", "two", "three", "four", "Three!", "six")]
    train, val = held_out_prompts(prompts, 1 / 3)
    assert [p.prompt for p in train] == ["one", "two", "three", "four"] and [p.prompt for p in val] == ["six"]
    assert [len(part) for part in held_out_prompts(prompts[:2], 0.001)] == [1, 1]
    assert held_out_prompts(prompts[:1], 0.5)[1] == []


def test_a_stage_that_could_not_start_is_told_before_anybody_labels(
    arguments: Callable[..., list[str]], tmp_path: Path, refused: Callable[..., str]
) -> None:
    (tmp_path / "bad.yaml").write_text("model:\n  init_args:\n    cliprage: 0.1\n", encoding="utf-8")
    reward, ppo = str(CONFIGS / "sentiment/reward.yaml"), str(CONFIGS / "sentiment/ppo.yaml")
    message = refused(arguments("bad", "--ppo", json.dumps([ppo, str(tmp_path / "bad.yaml")]), "--reward", "[]"))
    assert "reward: found no config file, expected at least one" in message
    assert f"ppo: {tmp_path / 'bad.yaml'}:3: model.cliprage: found an unknown option" in message
    message = refused(arguments("bad", "--reward", json.dumps([ppo]), "--ppo", json.dumps([reward])))
    assert "reward: found configs of PPOModule, expected those of RewardModule" in message
    assert "ppo: found configs of RewardModule, expected those of PPOModule" in message
    assert not (tmp_path / "bad").exists()


def test_equal_responses_are_drawn_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They would be labels that say nothing, and above 1 % of them nothing could be read; so would those without text, and those
    that the labeler likes equally. Of several that it likes best one is the best by lot, not always the policy's."""
    (tmp_path / "long.py").write_text("def f(prompts, completions):\n    return [float(len(c) > 3) for c in completions]\n")

    class Sure(Collector):
        """Has one answer to prompts of even numbers."""

        asked: list[list[str]] = []  # noqa: RUF012

        def _load(self) -> Any:
            return (SimpleNamespace(tokenizer=None),)

        def sample(self, split: str, prompts: list[Prompt], number: int, num_samples: int) -> list[list[str]]:
            self.asked.append([p.prompt for p in prompts])
            return [["same"] * num_samples if int(p.prompt) % 2 == 0 else [f"{p.prompt} {k}" for k in range(num_samples)]
                    for p in prompts]  # fmt: skip

    prompts = [Prompt(str(i)) for i in range(9)]
    (tmp_path / "last.py").write_text("def f(prompts, completions):\n    return [float(ord(c[-1])) for c in completions]\n")
    for labeler in (f"{tmp_path}/last.py:f", f"file:{tmp_path}/answers.jsonl"):
        made = Sure("lm", "lm", Task(), labeler, tmp_path, 1, 4, "32")
        made.asked = []
        drawn = made.draw("train", prompts, 0, 4, 2, 7)
        assert [r["prompt"] for r in drawn] == ["3", "1", "1", "3"] and not any(undecided(r) for r in drawn)
        assert [(r["id"], r["round"]) for r in drawn] == [(f"train-00000{i}", 7) for i in range(4)]
        assert made.asked[:2] == [["0", "1", "2", "3"], ["4", "6"]]
    never = Sure("lm", "lm", Task(), "known:sentiment", tmp_path, 1, 4, "32").draw("train", [Prompt("0")], 0, 1, 2, 0)
    assert never[0]["responses"] == ["same", "same"]  # a policy with one answer to everything: told by whoever reads the labels
    short = Sure("lm", "lm", Task(), f"{tmp_path}/long.py:f", tmp_path, 1, 40, "32")
    capsys.readouterr()
    tied = short.draw("val", [Prompt("1")], 0, 40, 2, 0)  # all equally short: no response is the best one by its place
    assert {r["best"] for r in tied} == {0, 1} and "40 of 40 nothing is preferred" in capsys.readouterr().out

    class Odd(Sure):
        """Ties, an empty text, or two that are liked, by the prompt."""

        def sample(self, split: str, prompts: list[Prompt], number: int, num_samples: int) -> list[list[str]]:
            answers = {"tie": ["a", "b", "c"], "empty": [" ", "good", "c"], "two": ["a", "good", "fine"]}
            return [answers[str(p.prompt)] for p in prompts]

    odd = Odd("lm", "lm", Task(), f"{tmp_path}/long.py:f", tmp_path, 1, 4, "32")
    labels = odd.draw("val", [Prompt(p) for p in ("two", "tie", "empty")], 0, 40, 3, 0)
    assert {r["prompt"] for r in labels} == {"two"} and {r["best"] for r in labels} == {1, 2}
    assert not any("ranks" in r for r in labels)


def test_a_value_network_from_the_first_reward_model_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The summary tasks' form (2020): what `value_init` points at is another reward model in each round, as `reward` is."""
    asked: list[list[str]] = []
    monkeypatch.setattr(module, "run_fit", asked.append)
    (tmp_path / "ppo.ckpt").touch()
    for checkpoint in ("none.ckpt", "ppo.ckpt"):
        module.fit(["ppo.yaml"], tmp_path / "round.yaml", tmp_path / checkpoint)
    assert "--ckpt_path" not in asked[0]
    assert json.loads(asked[1][asked[1].index("--allow_changed") + 1]) == ["model.reward", "model.value_init"]
    (tmp_path / "round-01/reward").mkdir(parents=True)
    (tmp_path / "reward").symlink_to(tmp_path / "round-01/reward")
    ppo: Any = SimpleNamespace(value_init=str(tmp_path / "reward"))
    assert module.starts_from(ppo, tmp_path / "round-01/reward") and not module.starts_from(ppo, tmp_path / "round-00/reward")
    assert not module.starts_from(SimpleNamespace(value_init=None), tmp_path)  # type: ignore[arg-type]


def test_verdicts_from_a_file(
    arguments: Callable[..., list[str]], tmp_path: Path, refused: Callable[..., str]
) -> None:
    answers = tmp_path / "verdicts.jsonl"
    words = arguments("people", "--labeler", f"file:{answers}", "--batch_size", "40")
    message = refused(words)
    requests = tmp_path / "people/labels/requests.jsonl"
    assert "52 of 52 comparisons wait for an answer in" in message
    assert f"lightning-rlhf label --responses {requests} --output {answers}" in message
    asked = rows(requests)
    assert [r["id"] for r in asked] == [f"{s}-{i:06d}" for s, n in (("train", 32), ("val", 20)) for i in range(n)]
    verdicts = [{"id": r["id"], "best": i % 4} for i, r in enumerate(asked)]
    answers.write_text("".join(json.dumps(v) + "\n" for v in [*verdicts[:-1], {**verdicts[-1], "best": 4}]), encoding="utf-8")
    assert "verdicts.jsonl:52: field 'best': found 4, expected 0 to 3" in refused(words)
    answers.write_text("".join(json.dumps(v) + "\n" for v in verdicts[:-3]), encoding="utf-8")
    assert "3 of 52 comparisons wait" in refused(words)
    assert not (tmp_path / "people/labels/train.jsonl").exists()
    answers.write_text("".join(json.dumps(v) + "\n" for v in verdicts), encoding="utf-8")
    assert "comparisons wait for an answer" in refused(words)  # those of the next round
    labels = rows(tmp_path / "people/labels/train.jsonl")
    assert [r["best"] for r in labels] == [i % 4 for i in range(32)]
    assert [r["responses"] for r in labels] == [r["responses"] for r in asked[:32]]


def test_other_options_are_refused(arguments: Callable[..., list[str]], tmp_path: Path, refused: Callable[..., str]) -> None:
    labeler = ("--labeler", f"file:{tmp_path / 'none.jsonl'}")
    refused(arguments("run", *labeler))
    began = tmp_path / "run" / "online.json"
    began.write_text(json.dumps({k: v for k, v in json.loads(began.read_text()).items() if k != "redraws"}))  # as it once was
    assert "wait for an answer" in refused(arguments("run", *labeler))
    message = refused(arguments("run", *labeler, "--total_labels", "61"))
    assert "total_labels: found 61, the run in" in message
    assert "began with 60" in message
    message = refused(arguments("bad", "--rounds", "9", "--first_labels", "0", "--prompts", "nowhere.jsonl", "--precision", "8"))
    assert "first_labels: found 0, expected at least 1" in message
    assert "total_episodes: found 32, expected at least 72" in message
    assert "prompts: nowhere.jsonl: no such file" in message
    assert "precision: found '8'" in message
    message = refused(arguments("bad", "--reward", '["nowhere.yaml"]'))
    assert "reward: nowhere.yaml: no such file" in message
