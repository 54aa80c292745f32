-- The training set by hand: of each view the newest row of the restaurant not after the instant and within 30 days.
-- "asked" is a table of the entity rows, so that DuckDB knows their number; ids are joined as 32-bit whole numbers.
SELECT
    asked.row,
    CASE WHEN a.event_time >= asked.event_timestamp - INTERVAL 30 DAY THEN a.a_f0 END AS a_f0
FROM asked
ASOF LEFT JOIN read_parquet('{a}') a
    ON asked.restaurant_id = a.restaurant_id AND asked.event_timestamp >= a.event_time
