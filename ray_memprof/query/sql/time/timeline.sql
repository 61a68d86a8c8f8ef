-- How did the memory of each rank change over time, with every peak kept?
-- One row = a slice of the run's time on a rank, with what was seen in it.
-- There are 400 slices of equal length; a slice in which nothing was seen has
-- no row.
--   rank               of the run
--   slice              from 0 to 399
--   start_ns, end_ns   of the slice, since 1970
--   allocated_bytes    the most in it: tensors
--   reserved_bytes     the most in it: held by the allocator
--   device_used_bytes  the most in it: in use on the device by anybody
WITH children AS (
    SELECT
        rank,
        parent_id,
        MAX(allocated_peak_bytes) AS allocated_bytes,
        MAX(reserved_peak_bytes) AS reserved_bytes,
        MAX(device_used_peak_bytes) AS device_used_bytes
    FROM spans
    GROUP BY rank, parent_id
),

seen AS (
    SELECT
        rank,
        start_ns AS t_ns,
        allocated_start_bytes AS allocated_bytes,
        reserved_start_bytes AS reserved_bytes,
        device_used_start_bytes AS device_used_bytes
    FROM spans
    UNION ALL
    SELECT
        rank,
        end_ns,
        allocated_end_bytes,
        reserved_end_bytes,
        device_used_end_bytes
    FROM spans
    UNION ALL
    SELECT
        rank,
        t_ns,
        allocated_bytes,
        reserved_bytes,
        device_used_bytes
    FROM samples
    UNION ALL
    -- A peak is put in the middle of the innermost span that saw it, unless
    -- the span began or ended with it. Only events tell when exactly it was.
    SELECT
        spans.rank,
        (spans.start_ns + spans.end_ns) // 2,
        IF(
            spans.allocated_peak_bytes
            > GREATEST(
                children.allocated_bytes,
                spans.allocated_start_bytes,
                spans.allocated_end_bytes
            ),
            spans.allocated_peak_bytes,
            NULL
        ),
        IF(
            spans.reserved_peak_bytes
            > GREATEST(
                children.reserved_bytes,
                spans.reserved_start_bytes,
                spans.reserved_end_bytes
            ),
            spans.reserved_peak_bytes,
            NULL
        ),
        IF(
            spans.device_used_peak_bytes
            > GREATEST(
                children.device_used_bytes,
                spans.device_used_start_bytes,
                spans.device_used_end_bytes
            ),
            spans.device_used_peak_bytes,
            NULL
        )
    FROM spans
    LEFT JOIN children
        ON spans.rank = children.rank AND spans.span_id = children.parent_id
),

sliced AS (
    SELECT
        seen.rank,
        (seen.t_ns - time_slices.first_ns) // time_slices.slice_ns AS slice,
        seen.allocated_bytes,
        seen.reserved_bytes,
        seen.device_used_bytes
    FROM seen
    CROSS JOIN time_slices
    WHERE COALESCE(
        seen.allocated_bytes, seen.reserved_bytes, seen.device_used_bytes
    ) IS NOT NULL
)

SELECT
    sliced.rank,
    sliced.slice,
    ANY_VALUE(time_slices.first_ns + sliced.slice * time_slices.slice_ns)
        AS start_ns,
    ANY_VALUE(time_slices.first_ns + (sliced.slice + 1) * time_slices.slice_ns)
        AS end_ns,
    MAX(sliced.allocated_bytes) AS allocated_bytes,
    MAX(sliced.reserved_bytes) AS reserved_bytes,
    MAX(sliced.device_used_bytes) AS device_used_bytes
FROM sliced
CROSS JOIN time_slices
GROUP BY sliced.rank, sliced.slice
ORDER BY sliced.rank, sliced.slice
