-- Evidence: which ranks hold more than the typical rank in a stage?
-- One row = a stage on a rank that does; the 16 largest.
--   rank          who
--   stage         name of the outermost span
--   typical_rank  whom it is compared with: the one closest to the median
--   typical_bytes its peak in the stage
--   excess_bytes  how much more
-- Threshold: 3 % of the typical peak and 16 MiB. Ranks with equal work differ
-- by up to 2.6 % on the recorded runs of four GPUs (the inner columns of a
-- split VAE have a halo on both sides); 16 MiB is less than a segment of the
-- allocator.
WITH typical AS (
    SELECT
        stage,
        COUNT(*) AS num_ranks,
        -- The lower one of two in the middle: of two ranks, the smaller.
        QUANTILE_DISC(allocated_peak_bytes, 0.5) AS typical_bytes
    FROM stage_peaks
    GROUP BY stage
),

closest AS (
    SELECT typical.stage, MIN(stage_peaks.rank) AS typical_rank
    FROM typical
    INNER JOIN stage_peaks
        ON typical.stage = stage_peaks.stage
        AND typical.typical_bytes = stage_peaks.allocated_peak_bytes
    GROUP BY typical.stage
)

SELECT
    stage_peaks.rank,
    stage_peaks.stage,
    closest.typical_rank,
    typical.typical_bytes,
    stage_peaks.allocated_peak_bytes - typical.typical_bytes AS excess_bytes
FROM stage_peaks
INNER JOIN typical ON stage_peaks.stage = typical.stage
INNER JOIN closest ON stage_peaks.stage = closest.stage
WHERE
    typical.num_ranks > 1
    AND stage_peaks.allocated_peak_bytes - typical.typical_bytes
    > GREATEST(0.03 * typical.typical_bytes, 16777216)
ORDER BY excess_bytes DESC, stage_peaks.first_span_id, stage_peaks.rank
LIMIT 16
