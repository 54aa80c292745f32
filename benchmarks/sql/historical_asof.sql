-- The training set: of each of three views the newest row of the restaurant that is not after the instant. "asked" is a
-- temporary table of the entity rows, so that DuckDB knows how many there are and does not loop over the views' rows.
-- Ids are joined as 32-bit numbers, which sorts less; all of them fit. The order of the rows is left open. {a}, {b} and
-- {c} are paths.
SELECT
    asked.row,
    a.a_f0, a.a_f1, a.a_f2, a.a_n,
    b.b_f0, b.b_f1, b.b_f2, b.b_n,
    c.c_f0, c.c_f1, c.c_f2, c.c_n
FROM asked
ASOF LEFT JOIN (SELECT *, CAST(restaurant_id AS INTEGER) AS id FROM read_parquet('{a}')) a
    ON asked.id = a.id AND asked.event_timestamp >= a.event_time
ASOF LEFT JOIN (SELECT *, CAST(restaurant_id AS INTEGER) AS id FROM read_parquet('{b}')) b
    ON asked.id = b.id AND asked.event_timestamp >= b.event_time
ASOF LEFT JOIN (SELECT *, CAST(restaurant_id AS INTEGER) AS id FROM read_parquet('{c}')) c
    ON asked.id = c.id AND asked.event_timestamp >= c.event_time
