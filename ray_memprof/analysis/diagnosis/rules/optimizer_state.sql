-- Rule: is the state of an optimizer a large part of the peak?
-- One row = a component that is trained, with the ranks on which it is.
--   ranks       these ranks
--   stage       stage of the peak, on the rank with most of the state
--   component   whose parameters the state is for; null: not known
--   bytes       of the state, alive at the peak, the most on any of them
--   is_peak     true
--   dtype       of most of the state
--   num_ranks   ranks of the run, if each of them keeps state for the same
--               parameters, whole; else 1: it is sharded, or there is one rank
-- Evidence: tensors that belong to the state of an optimizer, by their owners.
-- Where FSDP shards the parameters, it shards the state, too.
-- Threshold: 5 % of the rank's peak. States of 8 bits take a quarter of those
-- in fp32: less would give back less than 4 %.
WITH states AS (
    SELECT
        rank,
        component,
        peak_stage,
        peak_bytes,
        owner,
        dtype,
        bytes,
        SUM(bytes) OVER (PARTITION BY rank, component) AS rank_bytes
    FROM peak_tensors
    WHERE category = 'optimizer'
),

large AS (
    SELECT
        rank,
        component,
        peak_stage,
        owner,
        dtype,
        bytes,
        rank_bytes
    FROM states
    WHERE rank_bytes >= 0.05 * peak_bytes
),

dtypes AS (
    SELECT component, ARG_MIN(dtype, (-bytes, dtype)) AS dtype
    FROM (
        FROM large
        SELECT component, dtype, SUM(bytes) AS bytes
        GROUP BY component, dtype
    )
    GROUP BY component
),

-- FSDP1 and others train one flat parameter, or parameters without a name.
copies AS (
    SELECT component, MAX(num_ranks) AS num_ranks
    FROM (
        FROM large
        SELECT component, owner, COUNT(DISTINCT rank) AS num_ranks
        WHERE
            NOT REGEXP_MATCHES(owner, '_flat_param|^parameter \[')
            AND NOT EXISTS (
                SELECT 1 FROM owners WHERE category = 'communication'
            )
        GROUP BY component, owner
    )
    GROUP BY component
)

SELECT
    LIST(DISTINCT large.rank ORDER BY large.rank) AS ranks,
    ARG_MIN(large.peak_stage, (-large.rank_bytes, large.rank)) AS stage,
    large.component,
    MAX(large.rank_bytes)::BIGINT AS bytes,
    TRUE AS is_peak,
    ANY_VALUE(dtypes.dtype) AS dtype,
    COALESCE(ANY_VALUE(copies.num_ranks), 1) AS num_ranks
FROM large
LEFT JOIN dtypes ON large.component IS NOT DISTINCT FROM dtypes.component
LEFT JOIN copies ON large.component IS NOT DISTINCT FROM copies.component
GROUP BY large.component
