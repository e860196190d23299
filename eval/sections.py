"""What the report says behind the win rates: their cost in KL, length, other judges, and the reward model under the lamp."""

import os
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from eval import plots
from eval.pieces import bounds, count, facts, figure, pair, pair_name, section, table
from eval.text import NOTHING, interval, name_of, p_text, percent, short, signed, summary_of

Report = Mapping[str, Any]
FEWEST = 10  # a group of fewer comparisons is not drawn


def cost(report: Report) -> str:
    """Judge's score against KL, a point for each policy; each run's way there over √KL; and gold against proxy."""
    judge = report["axis"]
    points = [
        {"label": p["name"], "x": p["scores"]["kl"], "y": summary_of(p, judge), "main": p["name"] == report["main"]}
        for p in report["policies"]
        if "kl" in p["scores"] and summary_of(p, judge)
    ]
    scale = 100 if judge.startswith("rouge") else 1  # in per cent, as everywhere
    points = [{**p, "y": {k: v if k == "n" or v is None else scale * v for k, v in p["y"].items()}} for p in points]
    figures = []
    best, runs = report["frontier"]["best_of"], report["frontier"]["runs"]
    if points and judge != "kl":
        best_of = [(b["n"], b["kl"], scale * (b["proxy"] if b["gold"] is None else b["gold"])) for b in best]
        plot = plots.scatter(points, f"{name_of(judge)} against KL", "KL to the reference, nats", best_of=best_of)
        caption = f"{escape(name_of(judge))} against distance from the reference, with 95 % intervals. Up and left is better."
        if best_of:
            caption += f" Dotted: the best of n of {escape(report['baseline'])} by the learned score."
        figures.append(figure(plot, caption))
    if runs:
        same = _on_the_axes(report)
        if any(run["gold"] for run in runs):
            plot = plots.gold_plot(runs, "Gold against proxy", same)
            caption = "Gold against proxy, joined in the order of training up to the larger dot."
            if any(run["turn"] for run in runs):
                caption += " Ring: over-optimisation begins; from there on gold falls while the proxy rises."
            figures = [f'<div style="display:grid;gap:28px">\n{"".join([*figures, figure(plot, caption)])}\n</div>']
        figures.append(figure(plots.frontier_plot(runs, "Score against √KL", same), _of_runs(report, same)))
    return section("cost", "What the score cost", pair(figures)) if figures else ""


def _on_the_axes(report: Report) -> list[Mapping[str, Any]]:
    """Best-of-n as far as its scores are those of the runs' axes: nothing where the configs name another reward than the
    learned one, no gold where that is not the known reward, or another."""
    ppo, own = (_config(report, stage) for stage in ("ppo", "eval"))
    setup = (ppo.get("model") or {}).get("init_args") or {}
    if not _may_be_same(setup.get("reward"), own.get("learned_reward")):
        return []
    known = report["axis"] == "known" and _may_be_same(setup.get("held_out_reward"), own.get("known_reward"))
    return [b if known else {**b, "gold": None} for b in report["frontier"]["best_of"]]


def _config(report: Report, stage: str) -> Mapping[str, Any]:
    """The options of the last run of a stage; none where they were not told."""
    found = [run["config"] for run in report["provenance"] if run.get("stage") == stage]
    return found[-1] if found and isinstance(found[-1], Mapping) else {}


def _may_be_same(reward: Any, other: Any) -> bool:
    """Whether two options name one reward, or either names none; a weighted sum is another than its parts."""
    if reward is None or other is None:
        return True
    return isinstance(reward, str) and isinstance(other, str) and os.path.abspath(reward) == os.path.abspath(other)


def _of_runs(report: Report, best: Sequence[Mapping[str, Any]]) -> str:
    """What the runs' plot shows, in words."""
    runs = report["frontier"]["runs"]
    lined, golden = any(run["line"] for run in runs), any(run["gold"] for run in runs)
    shown = ["proxy with its least-squares line" if lined else "proxy", *["gold"] * golden, *["residuals"] * lined]
    said = f"Every checkpoint over √KL: {'; '.join(shown)}."
    if best:
        counts, base = ", ".join(str(b["n"]) for b in best), escape(report["baseline"])
        said += f" Dotted: the best of {counts} of {base} by the learned score, log n − (n−1)/n nats from it."
    elif report["frontier"]["best_of"]:
        said += " Best of n is left out: it picks by another reward than the run was trained on."
    return "<br>".join([said, *(_of_run(run, len(runs) > 1) for run in runs)])


def _of_run(run: Mapping[str, Any], named: bool) -> str:
    """One run in words; `named`: it is one of several."""
    line, turn = run["line"], run["turn"]
    checkpoints, name = count(len(run["kl"]), "checkpoint"), escape(run["name"])
    said = [f"<b>{name}</b>: {checkpoints}." if named else f"{checkpoints} of run {name}."]
    if line:
        bend = "it flattens against the line" if line["bend"] < -2 else "it steepens against the line" if line["bend"] > 2 else ""
        said.append(
            f"Line: {signed(line['slope'])} a √nat ({interval(line)}), R² {signed(line['r2'])}, "
            f"residuals up to {signed(max(map(abs, line['residuals'])))}{f'; {bend}' if bend else ''}."
        )
    if turn:
        said.append(f"Over-optimisation begins at step {turn['step']:,.0f}, {turn['kl']:.1f} nats.")
    elif run["gold"]:
        said.append("Gold does not turn: no over-optimisation was found.")
    else:
        said.append("No gold score was logged, so over-optimisation cannot be told from this run alone.")
    return " ".join(said)


def length(report: Report) -> str:
    """Win rate by how many more words the main policy wrote."""
    figures = []
    for found in report["length"]:
        points = [{**b, "x": b["more"]} for b in found["bins"]]
        title = f"{found['a']} against {found['b']}, by length"
        plot = plots.rate_plot(points, title, (f"words more than {found['b']} wrote", "Win rate"))
        said = f"{escape(found['a'])} against {escape(found['b'])}; each point holds equally many pairs."
        if found["not_longer"]:
            few = found["not_longer"]
            said += f" Where it wrote no more words it won {percent(few['rate'])} ({bounds(few)}, n = {few['n']:,})"
            longer = found["longer"]
            said += f", where more {percent(longer['rate'])} ({bounds(longer)}, n = {longer['n']:,})." if longer else "."
        figures.append(figure(plot, said))
    if not figures:
        return ""
    intro = "<p>A win that is there at every length is not one of length. The line is an even match.</p>"
    return section("length", "Does length explain it?", intro + pair(figures))


def judges(report: Report) -> str:
    """Whether other measures and judges see what the judge sees."""
    parts: list[str] = []
    if report["agreement"]:
        rows = [{**row, "label": name_of(row["measure"]), "main": row["measure"] != "longer"} for row in report["agreement"]]
        title = "Agreement with the judge"
        caption = (
            "How often each picks the judge’s winner, over all pairs of policies that neither ties; 95 % interval by prompt, "
            "chance 50 %. The longer response is the control: a measure that does no better knows length alone."
        )
        parts.append(figure(plots.forest_plot(rows, title), caption))
    about_main = [j for j in report["judgements"] if report["main"] in (j["a"], j["b"])]
    if about_main:
        parts.append(judgements(about_main, "Win rates of the main policy by judge"))
        note = "Below the rate at equal length: its 95 % interval. Holm’s correction is over each judge’s pairs in question."
        parts.append(f'<p class="note">{note}</p>')
    ranked = [j for j in report["judges"] if j.get("ranking")]
    if ranked:
        head = ["Policy", *(f"Strength by {j['judge']}" for j in ranked)]
        by_policy = [{s["policy"]: s for s in j["ranking"]} for j in ranked]
        body = []
        for name in by_policy[0]:
            told = [found.get(name) for found in by_policy]
            cells = [f"{signed(s['strength'])}<small>{interval(s)}</small>" if s else NOTHING for s in told]
            body.append((escape(name), cells))
        note = "Bradley–Terry strengths in log-odds, mean 0: the difference of two is the logit of the win rate."
        of = len(report["policies"]) * (len(report["policies"]) - 1) // 2
        part = [f"{escape(j['judge'])} {j['ranked']}" for j in ranked if j.get("ranked", of) < of]
        note += f" Not all {of:,} pairs of policies were judged: {', '.join(part)}." if part else ""
        parts.append(table(head, body, "Ranking by judge", "facts") + f'<p class="note">{note}</p>')
    if report["agreements"]:
        body = []
        for a in report["agreements"]:
            measured = [_with_ends(a.get(k), a.get(f"{k}_low"), a.get(f"{k}_high")) for k in ("kappa", "alpha")]
            body.append((pair_name(a), [percent(a.get("share")), *measured, short(a.get("n"))]))
        head = ["Judges", "Same verdict", "Cohen’s κ", "Krippendorff’s α", "n"]
        parts.append(table(head, body, "Agreement of judges", "facts"))
    if report["alpha"] and len(report["alpha"]["judges"]) > 2:
        alpha = report["alpha"]
        whole = f"{signed(alpha.get('value'))} ({interval(alpha)}), n = {alpha['n']:,}"
        parts.append(f'<p class="note">All judges together: Krippendorff’s α {whole}.</p>')
    placed = [j for j in report["judges"] if j.get("position")]
    if placed:
        body = [(escape(j["judge"]), [_rate(j["position"]["first"]), _rate(j["position"]["consistent"])]) for j in placed]
        parts.append(table(["Judge", "What stood first won", "Same winner in both orders"], body, "Position bias", "facts"))
    return section("judges", "Do the judges agree?", "\n".join(parts)) if parts else ""


def _with_ends(value: float | None, low: float | None, high: float | None) -> str:
    """A figure over its interval."""
    return NOTHING if value is None else f"{signed(value)}<small>{interval({'low': low, 'high': high})}</small>"


def _rate(found: Mapping[str, Any]) -> str:
    """A share over its interval."""
    return f"{percent(found['rate'])}<small>{bounds(found)}</small>"


def _equal(controlled: Mapping[str, Any]) -> str:
    """The rate at equal length over its interval."""
    text = percent(controlled.get("rate"))
    known = controlled.get("low") is not None and controlled.get("high") is not None
    return f"{text}<small>{bounds(controlled)}</small>" if known else text


def judgements(rows: Sequence[Mapping[str, Any]], label: str) -> str:
    """Win rates of any judges as a table."""
    body = []
    for j in rows:
        controlled = j.get("length_controlled") or {}
        needed = (j.get("needed") or {}).get("0.1")
        cells = [
            escape(str(j.get("judge", NOTHING))),
            percent(j["rate"]),
            bounds(j),
            escape(p_text(j["p_holm"])) if j.get("p_holm") is not None else NOTHING,
            _equal(controlled),
            f"{j['n']:,}",
            NOTHING if needed is None else f"{needed:,}",
        ]
        body.append((pair_name(j), cells))
    head = ["Comparison", "Judge", "Win rate", "95 % interval", "p, Holm", "At equal length", "n", "n to tell 60 %"]
    return table(head, body, label)


def reward_model(report: Report) -> str:
    """Accuracy against chance and the labeler, calibration, and where the model is right."""
    model, found = report["reward_model"] or {}, report["calibration"]
    first = ""
    drawn: set[str] = set()
    if model.get("accuracy") is not None:
        drawn = {"accuracy", "low", "high", "n", "chance", "labeler_accuracy", "of"}
        n = f"{model['n']:,} " if isinstance(model.get("n"), int) else ""
        caption = f"Share of {n}held-out comparisons in which the reward model picks the labeler’s choice."
        if model.get("of") == "pairs":
            of = f"{n}ranked or rated held-out comparisons"
            caption = f"Share of the pairs of {of} that the reward model puts in the labeler’s order."
        first = figure(plots.accuracy_bar(model, "Reward model accuracy"), caption)
    others = {name: value for name, value in model.items() if name not in drawn}
    first += facts(others) if others else ""
    parts = [f"<div>{first}</div>"] if first else []
    if found:
        points = [{**b, "x": b["predicted"], "rate": b["observed"]} for b in found["bins"]]
        labels = ("Predicted probability of being chosen", "Chosen")
        parts.append(figure(plots.rate_plot(points, "Calibration", labels, diagonal=True), _of_calibration(found)))
        for key, title in (("by_margin", "margin of the scores"), ("by_length", "words of the choice beyond the others"),
                           ("by_labeler", "labeler")):  # fmt: skip
            if found.get(key):
                plot = _groups(found[key], f"Accuracy by {title}", found["accuracy"]["chance"])
                parts.append(figure(plot, f"Accuracy by {title}; the line is chance."))
    if report["ensemble"]:
        parts.append(_of_ensemble(report["ensemble"], found["accuracy"]["chance"] if found else None))
    return section("reward-model", "The reward model", pair(parts)) if parts else ""


def _groups(groups: Sequence[Mapping[str, Any]], title: str, chance: float | None) -> str:
    """Accuracy of each group that is large enough, against chance where it is known, else ½."""
    rows = [
        {**g, "rate": g["accuracy"], "main": True, "label": f"{g['label']} (n = {g['n']:,})"} for g in groups if g["n"] >= FEWEST
    ]
    return plots.forest_plot(rows, title, reference=0.5 if chance is None else chance)


def _of_calibration(found: Mapping[str, Any]) -> str:
    """What the calibration plot shows, in words."""
    fit, tested, longest = found["temperature"], found["tested"], found["longest"]
    said = [
        f"On the line, a probability means what it says. Calibration error {signed(found['error'], 3)}; "
        f"a perfect model would show {signed(found['error_by_chance'], 3)} from {count(found['n'], 'comparison')} by chance."
    ]
    if fit and tested:
        said.append(
            f"Best temperature {signed(fit['value'])} ({interval(fit)}); on the other half the error goes from "
            f"{signed(tested['error_before'], 3)} to {signed(tested['error_after'], 3)}."
        )
    if longest:
        said.append(f"Picking the longest response is right in {percent(longest['accuracy'])}.")
    return " ".join(said)


def _of_ensemble(found: Mapping[str, Any], chance: float | None) -> str:
    members = ", ".join(percent(m) for m in found["members"])
    caption = (
        f"Several seeds on the same comparisons: accuracy {members} alone, {percent(found['accuracy'])} together; "
        f"two of them pick different responses in {percent(found['disagree'])}. Accuracy by how many agree."
    )
    return figure(_groups(found["by_agreement"], "Accuracy by agreement of the ensemble", chance), caption)
