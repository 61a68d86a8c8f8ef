-- Rule: are the weights of a network that is not trained stored in fp32?
-- One row = a component, with the ranks on which they are.
--   ranks       these ranks
--   stage       stage that loads the weights
--   component   dit, or another one whose parameters were found by name
--   bytes       half of the weights: what bf16 gives back
--   is_peak     a rank has its peak while they are there
--   precision   model_config.precision as it was
--   workload, is_public_wan
--               see settings
-- Evidence: parameters in float32, found by name, the most of a component at
-- once. A component with a gradient, or with state of an optimizer, is trained:
-- fp32 may be what its optimizer needs. The VAE computes in fp32 by design.
-- Where wan has found no parameter by name: measured bytes of the diffusion
-- transformer / parameters that the task is known to have.
-- Thresholds: bf16 must give back 5 % of the rank's peak, as in decode_peaks,
-- so that a few norms in fp32 are no finding; by the task, 3 bytes for each
-- parameter (fp32 has 4, bf16 has 2).
WITH trained AS (
    SELECT DISTINCT component
    FROM owners
    WHERE category IN ('gradient', 'optimizer')
),

running AS (
    SELECT
        weights.rank,
        weights.component,
        SUM(weights.bytes) OVER (
            PARTITION BY weights.rank, weights.component ORDER BY weights.seq
        ) AS bytes
    FROM owned_events() AS weights
    WHERE
        weights.category = 'weight'
        AND weights.dtype = 'float32'
        AND weights.component != 'vae'
        -- A gradient of no component may be of any.
        AND NOT EXISTS (
            SELECT 1
            FROM trained
            WHERE COALESCE(trained.component = weights.component, TRUE)
        )
),

named AS (
    SELECT rank, component, MAX(bytes)::BIGINT AS bytes
    FROM running
    GROUP BY rank, component
),

there AS (
    SELECT rank, component, ARG_MIN(made_stage, (-bytes, seq)) AS made_stage
    FROM peak_tensors
    WHERE category = 'weight' AND dtype = 'float32'
    GROUP BY rank, component
),

peaks AS (
    SELECT rank, MAX(run_peak_bytes) AS bytes FROM stage_peaks GROUP BY rank
),

found AS (
    SELECT
        named.rank,
        named.component,
        COALESCE(there.made_stage, 'load.' || named.component) AS stage,
        named.bytes,
        there.rank IS NOT NULL AS is_peak
    FROM named
    INNER JOIN peaks ON named.rank = peaks.rank
    LEFT JOIN there
        ON named.rank = there.rank AND named.component = there.component
    WHERE named.bytes // 2 >= 0.05 * peaks.bytes
    UNION ALL
    SELECT
        base_memory.rank,
        'dit' AS component,
        'load.dit' AS stage,
        base_memory.base_bytes AS bytes,
        stage_peaks.stage IN ('load.dit', 'denoise', 'residency.onload')
            AS is_peak
    FROM base_memory
    INNER JOIN stage_peaks
        ON base_memory.rank = stage_peaks.rank AND stage_peaks.is_run_peak
    CROSS JOIN settings
    INNER JOIN networks ON settings.task = networks.task
    WHERE
        settings.workload = 'wan'
        AND NOT EXISTS (
            SELECT 1
            FROM owners
            WHERE component = 'dit' AND category = 'weight'
        )
        AND base_memory.component = 'dit'
        AND base_memory.base_bytes
        * IF(settings.dit_fsdp, settings.num_ranks, 1)
        > 3 * networks.num_parameters
)

SELECT
    LIST(DISTINCT found.rank ORDER BY found.rank) AS ranks,
    ARG_MIN(found.stage, (-found.bytes, found.rank)) AS stage,
    found.component,
    (MAX(found.bytes) // 2)::BIGINT AS bytes,
    BOOL_OR(found.is_peak) AS is_peak,
    ANY_VALUE(settings.precision) AS precision,
    ANY_VALUE(settings.workload) AS workload,
    ANY_VALUE(settings.is_public_wan) AS is_public_wan
FROM found
CROSS JOIN settings
GROUP BY found.component
