-- Rule: does the allocator take more than it ever has in use at once?
-- One row = the ranks on which it does.
--   ranks          who
--   stage          in which reserved memory peaked, on the worst of them
--   component      null
--   bytes          peak of reserved - peak of active, the most on any of them:
--                  with nothing between blocks the first would equal the second
--   is_peak        true
--   is_expandable  optimization.expandable_segments was on; null: not known
--   workload       wan, script or import
-- Threshold: 8 % of the reserved peak, 256 MiB at least. Recorded runs on one
-- H200 with nothing done against the peak have 4 %; it cannot be none, since
-- pages of 2 MiB are taken whole.
WITH places AS (
    SELECT rank, ARG_MIN(stage, (-reserved_peak_bytes, span_id)) AS stage
    FROM spans
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
            ) AS bytes
    FROM peak_by_rank
    INNER JOIN places ON peak_by_rank.rank = places.rank
)

SELECT
    LIST(rank ORDER BY rank) AS ranks,
    ARG_MAX(stage, bytes) AS stage,
    NULL::VARCHAR AS component,
    MAX(bytes) AS bytes,
    TRUE AS is_peak,
    (SELECT expandable_segments FROM settings) AS is_expandable,
    (SELECT workload FROM settings) AS workload
FROM slack
WHERE bytes >= GREATEST(0.08 * reserved_peak_bytes, 268435456)
HAVING COUNT(*) > 0
