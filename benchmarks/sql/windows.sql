-- Six aggregates at each instant of the table "asked", by a join on stretches of time as long as the longest window and
-- a hop (31 minutes): what a window reaches lies in the instant's own stretch or in the one before. The instants are put
-- into both, not the events, of which there are more. Ids and stretches are joined as 32-bit numbers; all of them fit.
-- {events} is a path.
WITH events AS (
    SELECT
        CAST(restaurant_id AS INTEGER) AS id,
        basket_total,
        item_count,
        epoch_ms(event_time) AS t,
        CAST(epoch_ms(event_time) // 1860000 AS INTEGER) AS stretch
    FROM read_parquet('{events}')
),
instants AS (
    SELECT row, CAST(restaurant_id AS INTEGER) AS id, t, t - t % 60000 AS floor
    FROM (SELECT *, epoch_ms(event_timestamp) AS t FROM asked)
),
reaching AS (
    SELECT *, CAST(t // 1860000 AS INTEGER) AS stretch FROM instants
    UNION ALL
    SELECT *, CAST(t // 1860000 - 1 AS INTEGER) FROM instants
),
counted AS (
    SELECT
        row,
        count(*) FILTER (WHERE e.t >= floor - 600000) AS orders_10m,
        count(*) AS orders_30m,
        sum(item_count) AS items_30m,
        avg(basket_total) AS basket_mean_30m,
        max(basket_total) AS basket_max_30m,
        min(basket_total) FILTER (WHERE e.t >= floor - 600000) AS basket_min_10m
    FROM reaching r
    JOIN events e
        ON r.id = e.id AND r.stretch = e.stretch AND e.t BETWEEN floor - 1800000 AND r.t
    GROUP BY row
)
SELECT
    row,
    coalesce(orders_10m, 0) AS orders_10m,
    coalesce(orders_30m, 0) AS orders_30m,
    coalesce(items_30m, 0) AS items_30m,
    basket_mean_30m,
    basket_max_30m,
    basket_min_10m
FROM asked
LEFT JOIN counted USING (row)
