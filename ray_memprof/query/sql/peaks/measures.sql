-- Which figures of a run are worth comparing, or worth a limit?
-- One row = a measure of the whole run (stage null) or of a stage; of several
-- ranks, the worst one counts.
--   measure  peak_allocated, peak_reserved, peak_active, peak_device_used,
--            peak_host_rss; cached, nccl, libraries, others, unexplained (at
--            the peak of the device); fragmentation (when reserved grew to its
--            peak); imbalance (largest allocated peak / mean); duration,
--            step_duration (median denoise step), num_allocs, num_retries
--   stage    name of the outermost span; null: the whole run
--   unit     bytes, s, or empty for a count or a ratio
--   value    in that unit
--   is_at_least
--            of a peak: it may have been larger before the first event or, for
--            device_used, between two measurements
WITH by_rank AS (
    SELECT
        NULL::VARCHAR AS stage,
        BOOL_OR(peak_at_least) AS peak_at_least,
        BOOL_OR(num_samples = 0 AND device_used_peak_bytes > 0) AS is_between,
        MAX(allocated_peak_bytes) AS peak_allocated,
        MAX(reserved_peak_bytes) AS peak_reserved,
        MAX(active_peak_bytes) AS peak_active,
        MAX(device_used_peak_bytes) AS peak_device_used,
        MAX(host_rss_peak_bytes) AS peak_host_rss
    FROM rank_peaks()
    HAVING COUNT(*) > 0
),

by_stage AS (
    SELECT
        stage,
        BOOL_OR(peak_at_least) AS peak_at_least,
        BOOL_OR(num_samples = 0 AND device_used_peak_bytes > 0) AS is_between,
        MAX(allocated_peak_bytes) AS peak_allocated,
        MAX(reserved_peak_bytes) AS peak_reserved,
        MAX(active_peak_bytes) AS peak_active,
        MAX(device_used_peak_bytes) AS peak_device_used,
        MAX(host_rss_peak_bytes) AS peak_host_rss
    FROM peak_by_stage
    GROUP BY stage
),

peaks AS (
    UNPIVOT (FROM by_rank UNION ALL FROM by_stage)
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
        -- The counts of a span include those of the spans inside it, such as
        -- the modules of a script.
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
    SELECT
        measure,
        stage,
        'bytes' AS unit,
        value::DOUBLE AS value,
        CASE measure
            WHEN 'peak_host_rss' THEN FALSE
            WHEN 'peak_device_used' THEN is_between
            ELSE peak_at_least
        END AS is_at_least
    FROM peaks
    UNION ALL
    SELECT
        measure,
        stage,
        IF(measure = 'duration', 's', '') AS unit,
        value,
        FALSE
    FROM counted
    UNION ALL
    SELECT account, NULL, 'bytes', MAX(bytes), FALSE
    FROM books_at_peak
    WHERE account != 'active' AND account != 'context'
    GROUP BY account
    UNION ALL
    SELECT 'fragmentation', NULL, 'bytes', MAX(fragmentation_bytes), FALSE
    FROM fragmentation
    WHERE stage IS NULL
    HAVING MAX(fragmentation_bytes) IS NOT NULL
    UNION ALL
    SELECT 'imbalance', stage, '', max_over_mean, FALSE
    FROM imbalance
    WHERE measure = 'allocated' AND max_over_mean IS NOT NULL
    UNION ALL
    SELECT
        'step_duration',
        'denoise',
        's',
        MEDIAN(end_ns - start_ns) / 1e9,
        FALSE
    FROM spans
    WHERE depth = 0 AND stage = 'denoise' AND step IS NOT NULL
    HAVING COUNT(*) > 0
)

SELECT
    listed.measure,
    listed.stage,
    listed.unit,
    listed.value,
    listed.is_at_least
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
