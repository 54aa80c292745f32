"""The short form of the drill: a made-up order history, imported, trained on and replayed on its own clock."""

import csv
import json
import os
import random
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from deploy.servers import free_port

FIRST = datetime(2026, 3, 2, 12, tzinfo=UTC)
DAYS = 4
_RUN = (
    "import json, sys, deploy.drill as d; from pathlib import Path; "
    "d.READY_SECONDS = 15.0; d.ASKED_AHEAD_SECONDS = 0.3; "
    "print(json.dumps(d.drill(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), 20.0)))"
)


def made_up_orders(file: Path) -> None:
    """Two hours a day, an order every minute or so; late ones take longer."""
    dice = random.Random(5)
    with file.open("w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["order", "shop", "area", "courier", "ordered", "arrived", "total"])
        for number in range(DAYS * 120):
            placed = FIRST + timedelta(days=number // 120, minutes=number % 120, seconds=dice.randrange(60))
            delivered = placed + timedelta(minutes=15 + (number % 120) / 8 + dice.uniform(0, 10))
            shop = dice.randrange(1, 6)
            rows.writerow(
                [number, shop, shop % 2, dice.randrange(1, 30), placed.isoformat(), delivered.isoformat(), 20]
            )


MAPPING = """
source: made_up
fields:
  order_id: order
  restaurant_id: shop
  zone_id: area
  customer_id: { constant: null }
  courier_id: courier
  placed_at: ordered
  delivered_at: arrived
  basket_total: total
  item_count: { constant: null }
timezone: UTC
couriers:
  busy_from: ordered
  idle_minutes: 60
"""


def test_a_drill_serves_what_history_says(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    repo.mkdir()
    home = Path(__file__).parent.parent
    (repo / "feature_store.yaml").write_text((home / "feature_repo" / "feature_store.yaml").read_text())
    (repo / "definitions.py").write_text("from feature_repo.definitions import *\n")
    orders, mapping = tmp_path / "orders.csv", tmp_path / "mapping.yaml"
    made_up_orders(orders)
    mapping.write_text(MAPPING)
    last = FIRST + timedelta(days=DAYS - 1)
    start, end = last + timedelta(minutes=60), last + timedelta(minutes=65)
    environment = os.environ | {"TIFFIN_REPO": str(repo), "TIFFIN_PORT": str(free_port())}

    def run(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=200, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    run("-m", "tiffin", "apply")
    run("-m", "tiffin", "import", str(orders), str(mapping))
    run("-m", "tiffin", "batch-features")
    run("-m", "tiffin", "train", "--until", last.replace(tzinfo=None).isoformat())
    run("-m", "tiffin", "materialize", "--end", start.replace(tzinfo=None).isoformat())
    figures = json.loads(
        run("-c", _RUN, str(orders), str(mapping), *(str(round(t.timestamp() * 1000)) for t in (start, end)))
    )

    assert figures["problems"] == {}
    assert figures["predictions"] >= 4
    equal = figures["features_equal_offline"]
    assert equal.pop("answers") >= 3
    batch = {name: share for name, share in equal.items() if name.startswith(("restaurant_profile", "restaurant_prep"))}
    assert set(batch.values()) == {1.0}
    # At twenty times the speed a prediction may come before what was just published is folded; most see all of it.
    assert min(equal.values()) > 0.5
    assert figures["modes"].get("streaming", 0) > 0
