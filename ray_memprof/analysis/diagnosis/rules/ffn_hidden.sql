-- Rule: does the hidden layer of the feed-forward make the peak of the denoise
-- loop?
-- One row = the fullest rank in denoise, where it does.
--   ranks       who
--   stage       denoise
--   component   dit
--   bytes       hidden tensors alive at the peak of the stage
--   is_peak     the stage has the peak of that rank
--   num_chunks  optimization.ffn_chunks as it was; 0: by size
-- Evidence: tensors as wide as the hidden layer beside ones as wide as the
-- model, in the ratio of the two, 35 to 6 or 27 to 10; computed in chunks of
-- tokens, both are a chunk of them. The layer's own weights have this ratio,
-- too, to those of attention: gathered whole by FSDP they are no weights by
-- their category, and known by their size. Threshold: 5 % of the stage's peak;
-- twice the chunks give back half of it.
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
        -- In bf16 or fp16, and in fp32.
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
