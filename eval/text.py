"""How a report writes numbers: a true minus sign, en dashes, an em dash for what is missing."""

from collections.abc import Mapping
from typing import Any

NOTHING = "—"


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


def percent(share: float | None) -> str:
    """`0.8824` → "88.2 %"."""
    return NOTHING if share is None else f"{100 * share:.1f} %"


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


def ordered_names(report: Mapping[str, Any]) -> list[str]:
    """The scores of the policies: known, learned, kl first, then the others as they come."""
    found = dict.fromkeys(name for policy in report["policies"] for name in policy["scores"])
    return sorted(found, key=lambda name: {"known": 0, "learned": 1, "kl": 2}.get(name, 3))
