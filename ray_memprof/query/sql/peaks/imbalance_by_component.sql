-- Which component makes the difference between the rank with the largest peak
-- of allocated memory in a stage and the rank with the smallest?
-- One row = a component in a stage, at the peaks of both ranks; stage null:
-- the whole run. A stage has no rows if its ranks are equal, if no allocator
-- events were recorded, or if it began with its peak.
--   stage             name of the outermost span; null: the whole run
--   component         of the span that allocated the tensors; null: none
--   max_rank          the lowest of the ranks with the largest peak
--   min_rank          the lowest of the ranks with the smallest peak
--   max_bytes         alive on max_rank, as the allocator counts them
--   min_bytes         alive on min_rank, as the allocator counts them
--   difference_bytes  max_bytes - min_bytes
WITH stage_peaks AS (
    SELECT rank, stage, MAX(allocated_peak_bytes) AS peak_bytes
    FROM spans
    GROUP BY GROUPING SETS ((rank, stage), (rank))
),

extremes AS (
    SELECT
        stage,
        ARG_MIN(rank, (-peak_bytes, rank)) AS max_rank,
        ARG_MIN(rank, (peak_bytes, rank)) AS min_rank
    FROM stage_peaks
    GROUP BY stage
    HAVING MAX(peak_bytes) > MIN(peak_bytes)
),

asked AS (
    SELECT stage, max_rank AS rank FROM extremes
    UNION ALL
    SELECT stage, min_rank FROM extremes
),

wanted AS (
    SELECT asked.rank, asked.stage, stage_peaks.peak_bytes
    FROM asked
    INNER JOIN stage_peaks
        ON asked.rank = stage_peaks.rank
        AND asked.stage IS NOT DISTINCT FROM stage_peaks.stage
),

-- An empty name stands for the whole run.
places AS (
    SELECT rank, COALESCE(stage, '') AS stage, span_id
    FROM peak_places(wanted)
),

peaks AS (
    SELECT rank, stage, seq
    FROM peak_moments(places)
),

alive AS (
    SELECT
        tensors.rank,
        tensors.stage,
        tensors.component,
        SUM(tensors.size_bytes)::BIGINT AS bytes
    FROM tensors_alive(peaks) AS tensors
    GROUP BY tensors.rank, tensors.stage, tensors.component
),

-- If the peak of one of the two ranks is not known, nothing can be compared.
known AS (
    SELECT stage FROM peaks GROUP BY stage HAVING COUNT(*) = 2
)

SELECT
    extremes.stage,
    alive.component,
    extremes.max_rank,
    extremes.min_rank,
    COALESCE(SUM(alive.bytes) FILTER (WHERE alive.rank = extremes.max_rank), 0)
        ::BIGINT AS max_bytes,
    COALESCE(SUM(alive.bytes) FILTER (WHERE alive.rank = extremes.min_rank), 0)
        ::BIGINT AS min_bytes,
    max_bytes - min_bytes AS difference_bytes
FROM extremes
INNER JOIN alive ON COALESCE(extremes.stage, '') = alive.stage
SEMI JOIN known ON alive.stage = known.stage
GROUP BY
    extremes.stage,
    alive.component,
    extremes.max_rank,
    extremes.min_rank
ORDER BY extremes.stage NULLS FIRST, difference_bytes DESC, alive.component
