-- Evidence: what was alive at the peak, and whose was it?
-- One row = a tensor that was alive at the peak of a rank. Only ranks of which
-- it was found out whose their tensors are; no row if no allocator events were
-- recorded.
--   rank               of the run
--   peak_stage         stage of the peak; script: in no stage
--   peak_ns            when it was, since 1970
--   peak_bytes         allocated then
--   seq                of the allocation of the tensor
--   span_id            span that allocated it; 0: none
--   made_stage         stage of that span; null: none
--   owner, component, category, dtype
--                      see the question alive_at_peak_by_owner
--   requested_bytes    what was asked for
--   bytes              as the allocator counts it
WITH owned AS (
    SELECT DISTINCT rank FROM owners
),

places AS (
    SELECT stage_peaks.rank, stage_peaks.stage, stage_peaks.span_id
    FROM stage_peaks
    SEMI JOIN owned ON stage_peaks.rank = owned.rank
    WHERE stage_peaks.is_run_peak AND stage_peaks.span_id IS NOT NULL
    -- If several stages reach it, the first one.
    QUALIFY ROW_NUMBER() OVER (
        PARTITION BY stage_peaks.rank ORDER BY stage_peaks.first_span_id
    ) = 1
),

moments AS (
    SELECT rank, stage, seq
    FROM peak_moments(places)
    -- Optimiser hint: keeps DuckDB from building the join on allocs.
    LIMIT 65536
),

times AS (
    SELECT moments.rank, allocs.t_ns
    FROM allocs
    INNER JOIN moments
        ON allocs.rank = moments.rank AND allocs.seq = moments.seq
)

SELECT
    tensors.rank,
    tensors.stage AS peak_stage,
    times.t_ns AS peak_ns,
    stage_peaks.allocated_peak_bytes AS peak_bytes,
    tensors.seq,
    tensors.span_id,
    spans.stage AS made_stage,
    tensors.owner,
    tensors.component,
    tensors.category,
    tensors.dtype,
    tensors.requested_bytes,
    tensors.size_bytes AS bytes
FROM tensors_alive(moments) AS tensors
INNER JOIN times ON tensors.rank = times.rank
INNER JOIN stage_peaks
    ON tensors.rank = stage_peaks.rank AND tensors.stage = stage_peaks.stage
LEFT JOIN spans
    ON tensors.rank = spans.rank AND tensors.span_id = spans.span_id
