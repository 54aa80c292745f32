"""The runs of stored predictions as text; apart from what computes them, which takes seconds to import."""

from collections.abc import Sequence

from feature_repo.clock import iso
from models.stored import Run


def history_lines(kind: str, runs: Sequence[Run], current: Run | None) -> list[str]:
    """The runs of a kind as a table in plain text, a line each; `current`, which readers see, is marked by ``*``."""
    if not runs:
        return [f"{kind}: no run yet"]
    table = [("", kind, "as of", "model", "input from", "until", "rows", "published")]
    for run in runs:
        as_of, since, until = (iso(ms)[:16] for ms in (run.as_of_ms, run.input_from_ms, run.input_until_ms))
        published = "never" if run.published_ms is None else iso(run.published_ms)[:16]
        mark = "*" if current is not None and run.run_id == current.run_id else ""
        rows = "" if run.rows is None else str(run.rows)
        table.append((mark, run.run_id, as_of, f"{run.model} {run.model_version}", since, until, rows, published))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in table]
