-- Which stage was a rank in, and when?
-- One row = a stage on a rank, from its beginning to the last end before
-- another stage begins; the steps of the denoise loop make one row.
--   rank      of the run
--   stage     name of the outermost span
--   start_ns  since 1970
--   end_ns    since 1970
WITH numbered AS (
    SELECT
        rank,
        span_id,
        stage,
        start_ns,
        end_ns,
        ROW_NUMBER() OVER (PARTITION BY rank ORDER BY span_id)
            - ROW_NUMBER() OVER (PARTITION BY rank, stage ORDER BY span_id)
            AS island
    FROM spans
    WHERE is_stage(depth, path)
)

SELECT
    rank,
    stage,
    MIN(start_ns) AS start_ns,
    MAX(end_ns) AS end_ns
FROM numbered
GROUP BY rank, stage, island
ORDER BY rank, MIN(span_id)
