-- How did the memory of each rank change over time, drawn with few points but
-- with every peak and trough kept?
-- One row = a point of a curve: of each slice of time the first, the least,
-- the most and the last; `?` is the number of slices.
--   rank     of the run
--   counter  allocated, reserved, device_used or unexplained
--   t_ns     since 1970
--   bytes    at that moment
WITH seen AS (
    SELECT
        rank,
        t_ns,
        allocated_bytes AS allocated,
        reserved_bytes AS reserved,
        device_used_bytes AS device_used,
        NULL AS unexplained
    FROM seen_moments()
    UNION ALL
    SELECT
        rank,
        t_ns,
        NULL,
        NULL,
        NULL,
        unexplained_bytes
    FROM books
),

points AS (
    UNPIVOT seen
    ON allocated, reserved, device_used, unexplained
    INTO NAME counter VALUE bytes
),

bounds AS (
    SELECT
        MIN(t_ns) AS first_ns,
        MAX(t_ns) - MIN(t_ns) + 1 AS length_ns
    FROM seen
),

sliced AS (
    SELECT
        points.rank,
        points.counter,
        points.t_ns,
        points.bytes,
        -- Not in whole numbers: a product of nanoseconds could overflow.
        FLOOR((points.t_ns - bounds.first_ns) / bounds.length_ns * ?) AS slice
    FROM points
    CROSS JOIN bounds
),

ranked AS (
    SELECT
        rank,
        counter,
        t_ns,
        bytes,
        ROW_NUMBER() OVER (slices ORDER BY t_ns, bytes) AS from_first,
        ROW_NUMBER() OVER (slices ORDER BY t_ns DESC, bytes DESC) AS from_last,
        ROW_NUMBER() OVER (slices ORDER BY bytes, t_ns) AS from_least,
        ROW_NUMBER() OVER (slices ORDER BY bytes DESC, t_ns) AS from_most
    FROM sliced
    WINDOW slices AS (PARTITION BY rank, counter, slice)
)

SELECT DISTINCT
    rank,
    counter,
    t_ns,
    bytes
FROM ranked
WHERE LEAST(from_first, from_last, from_least, from_most) = 1
ORDER BY rank, counter, t_ns, bytes
