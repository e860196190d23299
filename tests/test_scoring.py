"""The sign-flip guard, and what a reward function may return."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from eval.reward_model import judge_reward
from lightning_rlhf.cli import main
from lightning_rlhf.data import DataError, read_comparisons
from lightning_rlhf.files import write_jsonl
from lightning_rlhf.models import load_tokenizer
from lightning_rlhf.ppo import PPOModule
from lightning_rlhf.records import Comparison
from lightning_rlhf.reward import best_of_n_loss
from lightning_rlhf.scalar import read_reward_info
from lightning_rlhf.scoring import (
    LearnedReward,
    accuracy_interval,
    call_reward,
    comparison_accuracy,
    comparison_scores,
    find_reward,
    guard,
    guard_problems,
    is_learned,
    load_callable,
    load_reward,
    weighted_sum,
)
from lightning_rlhf.tasks import UsageError
from lightning_rlhf.tokens import encode, encode_continuation

REWARD = """
def length(prompts, completions, **columns):
    return [float(len(c)) for c in completions]


def constant(prompts, completions, **columns):
    return [0.0] * len(completions)


NUMBER = 3
"""
SHORT = ("--data.batch_size", "4", "--data.total_episodes", "4", "--model.num_ppo_epochs", "1")


@pytest.fixture
def reward_file(tmp_path: Path) -> str:
    (tmp_path / "rewards.py").write_text(REWARD, encoding="utf-8")
    return str(tmp_path / "rewards.py")


@pytest.fixture
def ppo(tiny_run: Path, tmp_path: Path, command: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """The words of a PPO run of one iteration into tmp_path."""

    def words(*flags: str) -> list[str]:
        logs = ("--trainer.logger", "false", "--trainer.callbacks", "[]")
        return command("ppo", tiny_run, "--model.output", str(tmp_path / "out"), *SHORT, *logs, *flags)

    return words


def guard_of(folder: Path) -> dict[str, Any]:
    """What run.json says of the guard."""
    return dict(json.loads((folder / "out/run.json").read_text(encoding="utf-8"))["figures"]["guard"])


def flipped(tiny_run: Path, target: Path) -> str:
    """The tiny run's reward with its sign turned."""
    shutil.copytree(tiny_run / "reward", target)
    info = json.loads((target / "reward.json").read_text(encoding="utf-8"))
    info.update(gain=-info["gain"], bias=-info["bias"])
    (target / "reward.json").write_text(json.dumps(info), encoding="utf-8")
    return str(target)


# ------------------------------------------------------------------------------------------ the guard, on PPO itself


def test_trained_reward_passes(tiny_run: Path, tmp_path: Path, ppo: Callable[..., list[str]]) -> None:
    main(ppo())
    found = guard_of(tmp_path)
    assert found["kind"] == "comparisons"
    assert found["n"] == 160
    assert found["low"] > found["chance"] == 0.25
    assert found["file"] == str(tiny_run / "labels/train.jsonl")


def test_flipped_sign_is_refused(
    tiny_run: Path, tmp_path: Path, ppo: Callable[..., list[str]], refused: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    reward = flipped(tiny_run, tmp_path / "flipped")
    message = refused(ppo("--model.reward", reward))
    found = comparison_accuracy(LearnedReward(reward), list(read_comparisons(str(tiny_run / "labels/train.jsonl"))))
    assert found["accuracy"] < 0.25
    assert "the reward was refused: on 160 held-out comparisons" in message
    assert f"in {found['accuracy']:.3f} (95 % interval {found['low']:.3f} to {found['high']:.3f}), and chance is 0.250" in message
    assert "--model.allow_unguarded true" in message
    assert not (tmp_path / "out").exists()
    # overridden, loudly
    with pytest.warns(UserWarning, match="PPO starts ALTHOUGH the reward was refused"):
        main(ppo("--model.reward", reward, "--model.allow_unguarded", "true"))
    assert guard_of(tmp_path)["kind"] == "overridden"
    assert "was refused" in guard_of(tmp_path)["why"]


@pytest.mark.parametrize("head", ["constant", "random"])
def test_head_that_never_trained_is_refused(
    head: str, tiny_run: Path, tmp_path: Path, ppo: Callable[..., list[str]], refused: Callable[..., str]
) -> None:
    shutil.copytree(tiny_run / "reward", tmp_path / "reward")
    file = tmp_path / "reward/model.safetensors"
    weights = load_file(file)
    noise = torch.randn(weights["score.weight"].shape, generator=torch.Generator().manual_seed(3)) * 0.1
    weights["score.weight"] = noise if head == "random" else torch.zeros_like(noise)
    save_file(weights, file, metadata={"format": "pt"})
    message = refused(ppo("--model.reward", str(tmp_path / "reward")))
    assert "the reward was refused" in message
    if head == "constant":  # a tie is no hit
        assert "in 0.000 (95 % interval 0.000" in message


def test_nothing_guards_a_callable(reward_file: str, tmp_path: Path, ppo: Callable[..., list[str]]) -> None:
    with pytest.warns(UserWarning, match="PPO starts UNGUARDED"):
        main(ppo("--model.reward", f"{reward_file}:length", "--model.guard_comparisons", "null"))
    assert guard_of(tmp_path) == {"kind": "none"}


def test_fixed_pairs_guard_a_callable(
    reward_file: str, tmp_path: Path, ppo: Callable[..., list[str]], refused: Callable[..., str]
) -> None:
    right = json.dumps([{"prompt": "a", "better": "longer", "worse": "long"}])
    wrong = json.dumps([{"prompt": "a", "better": "long", "worse": "longer"}])
    words = ppo("--model.guard_comparisons", "null")
    message = refused([*words, "--model.reward", f"{reward_file}:length", "--model.guard_pairs", wrong])
    assert "the reward was refused: guard_pairs: 'long' scores 4.0000, not above 'longer' with 6.0000" in message
    message = refused([*words, "--model.reward", f"{reward_file}:constant", "--model.guard_pairs", right])
    assert "not above" in message
    main([*words, "--model.reward", f"{reward_file}:length", "--model.guard_pairs", right])
    assert guard_of(tmp_path) == {"kind": "pairs", "n": 1}


def test_known_reward_is_a_reward(tmp_path: Path, ppo: Callable[..., list[str]]) -> None:
    pair = json.dumps([{"prompt": "The film", "better": " was wonderful and moving.", "worse": " was awful and boring."}])
    main(ppo("--model.reward", "known:sentiment", "--model.guard_comparisons", "null", "--model.guard_pairs", pair))
    assert guard_of(tmp_path) == {"kind": "pairs", "n": 1}


def test_negative_kl_stops_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ppo: Callable[..., list[str]], refused: Callable[..., str]
) -> None:
    """log ρ too high by 1 in each of 24 tokens: mean KL −24."""
    plain = PPOModule.reference_logprobs
    monkeypatch.setattr(PPOModule, "reference_logprobs", lambda self, *a: plain(self, *a) + 1.0)
    message = refused(ppo())
    assert "mean KL to the reference is -24.000 nats at iteration 0, below -0.1" in message
    assert "--model.allow_negative_kl true" in message
    assert not (tmp_path / "out").exists()
    with pytest.warns(UserWarning, match="mean KL to the reference is -24.000"):
        main(ppo("--model.allow_negative_kl", "true"))


def test_negative_coefficient_can_be_allowed(tmp_path: Path, ppo: Callable[..., list[str]]) -> None:
    with pytest.warns(UserWarning, match="NEGATIVE kl_coef of -0.1"):
        main(ppo("--model.kl_coef", "-0.1", "--model.allow_negative_kl", "true"))


# ---------------------------------------------------------------------------------------------------- its arithmetic


def compare(*scores: list[float], best: int = 0) -> list[Comparison]:
    """Comparisons whose responses are their own scores, as text."""
    return [Comparison("p", [str(s) for s in row], best=best) for row in scores]


def by_text(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    return [float(c) for c in completions]


def test_accuracy_by_hand() -> None:
    rows = compare([3, 1, 2, 0], [1, 2, 0, 0], [2, 2, 1, 0])  # right, wrong, a tie
    found = comparison_accuracy(by_text, [*rows, *compare([5, 1]), Comparison("p", ["1", "2"])])  # the last says no best
    assert (found["n"], found["accuracy"]) == (4, 0.5)
    assert found["chance"] == pytest.approx((3 * 0.25 + 0.5) / 4)


def test_accuracy_of_every_label_type() -> None:
    rows = [
        Comparison("p", ["3", "2", "1"], ranks=[1, 2, 2]),  # two untied pairs, both right
        Comparison("p", ["3", "1", "2"], ranks=[1, 2, 3]),  # two of three pairs right
        Comparison("p", ["1", "2"], ratings=[4.0, 2.0]),  # wrong
        Comparison("p", ["1", "2"], margin=0.5),  # right: response 1 is the better
        Comparison("p", ["1"], ratings=[4.0]),  # prefers nothing, like the next two
        Comparison("p", ["1", "2"], margin=0.0),
        Comparison("p", ["1", "2"], ratings=[4.0, 4.0]),
    ]
    found = comparison_accuracy(by_text, rows)
    assert (found["n"], found["chance"]) == (4, 0.5)
    assert found["accuracy"] == pytest.approx((1 + 2 / 3 + 0 + 1) / 4)
    with pytest.raises(UsageError, match="found 3 comparisons, and none says which response is best"):
        comparison_accuracy(by_text, rows[4:])


def test_token_ids_are_decoded_for_a_reward_that_reads_texts(tiny_run: Path, tmp_path: Path) -> None:
    """As the reward of the same comparisons in texts; a learned reward takes the ids as they are."""
    model = LearnedReward(str(tiny_run / "reward"))
    texts = list(read_comparisons(str(tiny_run / "labels/val.jsonl")))[:8]
    tokenizer = model.tokenizer
    ids = [
        Comparison(encode(tokenizer, str(c.prompt)), [encode_continuation(tokenizer, str(r)) for r in c.responses], best=c.best)
        for c in texts
    ]  # fmt: skip
    seen: list[tuple[Any, Any]] = []

    def spaces(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        seen.extend(zip(prompts, completions, strict=True))
        return [float(c.count(" ")) + 0.01 * len(p + c) for p, c in zip(prompts, completions, strict=True)]

    assert comparison_accuracy(spaces, ids, tokenizer) == comparison_accuracy(spaces, texts)
    assert seen[: len(seen) // 2] == seen[len(seen) // 2 :]
    assert comparison_accuracy(model, ids) == comparison_accuracy(model, texts)
    with pytest.raises(UsageError, match="comparison 1: found token ids, and this reward reads texts; give the tokenizer"):
        comparison_accuracy(spaces, ids)
    # so does the report, for its reward and its labeler
    file = tmp_path / "ids.jsonl"
    write_jsonl(file, ids)
    found, calibration, alone = judge_reward(str(tiny_run / "reward"), "known:sentiment", str(file), [])
    assert found["accuracy"] == comparison_accuracy(model, texts)["accuracy"]
    assert found["labeler_accuracy"] == comparison_accuracy(load_callable("known:sentiment"), texts)["accuracy"] > 0.5
    assert calibration is None  # too few to say anything
    assert alone is None  # no ensemble
    # predicted probabilities are of the scale that was trained: the log-loss is the one that training reported
    every = list(read_comparisons(str(tiny_run / "labels/val.jsonl")))
    same = [str(tiny_run / "reward")]
    _, calibration, together = judge_reward(same[0], "known:sentiment", str(tiny_run / "labels/val.jsonl"), same)
    assert together["members"] == pytest.approx([together["accuracy"]] * 2)
    assert (together["disagree"], together["spread"]) == (0.0, pytest.approx(0.0, abs=1e-7))
    spread = read_reward_info(tiny_run / "reward")["normalisations"][-1]["std"]
    scores = torch.tensor(comparison_scores(model, every)) * spread
    assert calibration["n"] == len(every)
    assert calibration["loss"] == pytest.approx(float(best_of_n_loss(scores, torch.tensor([c.best for c in every]))), abs=1e-5)


@pytest.mark.parametrize(("same", "group"), [(1, 1), (4, 4), (16, 16), (34, 2), (60, 15), (97, 1)])
def test_responses_to_one_prompt_are_read_together_a_few_at_a_time(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, same: int, group: int
) -> None:
    """A mask over all of a hundred of them would be large; 16 or fewer, by what divides their number."""
    model, seen = load_reward(str(tiny_run / "reward")), []
    monkeypatch.setattr(model, "score_tokens", lambda rows, group: seen.append(group) or torch.zeros(len(rows)))
    assert model(["p"] * same + ["q"] * same, ["a"] * 2 * same) == [0.0] * 2 * same
    assert seen == [group]


MESSAGES = {"prompt": [{"role": "user", "content": "Hi"}], "responses": [[{"role": "assistant", "content": c}] for c in "ab"]}


@pytest.mark.usefixtures("no_models")
def test_messages_are_refused_before_a_model_is_loaded(
    tmp_path: Path, ppo: Callable[..., list[str]], refused: Callable[..., str]
) -> None:
    file = tmp_path / "messages.jsonl"
    rows = [{"prompt": "Hi", "responses": ["a", "b"], "best": 0}] * 600 + [{**MESSAGES, "best": 0}]
    file.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    message = refused(ppo("--model.guard_comparisons", str(file)))
    expected = f"{file}:601: field 'prompt': found messages, and the tokenizer"
    assert f"model.guard_comparisons: {expected}" in message
    with pytest.raises(DataError, match="comparison 1: found messages, and this reward reads texts"):
        comparison_accuracy(by_text, [Comparison(**MESSAGES, best=0)])


def test_guard_takes_rankings(tmp_path: Path) -> None:
    file = tmp_path / "ranked.jsonl"
    rows = [{"prompt": "p", "responses": ["3", "2", "1"], "ranks": [1, 2, 3]} for _ in range(20)]
    file.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    assert guard_problems(str(file), None) == []
    found = guard(by_text, str(file))
    assert (found["accuracy"], found["chance"], found["n"]) == (1.0, 0.5, 20)
    with pytest.raises(UsageError, match="is its sign flipped"):
        guard(lambda **given: [-x for x in by_text(**given)], str(file))


def test_guard_gives_a_reward_its_columns_and_texts(tmp_path: Path) -> None:
    """Fields of a comparison are columns, None where it has none; token ids are decoded for a sum that reads texts."""
    file = tmp_path / "labels.jsonl"
    rows = [{"prompt": "p", "responses": ["3", "2"], "best": 0} | ({"topic": 1} if i else {}) for i in range(20)]
    file.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    seen: list[Any] = []

    def topical(prompts: list[str], completions: list[str], topic: list[Any]) -> list[float]:
        seen.extend(topic)
        return [float(c) for c in completions]

    assert guard(weighted_sum([0.5, 1.0], [topical, by_text]), str(file))["accuracy"] == 1.0
    assert seen == [None] * 2 + [1] * 38
    without = Comparison("p", ["3", "2"], best=0)
    with pytest.raises(UsageError, match="topical: missing a required argument: 'topic'; the columns that there are: reference"):
        comparison_accuracy(topical, [without])
    tokenizer = load_tokenizer("stories260k")
    ids = [encode(tokenizer, "p"), [encode_continuation(tokenizer, t) for t in (" 3", " 2")]]
    rows = [{"prompt": ids[0], "responses": ids[1], "best": 0}] * 20
    file.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    assert guard(weighted_sum([0.5], [by_text]), str(file), tokenizer)["accuracy"] == 1.0
    with pytest.raises(UsageError, match="give the tokenizer"):
        guard(by_text, str(file))


def test_a_file_of_code_is_a_module_that_runs_once(tmp_path: Path) -> None:
    """Dataclasses look their module up; what a file loads at its top is loaded once."""
    file = tmp_path / "mine.py"
    file.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom pathlib import Path\n\n"
        f"Path({str(tmp_path / 'ran')!r}).open('a').write('.')\n\n\n@dataclass\nclass A:\n    x: int = 1\n\n\n"
        "def f(prompts, completions):\n    return [A().x] * len(prompts)\n"
    )
    assert load_callable(f"{file}:f") is load_callable(f"{file}:f")
    assert load_callable(f"{file}:f")(prompts=["a"], completions=["b"]) == [1]
    assert (tmp_path / "ran").read_text() == "."
    twin = tmp_path / "twin" / "mine.py"
    twin.parent.mkdir()
    twin.write_text(file.read_text())
    assert load_callable(f"{twin}:f").__globals__["__file__"] == str(twin)  # beside which it may read
    file.write_text("def f(prompts, completions):\n    return [2.0] * len(prompts)\n")
    assert load_callable(f"{file}:f")(prompts=["a"], completions=["b"]) == [2.0]


def test_wilson_interval_by_hand() -> None:
    """p = 8 / 10, z = 1.959964: centre (p + z²/2n) / (1 + z²/n), half z √(p(1 − p)/n + z²/4n²) / (1 + z²/n)."""
    z2 = 1.959964**2
    centre, half = (0.8 + z2 / 20) / (1 + z2 / 10), 1.959964 * (0.016 + z2 / 400) ** 0.5 / (1 + z2 / 10)
    assert accuracy_interval(8, 10) == pytest.approx((0.8, centre - half, centre + half), abs=1e-6)


@pytest.mark.parametrize(("right", "passes"), [(40, True), (28, False), (25, False), (0, False)])
def test_guard_wants_the_lower_bound_above_chance(right: int, passes: bool, tmp_path: Path) -> None:
    """100 comparisons of 4: 40 right has a lower bound of 0.309, 28 right one of 0.201."""
    file = tmp_path / "comparisons.jsonl"
    rows = [{"prompt": "p", "responses": ["3", "2", "1", "0"], "best": 0 if i < right else 1 + i % 3} for i in range(100)]
    file.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    if passes:
        assert guard(by_text, str(file))["accuracy"] == right / 100
        assert guard(by_text, str(file), limit=10)["n"] == 10
    else:
        with pytest.raises(UsageError, match=rf"agrees with the labels in {right / 100:.3f} .*is its sign flipped"):
            guard(by_text, str(file))


def test_guard_needs_a_judgement(tmp_path: Path) -> None:
    file = tmp_path / "ratings.jsonl"
    file.write_text(json.dumps({"query": "p", "sample": "a", "score": 2.0}) + "\n", encoding="utf-8")
    with pytest.raises(UsageError, match="no comparison says which response is best"):
        guard(by_text, str(file))
    assert guard_problems(str(file), None) == [f"model.guard_comparisons: {file}: no comparison says which response is best"]


def test_guard_problems() -> None:
    good = {"prompt": "p", "better": "b", "worse": "w"}
    assert guard_problems(None, [good, {**good, "topic": 1}]) == []
    assert guard_problems(None, [good, {"prompt": "p", "better": "b"}]) == [
        "model.guard_pairs[1]: found ['better', 'prompt'], expected ['better', 'prompt', 'worse']"
    ]
    assert guard_problems(None, ["text"]) == ["model.guard_pairs[0]: found str, expected ['better', 'prompt', 'worse']"]  # type: ignore[list-item]


# ----------------------------------------------------------------------------------------------------------- rewards


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0], "returned 1 values for 2 completions, expected a list of as many floats"),
        (torch.zeros((2, 1)), r"returned \[0.0\] among its values, expected floats"),
        (None, "returned NoneType for 2 completions"),
        ([1.0, float("nan")], "returned nan, expected a finite float"),
        ([float("-inf"), 1.0], "returned -inf, expected a finite float"),
        ([1.0, 10**400], "returned 10+ among its values, expected floats"),
        ([1.0, None], "returned None among its values, expected floats"),
        ([1.0, "high"], "returned 'high' among its values, expected floats"),
    ],
)
def test_what_a_reward_function_may_not_return(returned: Any, message: str) -> None:
    with pytest.raises(UsageError, match=f"reward function .*: {message}"):
        call_reward(lambda **given: returned, ["p", "q"], ["a", "b"], {})


def test_a_reward_function_may_return_a_tensor_and_tells_its_name_when_it_fails() -> None:
    assert call_reward(lambda **given: torch.ones(2), ["p", "q"], ["a", "b"], {}) == [1.0, 1.0]

    def broken(prompts: list[str], completions: list[str]) -> list[float]:
        raise KeyError("score")

    with pytest.raises(KeyError) as error:
        call_reward(broken, ["p"], ["a"], {})
    assert "broken" in error.value.__notes__[0]


def test_reward_function_gets_every_column() -> None:
    seen: dict[str, Any] = {}

    def reward(prompts: list[str], completions: list[str], **columns: Any) -> tuple[int, ...]:
        seen.update(columns, prompts=prompts, completions=completions)
        return (1, 2)

    assert call_reward(reward, ["p", "q"], ["a", "b"], {"reference": ["r", "s"]}) == [1.0, 2.0]
    assert seen == {"prompts": ["p", "q"], "completions": ["a", "b"], "reference": ["r", "s"]}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:f", "No module named 'no_such_module'; expected a reward directory, known:NAME or module:function"),
        ("json:no_such_function", "has no attribute 'no_such_function'"),
        ("none.py:f", "No such file or directory"),
        ("known:taste", r"no such known reward, expected one of \['descriptiveness', 'rouge', 'sentiment'\]"),
        ("{file}:NUMBER", "found a int, expected a function"),
        ("{broken}:f", "expected a reward directory, known:NAME or module:function"),
    ],
)
def test_what_is_no_callable(name: str, message: str, reward_file: str, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def f(:\n", encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        load_callable(name.format(file=reward_file, broken=tmp_path / "broken.py"))


def test_names_of_rewards(reward_file: str, tiny_run: Path) -> None:
    assert is_learned("out/reward")
    assert not is_learned("known:sentiment")
    assert load_callable(f"{reward_file}:length")(prompts=["p"], completions=["four"]) == [4.0]
    assert load_callable("json:dumps") is json.dumps
    find_reward(f"{reward_file}:length", "any")
    find_reward(str(tiny_run / "reward"), "sentiment")
    find_reward(str(tiny_run / "reward"), "tldr", allow_other_task=True)
    with pytest.raises(UsageError, match=r"was made for task 'sentiment', this run's task is 'tldr'"):
        find_reward(str(tiny_run / "reward"), "tldr")
    with pytest.raises(UsageError, match=r"no reward\.json there"):
        find_reward(str(tiny_run), "sentiment")


def test_learned_reward_scores_texts_as_tokens(tiny_run: Path) -> None:
    """The text bridge gives what the token path gives; batches make no difference."""
    reward = load_reward(str(tiny_run / "reward"))
    assert isinstance(reward, LearnedReward)
    rows = list(read_comparisons(str(tiny_run / "labels/val.jsonl")))[:3]
    prompts, texts = [r.prompt for r in rows for _ in r.responses], [t for r in rows for t in r.responses]
    whole = reward(prompts=prompts, completions=texts)
    reward.batch_size = 5
    assert reward(prompts=prompts, completions=texts) == pytest.approx(whole, abs=1e-5)
    apart = [i for first in range(4) for i in range(first, len(texts), 4)]  # no two responses to a prompt after one another
    alone = reward(prompts=[prompts[i] for i in apart], completions=[texts[i] for i in apart])
    assert alone == pytest.approx([whole[i] for i in apart], abs=1e-5)
    assert reward(prompts=[], completions=[]) == []
    bos = reward.tokenizer.bos_token_id
    joined = [bos, *reward.tokenizer.encode(str(prompts[0]) + str(texts[0]), add_special_tokens=False)]
    assert float(reward.score_tokens([joined])) == pytest.approx(whole[0], abs=1e-5)
    with pytest.raises(ValueError, match="shorter"):
        reward(prompts=prompts, completions=texts[:-1])
