-- When was which component on the device, and how many bytes did it bring?
-- One row = a stay of a component, from its loading or moving in until it moves
-- out.
--   rank            of the run
--   component       t5, clip, vae, dit
--   visit           number of the stay of this component on this rank, from 0
--   start_ns        when loading or moving in began, since 1970
--   end_ns          when moving out began; null: it stayed
--   base_bytes      allocated memory that loading and moving in added, less
--                   what sharding gave back
--   load_ns         time for these
WITH ins AS (
    -- Weights read straight to the device arrive in load.*, others in the
    -- residency.onload after it: both belong to the same stay.
    SELECT
        rank,
        span_id,
        name,
        COALESCE(component, SPLIT_PART(name, '.', 2)) AS component,
        COUNT(*) FILTER (WHERE name = 'residency.onload') OVER (
            PARTITION BY rank, COALESCE(component, SPLIT_PART(name, '.', 2))
            ORDER BY span_id
            ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ) AS visit,
        start_ns,
        end_ns,
        allocated_end_bytes - allocated_start_bytes AS added_bytes
    FROM spans
    WHERE
        name IN ('residency.onload', 'residency.shard') OR name LIKE 'load.%'
),

visits AS (
    SELECT
        rank,
        component,
        visit,
        MIN(span_id) AS span_id,
        MIN(start_ns) AS start_ns,
        SUM(added_bytes)::BIGINT AS base_bytes,
        SUM(end_ns - start_ns)::BIGINT AS load_ns
    FROM ins
    GROUP BY rank, component, visit
    -- What was made on the device did not come to it, sharded or not.
    HAVING COUNT(*) FILTER (WHERE name != 'residency.shard') > 0
),

outs AS (
    SELECT rank, span_id, component, start_ns
    FROM spans
    WHERE name = 'residency.offload'
)

SELECT
    visits.rank,
    visits.component,
    visits.visit,
    visits.start_ns,
    outs.start_ns AS end_ns,
    visits.base_bytes,
    visits.load_ns
FROM visits
ASOF LEFT JOIN outs
    ON visits.rank = outs.rank
    AND visits.component = outs.component
    AND visits.span_id < outs.span_id
ORDER BY visits.rank, visits.start_ns, visits.component
