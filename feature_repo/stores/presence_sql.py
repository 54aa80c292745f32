"""The SQL of presence over the event log: how many members of a group are in a state. Gives ``__row`` and the features.

What a presence means is said in `feature_repo.views`, which events there are in `feature_repo.stores.stream_sql`.
"""

from collections.abc import Sequence

from feature_repo.stores.duckdb_client import identifier, literal
from feature_repo.stores.joins import Join, partitioned
from feature_repo.views import PresenceView


def presence_sql(view: PresenceView, join: Join, events: str, moment: str = "__ms", apart: Sequence[str] = ()) -> str:
    """A member's latest event of those known holds until a later one is known, or for the TTL; counts are running sums.

    Of each event `events` has the keys, ``member``, ``state``, its order (``t``, ``p``, ``o``), and the moments from
    which on it is ``known`` and up to which it is young enough (``last``); of entity rows `moment` is theirs. What
    differs in the columns `apart` has nothing to do with each other. In the order of becoming known only those events
    matter that are later than every one before.
    """
    keys = [*apart, *join.key_names]
    step = ", ".join([*keys, "state", "moment"])
    member = partitioned([*apart, "member"])
    ctes = [
        f"events AS ({events})",
        f"placed AS (SELECT *, row_number() OVER ({member} ORDER BY t, p, o) AS place FROM events)",
        f"latest AS (FROM placed QUALIFY place = max(place) OVER ({member} ORDER BY known))",
        f"spells AS (SELECT *, least(last, lead(known) OVER ({member} ORDER BY known) - 1) AS until FROM latest)",
        f"steps AS (SELECT {step}, sum(step) AS step FROM ("
        "SELECT *, known AS moment, 1 AS step FROM spells WHERE until >= known UNION ALL "
        f"SELECT *, until + 1, -1 FROM spells WHERE until >= known) GROUP BY {step})",
        f"counts AS (SELECT *, sum(step) OVER ({partitioned([*keys, 'state'])} ORDER BY moment) AS n FROM steps)",
        f"asked AS (FROM entity_rows WHERE {join.whole})",
    ]
    same = [f"e.{column} = r.{column}" for column in apart]
    joined, features = [], []
    for i, (feature, output) in enumerate(join.features):
        at = " AND ".join([*same, *join.equal("e", "r"), f"e.{moment} >= r.moment"])
        counted = f"SELECT * FROM counts WHERE state = {literal(view.counts[feature])}"
        ctes.append(f"f{i} AS (SELECT e.__row, r.n FROM asked e ASOF LEFT JOIN ({counted}) r ON {at})")
        joined.append(f"JOIN f{i} USING (__row)" if i else "f0")
        features.append(f"CAST(coalesce(f{i}.n, 0) AS BIGINT) AS {identifier(output)}")
    return f"WITH {', '.join(ctes)} SELECT __row, {', '.join(features)} FROM {' '.join(joined)}"
