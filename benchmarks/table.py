"""The figures as plain JSON and as the table of the README."""

from typing import Any

from benchmarks.figures import FIGURES, Figure, Measured, Side


def as_json(figure: Figure, measured: Measured) -> dict[str, Any]:
    """One figure, with its samples and what it must reach."""
    return {
        "ratio": measured.ratio,
        "over": _side(measured.over),
        "under": _side(measured.under),
        "reaches_bar": figure.reaches(measured.ratio, figure.bar),
        "reaches_aim": figure.reaches(measured.ratio, figure.aim),
        "details": dict(measured.details),
    }


def table(document: dict[str, Any]) -> str:
    """Markdown: a line for each figure that was measured."""
    lines = ["| figure | what | measured | at least | aim |", "| --- | --- | --- | --- | --- |"]
    for figure in FIGURES:
        if found := document["figures"].get(figure.name):
            sides = " / ".join(f"{_short(found[s]['median'])} {found[s]['unit']}" for s in ("over", "under"))
            sign = "≤ " if figure.lower else ""
            goals = [f"{sign}{goal:g}" if goal is not None else "reported" for goal in (figure.bar, figure.aim)]
            lines.append(
                f"| `{figure.name}` | {figure.what} ({sides}) | {_short(found['ratio'])} | {goals[0]} | {goals[1]} |"
            )
    return "\n".join(lines)


def _side(side: Side) -> dict[str, Any]:
    return {"what": side.what, "unit": side.unit, "median": side.median, "samples": list(side.samples)}


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
