-- Rule: is the device nearly full, and would weights in fp8 help a wan run?
-- One row = the ranks on which they would.
--   ranks         these ranks
--   stage         stage of the peak
--   component     dit
--   bytes         what fp8 gives back, the most on any of them
--   weight_bytes  weights of the diffusion transformer on that rank
--   is_peak       true: they are on the device at the peak
-- Evidence: measured bytes of the diffusion transformer, whose linear layers
-- would take half of what they take, and scales 4 bytes for each output.
-- Thresholds: at least 80 % of the device is used: where memory is not short, a
-- change of the result is no advice. 10 % of the rank's peak, twice that of
-- other rules, for the same reason. Less than 3 bytes for each parameter: fp32
-- has 4, and is the finding of weights_fp32.
WITH found AS (
    SELECT
        base_memory.rank,
        stage_peaks.stage,
        base_memory.base_bytes,
        stage_peaks.run_peak_bytes,
        base_memory.base_bytes::HUGEINT * networks.saved_bytes
        // (2 * networks.num_parameters) AS bytes
    FROM base_memory
    INNER JOIN stage_peaks
        ON base_memory.rank = stage_peaks.rank AND stage_peaks.is_run_peak
    CROSS JOIN settings
    INNER JOIN networks ON settings.task = networks.task
    LEFT JOIN rank_peaks() AS peaks ON base_memory.rank = peaks.rank
    WHERE
        settings.workload = 'wan'
        AND settings.precision IN ('bf16', 'fp16')
        AND COALESCE(settings.weights_dtype = 'precision', TRUE)
        AND base_memory.component = 'dit'
        AND stage_peaks.stage IN ('load.dit', 'denoise', 'residency.onload')
        AND base_memory.base_bytes
        * IF(settings.dit_fsdp, settings.num_ranks, 1)
        < 3 * networks.num_parameters
        AND GREATEST(
            COALESCE(peaks.device_used_peak_bytes, 0),
            stage_peaks.run_peak_bytes
        ) >= 0.8 * NULLIF(peaks.device_total_bytes, 0)
)

SELECT
    LIST(DISTINCT rank ORDER BY rank) AS ranks,
    ARG_MIN(stage, (-bytes, rank)) AS stage,
    'dit' AS component,
    MAX(bytes)::BIGINT AS bytes,
    ARG_MIN(base_bytes, (-bytes, rank))::BIGINT AS weight_bytes,
    TRUE AS is_peak
FROM found
WHERE bytes >= 0.1 * run_peak_bytes
HAVING COUNT(*) > 0
