-- What was in use on the device inside the spans of a run that was recorded
-- before spans had a column for the bound?
-- Such a run has the bound in the column of the peak. The peak is the most
-- that was measured: at the ends of the span and of the spans inside it, and
-- by samples.
WITH moments AS (
    SELECT
        rank,
        start_ns AS t_ns,
        device_used_start_bytes AS device_used_bytes,
        0 AS num_samples
    FROM spans
    UNION ALL
    SELECT rank, end_ns, device_used_end_bytes, 0
    FROM spans
    UNION ALL
    SELECT rank, t_ns, device_used_bytes, 1
    FROM samples
),

numbered AS (
    SELECT
        rank,
        t_ns,
        MAX(device_used_bytes) AS device_used_bytes,
        SUM(num_samples)::BIGINT AS num_samples,
        ROW_NUMBER() OVER (PARTITION BY rank ORDER BY t_ns) AS number
    FROM moments
    GROUP BY rank, t_ns
),

-- These are few rows: a moment lies only in the spans that are nested there.
places AS (
    SELECT
        spans.rank,
        spans.span_id,
        UNNEST(RANGE(begun.number, ended.number + 1)) AS number
    FROM spans
    INNER JOIN numbered AS begun
        ON spans.rank = begun.rank AND spans.start_ns = begun.t_ns
    INNER JOIN numbered AS ended
        ON spans.rank = ended.rank AND spans.end_ns = ended.t_ns
),

inside AS (
    SELECT
        places.rank,
        places.span_id,
        MAX(numbered.device_used_bytes) AS device_used_bytes,
        SUM(numbered.num_samples)::BIGINT AS num_samples
    FROM places
    INNER JOIN numbered
        ON places.rank = numbered.rank AND places.number = numbered.number
    GROUP BY places.rank, places.span_id
),

measured AS (
    SELECT
        spans.rank,
        spans.span_id,
        -- GREATEST skips nulls: if the clock was set back, inside has no row.
        GREATEST(
            inside.device_used_bytes,
            spans.device_used_start_bytes,
            spans.device_used_end_bytes
        ) AS device_used_bytes,
        COALESCE(inside.num_samples, 0) AS num_samples
    FROM spans
    LEFT JOIN inside
        ON spans.rank = inside.rank AND spans.span_id = inside.span_id
)

UPDATE spans
SET
    device_used_peak_bytes = measured.device_used_bytes,
    device_used_bound_bytes
        = GREATEST(spans.device_used_peak_bytes, measured.device_used_bytes),
    num_samples = measured.num_samples
FROM measured
WHERE
    spans.rank = measured.rank
    AND spans.span_id = measured.span_id
    AND spans.device_used_bound_bytes IS NULL
