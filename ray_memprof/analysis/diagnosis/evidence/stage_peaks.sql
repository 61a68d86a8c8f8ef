-- Evidence: where did allocated memory peak in each stage?
-- One row = a stage on a rank.
--   rank                  of the run
--   stage                 name of the outermost span
--   first_span_id         span with which the stage began
--   allocated_peak_bytes  the most in it
--   run_peak_bytes        the most on this rank in any stage
--   is_run_peak           this stage reaches that peak
--   other_stage           fullest of the other stages, the earliest of
--                         several; null: there is none
--   above_other_bytes     allocated_peak_bytes - that of other_stage
--   span_id               innermost span that took the stage to its peak; null:
--                         it began at its peak and never reached it again
--   component, path       of that span
-- The span of a whole script has the peaks of the stages in it. So it is no
-- other stage, and the peak is in it only if none of them reaches the peak.
WITH peaks AS (
    SELECT
        rank,
        stage,
        MIN(span_id) AS first_span_id,
        MAX(allocated_peak_bytes) AS allocated_peak_bytes
    FROM spans
    GROUP BY rank, stage
),

ranked AS (
    SELECT
        rank,
        stage,
        first_span_id,
        allocated_peak_bytes,
        MAX(allocated_peak_bytes) OVER (PARTITION BY rank) AS run_peak_bytes,
        MAX(allocated_peak_bytes) FILTER (WHERE stage != 'script')
            OVER others AS other_peak_bytes,
        ARG_MIN(stage, (-allocated_peak_bytes, first_span_id))
            FILTER (WHERE stage != 'script') OVER others AS other_stage
    FROM peaks
    WINDOW others AS (
        PARTITION BY rank
        ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING
        EXCLUDE CURRENT ROW
    )
),

known AS (
    SELECT rank, stage, allocated_peak_bytes AS peak_bytes FROM peaks
),

places AS (
    SELECT spans.rank, found.stage, spans.span_id, spans.component, spans.path
    FROM peak_places(known) AS found
    INNER JOIN spans
        ON found.rank = spans.rank AND found.span_id = spans.span_id
)

SELECT
    ranked.rank,
    ranked.stage,
    ranked.first_span_id,
    ranked.allocated_peak_bytes,
    ranked.run_peak_bytes,
    ranked.allocated_peak_bytes = ranked.run_peak_bytes
    AND (
        ranked.stage != 'script'
        OR COALESCE(ranked.other_peak_bytes < ranked.run_peak_bytes, TRUE)
    ) AS is_run_peak,
    ranked.other_stage,
    ranked.allocated_peak_bytes - ranked.other_peak_bytes AS above_other_bytes,
    places.span_id,
    places.component,
    places.path
FROM ranked
LEFT JOIN places ON ranked.rank = places.rank AND ranked.stage = places.stage
