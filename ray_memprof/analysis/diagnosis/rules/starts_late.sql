-- Rule: does one rank start late, so that the others wait for it?
-- One row = a rank that does.
--   ranks      the rank
--   stage      the rank's first stage
--   component  null
--   bytes      0: it costs time
--   is_peak    false
--   late_ns    how much later than the median rank it starts
--   is_awaited the ranks call collectives, so the others must wait
--   workload   see settings
-- Threshold: 2 s, and 1 % of the run. Ranks of four recorded GPUs begin within
-- 0.3 s of each other. On several hosts, or on hosts that are not known, a
-- rank that begins late must also take less time by as much, because the
-- others waited for it. A rank that begins and ends late has a clock that is
-- ahead: after the launcher has compared the clocks, some milliseconds remain.
-- Imported snapshots do not count: they begin where their rings begin.
WITH firsts AS (
    SELECT
        rank,
        MIN(start_ns) AS start_ns,
        MAX(end_ns) AS end_ns,
        ARG_MIN(stage, span_id) AS stage
    FROM spans
    GROUP BY rank
    -- Without span 1 the first rows of the rank are lost.
    HAVING MIN(span_id) = 1
),

hosts AS (
    SELECT
        COUNT(DISTINCT ranks.host) = 1 AND COUNT(ranks.host) = COUNT(*)
            AS is_one
    FROM firsts
    LEFT JOIN ranks ON firsts.rank = ranks.rank
),

middle AS (
    SELECT
        QUANTILE_DISC(start_ns, 0.5) AS start_ns,
        QUANTILE_DISC(end_ns - start_ns, 0.5) AS rank_ns,
        MAX(end_ns) - MIN(start_ns) AS duration_ns
    FROM firsts
),

late AS (
    SELECT
        firsts.rank,
        firsts.stage,
        middle.duration_ns,
        LEAST(
            firsts.start_ns - middle.start_ns,
            IF(
                hosts.is_one,
                NULL,
                middle.rank_ns - (firsts.end_ns - firsts.start_ns)
            )
        ) AS late_ns
    FROM firsts
    CROSS JOIN middle
    CROSS JOIN hosts
)

SELECT
    [late.rank] AS ranks,
    late.stage,
    NULL::VARCHAR AS component,
    0::BIGINT AS bytes,
    FALSE AS is_peak,
    late.late_ns,
    EXISTS (SELECT 1 FROM collectives) AS is_awaited,
    settings.workload
FROM late
CROSS JOIN settings
WHERE
    NOT COALESCE(settings.is_imported, FALSE)
    AND late.late_ns >= GREATEST(2000000000, 0.01 * late.duration_ns)
