"""What a report says in words: the headline, what to doubt, and how each figure is computed.

`warnings` is the place to add an alarm: one test on the report's data, one sentence with its numbers.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from eval.text import percent, score_mean, signed

BASELINE, SECOND_DRAW, MAIN = "zero-shot", "zero-shot (second draw)", "rlhf"
Report = Mapping[str, Any]
Doubt = dict[str, str | None]  # kind, policy (or None), text

METHODS = {
    "Win rate": (
        "Share of pairs on the same prompt in which the judge scores the first policy higher, a tie "
        "counting half; Wilson's score interval with the prompt as cluster (Korn & Graubard 1998)."
    ),
    "p": (
        "Two-sided exact sign test over prompts (tied prompts dropped), then Holm's (1979) correction "
        "over all comparisons of the table."
    ),
    "Known and learned score": (
        "Mean per response of the truncated response's score, without the penalty, with a t interval by prompt; "
        "“learned” is the reward model that training optimised, “known” a reward that it did not see."
    ),
    "KL": (
        "Mean over responses of Σ log π(token) − log π_ref(token) over the sampled tokens before "
        "truncation, in nats, under the policy that sampled them (Ziegler et al. 2019, arXiv "
        "1909.08593)."
    ),
    "No stop": (
        "Share of responses without the truncation token, which the task penalises (Ziegler et al. 2019)."
    ),
    "Length": ("Mean sampled tokens, and mean words (maximal runs of a–z and 0–9), per response."),
    "Distinct-2 within": (
        "Mean over responses of different bigrams over all bigrams of that response: low where a "
        "response repeats itself."
    ),
    "Distinct-1/2/3": (
        "Different n-grams over all n-grams of all responses of a policy (Li et al. 2016, arXiv "
        "1510.03055): low where responses resemble each other; comparable only at equal numbers of "
        "responses."
    ),
    "New bigrams": (
        "Mean share of a response's bigrams that do not occur in its prompt (See et al. 2017, arXiv "
        "1704.04368): low where it copies."
    ),
    "Perplexity": (
        "exp(Σ −log p_ref / Σ tokens) of a policy's own responses under the reference at temperature 1:"
        " how surprising the reference finds them, not how good they are."
    ),
}


def headline(report: Report) -> str:
    """The result in words: the main policy against the baseline, and against the others."""
    main, judge = report["policies"][-1], report["judge_name"]
    kl = score_mean(main, "kl")
    distance = f", at a KL of {kl:.1f} nats from the reference" if kl is not None else ""
    found = [c for c in report["comparisons"] if (c["a"], c["b"]) == (report["main"], report["baseline"])]
    if not found:
        score = signed(score_mean(main, report["judge"]))
        return (
            f"On {report['n_prompts']} prompts the {main['name']} policy scored {score} by {judge}{distance}."
        )
    c = found[0]
    share = f"{100 * c['rate']:.1f} % of pairs"
    if c["low"] > 0.5:
        result = f"beat {c['b']} in {share}"
    elif c["high"] < 0.5:
        result = f"lost to {c['b']}: it won {share}"
    else:
        result = f"could not be told apart from {c['b']}: it won {share}"
    bounds = f"95 % interval {_bounds(c)}"
    start = f"On {c['prompts']} held-out prompts the {c['a']} policy {result}"
    others = [o for o in report["comparisons"] if o["a"] == report["main"] and o["b"] not in (report["baseline"], SECOND_DRAW)]
    rest = "".join(f" Against {o['b']} it won {100 * o['rate']:.1f} % ({_bounds(o)})." for o in others)
    return f"{start} ({bounds}), judged by {judge}{distance}.{rest}"


def warnings(report: Report) -> list[Doubt]:
    """What a reader should doubt: `{kind, policy, text}` each, in the order in which to worry."""
    out = list(_about_comparison(report))
    for policy in report["policies"]:
        out += _about_scores(policy, report["policies"][0])
        out += _about_texts(policy, report["policies"][0])
    return out + list(_about_training(report))


def _about_comparison(report: Report) -> Iterator[Doubt]:
    n = report["n_prompts"]
    if n < 100:
        yield _warning(
            "few prompts", None, f"Only {n} prompts were compared (fewer than 100): the intervals are wide."
        )
    for c in report["comparisons"]:
        if c["unpaired"]:
            text = (
                f"{c['a']} and {c['b']} did not answer the same prompts: {c['unpaired']} responses are alone."
            )
            yield _warning("prompts differ", c["a"], text)
        if (c["a"], c["b"]) == (SECOND_DRAW, BASELINE) and not c["low"] <= 0.5 <= c["high"]:
            text = (
                f"Two draws of the same zero-shot policy do not tie: {100 * c['rate']:.1f} % ({_bounds(c)}). "
                "Either the comparison is biased, or this is the one time in 20."
            )
            yield _warning("control not even", SECOND_DRAW, text)


def _about_scores(policy: Mapping[str, Any], baseline: Mapping[str, Any]) -> Iterator[Doubt]:
    name, kl = policy["name"], policy["scores"].get("kl")
    if kl and kl["mean"] > 10:
        text = f"{name} is {kl['mean']:.1f} nats from the reference (more than 10): read the samples."
        yield _warning("large KL", name, text)
    if kl and kl["high"] is not None and kl["high"] < 0:
        text = f"{name} has a negative mean KL ({signed(kl['mean'])}): sampling and scoring disagree."
        yield _warning("negative KL", name, text)
    learned, known = (_rise(policy, baseline, key) for key in ("learned", "known"))
    if learned is not None and known is not None and learned > 0 > known:
        text = (
            f"{name} raises the learned score by {learned:.2f} over {baseline['name']} while the known "
            f"score falls by {-known:.2f}: the reward model is being exploited, or the difference is noise."
        )
        yield _warning("over-optimised", name, text)
    if policy["missing"] > 0.5:
        share = percent(policy["missing"])
        text = f"Most responses of {name} were penalised: {share} have no truncation token."
        yield _warning("penalised", name, text)


def _about_texts(policy: Mapping[str, Any], baseline: Mapping[str, Any]) -> Iterator[Doubt]:
    name, base, ratio = policy["name"], baseline["name"], policy["ratio"]
    within, corpus = ratio["distinct_2_within"], ratio["distinct_2"]
    if within is not None and within < 0.9:
        text = f"{name} repeats itself: distinct-2 within a response is {within:.2f} of {base}'s."
        yield _warning("repeats", name, text)
    if corpus is not None and corpus < 0.4:
        text = f"{name}'s responses resemble each other: corpus distinct-2 is {corpus:.2f} of {base}'s."
        yield _warning("collapse", name, text)
    perplexity, words = ratio["perplexity"], ratio["words"]
    if perplexity is not None and perplexity > 2:
        text = (
            f"{name}'s responses have {perplexity:.1f} times the perplexity of {base}'s under the reference."
        )
        yield _warning("perplexity", name, text)
    if words is not None and not 2 / 3 <= words <= 1.5:
        text = f"{name}'s responses have {words:.2f} times the words of {base}'s: length may explain wins."
        yield _warning("length", name, text)


def _about_training(report: Report) -> Iterator[Doubt]:
    model, guard = report["reward_model"] or {}, report["guard"] or {}
    low, chance = model.get("low"), model.get("chance")
    if low is not None and chance is not None and low <= chance:
        accuracy = percent(model.get("accuracy"))
        text = f"The reward model's accuracy ({accuracy}) is not clear of chance ({percent(chance)})."
        yield _warning("reward model at chance", None, text)
    if guard.get("kind") == "none":
        yield _warning("unguarded", None, "Nothing checked the sign of the reward before PPO started.")
    if guard.get("kind") == "overridden":
        why = guard.get("why", "no reason was kept")
        yield _warning("guard overridden", None, f"PPO was started although its reward was refused: {why}")
    if guard.get("overrides"):
        yield _warning("checks overridden", None, f"PPO was started with checks overridden: {guard['overrides']}.")
    for name, value in guard.items():
        if value is False or (isinstance(value, Mapping) and value.get("ok") is False):
            said = value.get("text", "") if isinstance(value, Mapping) else ""
            yield _warning("guard", None, f"A check made in training failed: {name}. {said}".strip())


def _rise(policy: Mapping[str, Any], baseline: Mapping[str, Any], key: str) -> float | None:
    after, before = score_mean(policy, key), score_mean(baseline, key)
    return None if after is None or before is None else after - before


def _warning(kind: str, policy: str | None, text: str) -> Doubt:
    return {"kind": kind, "policy": policy, "text": text}


def _bounds(c: Mapping[str, Any]) -> str:
    return f"{100 * c['low']:.1f}–{100 * c['high']:.1f}"
