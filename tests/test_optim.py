"""AdamTF against TensorFlow's formula in plain floats; the linear schedule."""

import copy
import math

import pytest
import torch

from lightning_rlhf.optim import AdamTF, linear_anneal


def tf_adam(x: float, grads: list[float], lr: list[float], beta1: float, beta2: float, eps: float) -> float:
    """p −= lr √(1−β₂ᵗ)/(1−β₁ᵗ) · m/(√v + eps), in double precision."""
    m = v = 0.0
    for t, g in enumerate(grads, 1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        x -= lr[t - 1] * math.sqrt(1 - beta2**t) / (1 - beta1**t) * m / (math.sqrt(v) + eps)
    return x


def gradients(steps: int, n: int) -> torch.Tensor:
    """Over six orders of magnitude, so that eps counts for some and not for others."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(steps, n, generator=generator, dtype=torch.float64) * torch.logspace(-6, 0, n, dtype=torch.float64)


@pytest.mark.parametrize(("betas", "eps"), [((0.9, 0.999), 1e-5), ((0.5, 0.9), 1e-2), ((0.0, 0.99), 0.0)])
@pytest.mark.parametrize(("dtype", "rel"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_against_the_formula(betas: tuple[float, float], eps: float, dtype: torch.dtype, rel: float) -> None:
    steps, n, lr = 15, 9, 1e-3
    grads = gradients(steps, n)
    p = torch.nn.Parameter(torch.zeros(n, dtype=dtype))
    optimizer = AdamTF([p], lr=lr, betas=betas, eps=eps)
    for row in grads:
        p.grad = row.to(dtype)
        optimizer.step()
    for found, column in zip(p.tolist(), grads.T.tolist(), strict=True):
        assert found == pytest.approx(tf_adam(0.0, column, [lr] * steps, *betas, eps), rel=rel)


def test_the_default_epsilon_is_outside_the_bias_correction() -> None:
    # first step, gradient g: TF moves lr g / (|g| + eps / √(1 − β₂)) = lr / (1 + 1e-5 / 0.0316228 / g); torch lr / (1 + 1e-5 / g)
    g, lr = 1e-4, 1e-2
    moved = {}
    for name, cls in (("tf", AdamTF), ("torch", torch.optim.Adam)):
        p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        optimizer = cls([p], lr=lr) if cls is AdamTF else cls([p], lr=lr, eps=1e-5)
        p.grad = torch.full_like(p, g)
        optimizer.step()
        moved[name] = -p.item()
    assert moved["tf"] == pytest.approx(lr / (1 + 1e-5 / math.sqrt(1 - 0.999) / g), rel=1e-9)
    assert moved["torch"] == pytest.approx(lr / (1 + 1e-5 / g), rel=1e-9)
    assert moved["torch"] / moved["tf"] > 3.7


def test_a_parameter_whose_gradients_come_late_counts_its_own_steps() -> None:
    grads = gradients(12, 2)
    early, late = (torch.nn.Parameter(torch.zeros(1, dtype=torch.float64)) for _ in range(2))
    optimizer = AdamTF([{"params": [early]}, {"params": [late], "lr": 0.1}], lr=0.01)
    for t, (a, b) in enumerate(grads):
        early.grad, late.grad = a.view(1), b.view(1) if t in (5, 6, 9, 11) else None
        optimizer.step()
    assert early.item() == pytest.approx(tf_adam(0.0, grads[:, 0].tolist(), [0.01] * 12, 0.9, 0.999, 1e-5), rel=1e-12)
    assert late.item() == pytest.approx(tf_adam(0.0, grads[[5, 6, 9, 11], 1].tolist(), [0.1] * 4, 0.9, 0.999, 1e-5), rel=1e-12)


@pytest.mark.parametrize("layout", ["gradient", "parameter", "expanded"])
def test_gradients_in_another_layout_than_their_parameter(layout: str) -> None:
    """As one sets them by hand; the fused kernel walks through memory."""
    rows = gradients(4, 6).view(4, 2, 3)
    start = torch.zeros(3, 2, dtype=torch.float64).t() if layout == "parameter" else torch.zeros(2, 3, dtype=torch.float64)
    p, plain = torch.nn.Parameter(start), torch.nn.Parameter(torch.zeros(2, 3, dtype=torch.float64))
    one, other = AdamTF([p], lr=1e-2), AdamTF([plain], lr=1e-2)
    for row in rows:
        row = row[:1, :1].expand(2, 3) if layout == "expanded" else row
        p.grad, plain.grad = row.t().contiguous().t() if layout == "gradient" else row, row.contiguous()
        one.step()
        other.step()
    torch.testing.assert_close(p, plain, rtol=1e-12, atol=0)
    at = (0, 0) if layout == "expanded" else (1, 2)
    expected = tf_adam(0.0, [row[at].item() for row in rows], [1e-2] * 4, 0.9, 0.999, 1e-5)
    assert plain[1, 2].item() == pytest.approx(expected, rel=1e-10)


def test_a_resumed_run_is_bit_equal() -> None:
    def run(p: torch.nn.Parameter, optimizer: AdamTF, rows: torch.Tensor) -> None:
        for row in rows:
            p.grad = row.float()
            optimizer.step()

    grads = gradients(10, 5)
    straight = torch.nn.Parameter(torch.ones(5))
    first = AdamTF([straight], lr=1e-2)
    run(straight, first, grads[:4])
    state, weights = copy.deepcopy(first.state_dict()), straight.detach().clone()
    run(straight, first, grads[4:])
    resumed = torch.nn.Parameter(weights)
    second = AdamTF([resumed], lr=1.0)
    second.load_state_dict(state)
    run(resumed, second, grads[4:])
    assert torch.equal(straight, resumed)
    assert first.state_dict()["param_groups"] == second.state_dict()["param_groups"]
    for key, value in first.state_dict()["state"][0].items():
        assert torch.equal(value, second.state_dict()["state"][0][key]), key


def test_a_closure_is_called_with_gradients() -> None:
    p = torch.nn.Parameter(torch.tensor([2.0]))
    optimizer = AdamTF([p], lr=0.1)

    def closure() -> float:
        loss = (p**2).sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 4.0
    assert p.item() == pytest.approx(1.9, abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": -1.0}, "lr: found -1.0, expected 0 or more"),
        ({"lr": 1.0, "eps": -1e-8}, "eps: found -1e-08, expected 0 or more"),
        ({"lr": 1.0, "betas": (1.0, 0.9)}, r"betas: found \(1.0, 0.9\), expected both in \[0, 1\)"),
        ({"lr": 1.0, "betas": (0.9, -0.1)}, r"betas: found \(0.9, -0.1\)"),
    ],
)
def test_adam_refuses(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdamTF([torch.nn.Parameter(torch.zeros(1))], **arguments)


def test_linear_anneal_values() -> None:
    optimizer = AdamTF([torch.nn.Parameter(torch.zeros(1))], lr=0.8)
    schedule = linear_anneal(optimizer, 4)
    seen = []
    for _ in range(7):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert seen == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="total: found 0, expected at least 1"):
        linear_anneal(optimizer, 0)


def test_the_schedule_reaches_the_step() -> None:
    grads = gradients(4, 1)
    p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = AdamTF([p], lr=0.8)
    schedule = linear_anneal(optimizer, 4)
    for row in grads:
        p.grad = row.clone()
        optimizer.step()
        schedule.step()
    assert p.item() == pytest.approx(tf_adam(0.0, grads[:, 0].tolist(), [0.8, 0.6, 0.4, 0.2], 0.9, 0.999, 1e-5), rel=1e-12)
