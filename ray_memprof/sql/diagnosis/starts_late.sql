-- Rule: does one rank start late, so that the others wait for it?
-- One row = a rank that does.
--   ranks      who
--   stage      its first one
--   component  null
--   bytes      0: it costs time
--   is_peak    false
--   late_ns    behind the median rank
--   is_awaited the ranks call collectives
-- Threshold: 2 s, and 1 % of the run. Ranks of four recorded GPUs begin within
-- 0.3 s of each other. Clocks of several nodes may differ: NTP keeps them
-- closer. Imported snapshots begin where their rings do, and say nothing of it.
WITH firsts AS (
    SELECT
        rank,
        MIN(start_ns) AS start_ns,
        MAX(end_ns) AS end_ns,
        ARG_MIN(stage, span_id) AS stage
    FROM spans
    GROUP BY rank
    -- Else its first rows are lost.
    HAVING MIN(span_id) = 1
),

middle AS (
    SELECT
        QUANTILE_DISC(start_ns, 0.5) AS start_ns,
        MAX(end_ns) - MIN(start_ns) AS duration_ns
    FROM firsts
)

SELECT
    [firsts.rank] AS ranks,
    firsts.stage,
    NULL::VARCHAR AS component,
    0::BIGINT AS bytes,
    FALSE AS is_peak,
    firsts.start_ns - middle.start_ns AS late_ns,
    EXISTS (SELECT 1 FROM collectives) AS is_awaited
FROM firsts
CROSS JOIN middle
CROSS JOIN settings
WHERE
    NOT COALESCE(settings.is_imported, FALSE)
    AND firsts.start_ns - middle.start_ns
    >= GREATEST(2000000000, 0.01 * middle.duration_ns)
