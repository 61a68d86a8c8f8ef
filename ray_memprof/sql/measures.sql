-- What are the figures of the run that one would compare, or set a limit to?
-- One row = a measure of the whole run (stage null) or of a stage; of ranks,
-- the worst counts.
--   measure  peak_allocated, peak_reserved, peak_active, peak_device_used,
--            peak_host_rss; fragmentation, nccl, libraries, others, unexplained
--            (at the peak of the device); imbalance (largest allocated peak /
--            mean); duration, step_duration (median denoise step), num_allocs,
--            num_retries
--   stage    name of the outermost span; null: the whole run
--   unit     bytes, s, or empty for a count or a ratio
--   value    in that unit
WITH by_rank AS (
    SELECT
        NULL::VARCHAR AS stage,
        MAX(allocated_peak_bytes) AS peak_allocated,
        MAX(reserved_peak_bytes) AS peak_reserved,
        MAX(active_peak_bytes) AS peak_active,
        MAX(device_used_peak_bytes) AS peak_device_used,
        MAX(host_rss_peak_bytes) AS peak_host_rss
    FROM peak_by_rank
    HAVING COUNT(*) > 0
),

by_stage AS (
    SELECT
        stage,
        MAX(allocated_peak_bytes) AS peak_allocated,
        MAX(reserved_peak_bytes) AS peak_reserved,
        MAX(active_peak_bytes) AS peak_active,
        MAX(device_used_peak_bytes) AS peak_device_used,
        MAX(host_rss_peak_bytes) AS peak_host_rss
    FROM peak_by_stage
    GROUP BY stage
),

peaks AS (
    UNPIVOT (
        FROM by_rank
        SELECT
            stage, peak_allocated, peak_reserved, peak_active,
            peak_device_used, peak_host_rss
        UNION ALL
        FROM by_stage
        SELECT
            stage, peak_allocated, peak_reserved, peak_active,
            peak_device_used, peak_host_rss
    )
    ON peak_allocated, peak_reserved, peak_active, peak_device_used,
    peak_host_rss
    INTO NAME measure VALUE value
),

counts AS (
    SELECT
        stage,
        MAX(duration_ns) / 1e9 AS duration,
        MAX(num_allocs)::DOUBLE AS num_allocs,
        MAX(num_retries)::DOUBLE AS num_retries
    FROM peak_by_stage
    GROUP BY stage
    UNION ALL
    SELECT
        NULL AS stage,
        (SELECT (MAX(end_ns) - MIN(start_ns)) / 1e9 FROM spans) AS duration,
        MAX(num_allocs) AS num_allocs,
        MAX(num_retries) AS num_retries
    FROM (
        SELECT SUM(num_allocs) AS num_allocs, SUM(num_retries) AS num_retries
        FROM spans
        -- A span counts what is inside it, the modules of a script too.
        WHERE depth = 0
        GROUP BY rank
    )
    HAVING COUNT(*) > 0
),

counted AS (
    UNPIVOT counts
    ON duration, num_allocs, num_retries
    INTO NAME measure VALUE value
),

began AS (
    SELECT stage, MIN(span_id) AS span_id FROM spans GROUP BY stage
),

listed AS (
    SELECT measure, stage, 'bytes' AS unit, value::DOUBLE AS value FROM peaks
    UNION ALL
    SELECT
        measure,
        stage,
        IF(measure = 'duration', 's', '') AS unit,
        value
    FROM counted
    UNION ALL
    SELECT account, NULL, 'bytes', MAX(bytes)
    FROM books_at_peak
    WHERE account != 'active' AND account != 'context'
    GROUP BY account
    UNION ALL
    SELECT 'imbalance', stage, '', max_over_mean
    FROM imbalance
    WHERE measure = 'allocated' AND max_over_mean IS NOT NULL
    UNION ALL
    SELECT 'step_duration', 'denoise', 's', MEDIAN(end_ns - start_ns) / 1e9
    FROM spans
    WHERE depth = 0 AND stage = 'denoise' AND step IS NOT NULL
    HAVING COUNT(*) > 0
)

SELECT
    listed.measure,
    listed.stage,
    listed.unit,
    listed.value
FROM listed
LEFT JOIN began ON listed.stage = began.stage
ORDER BY
    listed.stage IS NOT NULL,
    began.span_id,
    listed.stage,
    listed.unit != 'bytes',
    listed.unit != 's',
    listed.measure LIKE 'peak%' DESC,
    listed.measure
