-- Rule: does one rank decode the video while the others wait?
-- One row = the rank that decodes; no row if there is only one rank, or if
-- several decode. A rank that failed does not wait for others: then the
-- configuration must say that one rank decodes.
--   ranks       the rank that decodes
--   stage       decode
--   component   vae
--   bytes       what decoding adds there; if it were split, each rank would
--               add about an equal share
--   is_peak     the peak of that rank is in this stage
--   num_others  ranks that do not decode
--   others_bytes
--               weights of other components that are there at the peak, if it
--               is in this stage; null: none, or not known
--   workload, is_public_wan
--               see settings
-- Threshold: 2 % of what the device has in use at its fullest, and at least
-- 64 MiB; less differs from one run to the next in any case.
WITH decoding AS (
    SELECT rank, MIN(span_id) AS first_span_id
    FROM spans
    WHERE name LIKE 'vae.%' AND stage = 'decode'
    GROUP BY rank
),

counted AS (
    SELECT
        (SELECT COUNT(*) FROM decoding) AS num_decoding,
        (SELECT COUNT(DISTINCT rank) FROM spans) AS num_ranks
),

others AS (
    SELECT rank, SUM(bytes)::BIGINT AS bytes
    FROM peak_tensors
    WHERE
        peak_stage = 'decode' AND category = 'weight' AND component != 'vae'
    GROUP BY rank
)

SELECT
    [activation_by_stage.rank] AS ranks,
    'decode' AS stage,
    'vae' AS component,
    activation_by_stage.activation_peak_bytes AS bytes,
    stage_peaks.is_run_peak AS is_peak,
    counted.num_ranks - 1 AS num_others,
    others.bytes AS others_bytes,
    settings.workload,
    settings.is_public_wan
FROM activation_by_stage
INNER JOIN decoding ON activation_by_stage.rank = decoding.rank
INNER JOIN stage_peaks
    ON activation_by_stage.rank = stage_peaks.rank
    AND activation_by_stage.stage = stage_peaks.stage
INNER JOIN rank_peaks() AS peaks ON activation_by_stage.rank = peaks.rank
CROSS JOIN counted
CROSS JOIN settings
LEFT JOIN others ON activation_by_stage.rank = others.rank
WHERE
    activation_by_stage.stage = 'decode'
    AND counted.num_decoding = 1
    AND counted.num_ranks > 1
    AND (
        COALESCE(settings.workload = 'wan' AND settings.vae = 'rank0', FALSE)
        OR NOT EXISTS (
            SELECT 1
            FROM spans
            ANTI JOIN decoding ON spans.rank = decoding.rank
            WHERE spans.failed
        )
    )
    AND activation_by_stage.activation_peak_bytes
    >= GREATEST(0.02 * peaks.device_used_peak_bytes, 67108864)
