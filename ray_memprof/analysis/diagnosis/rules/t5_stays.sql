-- Rule: is the text encoder still on the device in the denoise loop?
-- One row = the ranks on which it is.
--   ranks       these ranks
--   stage       denoise
--   component   t5
--   bytes       its weights, the most on any of them
--   is_peak     the peak of one of these ranks is in the denoise loop or
--               later, so that the weights are part of it
--   offload, t5_fsdp, workload, is_public_wan
--               see settings
-- Evidence: its parameters and buffers were alive when the loop began. Where
-- none was found by name, its stay on the device includes that moment. Scripts
-- on the CPU are left out: they have no other place.
-- Threshold: 1 % of the rank's peak.
WITH loops AS (
    SELECT rank, MIN(start_ns) AS start_ns, MIN(span_id) AS span_id
    FROM spans
    WHERE stage = 'denoise' AND is_stage(depth, path)
    GROUP BY rank
),

fullest AS (
    SELECT rank, MAX(first_span_id) AS span_id, MAX(run_peak_bytes) AS bytes
    FROM stage_peaks
    WHERE is_run_peak
    GROUP BY rank
),

owned AS (
    SELECT rank FROM owners WHERE component = 't5'
),

begins AS (
    SELECT loops.rank, MAX(allocs.seq) AS seq
    FROM loops
    SEMI JOIN owned ON loops.rank = owned.rank
    INNER JOIN allocs
        ON loops.rank = allocs.rank AND allocs.t_ns < loops.start_ns
    GROUP BY loops.rank
),

stays AS (
    SELECT named.rank, SUM(named.bytes) AS bytes
    FROM owned_events() AS named
    INNER JOIN begins
        ON named.rank = begins.rank AND named.seq <= begins.seq
    WHERE named.component = 't5' AND named.category IN ('weight', 'buffer')
    GROUP BY named.rank
    UNION ALL
    SELECT visit.rank, visit.base_bytes AS bytes
    FROM component_visits AS visit
    INNER JOIN loops ON visit.rank = loops.rank
    ANTI JOIN owned ON visit.rank = owned.rank
    WHERE
        visit.component = 't5'
        AND visit.start_ns < loops.start_ns
        AND COALESCE(visit.end_ns > loops.start_ns, TRUE)
)

SELECT
    LIST(stays.rank ORDER BY stays.rank) AS ranks,
    'denoise' AS stage,
    't5' AS component,
    MAX(stays.bytes)::BIGINT AS bytes,
    BOOL_OR(fullest.span_id >= loops.span_id) AS is_peak,
    ANY_VALUE(settings.offload) AS offload,
    ANY_VALUE(settings.t5_fsdp) AS t5_fsdp,
    ANY_VALUE(settings.workload) AS workload,
    ANY_VALUE(settings.is_public_wan) AS is_public_wan
FROM stays
INNER JOIN loops ON stays.rank = loops.rank
INNER JOIN fullest ON stays.rank = fullest.rank
CROSS JOIN settings
WHERE
    stays.bytes >= 0.01 * fullest.bytes
    AND NOT COALESCE(
        settings.workload = 'script' AND settings.source = 'cpu', FALSE
    )
HAVING COUNT(*) > 0
