-- Evidence: what was alive when a stage peaked, where a rule wants to know?
-- One row = a component, a category and a requested size on a rank in a stage;
-- no row if no allocator events were recorded. These ranks are asked for:
-- those that hold more than others, those that they are compared with, and
-- the fullest rank in denoise.
--   rank, stage      of the run
--   component        of the span that allocated the tensors; null: none
--   category         what the tensors are for
--   requested_bytes  of one of them
--   bytes            of all of them, as the allocator counts them
--   num_tensors      of them
WITH asked AS (
    SELECT rank, stage FROM skews
    UNION
    SELECT typical_rank, stage FROM skews
    UNION
    SELECT ARG_MIN(rank, (-allocated_peak_bytes, rank)), stage
    FROM stage_peaks
    WHERE stage = 'denoise'
    GROUP BY stage
),

places AS (
    SELECT stage_peaks.rank, stage_peaks.stage, stage_peaks.span_id
    FROM stage_peaks
    INNER JOIN asked
        ON stage_peaks.rank = asked.rank AND stage_peaks.stage = asked.stage
),

moments AS (
    SELECT rank, stage, seq
    FROM peak_moments(places)
)

SELECT
    tensors.rank,
    tensors.stage,
    tensors.component,
    tensors.category,
    tensors.requested_bytes,
    SUM(tensors.size_bytes)::BIGINT AS bytes,
    COUNT(*) AS num_tensors
FROM tensors_alive(moments) AS tensors
GROUP BY
    tensors.rank,
    tensors.stage,
    tensors.component,
    tensors.category,
    tensors.requested_bytes
