-- Rule: are the weights of the diffusion transformer stored in fp32?
-- One row = the ranks on which they are.
--   ranks       these ranks
--   stage       stage that loads the weights
--   component   dit
--   bytes       half of the weights: what bf16 gives back
--   is_peak     a rank has its peak while they are loaded or used
--   precision   model_config.precision as it was
-- Evidence: measured bytes / parameters that the task is known to have.
-- Threshold: 3 bytes for each parameter (fp32 has 4, bf16 has 2).
WITH sizes (size, num_parameters) AS (
    -- Layers x (8 d^2 of attention + 2 d f of feed-forward), where d is the
    -- width of the model, f that of the hidden layer; the rest is below 5 %.
    VALUES ('1.3B', 1391984640), ('14B', 14050918400)
)

SELECT
    LIST(base_memory.rank ORDER BY base_memory.rank) AS ranks,
    'load.dit' AS stage,
    'dit' AS component,
    (MAX(base_memory.base_bytes) // 2)::BIGINT AS bytes,
    BOOL_OR(stage_peaks.stage IN ('load.dit', 'denoise', 'residency.onload'))
        AS is_peak,
    ANY_VALUE(settings.precision) AS precision
FROM base_memory
INNER JOIN stage_peaks
    ON base_memory.rank = stage_peaks.rank AND stage_peaks.is_run_peak
CROSS JOIN settings
INNER JOIN sizes ON settings.task LIKE '%-' || sizes.size
WHERE
    settings.workload = 'wan'
    AND base_memory.component = 'dit'
    AND base_memory.base_bytes
    * IF(settings.dit_fsdp, settings.num_ranks, 1) > 3 * sizes.num_parameters
HAVING COUNT(*) > 0
