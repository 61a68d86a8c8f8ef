-- How much memory does the allocator hold without using it, and how much does
-- allocated memory go up and down?
-- One row = a stage on a rank; stage null: the whole run.
--   rank                   of the run
--   stage                  name of the outermost span; null: the whole run
--   reserved_peak_bytes    held by the allocator, the most in the stage
--   fragmentation_bytes    reserved - tensors when reserved grew to that peak;
--                          the tensor that it grew for counts as there; null:
--                          the stage began with its peak, or no events tell
--   cached_worst_bytes     reserved - active, the most at any boundary of a
--                          span: what could have been given back then
--   cached_path            path of that span
--   cached_end_bytes       reserved - active when the stage last ended
--   fluctuation_bytes      highest - lowest allocated memory in the stage, all
--                          its steps together
--   step_spread_bytes      highest - lowest peak among its steps; null: the
--                          whole run
WITH boundaries AS (
    SELECT
        rank,
        span_id,
        stage,
        path,
        0 AS edge,
        reserved_start_bytes - active_start_bytes AS cached_bytes
    FROM spans
    UNION ALL
    SELECT
        rank,
        span_id,
        stage,
        path,
        1 AS edge,
        reserved_end_bytes - active_end_bytes AS cached_bytes
    FROM spans
),

worst AS (
    SELECT
        rank,
        stage,
        MAX(cached_bytes) AS cached_bytes,
        ARG_MIN(path, (-cached_bytes, span_id, edge)) AS path
    FROM boundaries
    GROUP BY GROUPING SETS ((rank, stage), (rank))
),

swing AS (
    SELECT
        spans.rank,
        spans.stage,
        MIN(spans.span_id) AS first_span_id,
        -- For the whole run, what was reserved between spans counts too.
        IF(
            GROUPING(spans.stage) = 1,
            MAX(peaks.reserved_peak_bytes),
            MAX(spans.reserved_peak_bytes)
        ) AS reserved_peak_bytes,
        MAX(spans.allocated_peak_bytes)
            - MIN(
                LEAST(spans.allocated_start_bytes, spans.allocated_end_bytes)
            ) AS fluctuation_bytes
    FROM spans
    INNER JOIN rank_peaks() AS peaks ON spans.rank = peaks.rank
    GROUP BY GROUPING SETS ((spans.rank, spans.stage), (spans.rank))
),

steps AS (
    SELECT
        rank,
        stage,
        ARG_MAX(
            reserved_end_bytes - active_end_bytes,
            (end_ns, -depth, span_id)
        ) AS cached_end_bytes,
        IF(
            GROUPING(stage) = 1,
            NULL,
            MAX(allocated_peak_bytes) - MIN(allocated_peak_bytes)
        ) AS step_spread_bytes
    FROM spans
    WHERE is_stage(depth, path)
    GROUP BY GROUPING SETS ((rank, stage), (rank))
),

held AS (
    SELECT
        rank,
        seq,
        span_id,
        COALESCE(category = 'before', FALSE) AS is_before,
        action IN ('segment_alloc', 'segment_map') AS is_growth,
        SUM(IF(is_growth, size_bytes, -size_bytes)) OVER (
            PARTITION BY rank ORDER BY seq
            ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
        )::BIGINT AS reserved_bytes
    FROM allocs
    WHERE action IN (
        'segment_alloc', 'segment_map', 'segment_free', 'segment_unmap'
    )
),

moments AS (
    SELECT
        held.rank,
        swing.stage,
        MIN(held.seq) AS seq,
        ARG_MIN(held.is_before, held.seq) AS is_before
    FROM held
    LEFT JOIN spans
        ON held.rank = spans.rank AND held.span_id = spans.span_id
    INNER JOIN swing
        ON held.rank = swing.rank
        AND COALESCE(swing.stage = spans.stage, swing.stage IS NULL)
        AND held.reserved_bytes = swing.reserved_peak_bytes
    WHERE held.is_growth
    GROUP BY held.rank, swing.stage
    -- Optimiser hint: keeps DuckDB from building the join on allocs.
    LIMIT 65536
),

-- Every event is read once, however many moments there are.
ranges AS (
    SELECT
        rank,
        seq,
        LEAD(seq, 1, 9223372036854775807) OVER (PARTITION BY rank ORDER BY seq)
            AS next_seq
    FROM (
        SELECT rank, seq FROM moments
        UNION
        -- Rows for what was held before the first event have a seq below zero.
        SELECT rank, -9223372036854775808 FROM moments
    )
    LIMIT 65536
),

changes AS (
    SELECT
        ranges.rank,
        ranges.seq,
        SUM(
            IF(allocs.action = 'alloc', allocs.size_bytes, -allocs.size_bytes)
        ) AS bytes,
        -- The tensor that the segment was taken for comes next.
        ARG_MIN(allocs.size_bytes, allocs.seq)
            FILTER (WHERE allocs.action = 'alloc') AS next_bytes
    FROM allocs
    INNER JOIN ranges
        ON allocs.rank = ranges.rank
        AND allocs.seq > ranges.seq
        AND allocs.seq <= ranges.next_seq
    WHERE allocs.action IN ('alloc', 'free_completed')
    GROUP BY ranges.rank, ranges.seq
),

used AS (
    SELECT
        ranges.rank,
        ranges.seq,
        COALESCE(SUM(changes.bytes) OVER earlier, 0)
            + COALESCE(changes.next_bytes, 0) AS bytes
    FROM ranges
    LEFT JOIN changes
        ON ranges.rank = changes.rank AND ranges.seq = changes.seq
    WINDOW earlier AS (
        PARTITION BY ranges.rank ORDER BY ranges.seq
        ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    )
)

SELECT
    swing.rank,
    swing.stage,
    swing.reserved_peak_bytes,
    -- Nothing tells how memory was taken that was held before the first event.
    IF(
        moments.is_before,
        NULL,
        swing.reserved_peak_bytes - used.bytes
    )::BIGINT AS fragmentation_bytes,
    worst.cached_bytes AS cached_worst_bytes,
    worst.path AS cached_path,
    steps.cached_end_bytes,
    swing.fluctuation_bytes,
    steps.step_spread_bytes
FROM swing
INNER JOIN worst
    ON swing.rank = worst.rank AND swing.stage IS NOT DISTINCT FROM worst.stage
INNER JOIN steps
    ON swing.rank = steps.rank AND swing.stage IS NOT DISTINCT FROM steps.stage
LEFT JOIN moments
    ON swing.rank = moments.rank
    AND swing.stage IS NOT DISTINCT FROM moments.stage
LEFT JOIN used ON moments.rank = used.rank AND moments.seq = used.seq
ORDER BY
    swing.rank,
    swing.stage IS NOT NULL,
    swing.first_span_id
