"""Each alarm is triggered by its own figure, once, and never by a healthy run; a resumed run judges as the whole one."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from lightning_rlhf.alarms import Alarms, Thresholds, Vitals, negative_kl, repeated_bigrams

HEALTHY = Vitals(entropy=2.0, repetition=0.05, length=20.0, penalised=0.2, var_explained=0.3)
SICK = {
    "entropy": ({"entropy": 0.59}, {"entropy": 0.61}, "entropy collapse: 0.590 nats a token, 2.000 at the start"),
    "repetition": ({"repetition": 0.31}, {"repetition": 0.3}, "repetition: 31% of a response's bigrams"),
    "short": ({"length": 9.9}, {"length": 10.0}, "length drift: 9.9 tokens a response, 20.0 at the start"),
    "long": ({"length": 40.1}, {"length": 40.0}, "length drift: 40.1 tokens a response"),
    "penalised": ({"penalised": 0.51}, {"penalised": 0.5}, "penalised: 51% of the responses did not end as they should"),
    "var_explained": ({"var_explained": -1.01}, {"var_explained": -1.0}, "explained variance -1.01, limit -1"),
}


def started(**thresholds: object) -> Alarms:
    """After a healthy start."""
    alarms = Alarms(Thresholds(**thresholds))  # type: ignore[arg-type]
    assert alarms.judge(0, HEALTHY) == []
    return alarms


@pytest.mark.parametrize("case", SICK)
def test_each_figure_raises_its_alarm(case: str) -> None:
    beyond, at, message = SICK[case]
    alarms = started()
    said = [alarms.judge(i, replace(HEALTHY, **beyond)) for i in range(20, 26)]
    assert [len(s) for s in said] == [0, 0, 1, 0, 0, 0]  # the third in a row, once
    assert message in said[2][0]
    assert "(iteration 22)" in said[2][0]
    name = {"short": "length", "long": "length"}.get(case, case)
    assert alarms.raised == {name: said[2][0]}
    fine = started()
    assert not any(fine.judge(i, replace(HEALTHY, **at)) for i in range(20, 40))


def test_the_start_is_the_first_iteration_that_has_a_figure() -> None:
    """A skipped iteration has no entropy, responses of no token no length."""
    alarms = Alarms(Thresholds(patience=1))
    assert alarms.judge(0, replace(HEALTHY, entropy=math.nan, length=0.0)) == alarms.judge(1, HEALTHY) == []
    resumed = Alarms(Thresholds(patience=1))
    resumed.load_state_dict(alarms.state_dict())
    assert "2.000 at the start" in resumed.judge(2, replace(HEALTHY, entropy=0.1))[0]
    assert "20.0 at the start" in resumed.judge(3, replace(HEALTHY, length=50.0))[0]


@pytest.mark.parametrize("case", SICK)
def test_an_alarm_can_be_turned_off(case: str) -> None:
    name = {"short": "length", "long": "length"}.get(case, case)
    alarms = started(**{name: None}, patience=1)
    assert alarms.judge(50, replace(HEALTHY, **SICK[case][0])) == []


def test_an_alarm_needs_patience_and_returns_after_a_pause() -> None:
    alarms = started(patience=2)
    sick = replace(HEALTHY, penalised=1.0)
    said = [bool(alarms.judge(i, v)) for i, v in enumerate([sick, HEALTHY, sick, sick, sick, HEALTHY, sick, sick])]
    assert said == [False, False, False, True, False, False, False, True]


def test_the_value_function_has_time_to_warm_up() -> None:
    alarms = started(warmup=10, patience=1)
    sick = replace(HEALTHY, var_explained=-50.0)
    assert [bool(alarms.judge(i, sick)) for i in range(1, 12)] == [False] * 9 + [True, False]


def test_what_is_not_a_number_raises_nothing() -> None:
    alarms = started(patience=1)
    assert alarms.judge(50, Vitals(*[math.nan] * 5)) == []


@pytest.mark.parametrize("name", ["entropy", "repetition", "length", "penalised", "var_explained", "over_optimised", "warmup"])
def test_a_threshold_that_no_run_can_meet_is_refused(name: str) -> None:
    """A share of 50, or above every figure: the alarm would never be raised, or always."""
    wrong = {"entropy": -1.0, "repetition": 30.0, "length": 0.5, "penalised": 50.0, "var_explained": 5.0, "over_optimised": -3.0,
             "warmup": -4}  # fmt: skip
    (problem,) = Thresholds(**{name: wrong[name]}).problems()  # type: ignore[arg-type]
    assert problem.startswith(f"model.alarms.{name}: found {wrong[name]:g}, expected ")
    assert Thresholds(**dict.fromkeys(wrong.keys() - {"warmup"})).problems() == []  # type: ignore[arg-type]


def test_over_optimisation() -> None:
    alarms = Alarms(Thresholds())
    prompts = range(40)
    learned, known = [0.1 * (i % 5) for i in prompts], [0.2 * (i % 3) for i in prompts]
    assert alarms.judge_validation(0, learned, known) == []
    better = [x + 1 for x in learned], [x + 0.5 for x in known]
    assert alarms.judge_validation(10, *better) == []
    # both fall: no exploitation.  learned falls, known falls
    assert alarms.judge_validation(20, [x - 1 for x in better[0]], [x - 1 for x in better[1]]) == []
    # learned rises by 1; known falls by ½ in half of the prompts: mean −0.25, standard error 0.2532 / √40 = 0.040: 6.2
    fallen = [x - 0.5 * (i % 2) for i, x in enumerate(better[1])]
    (said,) = alarms.judge_validation(30, [x + 1 for x in better[0]], fallen)
    assert "over-optimisation: the reward rose by 1.000 while the held-out reward fell by 0.250 (6.2 standard errors)" in said
    assert alarms.raised["over_optimised"] == said
    assert alarms.judge_validation(35, [x + 1 for x in better[0]], fallen) == []  # said already
    # a fall within the noise is none: ± ½ in turn, mean −0.0125
    noisy = [x + (0.5 if i % 2 else -0.525) for i, x in enumerate(better[1])]
    assert alarms.judge_validation(40, [x + 1 for x in better[0]], noisy) == []
    assert alarms.judge_validation(50, [x + 1 for x in better[0]], fallen)  # it had been well in between
    off = Alarms(Thresholds(over_optimised=None))
    off.judge_validation(0, *better)
    assert off.judge_validation(1, [x + 1 for x in better[0]], fallen) == []


def test_a_resumed_run_judges_as_the_whole_one() -> None:
    sick = replace(HEALTHY, entropy=0.1)
    whole = started()
    whole.judge(1, sick)
    whole.judge_validation(1, [1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    resumed = Alarms(Thresholds())
    resumed.load_state_dict(whole.state_dict())
    for alarms in (whole, resumed):
        assert alarms.judge(2, sick) == []
        assert len(alarms.judge(3, sick)) == 1  # without the start and the streak it would not be seen, or later
        assert len(alarms.judge_validation(4, [2.0, 3.0, 4.0], [0.0, 1.0, 2.0])) == 1
    assert whole.state_dict() == resumed.state_dict()


def test_thresholds_that_cannot_be() -> None:
    assert Thresholds().problems() == []
    assert Thresholds(patience=0, length=1.0).problems() == [
        "model.alarms.patience: found 0, expected at least 1",
        "model.alarms.length: found 1, expected above 1, or null",
    ]


def test_negative_kl_by_hand() -> None:
    # mean −1, deviations ±0.1: noise 3 · 0.1155 / 2 = 0.173; −1 is below −(0.1 + 0.173), −0.2 is not
    low = torch.tensor([-0.9, -1.1, -0.9, -1.1])
    assert negative_kl(low + 0.8, 0.1, 7) is None
    assert negative_kl(torch.tensor([-5.0]), 0.1, 7) is None  # one response tells nothing
    assert negative_kl(low, 1.0, 7) is None
    assert negative_kl(low, 0.1, 7) == "mean KL to the reference is -1.000 nats at iteration 7, below -0.1 - 0.173 (noise)"


def repeats(row: list[int]) -> float:
    seen: set[tuple[int, int]] = set()
    again = 0
    for pair in pairwise(row):
        again += pair in seen
        seen.add(pair)
    return again / max(1, len(row) - 1)


def test_repeated_bigrams_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 3, (40, 9), generator=generator)
    lengths = torch.randint(0, 10, (40,), generator=generator)
    mask = torch.arange(9) < lengths[:, None]
    expected = [repeats(row[:n]) for row, n in zip(tokens.tolist(), lengths.tolist(), strict=True)]
    assert repeated_bigrams(tokens, mask).tolist() == pytest.approx(expected)
    assert max(expected) > 0 and min(expected) == 0
    # a, b, a, b, a: ab ba | ab ba again: 2 of 4
    assert repeated_bigrams(torch.tensor([[5, 6, 5, 6, 5]]), torch.ones(1, 5, dtype=torch.bool)).tolist() == [0.5]
    assert repeated_bigrams(torch.tensor([[5]]), torch.ones(1, 1, dtype=torch.bool)).tolist() == [0.0]
