-- How far apart are the ranks over time?
-- One row = a slice of the run's time, as in timeline. A rank of which nothing
-- was seen in the slice counts with what was last seen before.
--   slice      from 0 to 399
--   start_ns   of the slice, since 1970
--   num_ranks  ranks of which something was seen until then
--   min_bytes  device_used of the rank with the least
--   max_bytes  device_used of the rank with the most
--   max_rank   the lowest of the ranks with the most
WITH slices AS (
    SELECT DISTINCT slice, start_ns FROM timeline
),

ranked AS (
    SELECT DISTINCT rank FROM timeline
),

filled AS (
    SELECT
        ranked.rank,
        slices.slice,
        slices.start_ns,
        LAST_VALUE(timeline.device_used_bytes IGNORE NULLS) OVER (
            PARTITION BY ranked.rank ORDER BY slices.slice
            ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
        ) AS device_used_bytes
    FROM slices
    CROSS JOIN ranked
    LEFT JOIN timeline
        ON slices.slice = timeline.slice AND ranked.rank = timeline.rank
)

SELECT
    slice,
    start_ns,
    COUNT(*) AS num_ranks,
    MIN(device_used_bytes) AS min_bytes,
    MAX(device_used_bytes) AS max_bytes,
    ARG_MIN(rank, (-device_used_bytes, rank)) AS max_rank
FROM filled
WHERE device_used_bytes IS NOT NULL
GROUP BY slice, start_ns
ORDER BY slice
