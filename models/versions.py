"""The versions of the models side by side: as they were measured, and on the orders that both have answered."""

from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from rich.table import Table

from feature_repo.clock import from_ms
from feature_repo.settings import Settings
from feature_repo.stores.duckdb_client import connect, literal
from models.quality import outcomes_sql
from models.receipt_archive import receipt_files, receipts_sql
from models.registry import Manifest, ModelBroken, Registry


class Compared(NamedTuple):
    """Two versions on the orders that both have said something of and that were delivered; errors in minutes.

    `first` and `second` are (MAE, bias, share within the 90th percentile), or None without such orders.
    """

    orders: int
    first: tuple[float, float, float] | None
    second: tuple[float, float, float] | None


def names(registry: Registry) -> list[str]:
    """Every model that has a folder."""
    return sorted(path.name for path in registry.root.iterdir() if path.is_dir()) if registry.root.is_dir() else []


def in_use(registry: Registry) -> list[Manifest]:
    """The manifests of the versions in use."""
    found = []
    for name in names(registry):
        with suppress(ModelBroken):
            found.append(registry.manifest(name, registry.current(name)))
    return found


def list_table(registry: Registry, only: Sequence[str] = ()) -> Table:
    """Every version, the newest first, with its error when it was trained and what it is used for."""
    table = Table("model", "version", "trained on orders until", "rows", "MAE", "p90 coverage", "used as")
    for name in only or names(registry):
        roles = _roles(registry, name)
        for version in reversed(registry.versions(name)):
            try:
                manifest = registry.manifest(name, version)
            except ModelBroken as error:
                table.add_row(name, version, "", "", "", "", f"broken: {error.reason}")
                continue
            figures = manifest.metrics["model"]
            until = f"{from_ms(manifest.trained_ms[1]):%Y-%m-%d %H:%M}"
            errors = f"{figures['mae']:.2f}", f"{figures['coverage_p90']:.3f}"
            table.add_row(name, version, until, str(manifest.rows["train"]), *errors, ", ".join(roles.get(version, [])))
    return table


def compare(settings: Settings, name: str, first: str, second: str, since_ms: int, until_ms: int) -> Compared:
    """Two versions on the same orders: those that one answered while the other was in its shadow.

    Predictions of since <= instant < until count, each order once, by its first; only what is archived is seen.
    """
    files = receipt_files(settings, since_ms, until_ms)
    if not files:
        return Compared(0, None, None)
    pair = f"{literal(first)}, {literal(second)}"
    shadow = "$.receipt.shadow"
    where = (
        f"model = {literal(name)} AND order_id IS NOT NULL AND model_version IN ({pair}) AND "
        f"json_extract_string(extra, '{shadow}.model_version') IN ({pair})"
    )
    figures = ", ".join(
        f"avg(abs({p}_m - took)), avg({p}_m - took), avg((took <= {p}_p90)::INT)" for p in ("first", "second")
    )
    sides = ", ".join(
        f"CASE WHEN model_version = {literal(v)} THEN {column} ELSE CAST(extra->>'{shadow}.{column}' AS DOUBLE) END "
        f"AS {side}_{short}"
        for side, v in (("first", first), ("second", second))
        for column, short in (("eta_minutes", "m"), ("eta_minutes_p90", "p90"))
    )
    query = (
        f"SELECT count(*), {figures} FROM (SELECT {sides}, (delivered_ms - at_ms) / 60000.0 AS took FROM "
        f"(FROM ({receipts_sql(files, since_ms, until_ms, where)}) "
        "QUALIFY row_number() OVER (PARTITION BY order_id ORDER BY at_ms, event_id) = 1) "
        f"JOIN ({outcomes_sql(settings, since_ms)}) USING (order_id)) WHERE took >= 0"
    )
    with connect(settings) as connection:
        row = connection.execute(query).fetchone()
    assert row is not None
    if not row[0]:
        return Compared(0, None, None)
    return Compared(row[0], tuple(row[1:4]), tuple(row[4:7]))


def compare_table(registry: Registry, name: str, first: str, second: str, found: Compared) -> Table:
    """Both versions as they were measured when they were trained, and on the orders that both have answered."""
    table = Table("", first, second, title=f"{name}: minutes; on {found.orders} orders that both have answered")
    manifests = [registry.manifest(name, version) for version in (first, second)]
    for label, figure in (("MAE when trained", "mae"), ("within p90 when trained", "coverage_p90")):
        table.add_row(label, *(f"{manifest.metrics['model'][figure]:.3f}" for manifest in manifests))
    table.add_row("rows trained on", *(str(manifest.rows["train"]) for manifest in manifests))
    if found.first is not None and found.second is not None:
        for i, label in enumerate(("MAE live", "bias live", "within p90 live")):
            table.add_row(label, f"{found.first[i]:.3f}", f"{found.second[i]:.3f}")
    return table


def _roles(registry: Registry, name: str) -> dict[str, list[str]]:
    roles: dict[str, list[str]] = {}
    with suppress(ModelBroken):
        roles.setdefault(registry.current(name), []).append("in use")
    if (shadow := registry.shadow(name)) is not None:
        roles.setdefault(shadow, []).append("shadow")
    return roles
