-- Evidence: in whose spans did memory grow up to the peak of a stage, where no
-- events tell what was alive?
-- One row = a component on a rank in a stage that skews compares.
--   rank, stage  of the run
--   component    of the spans; null: none
--   bytes        allocated memory gained while they were innermost, from the
--                first span up to the peak; negative: given back
WITH asked AS (
    SELECT rank, stage FROM skews
    UNION
    SELECT typical_rank, stage FROM skews
),

places AS (
    SELECT
        stage_peaks.rank,
        stage_peaks.stage,
        -- A stage that began at its peak and never reached it again gained
        -- nothing by itself.
        COALESCE(stage_peaks.span_id, stage_peaks.first_span_id) AS span_id
    FROM stage_peaks
    INNER JOIN asked
        ON stage_peaks.rank = asked.rank AND stage_peaks.stage = asked.stage
    ANTI JOIN alive
        ON stage_peaks.rank = alive.rank AND stage_peaks.stage = alive.stage
),

-- After a span starts, it is the innermost one; after it ends, its parent is.
boundaries AS (
    SELECT
        spans.rank,
        spans.start_ns AS t_ns,
        1 AS place,
        spans.span_id AS nested,
        spans.span_id,
        spans.span_id AS innermost_id,
        spans.allocated_start_bytes AS bytes
    FROM spans
    SEMI JOIN places ON spans.rank = places.rank
    UNION ALL
    SELECT
        spans.rank,
        spans.end_ns AS t_ns,
        -- At the same moment one span ends before the next begins.
        IF(spans.end_ns > spans.start_ns, 0, 2) AS place,
        -spans.span_id AS nested,
        NULL AS span_id,
        spans.parent_id AS innermost_id,
        spans.allocated_end_bytes AS bytes
    FROM spans
    SEMI JOIN places ON spans.rank = places.rank
),

moves AS (
    SELECT
        rank,
        span_id,
        innermost_id,
        ROW_NUMBER() OVER in_time AS number,
        LEAD(bytes) OVER in_time - bytes AS bytes
    FROM boundaries
    WINDOW in_time AS (PARTITION BY rank ORDER BY t_ns, place, nested)
),

ends AS (
    SELECT places.rank, places.stage, places.span_id, moves.number
    FROM places
    INNER JOIN moves
        ON places.rank = moves.rank AND places.span_id = moves.span_id
),

gains AS (
    SELECT ends.rank, ends.stage, moves.innermost_id AS span_id, moves.bytes
    FROM ends
    INNER JOIN moves ON ends.rank = moves.rank AND moves.number < ends.number
    UNION ALL
    SELECT
        ends.rank,
        ends.stage,
        ends.span_id,
        spans.allocated_peak_bytes - spans.allocated_start_bytes AS bytes
    FROM ends
    INNER JOIN spans
        ON ends.rank = spans.rank AND ends.span_id = spans.span_id
)

SELECT
    gains.rank,
    gains.stage,
    spans.component,
    SUM(gains.bytes)::BIGINT AS bytes
FROM gains
LEFT JOIN spans ON gains.rank = spans.rank AND gains.span_id = spans.span_id
GROUP BY gains.rank, gains.stage, spans.component
