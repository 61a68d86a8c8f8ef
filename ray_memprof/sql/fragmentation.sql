-- How much memory does the allocator hold without using it, and how much does
-- the use of memory swing?
-- One row = a stage on a rank.
--   rank                       of the run
--   stage                      name of the outermost span
--   fragmentation_worst_bytes  reserved - active, the most at any end of a span
--   fragmentation_path         that span
--   fragmentation_end_bytes    reserved - active when the stage last ended
--   fluctuation_bytes          highest - lowest allocated memory in the stage,
--                              all its steps together
--   step_spread_bytes          highest - lowest peak among its steps
WITH boundaries AS (
    SELECT
        rank,
        span_id,
        stage,
        path,
        0 AS edge,
        reserved_start_bytes - active_start_bytes AS fragmentation_bytes
    FROM spans
    UNION ALL
    SELECT
        rank,
        span_id,
        stage,
        path,
        1 AS edge,
        reserved_end_bytes - active_end_bytes AS fragmentation_bytes
    FROM spans
),

worst AS (
    SELECT rank, stage, path, fragmentation_bytes
    FROM boundaries
    QUALIFY ROW_NUMBER() OVER (
        PARTITION BY rank, stage
        ORDER BY fragmentation_bytes DESC, span_id, edge
    ) = 1
),

swing AS (
    SELECT
        rank,
        stage,
        MIN(span_id) AS first_span_id,
        MAX(allocated_peak_bytes)
            - MIN(LEAST(allocated_start_bytes, allocated_end_bytes))
            AS fluctuation_bytes
    FROM spans
    GROUP BY rank, stage
),

steps AS (
    SELECT
        rank,
        stage,
        ARG_MAX(reserved_end_bytes - active_end_bytes, span_id)
            AS fragmentation_end_bytes,
        MAX(allocated_peak_bytes) - MIN(allocated_peak_bytes)
            AS step_spread_bytes
    FROM spans
    WHERE is_stage(depth, path)
    GROUP BY rank, stage
)

SELECT
    swing.rank,
    swing.stage,
    worst.fragmentation_bytes AS fragmentation_worst_bytes,
    worst.path AS fragmentation_path,
    steps.fragmentation_end_bytes,
    swing.fluctuation_bytes,
    steps.step_spread_bytes
FROM swing
INNER JOIN worst ON swing.rank = worst.rank AND swing.stage = worst.stage
INNER JOIN steps ON swing.rank = steps.rank AND swing.stage = steps.stage
ORDER BY swing.rank, swing.first_span_id
