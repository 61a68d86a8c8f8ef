-- What was run, on what, how did it end, and how much memory did it take?
-- One row = the run; no row if its folder holds nothing from a driver.
--   run_id, name, source, workload
--                          as the table runs has them
--   num_ranks              ranks that recorded a span or a sample
--   gpu_name               of rank 0; empty without one
--   torch, git_commit      versions
--   status, reason         how it ended; running: it has not ended yet, and
--                          the reason says how far it is
--   duration_ns            from launch to end, or to the last sign of life
--   duration_error_ns      if predicted, it may be off by so much either way;
--                          null: it is measured, or the error is not known
--   num_steps              denoise steps of the rank with the most
--   allocated_peak_bytes   the most of any rank
--   reserved_peak_bytes    the most of any rank
--   peak_at_least          both may have been more before the first event
--   device_used_peak_bytes the most of any rank, as measured
--   num_samples            samples that measured it, of the rank with the
--                          fewest; 0: it may have been more between the
--                          boundaries of spans
--   host_rss_peak_bytes    the most of any rank
WITH steps AS (
    SELECT MAX(num_steps) AS num_steps
    FROM (
        SELECT
            rank,
            COUNT(*) FILTER (WHERE depth = 0 AND step IS NOT NULL) AS num_steps
        FROM spans
        GROUP BY rank
    )
),

peaks AS (
    SELECT
        COUNT(*) AS num_ranks,
        MAX(allocated_peak_bytes) AS allocated_peak_bytes,
        MAX(reserved_peak_bytes) AS reserved_peak_bytes,
        COALESCE(BOOL_OR(peak_at_least), FALSE) AS peak_at_least,
        MIN(num_samples) AS num_samples,
        MAX(device_used_peak_bytes) AS device_used_peak_bytes,
        MAX(host_rss_peak_bytes) AS host_rss_peak_bytes
    FROM rank_peaks()
),

first_rank AS (
    SELECT gpu_name FROM ranks WHERE rank = 0
)

SELECT
    runs.run_id,
    runs.name,
    runs.source,
    runs.workload,
    peaks.num_ranks,
    first_rank.gpu_name,
    -- A run made by hand or by an older driver may have no versions.
    JSON_EXTRACT_STRING(NULLIF(runs.versions, ''), '$.torch') AS torch,
    runs.git_commit,
    runs.status,
    runs.reason,
    runs.end_ns - runs.start_ns AS duration_ns,
    ((runs.end_ns - runs.start_ns) * stated.fraction)::BIGINT
        AS duration_error_ns,
    steps.num_steps,
    peaks.allocated_peak_bytes,
    peaks.reserved_peak_bytes,
    peaks.peak_at_least,
    peaks.device_used_peak_bytes,
    peaks.num_samples,
    peaks.host_rss_peak_bytes
FROM runs
CROSS JOIN peaks
CROSS JOIN steps
LEFT JOIN first_rank ON TRUE
LEFT JOIN stated_time_error() AS stated ON TRUE
ORDER BY runs.run_id
