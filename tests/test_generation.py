"""Sampling against a plain uncached loop, and against the distribution; truncation against a loop."""

import math
from bisect import bisect_right
from itertools import accumulate, product

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from lightning_rlhf import decode
from lightning_rlhf.generation import draw, given_to, sample, sample_until, sample_with, seed_for, truncate
from lightning_rlhf.logprobs import entropy_of, logits_of, token_logprobs
from lightning_rlhf.models import LM, load_lm
from lightning_rlhf.tokens import pad_batch
from lightning_rlhf.trunks import SplitTrunk, hidden_states

# ---------------------------------------------------------------------------------------------------------- truncation


def truncate_loop(row: list[int], token: int, after: int, pad: int) -> tuple[list[int], list[bool], bool]:
    for i, x in enumerate(row):
        if x == token and i >= after:
            return row[: i + 1] + [pad] * (len(row) - i - 1), [True] * (i + 1) + [False] * (len(row) - i - 1), True
    return list(row), [True] * len(row), False


@pytest.mark.parametrize("after", [0, 1, 2, 3, 4])
def test_truncate_against_a_loop(after: int) -> None:
    every = [list(r) for r in product([5, 6], repeat=4)]  # all rows of four: 5 everywhere, nowhere, before and after
    tokens, mask, found = truncate(torch.tensor(every), 5, after, pad_id=99)
    expected = [truncate_loop(r, 5, after, 99) for r in every]
    assert tokens.tolist() == [t for t, _, _ in expected]
    assert mask.tolist() == [m for _, m, _ in expected]
    assert found.tolist() == [f for _, _, f in expected]
    assert (tokens.dtype, mask.dtype, found.dtype) == (torch.long, torch.bool, torch.bool)


def test_truncate_by_hand() -> None:
    # index 1 is before truncate_after and does not count, index 2 is the first that does, index 4 is cut off
    tokens, mask, found = truncate(torch.tensor([[1, 13, 13, 2, 13]]), 13, 2, pad_id=13)
    assert tokens.tolist() == [[1, 13, 13, 13, 13]]
    assert mask.tolist() == [[True, True, True, False, False]]  # the mask tells, where the pad's id is the token's
    assert found.tolist() == [True]


def test_without_a_token_nothing_is_cut() -> None:
    rows = torch.tensor([[1, 2, 3], [0, 0, 0]])
    tokens, mask, found = truncate(rows, None, 2, pad_id=0)
    assert torch.equal(tokens, rows)
    assert bool(mask.all())
    assert mask.shape == (2, 3)
    assert found.tolist() == [True, True]


@pytest.mark.parametrize("token", [5, None])
def test_an_empty_batch(token: int | None) -> None:
    tokens, mask, found = truncate(torch.zeros((0, 4), dtype=torch.long), token, 1, 0)
    assert (tokens.shape, mask.shape, found.shape) == ((0, 4), (0, 4), (0,))


# ------------------------------------------------------------------------------------------------------------ sampling


@pytest.fixture(scope="module")
def lm() -> LM:
    return load_lm("stories260k")


TEXTS = ["Once upon a time", "Lily", "The big dog ran to the park and", "Tom was sad. He"]


def prompts(lm: LM) -> list[list[int]]:
    return [lm.tokenizer(t).input_ids for t in TEXTS]


@torch.no_grad()
def next_logits(lm: LM, rows: list[list[int]]) -> Tensor:
    """Each row alone: no padding, no cache, no masks, no position ids of ours."""
    return torch.stack([lm.model(input_ids=torch.tensor([row])).logits[0, -1].float() for row in rows])


def plain_sample(lm: LM, rows: list[list[int]], length: int, temperature: float, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    rows = [list(r) for r in rows]
    for _ in range(length):
        weights = torch.exp(next_logits(lm, rows) / temperature)
        heights = torch.rand((len(rows), 1), generator=generator, dtype=torch.float64) * weights.double().sum(1, keepdim=True)
        drawn = [bisect_right(list(accumulate(w)), u) for w, u in zip(weights.tolist(), heights.flatten().tolist(), strict=True)]
        rows = [[*r, t] for r, t in zip(rows, drawn, strict=True)]
    return [r[-length:] for r in rows]


@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_the_same_tokens_as_a_plain_loop(lm: LM, temperature: float) -> None:
    rows = prompts(lm)
    expected = plain_sample(lm, rows, 10, temperature, seed=3)
    tokens, mask = pad_batch(rows, lm.pad_id, "left")
    assert not bool(mask.all())
    assert sample(lm.model, tokens, mask, 10, temperature, seed=3).tolist() == expected
    assert sample(lm.model, tokens, mask, 10, temperature, seed=4).tolist() != expected
    # what the padding holds does not matter
    assert sample(lm.model, torch.where(mask, tokens, 300), mask, 10, temperature, seed=3).tolist() == expected


def test_prompts_of_one_length_need_no_padding(lm: LM) -> None:
    rows = [r[:2] for r in prompts(lm)]
    tokens, mask = pad_batch(rows, lm.pad_id, "left")
    assert bool(mask.all())
    assert sample(lm.model, tokens, mask, 6, 1.0, seed=0).tolist() == plain_sample(lm, rows, 6, 1.0, seed=0)


@pytest.mark.parametrize("compiled", [False, True], ids=["", "fixed shape"])
@pytest.mark.parametrize("num_samples", [1, 3])
def test_prompts_of_one_token_are_read_by_the_first_step(
    lm: LM, num_samples: int, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "compile_once", lambda function: function)
    rows = [[1], [300], [310], [290]]
    expected = plain_sample(lm, [r for r in rows for _ in range(num_samples)], 6, 0.9, seed=2)
    tokens, mask = pad_batch(rows, lm.pad_id, "left")
    with monkeypatch.context() as never:
        never.setattr(lm.model, "forward", None)
        found = sample_with(lm.model, tokens, mask, 6, 0.9, seed=2, num_samples=num_samples, compiled=compiled)
    assert found.tokens.tolist() == expected
    if num_samples == 1:  # the watched block's input is the one of a whole pass, its first place too
        block = lm.model.model.layers[2]
        seen = sample_with(lm.model, tokens, mask, 6, 0.9, seed=2, watch=block, compiled=compiled).inputs
        given: list[Tensor] = []
        with given_to(block, given.append), torch.no_grad():
            lm.model(input_ids=torch.cat([tokens, torch.tensor(expected)], 1))
        torch.testing.assert_close(seen, given[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("length", [1, 5])
def test_several_samples_of_a_prompt_are_adjacent(lm: LM, length: int) -> None:
    rows = prompts(lm)
    tokens, mask = pad_batch(rows, lm.pad_id, "left")
    found = sample(lm.model, tokens, mask, length, 0.8, seed=5, num_samples=3)
    assert found.shape == (12, length)
    assert found.dtype == torch.long
    repeated = [r for r in rows for _ in range(3)]
    assert found.tolist() == plain_sample(lm, repeated, length, 0.8, seed=5)


def drawn_with(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    return draw(probabilities, torch.rand((len(probabilities), 1), generator=generator, dtype=torch.float64))


def test_draw_by_hand() -> None:
    # only token 1 can be drawn in row 0; in row 1 token 2 starts 1e-9 before the end, which float32 sums would lose
    probabilities = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.5, 1e-9]])
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([drawn_with(probabilities, generator) for _ in range(200)], 1)
    assert drawn.shape == (2, 200)
    assert drawn[0].tolist() == [1] * 200
    assert set(drawn[1].tolist()) == {0, 1}
    rare = torch.full((1, 1000), 0.5e-9)
    rare[0, 0] = 1.0  # the other 999 share 5e-7 of the mass: 20,000 rows would see one of them once in a hundred
    rare[0, 1] = 1e-3
    found = drawn_with(rare.expand(20_000, -1).contiguous(), generator)
    assert found[found > 1].numel() <= 3
    assert 5 <= int((found == 1).sum()) <= 45  # 20 expected, standard deviation 4.5


def test_draw_follows_the_probabilities() -> None:
    weights = torch.rand((1, 50), generator=torch.Generator().manual_seed(1)) ** 4
    weights[0, ::5] = 0.0
    found = drawn_with((weights / weights.sum()).expand(20_000, -1).contiguous(), torch.Generator().manual_seed(2)).flatten()
    counts = torch.bincount(found, minlength=50).double()
    assert counts[::5].sum() == 0
    expected = (weights[0].double() / weights.double().sum()) * len(found)
    keep = expected > 0
    assert chisquare(counts[keep], expected[keep] * counts.sum() / expected.sum()).pvalue > 1e-3


def p_value(lm: LM, row: list[int], found: Tensor, temperature: float) -> float:
    """Chi-square of first tokens against softmax(logits / temperature), rare tokens in one bin."""
    expected = torch.softmax(next_logits(lm, [row])[0].double() / temperature, 0) * len(found)
    seen = torch.bincount(found[:, 0], minlength=len(expected)).double()
    often = expected >= 5
    pool = [[*x[often].tolist(), x[~often].sum().item()] for x in (seen, expected)]
    return float(chisquare(pool[0], [e * sum(pool[0]) / sum(pool[1]) for e in pool[1]]).pvalue)


def test_tokens_come_from_the_tempered_softmax(lm: LM) -> None:
    row = prompts(lm)[1]
    tokens, mask = pad_batch([row], lm.pad_id)
    found = sample(lm.model, tokens, mask, 1, 0.7, seed=11, num_samples=4000)
    assert p_value(lm, row, found, 0.7) > 1e-3
    assert p_value(lm, row, found, 0.8) < 1e-6  # the test would see another temperature


def test_eos_does_not_stop(lm: LM) -> None:
    # with EOS alone made likely, every token is EOS, and there are as many as asked for
    class Always:
        def __call__(self, **kwargs: object) -> object:
            out = lm.model(**kwargs)
            out.logits = torch.zeros_like(out.logits)
            out.logits[..., lm.tokenizer.eos_token_id] = 100.0
            return out

    tokens, mask = pad_batch(prompts(lm), lm.pad_id)
    assert sample(Always(), tokens, mask, 4, 1.0, seed=0).tolist() == [[lm.tokenizer.eos_token_id] * 4] * 4


def cut_loop(row: list[int], stop: set[int], pad: int) -> tuple[list[int], list[bool], bool]:
    for i, x in enumerate(row):
        if x in stop:
            return row[: i + 1] + [pad] * (len(row) - i - 1), [True] * (i + 1) + [False] * (len(row) - i - 1), True
    return row, [True] * len(row), False


@pytest.mark.parametrize("num_samples", [1, 3])
def test_sampling_until_a_stop_token_is_the_plain_loop_cut_there(lm: LM, num_samples: int) -> None:
    rows = prompts(lm)
    repeated = [r for r in rows for _ in range(num_samples)]
    drawn = plain_sample(lm, repeated, 8, 1.3, seed=7)
    stop = [drawn[0][2], drawn[1][0]]  # one ends the first response in its middle, one the second at once
    tokens, mask = pad_batch(rows, lm.pad_id, "left")
    for pad in (0, stop[0]):  # the pad may be a stop token: the mask tells
        found = sample_until(lm.model, tokens, mask, 8, 1.3, 7, stop, pad, num_samples)
        expected = [cut_loop(row, set(stop), pad) for row in drawn]
        assert found.tokens.tolist() == [t for t, _, _ in expected]
        assert found.mask.tolist() == [m for _, m, _ in expected]
        assert found.stopped.tolist() == [s for _, _, s in expected]
        assert found.mask.sum(1).tolist()[1 if num_samples == 1 else 0] in (1, 3)
        assert (found.tokens.dtype, found.mask.dtype, found.stopped.dtype) == (torch.long, torch.bool, torch.bool)
    assert False in found.stopped.tolist() and True in found.stopped.tolist()


@pytest.mark.parametrize("after", [0, 9])
@pytest.mark.parametrize("watched", [False, True])
def test_rows_that_have_ended_leave_the_batch(watched: bool, after: int) -> None:
    """The rest draw what they would have drawn; the passes get fewer rows, and end with the last of them."""
    whole = load_lm("stories260k")
    split = SplitTrunk(whole.model, 2)
    rows = prompts(whole) * 3
    tokens, mask = pad_batch(rows, whole.pad_id)
    plain = sample_with(whole.model, tokens, mask, 30, 1.3, 3, watch=split.first)
    places = torch.arange(30)
    stop = [int(t) for t in plain.tokens[:, 2:26:3].flatten().unique()]  # many: each row has one early
    ends = torch.isin(plain.tokens, torch.tensor(stop)) & (places >= after)
    first = ends.long().argmax(1, keepdim=True)
    real = places <= first
    assert bool(ends.any(1).all())
    assert int(first.max()) < 25 and len(first.unique()) > 2
    fed: list[int] = []
    hook = whole.model.get_input_embeddings().register_forward_pre_hook(lambda _, given: fed.append(len(given[0])))
    options = dict(watch=split.first) if watched else {}
    found = sample_with(whole.model, tokens, mask, 30, 1.3, 3, stop=stop, pad_id=511, stop_after=after, **options)
    hook.remove()
    assert torch.equal(found.tokens, torch.where(real, plain.tokens, 511))
    torch.testing.assert_close(found.logprobs, torch.where(real, plain.logprobs, 0.0), rtol=1e-4, atol=1e-4)
    # one pass for the prompts, then one a token that is not its row's last; a watched block sees that one too
    ended = (first.flatten() + watched).tolist()
    expected = [12, *(sum(e > i for e in ended) for i in range(max(ended)))]
    assert len(fed) == len(expected)
    assert all(n <= f < n * 8 / 7 + 1 for f, n in zip(fed, expected, strict=True))
    assert sum(fed) < 12 * 31 / 2
    if watched:
        assert found.inputs is not None and plain.inputs is not None
        both = torch.cat([mask, real], 1)
        assert found.inputs.shape == plain.inputs.shape
        torch.testing.assert_close(found.inputs[both], plain.inputs[both], rtol=1e-4, atol=1e-4)
        assert bool(torch.isfinite(found.inputs).all())


def test_sampling_until_needs_a_stop_token(lm: LM) -> None:
    tokens, mask = pad_batch(prompts(lm), lm.pad_id)
    with pytest.raises(ValueError, match="sample_until: found no stop token, expected at least one"):
        sample_until(lm.model, tokens, mask, 2, 1.0, 0, [], 0)


def test_prompts_must_be_padded_on_the_left(lm: LM) -> None:
    tokens, mask = pad_batch(prompts(lm), lm.pad_id, "right")
    with pytest.raises(ValueError, match="expected left-padded prompts of at least one token"):
        sample(lm.model, tokens, mask, 2, 1.0, seed=0)
    gap = torch.tensor([[True, False, True]])
    with pytest.raises(ValueError, match="expected left-padded prompts"):
        sample(lm.model, torch.ones((1, 3), dtype=torch.long), gap, 2, 1.0, seed=0)


def test_seeds_are_distinct() -> None:
    seeds = {seed_for(s, i, r) for s in range(5) for i in range(2000) for r in range(8)}
    assert len(seeds) == 5 * 2000 * 8
    assert all(0 <= s < 2**63 for s in seeds)
    assert 0 <= seed_for(2**62, 10**6, 7) < 2**63
    assert math.isfinite(torch.rand(1, generator=torch.Generator().manual_seed(max(seeds))).item())


def test_what_the_sampler_saw_is_what_a_pass_gives(lm: LM) -> None:
    whole = load_lm("stories260k")
    split = SplitTrunk(whole.model, 2)
    tokens, mask = pad_batch(prompts(lm), lm.pad_id)
    drawn = sample_with(whole.model, tokens, mask, 12, 0.7, 3, watch=split.first)
    assert torch.equal(drawn.tokens, sample(lm.model, tokens, mask, 12, 0.7, 3))
    both = torch.cat([tokens, drawn.tokens], 1)
    real = torch.cat([mask, torch.ones_like(drawn.tokens, dtype=torch.bool)], 1)
    assert drawn.inputs is not None
    assert drawn.inputs.shape == (len(both), both.shape[1], 64)
    torch.testing.assert_close(drawn.inputs[real], split.below(both, real)[real], rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        logits = logits_of(lm.model, hidden_states(lm.model, both, real)[:, -13:-1])
    torch.testing.assert_close(drawn.logprobs, token_logprobs(logits, drawn.tokens, 0.7), rtol=1e-4, atol=1e-4)
    seen: list[Tensor] = []
    split.first.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    split.above(drawn.inputs, real)
    assert len(seen) == 1  # the sampler's own hook is gone
    with pytest.raises(ValueError, match="num_samples 2"):
        sample_with(whole.model, tokens, mask, 2, 0.7, 3, num_samples=2, watch=split.first)


def test_a_mask_of_integers_as_tokenizers_give_it(lm: LM) -> None:
    tokens, mask = pad_batch(prompts(lm), lm.pad_id, "left")
    expected = sample(lm.model, tokens, mask, 5, 0.7, seed=1)
    assert torch.equal(sample(lm.model, tokens.int(), mask.long(), 5, 0.7, seed=1), expected)
    for rows, n in ((0, 1), (4, 0)):
        with pytest.raises(ValueError, match=f"sample: found {rows} prompts and num_samples {n}, expected at least one of each"):
            sample(lm.model, tokens[:rows], mask[:rows], 5, 0.7, seed=1, num_samples=n)


def test_rows_that_do_not_fit_are_not_padded() -> None:
    with pytest.raises(ValueError, match="found a row of 3 tokens, expected at most 2"):
        pad_batch([[1], [1, 2, 3]], 0, length=2)
    with pytest.raises(ValueError, match="found side 'rigth', expected left or right"):
        pad_batch([[1]], 0, "rigth")


def test_labels_must_fit_their_logits() -> None:
    for labels in (torch.zeros((3, 2), dtype=torch.long), torch.zeros(6, dtype=torch.long)):
        with pytest.raises(ValueError, match=r"token_logprobs: found logits \(2, 3, 5\) and labels .*expected \(B, T, V\)"):
            token_logprobs(torch.zeros((2, 3, 5)), labels)


def test_a_token_that_cannot_come_has_no_part_in_the_entropy() -> None:
    logits = torch.tensor([0.0, 0.0, -math.inf], requires_grad=True)
    found = entropy_of(logits)
    assert found.item() == pytest.approx(math.log(2))
    found.backward()
    assert bool(torch.isfinite(logits.grad).all())
