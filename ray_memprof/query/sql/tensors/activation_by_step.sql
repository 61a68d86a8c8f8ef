-- How much memory do activations take in each stage, and in each denoise step?
-- One row = a stage on a rank; for denoise, one of its steps.
--   rank                   of the run
--   stage                  name of the outermost span
--   step                   denoise step; null outside the loop
--   began_bytes            allocated when it began
--   allocated_peak_bytes   the most allocated inside
--   activation_peak_bytes  peak - began: what it added, with the weights that
--                          it loaded
--   base_bytes             weights of the components that were on the device
--                          at any time during it; null: the run names no
--                          components, as a script does not
--   above_base_bytes       peak - base: activations, inputs and outputs alone
--   activation_bytes       above base; where base is not known, what it added
WITH stages AS (
    SELECT
        rank,
        span_id,
        stage,
        step,
        start_ns,
        end_ns,
        allocated_start_bytes,
        allocated_peak_bytes
    FROM spans
    -- Loading weights adds to base memory, not to activations.
    WHERE is_stage(depth, path)
        AND name NOT LIKE 'load.%' AND name NOT LIKE 'residency.%'
),

bases AS (
    SELECT
        stages.rank,
        stages.span_id,
        SUM(component_visits.base_bytes)::BIGINT AS base_bytes
    FROM stages
    INNER JOIN component_visits
        ON stages.rank = component_visits.rank
        AND component_visits.start_ns < stages.end_ns
        AND COALESCE(component_visits.end_ns > stages.start_ns, TRUE)
    GROUP BY stages.rank, stages.span_id
),

-- Before the first component comes, the base is 0. If no component ever comes,
-- nobody said what the weights are.
nothing AS (
    SELECT IF(COUNT(*) > 0, 0, NULL) AS base_bytes FROM component_visits
)

SELECT
    stages.rank,
    stages.stage,
    stages.step,
    stages.allocated_start_bytes AS began_bytes,
    stages.allocated_peak_bytes,
    stages.allocated_peak_bytes - stages.allocated_start_bytes
        AS activation_peak_bytes,
    COALESCE(bases.base_bytes, nothing.base_bytes) AS base_bytes,
    stages.allocated_peak_bytes - COALESCE(bases.base_bytes, nothing.base_bytes)
        AS above_base_bytes,
    COALESCE(above_base_bytes, activation_peak_bytes) AS activation_bytes
FROM stages
CROSS JOIN nothing
LEFT JOIN bases
    ON stages.rank = bases.rank AND stages.span_id = bases.span_id
ORDER BY stages.rank, stages.span_id
