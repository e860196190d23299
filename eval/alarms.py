"""What a report says in words: the headline, what to doubt, and how each figure is computed.

`warnings` is the place to add an alarm: one test on the report's data, one sentence with its numbers.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from eval.measures import other_scripts
from eval.text import mean_of, name_of, p_text, percent, score_mean, signed, summary_of, versus

BASELINE, SECOND_DRAW, SUPERVISED, MAIN = "zero-shot", "zero-shot (second draw)", "supervised", "rlhf"
Report = Mapping[str, Any]
Doubt = dict[str, str | None]  # kind, policy (or None), text

# What there is to worry about, the worst first; a kind that is not named comes after them, but before the last.
WORRIES = (
    ("over-optimisation", "over-optimised", "ROUGE falls", "judge against reward"),
    ("nothing judged", "judge is the reward", "guard overridden", "guard", "checks overridden", "unguarded",
     "reward model at chance", "reward model no better than length", "negative KL", "control not even", "judges disagree",
     "order bias", "no verdict", "not judged", "prompts differ", "other script"),
    ("copier",), ("empty",),
    ("length explains the win", "length may explain the win", "judge likes length", "length"),
    ("few prompts",),
)  # fmt: skip
RANK = {kind: at for at, kinds in enumerate(WORRIES) for kind in kinds} | {"perplexity": len(WORRIES) + 1}
COPIES = re.compile(r"lead-\d+|reference|column:reference|random-sentence", re.IGNORECASE)  # by design
COPIED, NOT_NEW = "sentences stand word for word in the source", "bigrams stand in the source"
LITTLE_AGREEMENT = 0.2  # κ and α up to here are slight (Landis & Koch 1977)


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
    share = f"{100 * c['rate']:.1f} % of pairs"
    if not c["low"] <= 0.5 <= c["high"] and c["p_value"] >= 0.05:
        test = f"which its sign test does not confirm (p = {p_text(c['p_value'])})"
        result = f"was {'ahead of' if c['rate'] > 0.5 else 'behind'} {c['b']}: it won {share}, {test}"
    elif c["low"] > 0.5:
        result = f"beat {c['b']} in {share}"
    elif c["high"] < 0.5:
        result = f"lost to {c['b']}: it won {share}"
    else:
        result = f"could not be told apart from {c['b']}: it won {share}"
    bounds = f"95 % interval {_bounds(c)}"
    start = f"On {c['prompts']} prompts the {c['a']} policy {result}"
    others = [o for o in report["comparisons"] if o["a"] == report["main"] and o["b"] not in (report["baseline"], SECOND_DRAW)]
    others = [o for o in others if o["b"] in (SUPERVISED, "reference")] or others[:2]
    rest = "".join(f" Against {o['b']} it won {100 * o['rate']:.1f} % ({_bounds(o)})." for o in others)
    return f"{start} ({bounds}), judged by {judge}{distance}.{rest}"


def warnings(report: Report) -> list[Doubt]:
    """What a reader should doubt: `{kind, policy, text}` each, in the order in which to worry."""
    out = [*_about_reward(report), *_about_comparison(report), *_about_judges(report), *_about_agreement(report)]
    out += [*_about_headline(report), *_about_length(report)]
    for policy in report["policies"]:
        out += _about_scores(policy, report)
        out += _about_texts(policy, report, {w["policy"] for w in out if "explain" in str(w["kind"])})
    out += [*_about_copying(report), *_about_empty(report), *_about_scripts(report), *_about_training(report)]
    return sorted(out, key=lambda doubt: RANK.get(str(doubt["kind"]), len(WORRIES)))


def _evaluation(report: Report) -> Mapping[str, Any]:
    """The options of the evaluation itself; none where it was not told."""
    found = [run["config"] for run in report["provenance"] if run.get("stage") == "eval"]
    return found[-1] if found and isinstance(found[-1], Mapping) else {}


def _models(report: Report) -> dict[str, Mapping[str, Any]]:
    """Policy → its options, where the evaluation's are told."""
    given = _evaluation(report).get("policies") or {}
    return {name: p if isinstance(p, Mapping) else {"model": str(p)} for name, p in given.items() if p is not None}


def _copies_by_design(report: Report, name: str) -> bool:
    """Whether a policy is a baseline that is made of the source or of the reference: by its model, else by its name."""
    return bool(COPIES.fullmatch(str(_models(report).get(name, {}).get("model", name))))


def _proxies(report: Report) -> list[str]:
    """The scores that policies were compared on, the learned one first."""
    asked = ["learned", report["judge"], report["axis"], *(str(j.get("judge")) for j in report["judgements"])]
    there = {name for policy in report["policies"] for name in policy["scores"]} - {"kl", "ref_nll"}
    return [name for name in dict.fromkeys(asked) if name in there]


def _score(name: str) -> str:
    """A score's name within a sentence."""
    return f"{name} score" if name in ("known", "learned") else f"score “{name}”"


def _about_comparison(report: Report) -> Iterator[Doubt]:
    n, judged = report["n_prompts"], {(c["a"], c["b"]): c["prompts"] for c in report["comparisons"]}
    if report["verdicts"]:
        n = min(judged.values(), default=0)
        for base in report["baselines"]:
            if base != report["main"] and (report["main"], base) not in judged and (base, report["main"]) not in judged:
                yield _warning("not judged", report["main"], f"No verdict compares {report['main']} with {base}.")
    if report["verdicts"] and not n:
        yield _warning("nothing judged", None, f"Nothing was judged: {report['judge_name']} gave no verdict on any pair.")
    elif n < 100:
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
        if judge not in _proxies(report) and judge != "known":
            yield from _against_reward(report, judge, j)
    for found in report["judges"]:
        lost = (found.get("unparsable") or 0) + (found.get("failed") or 0)
        if lost > 0.05 * (found.get("verdicts") or 0) > 0:
            text = f"{found['judge']} gave no verdict in {lost:,} of {found['verdicts']:,} answers: those pairs are left out."
            yield _warning("no verdict", None, text)
    longer = next((row for row in report["agreement"] if row["measure"] == "longer"), None)
    if longer and longer["low"] > 0.6:
        share = f"{100 * longer['rate']:.1f} % of pairs ({_bounds(longer)})"
        yield _warning("judge likes length", None, f"The judge prefers the longer response in {share}.")


def _against_reward(report: Report, judge: str, j: Mapping[str, Any]) -> Iterator[Doubt]:
    """A judge that prefers the policy whose score is lower."""
    turned = {"rate": 1 - j["rate"], "low": 1 - j["high"], "high": 1 - j["low"]}
    for a, b, won in ((j["a"], j["b"], j), (j["b"], j["a"], turned)):
        higher = report["changes"].get(b, {}).get(a, {})
        name = next((s for s in _proxies(report) if s in higher and _above(higher[s])), None)
        if name is not None and won["high"] < 0.5:
            text = (
                f"{judge} prefers {b} to {a} ({percent(won['rate'])} for {a}, {_bounds(won)}), although the {_score(name)} of "
                f"{a} is {higher[name]['mean']:.2f} higher."
            )
            yield _warning("judge against reward", a, text)
            return


def _about_agreement(report: Report) -> Iterator[Doubt]:
    """Judges, or people of one file, who agree hardly more than by chance: all together, or each two."""
    alpha = report["alpha"] or {}
    if len(alpha.get("judges") or []) > 2 and _slight(alpha.get("high")):
        text = (
            f"The {len(alpha['judges'])} judges hardly agree beyond chance: Krippendorff's α {_three(alpha, 'value', '')}, where "
            "1 is full agreement and 0 chance; a win rate by one of them says little of another's."
        )
        yield _warning("judges disagree", None, text)
        return
    found = []
    for row in report["agreements"]:
        if _slight(row.get("kappa_high")):
            share, kappa = percent(row.get("share")), _three(row, "kappa", "kappa_")
            found.append(f"{row['a']} and {row['b']} say the same of {share}, κ {kappa}")
    if found:
        text = f"Judges hardly agree beyond chance: {'; '.join(found)}. κ is 1 in full agreement and 0 by chance."
        yield _warning("judges disagree", None, text)


def _about_headline(report: Report) -> Iterator[Doubt]:
    """A judge that is what the policies were optimised for."""
    judge, asked = report["judge"], _evaluation(report)
    reward = judge.removeprefix("reward:") if judge.startswith("reward:") else asked.get(f"{judge}_reward")
    if judge not in ("known", "learned") and not judge.startswith("reward:"):
        return
    start, end = "The judge is the reward that", "a win by it shows what was optimised, not that the responses are better."
    if reward is None and judge == "known":
        return
    if reward is None:  # the samples came with it
        yield _warning("judge is the reward", None, f"{start}, by its name, the policies were trained on: {end}")
        return
    trained, picked = [], []
    for run in (r for r in report["provenance"] if r.get("stage") == "ppo" and isinstance(r.get("config"), Mapping)):
        setup = (run["config"].get("model") or {}).get("init_args") or {}
        if _same(reward, setup.get("reward")):
            outputs = [name for name, p in _models(report).items() if _same(str(p.get("model")), setup.get("output"))]
            trained += outputs
    for name, policy in _models(report).items():
        if (policy.get("best_of") or 1) > 1 and _same(reward, policy.get("reward")):
            picked.append(name)
    there = {policy["name"] for policy in report["policies"]}
    told = [(names, how) for names, how in ((trained, "trained on"), (picked, "picked by")) if there & set(names)]
    for names, how in told:
        kept = [name for name in names if name in there]
        text = f"{start} {_listed(kept)} {'was' if len(kept) == 1 else 'were'} {how}: {end}"
        yield _warning("judge is the reward", kept[0], text)


def _same(path: str, given: Any) -> bool:
    """Whether a reward, or one of a weighted sum, is that directory."""
    if isinstance(given, Mapping):
        given = given.get("reward")
    if isinstance(given, Sequence) and not isinstance(given, str):
        return any(_same(path, one) for one in given)
    return isinstance(given, str) and os.path.abspath(path) == os.path.abspath(given)


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
    """Every model's policy; baselines that copy by design need no warning."""
    found = []
    for policy in report["policies"]:
        copied, new = summary_of(policy, "copied"), summary_of(policy, "new_bigrams")
        if _copies_by_design(report, policy["name"]):
            continue
        if copied and copied["mean"] > 0.5:
            found.append((policy["name"], percent(copied["mean"]), COPIED))
        elif not copied and new and new["mean"] < 0.2:
            found.append((policy["name"], percent(1 - new["mean"]), NOT_NEW))
    if len(found) == 1:
        ((name, share, what),) = found
        yield _warning("copier", name, f"{name} is a copier: {share} of its {what}.")
        return
    for what in dict.fromkeys(what for *_, what in found):
        each = _listed([f"{name} ({share})" for name, share, of in found if of == what])
        yield _warning("copier", None, f"Several policies are copiers, whose {what}: {each}.")


def _about_empty(report: Report) -> Iterator[Doubt]:
    """Policies that often say nothing."""
    shares = [(p["name"], mean_of(summary_of(p, "empty"))) for p in report["policies"]]
    found = [(name, share) for name, share in shares if share is not None and share > 0.1]
    if found:
        text = f"Many responses are empty: {_listed([f'{percent(share)} of {name}' for name, share in found])}."
        yield _warning("empty", found[0][0] if len(found) == 1 else None, text)


def _about_scripts(report: Report) -> Iterator[Doubt]:
    """Texts that ROUGE cannot read."""
    text = other_scripts({policy["name"]: summary_of(policy, "other_script") for policy in report["policies"]})
    if text is not None:
        yield _warning("other script", None, text)


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
        mine = changed.get(name, {})
        for key, kind in (("known", "over-optimised"), *([("rougeL", "ROUGE falls")] if name == report["main"] else [])):
            other, proxy = mine.get(key), next((s for s in _proxies(report) if s != key and s in mine and _above(mine[s])), None)
            if key in told or proxy is None or not (other and other["high"] < 0):
                continue
            told.add(key)
            start = f"{name} raises the {_score(proxy)} by {mine[proxy]['mean']:.2f} over {base} while the "
            if key == "known":
                end = "the reward model is being exploited" if proxy == "learned" else "what raised it is being exploited"
                text = f"{start}known score falls by {-other['mean']:.2f}: {end}."
            else:
                text = f"{start}{name_of(key)} falls by {-100 * other['mean']:.1f}: the two disagree on what is better."
            yield _warning(kind, name, text)
    if (policy["missing"] or 0) > 0.5:
        share = percent(policy["missing"])
        text = f"Most responses of {name} do not end as the task asks: {share} had no truncation token when first drawn."
        yield _warning("penalised", name, text)


def _about_texts(policy: Mapping[str, Any], report: Report, told: set[str | None]) -> Iterator[Doubt]:
    """Against the baseline's texts; `told`: policies whose wins length was said to explain."""
    name, base, ratio = policy["name"], report["policies"][0]["name"], policy["ratio"]
    within, corpus = ratio["distinct_2_within"], ratio["distinct_2"]
    if within is not None and within < 0.9:
        text = f"{name} repeats itself: distinct-2 within a response is {within:.2f} of {base}'s."
        yield _warning("repeats", name, text)
    if corpus is not None and corpus < 0.4:
        text = f"{name}'s responses resemble each other: corpus distinct-2 is {corpus:.2f} of {base}'s."
        yield _warning("collapse", name, text)
    perplexity, words = ratio["perplexity"], ratio["words"]
    if perplexity is not None and perplexity > 2 and not _copies_by_design(report, name):
        text = (
            f"{name}'s responses have {perplexity:.1f} times the perplexity of {base}'s under the reference."
        )
        yield _warning("perplexity", name, text)
    won = versus(report, name, base)
    doubtful = won is not None and won["low"] > 0.5 and name not in told and not _wins_evenly(report, name, base)
    if words is not None and words > 1.5 and doubtful:
        text = f"{name}'s responses have {words:.2f} times the words of {base}'s, over which it wins: length may explain that."
        yield _warning("length", name, text)


def _wins_evenly(report: Report, a: str, b: str) -> bool:
    """Whether the judge's table says that `a` wins over `b` at equal length too."""
    rows = [j for j in report["judgements"] if (j["a"], j["b"]) == (a, b) and j.get("judge") == report["judge"]]
    return any(((j.get("length_controlled") or {}).get("low") or 0.0) > 0.5 for j in rows)


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


def _slight(high: float | None) -> bool:
    """Whether the upper end of an agreement is that low."""
    return high is not None and high < LITTLE_AGREEMENT


def _three(row: Mapping[str, Any], name: str, start: str) -> str:
    """A coefficient with its interval."""
    return f"{signed(row.get(name))} ({signed(row.get(f'{start}low'))} to {signed(row.get(f'{start}high'))})"


def _listed(texts: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))


def _warning(kind: str, policy: str | None, text: str) -> Doubt:
    return {"kind": kind, "policy": policy, "text": text}


def _bounds(c: Mapping[str, Any]) -> str:
    return f"{100 * c['low']:.1f}–{100 * c['high']:.1f}"
