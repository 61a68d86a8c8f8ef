-- Rule: does memory outside the allocator grow from step to step?
-- One row = the ranks on which it does.
--   ranks      these ranks
--   stage      in which it grows
--   component  null
--   bytes      growth from the first visit of the stage to the last one, the
--              most on any of these ranks
--   is_peak    true: what grows is there at the peak, or soon will be
--   num_times  visits of the stage on the rank where it grew most
--   account    libraries or unexplained: the one that grew more there
-- Threshold: 64 MiB over three visits or more, growing in half of them or more.
-- A library that takes its workspace once grows once. Only for a GPU: on a CPU
-- the whole interpreter is outside the tensors.
WITH ends AS (
    SELECT
        books.rank,
        books.stage,
        books.span_id,
        books.libraries_bytes,
        books.unexplained_bytes,
        books.libraries_bytes + books.unexplained_bytes AS outside_bytes
    FROM books
    INNER JOIN spans
        ON books.rank = spans.rank AND books.span_id = spans.span_id
    CROSS JOIN settings
    WHERE
        books.edge = 'end'
        AND spans.depth = 0
        AND books.device_used_bytes > 0
        AND settings.source = 'cuda'
),

moves AS (
    SELECT
        rank,
        stage,
        span_id,
        libraries_bytes,
        unexplained_bytes,
        outside_bytes,
        outside_bytes - LAG(outside_bytes) OVER (
            PARTITION BY rank, stage ORDER BY span_id
        ) AS grown_bytes
    FROM ends
),

totals AS (
    SELECT
        rank,
        stage,
        COUNT(*) AS num_times,
        COUNT(*) FILTER (WHERE grown_bytes > 0) AS num_grown,
        ARG_MAX(outside_bytes, span_id) - ARG_MIN(outside_bytes, span_id)
            AS bytes,
        ARG_MAX(libraries_bytes, span_id) - ARG_MIN(libraries_bytes, span_id)
            AS libraries_bytes,
        ARG_MAX(unexplained_bytes, span_id)
            - ARG_MIN(unexplained_bytes, span_id) AS unexplained_bytes
    FROM moves
    GROUP BY rank, stage
)

SELECT
    LIST(rank ORDER BY rank) AS ranks,
    stage,
    NULL::VARCHAR AS component,
    MAX(bytes) AS bytes,
    TRUE AS is_peak,
    ARG_MIN(num_times, (-bytes, rank)) AS num_times,
    -- That of the rank where the memory grew most.
    IF(
        ARG_MIN(libraries_bytes - unexplained_bytes, (-bytes, rank)) >= 0,
        'libraries',
        'unexplained'
    ) AS account
FROM totals
WHERE num_times >= 3 AND num_grown * 2 >= num_times - 1 AND bytes >= 67108864
GROUP BY stage
