"""PPO's pure functions against plain loops over the real entries, and against arithmetic by hand."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_rlhf.generation import truncate
from lightning_rlhf.ppo import (
    AdaptiveKL,
    FixedKL,
    full_kl,
    gae,
    kl_estimate,
    kl_rewards,
    penalised,
    policy_loss,
    value_loss,
    whiten,
)

NAN, INF = math.nan, math.inf

# full, ragged on the right, a gap on the left, holes inside, one real token
MASK = torch.tensor(
    [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 0, 1, 0, 1], [0, 0, 0, 1, 0]], dtype=torch.bool
)  # fmt: skip


def tensors(n: int, seed: int = 0, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(MASK.shape, generator=generator) for _ in range(n)]


def soiled(tensor: Tensor) -> Tensor:
    """NaN and both infinities at the masked places."""
    garbage = torch.tensor([NAN, INF, -INF]).repeat(MASK.numel())[: MASK.numel()].view(MASK.shape)
    return torch.where(MASK, tensor, garbage)


def rows(tensor: Tensor, mask: Tensor = MASK) -> list[list[float]]:
    """The real entries of each row."""
    return [[float(x) for x, m in zip(r, k, strict=True) if m] for r, k in zip(tensor, mask, strict=True)]


def flat(tensor: Tensor, mask: Tensor = MASK) -> list[float]:
    return [x for row in rows(tensor, mask) for x in row]


def placed(found: list[list[float]], mask: Tensor = MASK) -> Tensor:
    """Lists of real entries back at their places, 0 elsewhere."""
    out = torch.zeros(mask.shape, dtype=torch.float64)
    for i, row in enumerate(found):
        out[i, mask[i]] = torch.tensor(row, dtype=torch.float64)
    return out


def close(found: Tensor, expected: Tensor, rtol: float = 1e-6, atol: float = 1e-6) -> None:
    assert found.dtype in (torch.float32, torch.float64)
    torch.testing.assert_close(found.double(), expected.double(), rtol=rtol, atol=atol)


# ------------------------------------------------------------------------------------------------------------ whiten


def test_whiten_by_hand() -> None:
    # 1, 2, 3, 6: mean 3, population variance (4 + 1 + 0 + 9) / 4 = 3.5
    values, root = torch.tensor([[1.0, 2.0], [3.0, 6.0]]), math.sqrt(3.5 + 1e-8)
    expected = torch.tensor([[-2 / root, -1 / root], [0.0, 3 / root]])
    close(whiten(values), expected)
    close(whiten(values, shift_mean=False), expected + 3)
    close(whiten(values, torch.ones(2, 2, dtype=torch.bool)), expected)


def test_whiten_has_its_epsilon_inside_the_root() -> None:
    # ±1e-4: variance 1e-8, so 1e-4 / √(2e-8) = 0.70711; outside the root it would be 1e-4 / (1e-4 + 1e-8) = 0.9999
    close(whiten(torch.tensor([[1e-4, -1e-4]])), torch.tensor([[math.sqrt(0.5), -math.sqrt(0.5)]]), atol=1e-5)


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whiten_against_a_loop(shift_mean: bool) -> None:
    (values,) = tensors(1, scale=3.0)
    real = flat(values)
    mean = sum(real) / len(real)
    variance = sum((x - mean) ** 2 for x in real) / len(real)
    white = [[(x - mean) / math.sqrt(variance + 1e-8) + (0 if shift_mean else mean) for x in row] for row in rows(values)]
    close(whiten(soiled(values), MASK, shift_mean), placed(white))
    assert bool((whiten(soiled(values), MASK, shift_mean)[~MASK] == 0).all())


# --------------------------------------------------------------------------------------------------------------- gae


def test_gae_by_hand() -> None:
    # γ = 0.5, λ = 0.4. The last token: δ = 2 − 4 = −2, A = −2. The first: δ = 1 + 0.5·4 − 3 = 0, A = 0 + 0.2·(−2) = −0.4.
    advantages, returns = gae(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]), gamma=0.5, lam=0.4)
    close(advantages, torch.tensor([[-0.4, -2.0]]))
    close(returns, torch.tensor([[2.6, 2.0]]))


def test_gae_with_lambda_one_is_the_discounted_return() -> None:
    rewards, values = tensors(2)
    _, returns = gae(rewards, values, gamma=0.9, lam=1.0)
    expected = [[sum(0.9 ** (k - t) * r[k] for k in range(t, 5)) for t in range(5)] for r in rewards.double().tolist()]
    close(returns, torch.tensor(expected))


def gae_loop(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """The sum of (γλ)^l δ_{t+l} (1506.02438, eq. 16) as it is printed."""
    deltas = [r + gamma * (values[t + 1] if t + 1 < len(values) else 0.0) - values[t] for t, r in enumerate(rewards)]
    return [sum((gamma * lam) ** l * d for l, d in enumerate(deltas[t:])) for t in range(len(deltas))]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 0.0), (0.0, 1.0)])
def test_gae_against_the_printed_sum(gamma: float, lam: float) -> None:
    rewards, values = tensors(2, seed=1)
    expected = placed([gae_loop(r, v, gamma, lam) for r, v in zip(rows(rewards), rows(values), strict=True)])
    advantages, returns = gae(soiled(rewards), soiled(values), MASK, gamma, lam)
    close(advantages, expected)
    close(returns, expected + placed(rows(values)))
    assert bool((advantages[~MASK] == 0).all())
    assert bool((returns[~MASK] == 0).all())


# -------------------------------------------------------------------------------------------------------- kl_rewards


def test_kl_rewards_by_hand() -> None:
    # kl = −1 − (−3) = 2 and −2 − (−1) = −1; β = 0.5: −1 and 0.5; the score 7 goes on the last token
    rewards, kl = kl_rewards(torch.tensor([7.0]), torch.tensor([[-1.0, -2.0]]), torch.tensor([[-3.0, -1.0]]), kl_coef=0.5)
    close(kl, torch.tensor([[2.0, -1.0]]))
    close(rewards, torch.tensor([[-1.0, 7.5]]))


def test_kl_rewards_against_a_loop() -> None:
    logprobs, ref = tensors(2, seed=2)
    scores = [3.0, -1.0, 0.5, 2.0, -4.0]
    kls = [[p - q for p, q in zip(*pair, strict=True)] for pair in zip(rows(logprobs), rows(ref), strict=True)]
    expected = [[-0.3 * k for k in row] for row in kls]
    for row, score in zip(expected, scores, strict=True):
        row[-1] += score
    rewards, kl = kl_rewards(torch.tensor(scores), soiled(logprobs), soiled(ref), MASK, kl_coef=0.3)
    close(kl, placed(kls))
    close(rewards, placed(expected))


def test_kl_rewards_leaves_its_arguments_alone() -> None:
    logprobs, ref = tensors(2)
    before, scores = logprobs.clone(), torch.ones(5)
    _, kl = kl_rewards(scores, logprobs, ref, MASK, kl_coef=-1.0)
    assert torch.equal(logprobs, before)
    close(kl, placed(rows(logprobs - ref)))  # with β = −1 the reward is the KL and the score: they must not share memory


def test_kl_rewards_refuses_an_empty_row() -> None:
    mask = torch.tensor([[True, False], [False, False]])
    with pytest.raises(ValueError, match="row 1 has no real token, expected at least one"):
        kl_rewards(torch.zeros(2), torch.zeros(2, 2), torch.zeros(2, 2), mask, kl_coef=0.1)


def test_sequence_level_puts_the_whole_penalty_on_the_last_token() -> None:
    # KL 2, −1, and a masked 9: β = 0.5: −0.5 · (2 − 1) + 7 = 6.5 on the second token
    mask = torch.tensor([[True, True, False]])
    kl = torch.tensor([[2.0, -1.0, 0.0]])
    close(penalised(torch.tensor([7.0]), kl, mask, kl_coef=0.5, level="sequence"), torch.tensor([[0.0, 6.5, 0.0]]))
    close(penalised(torch.tensor([7.0]), kl, mask, kl_coef=0.5), torch.tensor([[-1.0, 7.5, 0.0]]))


def test_both_levels_give_a_response_the_same_sum() -> None:
    logprobs, ref = tensors(2, seed=10)
    kl, scores = kl_estimate(soiled(logprobs), soiled(ref), MASK), torch.tensor([3.0, -1.0, 0.5, 2.0, -4.0])
    token, sequence = (penalised(scores, kl, MASK, kl_coef=0.3, level=level) for level in ("token", "sequence"))
    close(token.sum(1), sequence.sum(1))
    assert (sequence != 0).sum(1).tolist() == [1] * 5


# ------------------------------------------------------------------------------------------------------ KL estimators


def test_kl_estimators_by_hand() -> None:
    # d = log π − log ρ = −1 + 3 = 2 and −2 + 1 = −1
    # k2 = 2, ½;  k3 = e^−2 − 1 + 2 = 1.135335, e^1 − 1 − 1 = 0.718282
    pair = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-3.0, -1.0]])
    close(kl_estimate(*pair), torch.tensor([[2.0, -1.0]]))
    close(kl_estimate(*pair, kind="k2"), torch.tensor([[2.0, 0.5]]))
    close(kl_estimate(*pair, kind="k3"), torch.tensor([[1.135335, 0.718282]]))


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_kl_estimators_do_not_see_masked_entries(kind: str) -> None:
    logprobs, ref = tensors(2, seed=11)
    found = kl_estimate(soiled(logprobs), soiled(ref), MASK, kind)
    assert bool((found[~MASK] == 0).all())
    close(found[MASK], kl_estimate(logprobs, ref, None, kind)[MASK])


def test_kl_estimators_against_every_token_of_a_vocabulary() -> None:
    """Under π, k1 and k3 are the exact KL in the mean; k2 is ½ E d², which is not."""
    logits, ref = (torch.randn(1, 1, 7, generator=torch.Generator().manual_seed(i)) for i in (1, 2))
    temperature = 0.7
    log_pi, log_rho = (torch.log_softmax(x.double() / temperature, -1)[0] for x in (logits, ref))
    exact = sum(math.exp(p) * (p - q) for p, q in zip(log_pi[0].tolist(), log_rho[0].tolist(), strict=True))
    assert exact > 0.1
    assert full_kl(logits, ref, temperature).item() == pytest.approx(exact, rel=1e-5)
    assert full_kl(logits, logits.clone()).item() == pytest.approx(0.0, abs=1e-7)
    never = torch.cat([logits, torch.full_like(logits[..., :1], -INF)], -1).requires_grad_()
    without = full_kl(never, torch.cat([ref, torch.full_like(ref[..., :1], -INF)], -1), temperature)
    without.sum().backward()
    assert without.item() == pytest.approx(exact, rel=1e-5) and bool(never.grad.isfinite().all())
    means = {kind: (log_pi.exp() * kl_estimate(log_pi, log_rho, None, kind)).sum().item() for kind in ("k1", "k2", "k3")}
    assert means["k1"] == pytest.approx(exact, rel=1e-5)
    assert means["k3"] == pytest.approx(exact, rel=1e-5)
    assert means["k2"] == pytest.approx(0.5 * (log_pi.exp() * (log_pi - log_rho) ** 2).sum().item(), rel=1e-5)
    assert abs(means["k2"] - exact) > 1e-3


def test_nothing_real_is_no_loss() -> None:
    x, none = torch.randn(2, 3, requires_grad=True), torch.zeros(2, 3, dtype=torch.bool)
    for found in (policy_loss(x, x.detach(), x.detach(), none), value_loss(x, x.detach(), x.detach(), none)):
        loss = found[0] if isinstance(found, tuple) else found
        assert loss.item() == 0.0


def test_the_coefficient_stays_a_number() -> None:
    assert type(AdaptiveKL(0.15, 6.0, 100).update(torch.tensor(3.0), torch.tensor(4))) is float  # type: ignore[arg-type]


def test_another_estimator_is_refused() -> None:
    with pytest.raises(ValueError, match="found kind 'k4', expected k1, k2 or k3"):
        kl_estimate(torch.zeros(1, 1), torch.zeros(1, 1), kind="k4")


# ------------------------------------------------------------------------------------------------------------ losses


def test_policy_loss_by_hand() -> None:
    # ρ    A    −Aρ    −A clip(ρ, .8, 1.2)   the larger
    # 1.5   2   −3     −2.4                  −2.4, clipped
    # 1.5  −2    3      2.4                   3
    # 0.5   2   −1     −1.6                  −1
    # 0.5  −2    1      1.6                   1.6, clipped
    # 1.1   2   −2.2   −2.2                  −2.2, the same: not clipped
    # 1     0    0      0                     0
    ratios, gains = [1.5, 1.5, 0.5, 0.5, 1.1, 1.0], [2.0, -2.0, 2.0, -2.0, 2.0, 0.0]
    new = torch.tensor([ratios]).log().requires_grad_()
    loss, stats = policy_loss(new, torch.zeros(1, 6), torch.tensor([gains]))
    close(loss.detach(), torch.tensor((-2.4 + 3 - 1 + 1.6 - 2.2) / 6))
    close(stats["clipfrac"], torch.tensor(2 / 6))
    close(stats["approxkl"], torch.tensor(0.5 * sum(math.log(r) ** 2 for r in ratios) / 6))
    loss.backward()
    # d(−Aρ)/d log π = −Aρ where the plain loss is taken, 0 where it is clipped
    assert new.grad is not None
    close(new.grad, torch.tensor([[0.0, 3.0, -1.0, 0.0, -2.2, 0.0]]) / 6)


@pytest.mark.parametrize("cliprange", [0.2, 0.05])
def test_policy_loss_against_a_loop(cliprange: float) -> None:
    new, old, gain = tensors(3, seed=3, scale=0.3)
    losses, squares, clips = [], [], 0
    for n, o, a in zip(flat(new), flat(old), flat(gain), strict=True):
        ratio = math.exp(n - o)
        plain, clipped = -a * ratio, -a * min(max(ratio, 1 - cliprange), 1 + cliprange)
        losses.append(max(plain, clipped))
        squares.append((n - o) ** 2)
        clips += clipped > plain
    assert 0 < clips < len(losses)
    loss, stats = policy_loss(soiled(new), soiled(old), soiled(gain), MASK, cliprange)
    close(loss, torch.tensor(sum(losses) / len(losses)))
    close(stats["approxkl"], torch.tensor(0.5 * sum(squares) / len(squares)))
    close(stats["clipfrac"], torch.tensor(clips / len(losses)))


def test_value_loss_by_hand() -> None:
    # v    old  R    clip(v, old ± .2)  (v−R)²  (clip−R)²   the larger
    # 1    0    2    0.2                1       3.24        3.24, clipped
    # 1    0    0    0.2                1       0.04        1
    # 0.1  0    1    0.1                0.81    0.81        0.81, the same: not clipped
    new = torch.tensor([[1.0, 1.0, 0.1]], requires_grad=True)
    loss, stats = value_loss(new, torch.zeros(1, 3), torch.tensor([[2.0, 0.0, 1.0]]))
    close(loss.detach(), torch.tensor(0.5 * (3.24 + 1 + 0.81) / 3))
    close(stats["clipfrac"], torch.tensor(1 / 3))
    close(stats["error"], torch.tensor((1 + 1 + 0.81) / 3))
    loss.backward()
    assert new.grad is not None
    close(new.grad, torch.tensor([[0.0, 1.0, -0.9]]) / 3)  # ½ · 2 (v − R), and 0 where clipped


@pytest.mark.parametrize("cliprange", [0.2, 0.5])
def test_value_loss_against_a_loop(cliprange: float) -> None:
    new, old, target = tensors(3, seed=4)
    losses, errors, clips = [], [], 0
    for v, o, r in zip(flat(new), flat(old), flat(target), strict=True):
        clipped = (min(max(v, o - cliprange), o + cliprange) - r) ** 2
        errors.append((v - r) ** 2)
        losses.append(max(errors[-1], clipped))
        clips += clipped > errors[-1]
    assert 0 < clips < len(losses)
    loss, stats = value_loss(soiled(new), soiled(old), soiled(target), MASK, cliprange)
    close(loss, torch.tensor(0.5 * sum(losses) / len(losses)))
    close(stats["error"], torch.tensor(sum(errors) / len(errors)))
    close(stats["clipfrac"], torch.tensor(clips / len(losses)))


def test_a_ratio_that_overflows_where_it_does_not_count() -> None:
    """exp(100) is inf in float32: clipped, or with no advantage, it must not make the other tokens' gradient NaN."""
    new = torch.tensor([[100.0, 0.0, 100.0]], requires_grad=True)
    loss, stats = policy_loss(new, torch.zeros(1, 3), torch.tensor([[1.0, 1.0, 0.0]]))
    loss.backward()
    close(loss.detach(), torch.tensor(-(1.2 + 1.0) / 3))
    close(new.grad, torch.tensor([[0.0, -1 / 3, 0.0]]))
    close(stats["clipfrac"], torch.tensor(1 / 3))


def test_whitening_equal_values_gives_zero() -> None:
    """Whatever float32 makes of their mean."""
    for value, shape in ((1000.1, (64, 24)), (3.7, (4, 6)), (-1e6, (7, 3))):
        close(whiten(torch.full(shape, value)), torch.zeros(shape))


# ----------------------------------------------------------------------------------------- all of them: masks, dtypes

Function = Callable[..., tuple[Tensor, ...]]


def _kl_rewards(a: Tensor, b: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
    return kl_rewards(torch.ones(len(a)).to(a.dtype), a, b, mask, kl_coef=0.3)


def _policy_loss(a: Tensor, b: Tensor, c: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
    loss, stats = policy_loss(a, b, c, mask)
    return loss, stats["approxkl"], stats["clipfrac"]


def _value_loss(a: Tensor, b: Tensor, c: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
    loss, stats = value_loss(a, b, c, mask)
    return loss, stats["error"], stats["clipfrac"]


def _whiten(a: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
    return (whiten(a, mask),)


FUNCTIONS: list[tuple[Function, int]] = [(_whiten, 1), (gae, 2), (_kl_rewards, 2), (_policy_loss, 3), (_value_loss, 3)]
EACH = pytest.mark.parametrize(("function", "n"), FUNCTIONS, ids=["whiten", "gae", "kl_rewards", "policy_loss", "value_loss"])


@EACH
def test_no_mask_is_a_mask_of_true(function: Function, n: int) -> None:
    arguments = tensors(n, seed=5)
    for found, expected in zip(function(*arguments), function(*arguments, torch.ones_like(MASK)), strict=True):
        assert torch.equal(found, expected)


@EACH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64])
def test_results_are_float32_at_least(function: Function, n: int, dtype: torch.dtype) -> None:
    arguments = [x.to(dtype) for x in tensors(n, seed=6, scale=2.0)]
    wide = [x.float() for x in arguments]
    for found, expected in zip(function(*arguments, MASK), function(*wide, MASK), strict=True):
        assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        close(found, expected, rtol=1e-5, atol=1e-5)


@EACH
def test_shapes_that_torch_would_stretch_are_refused(function: Function, n: int) -> None:
    arguments = tensors(n, seed=10)
    with pytest.raises(ValueError, match="expected the same shape"):
        function(*arguments, MASK[:1])
    if n > 1:
        with pytest.raises(ValueError, match="expected the same shape"):
            function(arguments[0][:1], *arguments[1:])


def test_float64_is_not_rounded() -> None:
    values = torch.tensor([[1e8, 1e8 + 1, 1e8 + 2]], dtype=torch.float64)
    # mean 1e8 + 1, population variance 2/3: ∓ √(3/2)
    expected = torch.tensor([[-1.5**0.5, 0, 1.5**0.5]], dtype=torch.float64)
    torch.testing.assert_close(whiten(values), expected, rtol=1e-7, atol=1e-7)


@EACH
def test_gradients_never_see_masked_entries(function: Function, n: int) -> None:
    clean = [x.requires_grad_() for x in tensors(n, seed=7, scale=0.3)]
    dirty = [soiled(x.detach()).requires_grad_() for x in clean]
    weights = tensors(2, seed=8)
    for arguments in (clean, dirty):
        results = [x for x in function(*arguments, MASK) if x.requires_grad]
        sum((x * (w if x.dim() else 1.0)).sum() for x, w in zip(results, weights, strict=False)).backward()  # type: ignore[union-attr]
    for c, d in zip(clean, dirty, strict=True):
        assert c.grad is not None
        assert d.grad is not None
        assert bool((d.grad[~MASK] == 0).all())
        close(d.grad, c.grad)


@EACH
def test_a_mask_of_ones_and_zeros_will_do(function: Function, n: int) -> None:
    arguments = tensors(n, seed=9)
    for found, expected in zip(function(*arguments, MASK.long()), function(*arguments, MASK), strict=True):
        assert torch.equal(found, expected)


# ------------------------------------------------------------------------------------------------------- controllers


def test_adaptive_kl_by_hand() -> None:
    controller = AdaptiveKL(0.15, target=6.0, horizon=10_000)
    # 7 nats: error 1/6, below 0.2; 512 episodes: 0.15 (1 + 0.166667 · 0.0512) = 0.15128
    assert controller.update(7.0, 512) == pytest.approx(0.15128, rel=1e-12)
    # 20 nats: 14/6, clipped to 0.2: × 1.01024;  0 nats: −1, clipped to −0.2: × 0.98976;  6 nats: nothing
    assert controller.update(20.0, 512) == pytest.approx(0.15128 * 1.01024, rel=1e-12)
    assert controller.update(0.0, 512) == pytest.approx(0.15128 * 1.01024 * 0.98976, rel=1e-12)
    assert controller.update(6.0, 512) == controller.coef == pytest.approx(0.15128 * 1.01024 * 0.98976, rel=1e-12)
    assert type(AdaptiveKL(0.15, 6.0, 10_000).update(torch.tensor(7.0), 512)) is float  # type: ignore[arg-type]
    # −100 nats and another batch: 0.2 · 32 / 10,000
    assert controller.update(-100.0, 32) == pytest.approx(0.15128 * 1.01024 * 0.98976 * (1 - 0.00064), rel=1e-12)


def test_controllers_go_on_from_their_state() -> None:
    first, second = AdaptiveKL(0.15, 6.0, 1000), AdaptiveKL(0.9, 6.0, 1000)
    first.update(9.0, 100)
    second.load_state_dict(first.state_dict())
    assert second.coef == first.coef != 0.9
    assert second.update(1.0, 100) == first.update(1.0, 100)
    fixed = FixedKL(0.03)
    assert fixed.update(1000.0, 512) == fixed.coef == 0.03
    other = FixedKL(1.0)
    other.load_state_dict(fixed.state_dict())
    assert other.coef == 0.03


@pytest.mark.parametrize(("target", "horizon"), [(0.0, 1.0), (-1.0, 1.0), (6.0, 0.0), (NAN, 1.0)])
def test_adaptive_kl_refuses(target: float, horizon: float) -> None:
    with pytest.raises(ValueError, match=f"found target {target} and horizon {horizon}, expected both above 0"):
        AdaptiveKL(0.1, target, horizon)


def test_a_kl_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="found a KL of nan, expected a finite number"):
        AdaptiveKL(0.15, 6.0, 10_000).update(math.nan, 32)


def test_a_coefficient_keeps_its_sign() -> None:
    controller = AdaptiveKL(0.15, 6.0, 100)
    with pytest.raises(ValueError, match="found 512 episodes and a horizon of 100, by which a KL of 0.0 multiplies .* by -0.024"):
        controller.update(0.0, 512)
    assert controller.coef == 0.15


def test_a_penalty_never_sees_masked_entries() -> None:
    kl, mask = torch.tensor([[0.1, 0.2, NAN]]), torch.tensor([[1, 1, 0]])
    close(penalised(torch.tensor([1.0]), kl, mask, kl_coef=2.0), torch.tensor([[-0.2, 0.6, 0.0]]))
    close(penalised(torch.tensor([1.0]), kl, mask, kl_coef=2.0, level="sequence"), torch.tensor([[0.0, 0.4, 0.0]]))


def test_responses_without_a_token() -> None:
    none = torch.zeros((2, 0))
    assert [x.shape for x in gae(none, none)] == [(2, 0), (2, 0)]
    with pytest.raises(ValueError, match="row 0 has no real token"):
        kl_rewards(torch.zeros(2), none, none, kl_coef=0.1)
    assert [x.shape for x in truncate(none.long(), 5, 0, 0)] == [(2, 0), (2, 0), (2,)]
