"""What a report says in words: the headline, what to doubt, and how each figure is computed.

`warnings` is the place to add an alarm: one test on the report's data, one sentence with its numbers.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from eval.text import mean_of, name_of, percent, score_mean, signed, summary_of

BASELINE, SECOND_DRAW, SUPERVISED, MAIN = "zero-shot", "zero-shot (second draw)", "supervised", "rlhf"
Report = Mapping[str, Any]
Doubt = dict[str, str | None]  # kind, policy (or None), text

METHODS = {
    "Win rate": (
        "Mean over pairs on the same prompt of 1 where the judge prefers the first policy, ½ where neither, else 0; of several "
        "verdicts on a pair their mean. Wilson's score interval with the prompt as cluster (Korn & Graubard 1998)."
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
    "Length": ("Mean sampled tokens, and mean words (of any script), per response."),
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
    "ROUGE": (
        "F1 × 100 against the human reference, by the rouge-score package with stemming; several references: the best."
    ),
    "Copied sentences": (
        "Share of a response's sentences, of three words or more, whose words stand in that order in the source; marked "
        "in the samples: five or more words in a row."
    ),
    "Calibration": (
        "The predicted probability of a response is softmax of the scores of its comparison; of a pair only the favourite "
        "is drawn. Bins hold equally many; the calibration error is the mean distance of the bins from the diagonal "
        "(Guo et al. 2017, arXiv 1706.04599). The temperature is fitted on half of the prompts and tested on the others."
    ),
    "Over-optimisation": (
        "Begins where the running mean of the gold score (a tenth of the checkpoints, at least 3) is highest, if it ends lower "
        "by more than four standard errors, and the proxy's ends higher than there."
    ),
    "√KL": (
        "A least-squares line of the proxy against √KL over the checkpoints (Bai et al. 2022, arXiv 2204.05862, find it roughly "
        "linear); the bend is the t statistic of an added KL term."
    ),
    "Best of n": (
        "Expected score of the best of n by the learned score, over all sets of n of a prompt's samples; "
        "KL log n − (n−1)/n."
    ),
    "Disagreement": (
        "Mean over the other measures (known, learned, ROUGE-L) of the share of pairs of responses that they order "
        "differently from the judge."
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
    if not found and report["verdicts"]:
        return f"No verdict on {report['n_prompts']} prompts compares {report['main']} with {report['baseline']}."
    if not found:
        score = signed(mean_of(summary_of(main, report["judge"])))
        return (
            f"On {report['n_prompts']} prompts the {main['name']} policy scored {score} by {judge}{distance}."
        )
    c = found[0]
    share = f"{100 * c['rate']:.1f} % of {'verdicts' if report['verdicts'] else 'pairs'}"
    if c["low"] > 0.5:
        result = f"beat {c['b']} in {share}"
    elif c["high"] < 0.5:
        result = f"lost to {c['b']}: it won {share}"
    else:
        result = f"could not be told apart from {c['b']}: it won {share}"
    bounds = f"95 % interval {_bounds(c)}"
    start = f"On {c['prompts']} held-out prompts the {c['a']} policy {result}"
    others = [o for o in report["comparisons"] if o["a"] == report["main"] and o["b"] not in (report["baseline"], SECOND_DRAW)]
    others = [o for o in others if o["b"] in (SUPERVISED, "reference")] or others[:2]
    rest = "".join(f" Against {o['b']} it won {100 * o['rate']:.1f} % ({_bounds(o)})." for o in others)
    return f"{start} ({bounds}), judged by {judge}{distance}.{rest}"


def warnings(report: Report) -> list[Doubt]:
    """What a reader should doubt: `{kind, policy, text}` each, in the order in which to worry."""
    out = list(_about_comparison(report))
    out += [*_about_judges(report), *_about_length(report)]
    for policy in report["policies"]:
        out += _about_scores(policy, report)
        out += _about_texts(policy, report["policies"][0])
    return [*out, *_about_copying(report), *_about_reward(report), *_about_training(report)]


def _about_comparison(report: Report) -> Iterator[Doubt]:
    n, judged = report["n_prompts"], {(c["a"], c["b"]): c["prompts"] for c in report["comparisons"]}
    if report["verdicts"]:
        n = min(judged.values(), default=0)
        for base in report["baselines"]:
            if base != report["main"] and (report["main"], base) not in judged and (base, report["main"]) not in judged:
                yield _warning("not judged", report["main"], f"No verdict compares {report['main']} with {base}.")
    if n < 100:
        yield _warning(
            "few prompts", None, f"Only {n} prompts were compared (fewer than 100): the intervals are wide."
        )
    for c in report["comparisons"]:
        if c["unpaired"]:
            what = "each prompt as often" if c["same_prompts"] else "the same prompts"
            text = f"{c['a']} and {c['b']} did not answer {what}: {c['unpaired']} responses have no partner, and are left out."
            yield _warning("prompts differ", c["a"], text)
        if c["unjudged"] and report["main"] in (c["a"], c["b"]):
            share = f"{c['unjudged']:,} of {c['unjudged'] + c['prompts']:,} prompts"
            text = f"{c['a']} and {c['b']} have no verdict on {share}: those are left out."
            yield _warning("not judged", c["a"], text)
        if (c["a"], c["b"]) == (SECOND_DRAW, BASELINE) and not c["low"] <= 0.5 <= c["high"]:
            text = (
                f"Two draws of the same zero-shot policy do not tie: {100 * c['rate']:.1f} % ({_bounds(c)}). "
                "Either the comparison is biased, or this is the one time in 20."
            )
            yield _warning("control not even", SECOND_DRAW, text)


def _about_judges(report: Report) -> Iterator[Doubt]:
    """What is known of the judges themselves; position bias is told once a judge."""
    told: set[str] = set()
    for j in report["judgements"]:
        judge, bias = str(j.get("judge", "judge")), j.get("position_bias")
        if bias and judge not in told and not bias["low"] <= 0.5 <= bias["high"]:
            told.add(judge)
            text = (
                f"{judge} is biased by order: it preferred what stood first in {100 * bias['rate']:.1f} % of its answers "
                f"({_bounds(bias)}), where 50 % would be even."
            )
            yield _warning("order bias", None, text)
        learned = report["changes"].get(j["b"], {}).get(j["a"], {}).get("learned")
        if judge not in ("known", "learned") and j["high"] < 0.5 and learned and _above(learned):
            text = (
                f"{judge} prefers {j['b']} to {j['a']} ({percent(j['rate'])} for {j['a']}, {_bounds(j)}), although the learned "
                f"score of {j['a']} is {learned['mean']:.2f} higher."
            )
            yield _warning("judge against reward", j["a"], text)
    for found in report["judges"]:
        lost = (found.get("unparsable") or 0) + (found.get("failed") or 0)
        if lost > 0.05 * (found.get("verdicts") or 0) > 0:
            text = f"{found['judge']} gave no verdict in {lost:,} of {found['verdicts']:,} answers: those pairs are left out."
            yield _warning("no verdict", None, text)
    longer = next((row for row in report["agreement"] if row["measure"] == "longer"), None)
    if longer and longer["low"] > 0.6:
        share = f"{100 * longer['rate']:.1f} % of pairs ({_bounds(longer)})"
        yield _warning("judge likes length", None, f"The judge prefers the longer response in {share}.")


def _about_length(report: Report) -> Iterator[Doubt]:
    """Whether a win is left at equal length, or, where no judge's table says, among pairs in which it wrote no more words."""
    for found in report["length"]:
        a, b = found["a"], found["b"]
        whole = next((c for c in report["comparisons"] if (c["a"], c["b"]) == (a, b)), None)
        if whole is None or whole["low"] <= 0.5:
            continue
        told = [j for j in report["judgements"] if (j["a"], j["b"]) == (a, b) and j.get("judge") == report["judge"]]
        equal = next((j["length_controlled"] for j in told if (j.get("length_controlled") or {}).get("low") is not None), None)
        few = found["not_longer"]
        if equal is not None:
            if equal["low"] > 0.5 or not ((equal["slope"] or 0) > 0 and equal["longer"] > 0.5):
                continue  # it wins at equal length, or it is not the one that writes more and is liked for it
            if equal["rate"] > 0.5:
                text = (
                    f"Whether length explains the win of {a} over {b} cannot be told: it writes more in "
                    f"{percent(equal['longer'])} of pairs, and at equal length it wins {percent(equal['rate'])} "
                    f"({_bounds(equal)})."
                )
                yield _warning("length may explain the win", a, text)
                continue
            left, where = equal, "at equal length"
        else:
            enough = few is not None and few["n"] >= max(10, whole["n"] / 10)
            left, where = (few if enough and few["rate"] <= 0.5 else None), f"where it writes no more words than {b}"
        if left is not None:
            text = (
                f"Length explains the win of {a} over {b}: it wins {percent(whole['rate'])} of all pairs, but "
                f"{percent(left['rate'])} ({_bounds(left)}) {where}."
            )
            yield _warning("length explains the win", a, text)


def _about_copying(report: Report) -> Iterator[Doubt]:
    """The main and the supervised policy; baselines that copy by design need no warning."""
    for policy in report["policies"]:
        if policy["name"] not in (report["main"], SUPERVISED):
            continue
        copied, new = summary_of(policy, "copied"), summary_of(policy, "new_bigrams")
        if copied and copied["mean"] > 0.5:
            text = f"{policy['name']} is a copier: {percent(copied['mean'])} of its sentences stand word for word in the source."
            yield _warning("copier", policy["name"], text)
        elif not copied and new and new["mean"] < 0.2:
            text = f"{policy['name']} is a copier: only {percent(new['mean'])} of its bigrams are not in the source."
            yield _warning("copier", policy["name"], text)


def _about_reward(report: Report) -> Iterator[Doubt]:
    """Over-optimisation seen along a run, and a reward model whose confidence is wrong."""
    for run in report["frontier"]["runs"]:
        turn = run["turn"]
        if turn:
            text = (
                f"Over-optimisation begins in run {run['name']} at step {turn['step']:,.0f}, {turn['kl']:.1f} nats: "
                f"the gold score falls from {signed(turn['gold'])} to {signed(turn['gold_after'])} while the proxy rises from "
                f"{signed(turn['proxy'])} to {signed(turn['proxy_after'])}."
            )
            yield _warning("over-optimisation", None, text)
    found = report["calibration"]
    if not found:
        return
    longest, accuracy, fit = found.get("longest"), found["accuracy"], found.get("temperature")
    if longest and accuracy["low"] <= longest["accuracy"]:
        text = (
            f"The reward model ({percent(accuracy['accuracy'])} right) is not clear of picking the longest response "
            f"({percent(longest['accuracy'])})."
        )
        yield _warning("reward model no better than length", None, text)
    if fit and fit["low"] is not None and fit["low"] > 1.25:
        text = f"The reward model is too sure of itself: its differences want dividing by {fit['value']:.2f} to be probabilities."
        yield _warning("overconfident", None, text)


def _about_scores(policy: Mapping[str, Any], report: Report) -> Iterator[Doubt]:
    name, kl = policy["name"], policy["scores"].get("kl")
    if kl and kl["mean"] > 10:
        text = f"{name} is {kl['mean']:.1f} nats from the reference (more than 10): read the samples."
        yield _warning("large KL", name, text)
    if kl and kl["high"] is not None and kl["high"] < 0:
        text = f"{name} has a negative mean KL ({signed(kl['mean'])}): sampling and scoring disagree."
        yield _warning("negative KL", name, text)
    told: set[str] = set()
    for base, changed in report["changes"].items():
        learned = changed.get(name, {}).get("learned")
        for key, kind in (("known", "over-optimised"), *([("rougeL", "ROUGE falls")] if name == report["main"] else [])):
            other = changed.get(name, {}).get(key)
            if key in told or not (learned and other and _above(learned) and other["high"] < 0):
                continue
            told.add(key)
            start = f"{name} raises the learned score by {learned['mean']:.2f} over {base} while the "
            if key == "known":
                text = f"{start}known score falls by {-other['mean']:.2f}: the reward model is being exploited."
            else:
                text = f"{start}{name_of(key)} falls by {-100 * other['mean']:.1f}: the two disagree on what is better."
            yield _warning(kind, name, text)
    if (policy["missing"] or 0) > 0.5:
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


def _above(change: Mapping[str, Any]) -> bool:
    """Whether the interval of a change lies above 0."""
    return change["low"] is not None and bool(change["low"] > 0)


def _warning(kind: str, policy: str | None, text: str) -> Doubt:
    return {"kind": kind, "policy": policy, "text": text}


def _bounds(c: Mapping[str, Any]) -> str:
    return f"{100 * c['low']:.1f}–{100 * c['high']:.1f}"
