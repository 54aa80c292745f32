"""The levers of inference as a table and as a plot."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from models.benchmark import BATCHES, Line

FORMATS = (".png", ".svg")


class NoPlot(ValueError):
    """The plot cannot be drawn into the file that was named."""


def levers_table(title: str, lines: Sequence[Line]) -> Table:
    """A line a variant, lever by lever."""
    columns = ["1 row, µs p50", *(f"µs a row of {size}" for size in BATCHES[1:])]
    table = Table("lever", "variant", *columns, "bytes", "MAE, min", "within p90", title=title)
    before = None
    for line in lines:
        if before not in (None, line.lever):
            table.add_section()
        times = (f"{micros:.1f}" for micros in line.micros)
        errors = (f"{line.mae:.3f}", f"{line.within_p90:.3f}")
        table.add_row("" if line.lever == before else line.lever, line.name, *times, f"{line.size:,}", *errors)
        before = line.lever
    return table


def check_plot(file: Path) -> None:
    """Raises NoPlot unless the file is of a format that we draw, and its folder is there."""
    if file.suffix not in FORMATS:
        raise NoPlot(f"{file}: a plot is one of {', '.join(FORMATS)}, and is told by the file's name")
    if not file.parent.is_dir():
        raise NoPlot(f"{file}: there is no folder {file.parent} to write the plot to")


def plot(tables: Mapping[str, Sequence[Line]], file: Path) -> None:
    """A row of bars a model: latency of one row and of a row of the largest batch, bytes, and error; colours by lever.

    Raises ModuleNotFoundError without matplotlib, which is of the development dependencies.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 # slow, and not for serving
    from matplotlib.figure import Figure  # noqa: PLC0415

    tallest = max(len(lines) for lines in tables.values())
    figure = Figure(figsize=(16, 0.3 * tallest * len(tables) + 1.5 * len(tables)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(tables), 4, squeeze=False, sharey="row")
    for row, (name, lines) in zip(grid, tables.items(), strict=True):
        row[0].set_yticks(range(len(lines)), [line.name for line in lines])
        row[0].invert_yaxis()
        for axes, (title, values) in zip(row, _panels(lines).items(), strict=True):
            for lever in dict.fromkeys(line.lever for line in lines):
                places = [place for place, line in enumerate(lines) if line.lever == lever]
                axes.barh(places, [values[place] for place in places], label=lever)
            axes.set_title(f"{name}: {title}", fontsize=9)
            if title == _ERROR:  # a bar from 0 would hide what sets them apart
                margin = 0.1 * (max(values) - min(values)) or 1.0
                axes.set_xlim(min(values) - margin, max(values) + margin)
            elif title != _ONE_ROW:
                axes.set_xscale("log")
        row[0].legend(fontsize=8)
    figure.savefig(file)


_ONE_ROW = "µs, 1 row"
_ERROR = "MAE, minutes (not from 0)"


def _panels(lines: Sequence[Line]) -> dict[str, list[float]]:
    return {
        _ONE_ROW: [line.micros[0] for line in lines],
        f"µs a row of {BATCHES[-1]} (logarithmic)": [line.micros[-1] for line in lines],
        "bytes (logarithmic)": [float(line.size) for line in lines],
        _ERROR: [line.mae for line in lines],
    }
