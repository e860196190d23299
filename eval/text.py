"""How a report writes numbers and names: a true minus sign, en dashes, an em dash for what is missing, long names shortened."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NOTHING = "—"
NAMES = {
    "known": "Known score",
    "learned": "Learned score",
    "kl": "KL, nats",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "rougeLsum": "ROUGE-Lsum",
    "words": "Words",
    "new_bigrams": "Bigrams not in the prompt",
    "copied": "Copied sentences",
    "copied_at": "Copied from",
    "compression": "Compression",
    "other_script": "Other script",
    "repeated_bigrams": "Repeated bigrams",
    "refusal": "Refusals",
    "empty": "Empty",
    "truncated": "Cut off",
    "no_stop": "No stop",
    "longer": "The longer response",
}
JUDGES = {"known": "the known reward", "learned": "the learned reward model"}
KNOWN = {  # what a known reward is, in words
    "rouge": "the mean F1 of ROUGE-1, -2 and -L against the reference",
    "sentiment": "log p(positive) of a small sentiment classifier",
    "descriptiveness": "how physical the words are, from a lexicon fitted on novels",
}
MEASURED = {
    "rouge1": "F1 of words shared with the reference",
    "rouge2": "F1 of pairs of words shared with the reference",
    "rougeL": "F1 of the longest common subsequence with the reference",
    "rougeLsum": "F1 of the longest common subsequences with the reference, sentence by sentence",
}
ASKED = {
    "verdicts": "the verdicts in {}",
    "reward": "the reward model {}",
    "lm": "the language model {}",
    "server": "the language model {}",
}
SHORT = 24  # characters of a name in a plot, a column's head, a matrix
SHARES = frozenset({"copied", "refusal", "empty", "truncated", "no_stop", "cut"})  # written as percentages


def signed(value: float | None, digits: int = 2) -> str:
    """`-0.651` → "−0.65"; large numbers lose their decimals; a rounded zero has no sign."""
    if value is None or value != value:
        return NOTHING
    if abs(value) >= 1000:
        digits = 0
    elif abs(value) >= 100:
        digits = min(digits, 1)
    text = f"{value:,.{digits}f}"
    if not any(c in "123456789" for c in text):
        text = text.lstrip("-")
    return text.replace("-", "−")


def short(value: Any) -> str:
    """A number from a record or config with up to four significant digits; anything else as text."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", "−")
    return str(value)


def name_of(figure: str) -> str:
    """A score's or measure's name in the report; an unknown one speaks for itself."""
    if figure in NAMES:
        return NAMES[figure]
    start, _, n = figure.rpartition("_")
    return {"novel": f"{n}-grams not in the source", "distinct": f"Distinct-{n} within"}.get(start, figure)


def judge_name(judge: str, reward: str | None = None) -> str:
    """Who judges, in words; `reward`: the name of the known or learned reward."""
    kind, colon, rest = judge.partition(":")
    if colon and kind in ASKED:
        return ASKED[kind].format({"lm": rest, "server": rest.rpartition("@")[0]}.get(kind, Path(rest).name))
    if reward is not None and judge == "known":
        words = KNOWN.get(reward.removeprefix("known:"))
        return f"the known reward {reward}{f' ({words})' if words else ''}"
    if reward is not None and judge == "learned":
        return f"the learned reward model {Path(reward).name}"
    name = name_of(judge) + (f" ({MEASURED[judge]})" if judge in MEASURED else "")
    return JUDGES.get(judge, name if name != judge else f"the score “{judge}”")


def shortened(name: str, most: int = SHORT, head: int | None = None) -> str:
    """A name of at most `most` characters, its middle left out; `head` of them from its beginning, else half."""
    if len(name) <= most:
        return name
    head = most // 2 if head is None else head
    return f"{name[:head]}…{name[len(name) - (most - 1 - head) :]}"


def short_names(names: Sequence[str], most: int = SHORT) -> dict[str, str]:
    """Name → shortened name, no two alike: the cut moves, and then narrows, until they differ; else they are numbered."""
    for longest in range(most, most + 13, 4):
        for head in sorted(range(1, longest - 1), key=lambda h: abs(h - longest // 2)):
            found = {name: shortened(name, longest, head) for name in names}
            if len(set(found.values())) == len(found):
                return found
    return {name: name if len(name) <= most else f"{shortened(name, most - 4)} {i}" for i, name in enumerate(names, 1)}


def percent(share: float | None) -> str:
    """`0.8824` → "88.2 %"."""
    return NOTHING if share is None else f"{100 * share:.1f} %".replace("-", "−")


def interval(summary: Mapping[str, Any] | None, digits: int = 2) -> str:
    """`{low, high}` → "−0.12 to 0.30"."""
    if summary is None or summary.get("low") is None or summary.get("high") is None:
        return NOTHING
    return f"{signed(summary['low'], digits)} to {signed(summary['high'], digits)}"


def p_text(p: float) -> str:
    """A p-value: "< 0.001" below that, else three decimals."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def mean_of(summary: Mapping[str, Any] | None) -> float | None:
    """The mean of a `{mean, low, high, n}`, or `None` where there is none."""
    return None if summary is None else summary["mean"]


def score_mean(policy: Mapping[str, Any], name: str) -> float | None:
    """A policy's mean of one score, or `None` where it was not scored."""
    return mean_of(policy["scores"].get(name))


def summary_of(policy: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """A policy's `{mean, low, high, n}` of a score or measure, or `None` where it has none."""
    own = {"words": policy["words"], "new_bigrams": policy["new_bigrams"]}
    found: Mapping[str, Any] | None = policy["scores"].get(name) or policy["measures"].get(name) or own.get(name)
    return found


def figure_text(name: str, value: float | None) -> str:
    """A score's or measure's value as it is written: shares in %, ROUGE times 100 as papers print it, words with one decimal."""
    if value is None:
        return NOTHING
    if name in SHARES:
        return percent(value)
    if name.startswith("rouge"):
        return signed(100 * value, 1)
    return signed(value, 1 if name == "words" else 2)


def versus(report: Mapping[str, Any], a: str, b: str) -> dict[str, float] | None:
    """Win rate of a over b with its interval, whichever way the pair was compared; `None` where it was not."""
    for c in report["comparisons"]:
        if (c["a"], c["b"]) == (a, b):
            return {key: c[key] for key in ("rate", "low", "high")}
        if (c["a"], c["b"]) == (b, a):
            return {"rate": 1 - c["rate"], "low": 1 - c["high"], "high": 1 - c["low"]}
    return None


def result_columns(report: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """What the headline table shows: the policies to win against, and the scores and measures that any policy has."""
    names = [p["name"] for p in report["policies"]]
    bases = [name for name in report["baselines"] if name in names and len(names) > 1]
    wanted = ["rouge1", "rouge2", "rougeL", report["axis"], "learned", "kl", "copied", "words"]
    wanted = [k for k in dict.fromkeys(wanted) if any(summary_of(p, k) for p in report["policies"])]
    return bases, wanted if "copied" in wanted else [*wanted[:-1], "new_bigrams", "words"]


def ordered_names(report: Mapping[str, Any]) -> list[str]:
    """The scores of the policies: known, learned, kl first, then the others as they come."""
    found = dict.fromkeys(name for policy in report["policies"] for name in policy["scores"])
    return sorted(found, key=lambda name: {"known": 0, "learned": 1, "kl": 2}.get(name, 3))
