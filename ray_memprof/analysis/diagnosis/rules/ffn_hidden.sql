-- Rule: does the hidden layer of the feed-forward make the peak of the denoise
-- loop?
-- One row = a rank on which it does, of those that alive has for denoise.
--   ranks       the rank
--   stage       denoise
--   component   dit
--   bytes       hidden tensors alive at the peak of the stage
--   is_peak     the peak of that rank is in this stage
--   num_chunks  optimization.ffn_chunks as it was; 0: by size
-- Evidence: there are tensors as wide as the hidden layer and tensors as wide
-- as the model. Their sizes have the ratio of the two widths, 35 to 6 or 27 to
-- 10, also if both are only a chunk of the tokens. The weights of the layer
-- and those of attention have this ratio, too. If FSDP gathers them whole,
-- their category is not weight, so they are told by their size and left out.
-- Threshold: 5 % of the stage's peak; twice the chunks give back half of it.
WITH widths (size, model_width, hidden_width) AS (
    VALUES ('1.3B', 1536, 8960), ('14B', 5120, 13824)
),

known AS (
    SELECT widths.model_width, widths.hidden_width
    FROM settings
    INNER JOIN widths ON settings.task LIKE '%-' || widths.size
    WHERE settings.workload = 'wan'
),

activations AS (
    SELECT rank, stage, requested_bytes, bytes, num_tensors
    FROM alive
    WHERE
        stage = 'denoise'
        AND component = 'dit'
        AND category = 'activation'
        AND requested_bytes >= 1048576
),

hidden AS (
    SELECT DISTINCT wide.rank, wide.requested_bytes, wide.bytes
    FROM activations AS wide
    INNER JOIN activations AS narrow
        ON wide.rank = narrow.rank AND wide.stage = narrow.stage
    CROSS JOIN known
    WHERE
        ABS(
            wide.requested_bytes * known.model_width
            / (narrow.requested_bytes * known.hidden_width) - 1
        ) < 0.0005
        -- Weights of the layer, in bf16 or fp16, and in fp32.
        AND wide.requested_bytes NOT IN (
            2 * known.model_width * known.hidden_width,
            4 * known.model_width * known.hidden_width
        )
)

SELECT
    [stage_peaks.rank] AS ranks,
    'denoise' AS stage,
    'dit' AS component,
    SUM(hidden.bytes)::BIGINT AS bytes,
    stage_peaks.is_run_peak AS is_peak,
    (SELECT ffn_chunks FROM settings) AS num_chunks
FROM hidden
INNER JOIN stage_peaks
    ON hidden.rank = stage_peaks.rank AND stage_peaks.stage = 'denoise'
GROUP BY
    stage_peaks.rank,
    stage_peaks.is_run_peak,
    stage_peaks.allocated_peak_bytes
HAVING SUM(hidden.bytes) >= 0.05 * stage_peaks.allocated_peak_bytes
