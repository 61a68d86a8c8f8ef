-- Rule: does the allocator take more than it ever has in use at once?
-- One row = the ranks on which it does.
--   ranks          who
--   stage          in which reserved memory peaked, on the worst of them
--   component      null
--   bytes          peak of reserved - peak of active, the most on any of them.
--                  Without gaps between blocks the first would equal the
--                  second: growing segments, too, cannot give back more
--   is_peak        true
--   unused_bytes   reserved - active when it was most, on the worst of them: as
--                  measured at ends of spans; in between, at least bytes
--   is_expandable, wants_expandable, allocator_variable, allocator_conf,
--   workload       see settings
-- Threshold: 8 % of the reserved peak, 256 MiB at least. Recorded runs on one
-- H200 with nothing done against the peak have 4 %; it cannot be none, since
-- pages of 2 MiB are taken whole.
WITH places AS (
    SELECT
        rank,
        -- Around the modules of a script there is a span of the whole script.
        ARG_MIN(stage, (-reserved_peak_bytes, path = 'script', span_id))
            AS stage
    FROM spans
    GROUP BY rank
),

unused AS (
    SELECT rank, MAX(fragmentation_worst_bytes) AS bytes
    FROM fragmentation
    GROUP BY rank
),

slack AS (
    SELECT
        peak_by_rank.rank,
        places.stage,
        peak_by_rank.reserved_peak_bytes,
        peak_by_rank.reserved_peak_bytes
            - GREATEST(
                peak_by_rank.active_peak_bytes,
                peak_by_rank.allocated_peak_bytes
            ) AS bytes,
        unused.bytes AS unused_bytes
    FROM peak_by_rank
    INNER JOIN places ON peak_by_rank.rank = places.rank
    INNER JOIN unused ON peak_by_rank.rank = unused.rank
)

SELECT
    LIST(rank ORDER BY rank) AS ranks,
    ARG_MIN(stage, (-bytes, rank)) AS stage,
    NULL::VARCHAR AS component,
    MAX(bytes) AS bytes,
    TRUE AS is_peak,
    ARG_MIN(GREATEST(unused_bytes, bytes), (-bytes, rank)) AS unused_bytes,
    ANY_VALUE(settings.is_expandable) AS is_expandable,
    ANY_VALUE(settings.wants_expandable) AS wants_expandable,
    ANY_VALUE(settings.allocator_variable) AS allocator_variable,
    ANY_VALUE(settings.allocator_conf) AS allocator_conf,
    ANY_VALUE(settings.workload) AS workload
FROM slack
CROSS JOIN settings
WHERE bytes >= GREATEST(0.08 * reserved_peak_bytes, 268435456)
HAVING COUNT(*) > 0
