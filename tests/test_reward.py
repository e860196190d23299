"""Losses of the reward model and the normalisation against plain loops and closed forms."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_rlhf.data import ComparisonBatch, Judged, PreferenceData
from lightning_rlhf.reward import (
    best_of_n_loss,
    compare_loss,
    judge,
    label_target,
    labels_loss,
    normalisation,
    pairwise_loss,
    ranking_loss,
    rating_loss,
    scalar_labels,
)
from lightning_rlhf.tasks import UsageError

INF, NAN = math.inf, math.nan


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def nll(difference: float) -> float:
    """−log σ(d) = log(1 + e^−d)."""
    return math.log1p(math.exp(-difference))


def same(found: Tensor, expected: float, rel: float = 1e-6) -> None:
    assert found.dtype == torch.float32
    assert found.shape == ()
    assert found.item() == pytest.approx(expected, rel=rel, abs=1e-7)


# ---------------------------------------------------------------------------------------------------------- best of N


@pytest.mark.parametrize("n", [2, 4, 7])
def test_equal_scores_lose_log_n(n: int) -> None:
    same(best_of_n_loss(torch.full((3, n), 5.0), torch.tensor([0, n - 1, 1])), math.log(n))


def test_best_of_n_against_a_loop() -> None:
    scores, best = normal(5, 4), [0, 3, 2, 2, 1]
    rows = [math.log(sum(math.exp(x) for x in row)) - row[b] for row, b in zip(scores.tolist(), best, strict=True)]
    same(best_of_n_loss(scores, torch.tensor(best)), sum(rows) / 5)
    same(best_of_n_loss(scores, torch.tensor(best, dtype=torch.int32)), sum(rows) / 5)


def test_a_response_that_is_not_there_changes_nothing() -> None:
    scores, best = normal(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    wide = torch.cat([scores, torch.full((6, 2), -INF)], 1).requires_grad_()
    loss = best_of_n_loss(wide, best)
    same(loss.detach(), best_of_n_loss(scores, best).item())
    loss.backward()
    assert wide.grad is not None
    assert bool(torch.isfinite(wide.grad).all())
    assert bool((wide.grad[:, 3:] == 0).all())


def test_losses_of_bf16_scores_are_float32() -> None:
    scores = normal(4, 2).bfloat16()
    same(best_of_n_loss(scores, torch.zeros(4, dtype=torch.long)), best_of_n_loss(scores.float(), torch.zeros(4).long()).item())
    same(pairwise_loss(scores[:, 0], scores[:, 1]), pairwise_loss(*scores.float().unbind(1)).item())


# ------------------------------------------------------------------------------------------------------------- pairs


def test_pairwise_against_a_loop_and_best_of_two() -> None:
    scores = normal(8, 2, seed=1)
    chosen, rejected = scores.unbind(1)
    same(pairwise_loss(chosen, rejected), sum(nll(c - r) for c, r in scores.double().tolist()) / 8)
    same(pairwise_loss(chosen, rejected), best_of_n_loss(scores, torch.zeros(8, dtype=torch.long)).item())
    same(pairwise_loss(torch.zeros(3), torch.zeros(3)), math.log(2))


def test_a_margin_must_be_exceeded() -> None:
    # a lead of 2 with a margin of 1 costs what a lead of 1 does; a number serves all
    same(pairwise_loss(torch.tensor([3.0]), torch.tensor([1.0]), torch.tensor([1.0])), nll(1.0))
    same(pairwise_loss(torch.tensor([3.0, 0.0]), torch.tensor([1.0, 0.0]), torch.tensor([0.5, 2.0])), (nll(1.5) + nll(-2.0)) / 2)
    same(pairwise_loss(torch.tensor([3.0, 0.0]), torch.tensor([1.0, 0.0]), 0.5), (nll(1.5) + nll(-0.5)) / 2)


def test_far_apart_scores_stay_finite() -> None:
    same(pairwise_loss(torch.tensor([-500.0]), torch.tensor([500.0])), 1000.0)
    same(pairwise_loss(torch.tensor([500.0]), torch.tensor([-500.0])), 0.0)


# ----------------------------------------------------------------------------------------------------------- rankings


def ranking_loop(scores: list[list[float]], ranks: list[list[float]], mask: list[list[bool]]) -> float:
    prompts = []
    for s, r, m in zip(scores, ranks, mask, strict=True):
        pairs = []
        for i in range(len(s)):
            for j in range(len(s)):
                if m[i] and m[j] and r[i] < r[j]:  # i is the better
                    pairs.append(nll(s[i] - s[j]))
        if pairs:
            prompts.append(sum(pairs) / len(pairs))
    return sum(prompts) / len(prompts)


def test_ranking_by_hand() -> None:
    # ranks 1, 2, 2: two untied pairs, with leads of 1 and 3
    same(ranking_loss(torch.tensor([[2.0, 1.0, -1.0]]), torch.tensor([[1, 2, 2]])), (nll(1.0) + nll(3.0)) / 2)


def test_ranking_against_a_double_loop() -> None:
    scores = normal(5, 4, seed=2)
    ranks = torch.tensor([[1, 2, 3, 4], [2, 1, 2, 1], [1, 1, 1, 1], [4, 4, 1, 2], [3, 1, 2, 9]])  # the third has no pair
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 1], [1, 1, 1, 0]], dtype=torch.bool)
    full = torch.ones_like(mask)
    same(ranking_loss(scores, ranks), ranking_loop(scores.tolist(), ranks.tolist(), full.tolist()))
    same(ranking_loss(scores, ranks, mask), ranking_loop(scores.tolist(), ranks.tolist(), mask.tolist()))
    same(ranking_loss(scores, ranks.float(), mask.long()), ranking_loop(scores.tolist(), ranks.tolist(), mask.tolist()))


def test_ranking_of_two_is_the_pairwise_loss() -> None:
    scores = normal(6, 2, seed=3)
    same(ranking_loss(scores, torch.tensor([[1, 2]] * 6)), pairwise_loss(*scores.unbind(1)).item())


def test_ranking_never_touches_masked_candidates() -> None:
    mask = torch.tensor([[True, True, False], [True, False, True]])
    ranks = torch.tensor([[1, 2, 1], [2, 1, 1]])
    grads = []
    for garbage in (torch.zeros(2), torch.tensor([NAN, INF])):
        scores = torch.tensor([[0.5, 1.0, 0.0], [0.2, 0.0, 0.4]])
        scores[~mask] = garbage
        scores.requires_grad_()
        loss = ranking_loss(scores, ranks, mask)
        same(loss.detach(), (nll(-0.5) + nll(0.2)) / 2)
        loss.backward()
        assert scores.grad is not None
        grads.append(scores.grad)
    assert torch.equal(grads[0], grads[1])
    assert bool((grads[1][~mask] == 0).all())


def test_ranking_refuses_a_batch_without_a_pair() -> None:
    with pytest.raises(ValueError, match="no untied pair of real candidates in the batch, expected at least one"):
        ranking_loss(torch.zeros(2, 3), torch.ones(2, 3))
    with pytest.raises(ValueError, match="no untied pair"):
        ranking_loss(torch.zeros(1, 2), torch.tensor([[1, 2]]), torch.tensor([[True, False]]))


# ----------------------------------------------------------------------------------------------------------- scalars


def test_rating_and_compare_by_hand() -> None:
    # (1 − 3)² and (2 − 2.5)²: (4 + 0.25) / 2
    same(rating_loss(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 2.5])), 2.125)
    same(rating_loss(torch.tensor([1.0, 2.0]), torch.tensor([3, 2])), 2.0)
    # 2 − (4 − 1) = −1 and −1 − (0 − 3) = 2: (1 + 4) / 2
    same(compare_loss(torch.tensor([1.0, 3.0]), torch.tensor([4.0, 0.0]), torch.tensor([2.0, -1.0])), 2.5)


# ------------------------------------------------------------------------------------------------------ normalisation


@pytest.mark.parametrize(
    "rewards", [normal(256, seed=4) * 3 + 7, torch.tensor([1, 2, 3, 10]), normal(4, 8) * 1e-15, torch.tensor([-5.0, 5.0])]
)
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (2.5, 0.3), (-1.0, 4.0)])
def test_normalisation_meets_its_target(rewards: Tensor, mean: float, std: float) -> None:
    gain, bias = normalisation(rewards, mean, std)
    assert type(gain) is float
    assert type(bias) is float
    found = [gain * x + bias for x in rewards.double().flatten().tolist()]
    average = sum(found) / len(found)
    assert average == pytest.approx(mean, abs=1e-9)
    assert math.sqrt(sum((x - average) ** 2 for x in found) / len(found)) == pytest.approx(std, rel=1e-9)


def test_losses_refuse_what_torch_would_stretch() -> None:
    row, column = torch.tensor([1.0, 2.0]), torch.tensor([[1.0], [2.0]])
    calls = [lambda: pairwise_loss(row, column), lambda: pairwise_loss(row, row, column), lambda: rating_loss(column, row)]
    calls += [lambda: compare_loss(row, row, column), lambda: ranking_loss(column, column.T)]
    calls += [lambda: ranking_loss(row, row, column), lambda: ranking_loss(column.mT @ column, column[:1], column.bool())]
    for call in calls:
        with pytest.raises(ValueError, match="expected the same shape"):
            call()
    with pytest.raises(IndexError):
        best_of_n_loss(torch.zeros(1, 4), torch.tensor([-100]))
    with pytest.raises(ValueError, match="found choices of torch.float32, expected integers"):
        best_of_n_loss(torch.zeros(1, 4), torch.tensor([1.5]))


def test_normalisation_by_hand() -> None:
    # 1, 3: mean 2, population std 1 (the sample's is 1.414)
    assert normalisation(torch.tensor([1.0, 3.0])) == pytest.approx((1.0, -2.0))
    assert normalisation(torch.tensor([1.0, 3.0]), 10.0, 2.0) == pytest.approx((2.0, 6.0))


@pytest.mark.parametrize("rewards", [[2.0], [0.1] * 7, [0.0, 0.0], [], [1e8] * 3])
def test_normalisation_refuses_what_has_no_spread(rewards: list[float]) -> None:
    with pytest.raises(ValueError, match=f"the {len(rewards)} rewards have no spread, expected different values"):
        normalisation(torch.tensor(rewards))


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_normalisation_refuses_what_is_not_finite(bad: float) -> None:
    with pytest.raises(ValueError, match="1 of 3 rewards are not finite"):
        normalisation(torch.tensor([1.0, bad, 2.0]))
    with pytest.raises(ValueError, match=r"expected finite numbers and std above 0"):
        normalisation(torch.tensor([1.0, 2.0]), mean=bad)


@pytest.mark.parametrize("std", [0.0, -1.0, NAN, INF])
def test_normalisation_refuses_a_target_without_spread(std: float) -> None:
    with pytest.raises(ValueError, match=f"found mean 0.0 and std {std}, expected finite numbers and std above 0"):
        normalisation(torch.tensor([1.0, 2.0]), std=std)


# ------------------------------------------------------------------------------------------------------- mixed labels

BEST = ([1], [[2], [3, 4], [5]], 1)
PAIR = Judged([1], [[2], [3]], best=1, margin=0.5)
BARE = Judged([1], [[2], [3]], best=0)
RANKED = Judged([1], [[2], [3], [4], [5]], ranks=[2, 1, 1, 4])
RATED = Judged([1], [[2], [3]], ratings=[4.0, 2.0])
RATED_ONE = Judged([1], [[2]], ratings=[3.0])
DIFFERENCE = Judged([1], [[2], [3]], margin=-0.25)
ALL = [BEST, PAIR, RANKED, RATED, DIFFERENCE, BARE, RATED_ONE]


def scored(rows: list[Any], seed: int = 0) -> tuple[Tensor, ComparisonBatch]:
    """Random rewards for a batch, −inf where there is no response."""
    batch = PreferenceData.collate(rows)
    real = batch.mask.any(1).view(len(batch.best), -1)
    return torch.where(real, normal(*real.shape, seed=seed), -INF), batch


def loss_of_record(s: list[float], row: Any, margin: bool, centring: float) -> float:
    label = Judged(*row)
    s = s[: len(label.responses)]
    if label.ranks is not None:
        pairs = [nll(s[i] - s[j]) for i in range(len(s)) for j in range(len(s)) if label.ranks[i] < label.ranks[j]]
        return sum(pairs) / len(pairs)
    if label.ratings is not None:
        return sum((x - y) ** 2 for x, y in zip(s, label.ratings, strict=True)) / len(s)
    if label.best is None:
        assert label.margin is not None
        return (label.margin - (s[1] - s[0])) ** 2
    if len(s) > 2:
        return math.log(sum(math.exp(x) for x in s)) - s[label.best]
    lead = s[label.best] - s[1 - label.best]
    return nll(lead - (label.margin or 0.0) * margin) + centring * (s[0] + s[1]) ** 2


@pytest.mark.parametrize(("margin", "centring"), [(False, 0.0), (True, 0.0), (False, 0.01), (True, 0.5)])
@pytest.mark.parametrize("rows", [ALL, *([row] for row in ALL), [PAIR, BARE], [RANKED, BEST, RANKED]])
def test_the_loss_follows_the_label_of_each_record(rows: list[Any], margin: bool, centring: float) -> None:
    scores, batch = scored(rows)
    each = [loss_of_record(s, row, margin, centring) for s, row in zip(scores.tolist(), rows, strict=True)]
    same(labels_loss(scores, batch, margin, centring), sum(each) / len(rows))


def test_a_mixed_batch_is_its_records_weighted_alike() -> None:
    """Shares of one global batch, weighted by their records, add up to it: what several devices compute."""
    scores, batch = scored(ALL)
    whole = labels_loss(scores, batch)
    total = 0.0
    for i in range(3):
        own = PreferenceData.collate(ALL[i::3])
        total += float(labels_loss(scores[i::3, : own.ranks.shape[1]], own)) * len(own.kinds)
    assert total / len(ALL) == pytest.approx(float(whole), rel=1e-6)


def test_no_record_is_a_loss_of_nothing() -> None:
    batch = PreferenceData.collate([])
    scores = torch.tensor([[2.0]], requires_grad=True)
    loss = labels_loss(scores, batch)
    loss.backward()
    assert loss.item() == 0.0
    assert scores.grad is not None
    assert scores.grad.tolist() == [[0.0]]


def test_responses_that_are_not_there_get_no_gradient() -> None:
    scores, batch = scored(ALL)
    scores.requires_grad_()
    labels_loss(scores, batch, margin=True, centring=0.1).backward()
    assert scores.grad is not None
    assert bool(torch.isfinite(scores.grad).all())
    assert bool((scores.grad[scores == -INF] == 0).all())
    # all others get some, but for the two that the ranking ties, which still lose to or beat the rest
    assert bool((scores.grad[scores > -INF] != 0).all())


def test_judgements_of_a_mixed_batch() -> None:
    scores, batch = scored(ALL)
    found = judge(scores, batch)
    assert [len(d) for d in found] == [1, 1, 5, 1, 1, 1, 0]  # ranks 2, 1, 1, 4: five pairs of six are untied
    (best,), (pair,), ranked, (rated,), (difference,), (bare,), _ = found
    s = scores.tolist()
    assert best.lead == pytest.approx(s[0][1] - max(s[0][0], s[0][2]))
    assert best.longer == 1.0
    assert (pair.lead, pair.strength) == (pytest.approx(s[1][1] - s[1][0]), 0.5)
    assert {d.options for d in ranked} == {2}
    assert rated.lead == pytest.approx(s[3][0] - s[3][1])
    assert difference.lead == pytest.approx(s[4][0] - s[4][1])
    assert bare.strength is None
    labels = scalar_labels(scores, batch)
    assert [(k, x) for k, x, _ in labels] == [
        ("scalar_rating", 4.0), ("scalar_rating", 2.0), ("scalar_compare", -0.25), ("scalar_rating", 3.0)
    ]  # fmt: skip
    assert [y for *_, y in labels] == pytest.approx([s[3][0], s[3][1], s[4][1] - s[4][0], s[6][0]])
    nothing = torch.zeros(1, 1), PreferenceData.collate([])
    assert judge(*nothing) == scalar_labels(*nothing) == []


def test_target_of_the_first_normalisation() -> None:
    assert label_target([Judged(*BEST), PAIR, RANKED]) == (0.0, 1.0)
    # ratings 4, 2, 3: mean 3, population variance 2/3; comparisons beside them do not matter
    assert label_target([PAIR, RATED, RATED_ONE, DIFFERENCE]) == pytest.approx((3.0, math.sqrt(2 / 3)))
    # differences −0.25 and 0.75, halved: −0.125 and 0.375
    assert label_target([DIFFERENCE, DIFFERENCE._replace(margin=0.75), BARE]) == pytest.approx((0.125, 0.25))
    with pytest.raises(UsageError, match=r"data\.train: all 2 ratings are the same, expected different ones"):
        label_target([RATED_ONE, RATED_ONE, DIFFERENCE])
    with pytest.raises(UsageError, match=r"data\.train: all 1 differences are the same"):
        label_target([DIFFERENCE])
