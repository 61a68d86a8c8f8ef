-- Evidence: which ranks hold more than the typical rank in a stage?
-- One row = a stage on a rank that does; only the 16 largest differences.
--   rank          the rank that holds more
--   stage         name of the outermost span
--   typical_rank  rank that it is compared with: it has the median peak
--   typical_bytes peak of typical_rank in the stage
--   excess_bytes  how much more the rank holds
-- Visits of a stage that an exception, or the end of the run, cut short are
-- left out: the others may have come further. So is the span of a script whose
-- peak is that of a stage in it.
-- Threshold: 3 % of the typical peak of the stage, and 16 MiB. Ranks with equal
-- work differ by up to 2.6 % on the recorded runs of four GPUs (the inner
-- columns of a split VAE have a halo on both sides); 16 MiB is less than a
-- segment of the allocator. In a stage that takes less than a tenth of the
-- run's peak, the threshold is 3 % of the run's peak.
WITH whole AS (
    SELECT
        rank,
        stage,
        MIN(span_id) AS first_span_id,
        MAX(allocated_peak_bytes) AS peak_bytes
    FROM spans
    WHERE is_stage(depth, path) AND NOT failed
    GROUP BY rank, stage
    QUALIFY
        stage != 'script'
        OR COALESCE(
            peak_bytes > MAX(peak_bytes) FILTER (WHERE stage != 'script')
                OVER (PARTITION BY rank),
            TRUE
        )
),

runs_peak AS (
    SELECT QUANTILE_DISC(run_peak_bytes, 0.5) AS peak_bytes
    FROM (SELECT DISTINCT rank, run_peak_bytes FROM stage_peaks)
),

-- If two peaks are in the middle, the lower one; of two ranks, the smaller.
typical AS (
    SELECT
        stage,
        COUNT(*) AS num_ranks,
        QUANTILE_DISC(peak_bytes, 0.5) AS peak_bytes
    FROM whole
    GROUP BY stage
),

closest AS (
    SELECT
        typical.stage,
        typical.num_ranks,
        typical.peak_bytes,
        MIN(whole.rank) AS rank
    FROM typical
    INNER JOIN whole
        ON typical.stage = whole.stage
        AND typical.peak_bytes = whole.peak_bytes
    GROUP BY typical.stage, typical.num_ranks, typical.peak_bytes
)

SELECT
    whole.rank,
    whole.stage,
    closest.rank AS typical_rank,
    closest.peak_bytes AS typical_bytes,
    whole.peak_bytes - closest.peak_bytes AS excess_bytes
FROM whole
INNER JOIN closest ON whole.stage = closest.stage
CROSS JOIN runs_peak
WHERE
    closest.num_ranks > 1
    AND whole.peak_bytes - closest.peak_bytes > GREATEST(
        0.03 * IF(
            closest.peak_bytes >= 0.1 * runs_peak.peak_bytes,
            closest.peak_bytes,
            runs_peak.peak_bytes
        ),
        16777216
    )
ORDER BY excess_bytes DESC, whole.first_span_id, whole.rank
LIMIT 16
