-- What are the main numbers of a run?
-- One row = the run; no row if nothing of it was recorded.
--   allocated_peak_bytes      the most that a rank held in tensors; null: no
--                             span and no sample was recorded
--   allocated_peak_rank       the lowest of the ranks with this peak
--   path, step                where it was (see peak_by_rank)
--   peak_at_least             a rank may have held more before its first event
--   device_used_peak_bytes    the most that was in use on a device
--   device_used_peak_rank     the lowest of the ranks with this peak
--   device_total_bytes        memory of that device; null: not known
--   num_samples               samples that measured it; 0: it may have been
--                             more between the boundaries of spans
--   allocated_max_over_mean   the largest peak of a rank / the mean of all;
--                             null: one rank, or nothing was held
--   allocated_max_rank        the lowest of the ranks with the largest peak
--                             inside a span (see imbalance)
--   device_used_max_over_mean,
--   device_used_max_rank      the same for the devices
--   unexplained_bytes         what the books cannot explain when the device is
--                             fullest, on the rank with the largest share;
--                             null: the device was not measured
--   unexplained_fraction      of what is used on the device
--   unexplained_rank          the lowest of the ranks with this share
--   num_ranks                 ranks that left a row
--   num_checked               ranks whose replay was compared with the
--                             allocator's counters
--   num_exact, num_within     how many of them are exact, and how many may be
--                             off by inexact_bytes (see replay_check)
--   inexact_bytes             the largest of num_within
WITH peaks AS (
    SELECT
        MAX(allocated_peak_bytes) AS allocated_peak_bytes,
        ARG_MIN(rank, (-allocated_peak_bytes, rank)) AS allocated_peak_rank,
        BOOL_OR(peak_at_least) AS peak_at_least,
        MAX(device_used_peak_bytes) AS device_used_peak_bytes,
        ARG_MIN(rank, (-device_used_peak_bytes, rank)) AS device_used_peak_rank
    FROM peak_by_rank
),

apart AS (
    SELECT
        ANY_VALUE(max_over_mean) FILTER (WHERE measure = 'allocated')
            AS allocated_max_over_mean,
        ANY_VALUE(max_rank) FILTER (WHERE measure = 'allocated')
            AS allocated_max_rank,
        ANY_VALUE(max_over_mean) FILTER (WHERE measure = 'device_used')
            AS device_used_max_over_mean,
        ANY_VALUE(max_rank) FILTER (WHERE measure = 'device_used')
            AS device_used_max_rank
    FROM imbalance
    WHERE stage IS NULL AND num_ranks > 1
),

books AS (
    SELECT
        ARG_MIN(rank, (-ABS(share_fraction), rank)) AS unexplained_rank,
        ARG_MIN(bytes, (-ABS(share_fraction), rank)) AS unexplained_bytes,
        ARG_MIN(share_fraction, (-ABS(share_fraction), rank))
            AS unexplained_fraction
    FROM books_at_peak
    WHERE account = 'unexplained' AND share_fraction IS NOT NULL
),

replays AS (
    SELECT
        COUNT(*) AS num_ranks,
        COUNT(*) FILTER (WHERE num_checks > 0) AS num_checked,
        COUNT(*) FILTER (WHERE is_exact) AS num_exact,
        COUNT(*) FILTER (WHERE is_within) AS num_within,
        COALESCE(MAX(inexact_bytes) FILTER (WHERE is_within), 0)
            AS inexact_bytes
    FROM replay_check
)

SELECT
    peaks.allocated_peak_bytes,
    peaks.allocated_peak_rank,
    most.path,
    most.step,
    peaks.peak_at_least,
    peaks.device_used_peak_bytes,
    peaks.device_used_peak_rank,
    fullest.device_total_bytes,
    fullest.num_samples,
    apart.allocated_max_over_mean,
    apart.allocated_max_rank,
    apart.device_used_max_over_mean,
    apart.device_used_max_rank,
    books.unexplained_bytes,
    books.unexplained_fraction,
    books.unexplained_rank,
    replays.num_ranks,
    replays.num_checked,
    replays.num_exact,
    replays.num_within,
    replays.inexact_bytes
FROM peaks
CROSS JOIN apart
CROSS JOIN books
CROSS JOIN replays
LEFT JOIN peak_by_rank AS most ON peaks.allocated_peak_rank = most.rank
LEFT JOIN peak_by_rank AS fullest
    ON peaks.device_used_peak_rank = fullest.rank
WHERE peaks.allocated_peak_bytes IS NOT NULL OR replays.num_ranks > 0
