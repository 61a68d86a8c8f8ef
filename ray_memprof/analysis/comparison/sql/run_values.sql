-- What are the values of one run, for the run, its spans and its ranks?
-- One row = a measure of the whole run (path null) or of a span path, on one
-- rank or (rank null) of the worst rank, as `measures` has it.
--   path     names from the outermost span inwards; null: the whole run
--   rank     of the run; null: of all ranks
--   measure  as in measures, and num_spans: visits to the path
--   unit     bytes, s, or empty for a count or a ratio
--   value    in that unit; of several visits the largest peak, but the sum of
--            times and counts
--   is_at_least
--            of a peak: it may have been larger, as in measures
WITH flags AS (
    SELECT
        rank,
        peak_at_least,
        num_samples = 0 AND device_used_peak_bytes > 0 AS is_between
    FROM rank_peaks()
),

visits AS (
    SELECT
        path,
        rank,
        MAX(allocated_peak_bytes)::DOUBLE AS peak_allocated,
        MAX(reserved_peak_bytes)::DOUBLE AS peak_reserved,
        MAX(active_peak_bytes)::DOUBLE AS peak_active,
        MAX(device_used_peak_bytes)::DOUBLE AS peak_device_used,
        MAX(host_rss_peak_bytes)::DOUBLE AS peak_host_rss,
        SUM(end_ns - start_ns) / 1e9 AS duration,
        COUNT(*)::DOUBLE AS num_spans,
        SUM(num_allocs)::DOUBLE AS num_allocs,
        SUM(num_retries)::DOUBLE AS num_retries
    FROM spans
    GROUP BY path, rank
),

whole AS (
    SELECT
        NULL::VARCHAR AS path,
        peaks.rank,
        peaks.allocated_peak_bytes::DOUBLE AS peak_allocated,
        peaks.reserved_peak_bytes::DOUBLE AS peak_reserved,
        peaks.active_peak_bytes::DOUBLE AS peak_active,
        peaks.device_used_peak_bytes::DOUBLE AS peak_device_used,
        peaks.host_rss_peak_bytes::DOUBLE AS peak_host_rss,
        times.duration,
        NULL::DOUBLE AS num_spans,
        counts.num_allocs,
        counts.num_retries
    FROM rank_peaks() AS peaks
    INNER JOIN (
        SELECT rank, (MAX(end_ns) - MIN(start_ns)) / 1e9 AS duration
        FROM spans
        GROUP BY rank
    ) AS times
        ON peaks.rank = times.rank
    INNER JOIN (
        SELECT
            rank,
            SUM(num_allocs)::DOUBLE AS num_allocs,
            SUM(num_retries)::DOUBLE AS num_retries
        FROM spans
        -- The counts of a span include those of the spans inside it, such as
        -- the modules of a script.
        WHERE depth = 0
        GROUP BY rank
    ) AS counts
        ON peaks.rank = counts.rank
),

by_rank AS (
    UNPIVOT (FROM visits UNION ALL FROM whole)
    ON peak_allocated, peak_reserved, peak_active, peak_device_used,
    peak_host_rss, duration, num_spans, num_allocs, num_retries
    INTO NAME measure VALUE value
)

SELECT
    by_rank.path,
    by_rank.rank,
    by_rank.measure,
    CASE
        WHEN by_rank.measure LIKE 'peak%' THEN 'bytes'
        WHEN by_rank.measure = 'duration' THEN 's'
        ELSE ''
    END AS unit,
    by_rank.value,
    CASE
        WHEN by_rank.measure = 'peak_device_used' THEN flags.is_between
        WHEN by_rank.measure = 'peak_host_rss' THEN FALSE
        WHEN by_rank.measure LIKE 'peak%' THEN flags.peak_at_least
        ELSE FALSE
    END AS is_at_least
FROM by_rank
INNER JOIN flags ON by_rank.rank = flags.rank
UNION ALL
SELECT NULL, rank, account, 'bytes', bytes::DOUBLE, FALSE
FROM books_at_peak
WHERE account != 'active' AND account != 'context'
UNION ALL
SELECT
    NULL,
    rank,
    'fragmentation',
    'bytes',
    fragmentation_bytes::DOUBLE,
    FALSE
FROM fragmentation
WHERE stage IS NULL AND fragmentation_bytes IS NOT NULL
UNION ALL
SELECT
    'denoise',
    rank,
    'step_duration',
    's',
    MEDIAN(end_ns - start_ns) / 1e9,
    FALSE
FROM spans
WHERE path = 'denoise' AND step IS NOT NULL
GROUP BY rank
UNION ALL
SELECT stage, NULL, measure, unit, value, is_at_least
FROM measures
-- Modules of a script are stages too, but visits has their paths already.
WHERE stage IS NULL OR stage IN (SELECT path FROM spans WHERE depth = 0)
