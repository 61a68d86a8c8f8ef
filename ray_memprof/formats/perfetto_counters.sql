-- How did the memory of each rank change over time, drawn with few points but
-- with every peak and trough kept?
-- One row = a point of a curve: of each slice of time the first, the least,
-- the most and the last; `?` is the number of slices.
--   rank     of the run
--   counter  allocated, reserved, device_used or unexplained
--   t_ns     since 1970
--   bytes    at that moment
WITH children AS (
    SELECT
        rank,
        parent_id,
        MAX(allocated_peak_bytes) AS allocated,
        MAX(reserved_peak_bytes) AS reserved,
        MAX(device_used_peak_bytes) AS device_used
    FROM spans
    GROUP BY rank, parent_id
),

-- A peak is put in the middle of the innermost span that saw it: only events
-- tell when exactly it was.
peaks AS (
    SELECT
        spans.rank,
        (spans.start_ns + spans.end_ns) // 2 AS t_ns,
        CASE
            WHEN spans.allocated_peak_bytes > COALESCE(children.allocated, -1)
                THEN spans.allocated_peak_bytes
        END AS allocated,
        CASE
            WHEN spans.reserved_peak_bytes > COALESCE(children.reserved, -1)
                THEN spans.reserved_peak_bytes
        END AS reserved,
        CASE
            WHEN spans.device_used_peak_bytes > COALESCE(children.device_used, -1)
                THEN spans.device_used_peak_bytes
        END AS device_used
    FROM spans
    LEFT JOIN children
        ON spans.rank = children.rank AND spans.span_id = children.parent_id
),

seen AS (
    SELECT
        rank,
        start_ns AS t_ns,
        allocated_start_bytes AS allocated,
        reserved_start_bytes AS reserved,
        device_used_start_bytes AS device_used,
        NULL AS unexplained
    FROM spans
    UNION ALL
    SELECT
        rank,
        end_ns,
        allocated_end_bytes,
        reserved_end_bytes,
        device_used_end_bytes,
        NULL
    FROM spans
    UNION ALL
    SELECT
        rank,
        t_ns,
        allocated_bytes,
        reserved_bytes,
        device_used_bytes,
        NULL
    FROM samples
    UNION ALL
    SELECT
        rank,
        t_ns,
        allocated,
        reserved,
        device_used,
        NULL
    FROM peaks
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
