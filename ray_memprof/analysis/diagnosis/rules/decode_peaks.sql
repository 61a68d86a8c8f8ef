-- Rule: is decoding what the run needs most of its memory for?
-- One row = the run; the bytes are those of the rank where they are largest.
--   ranks       ranks whose peak is in decode, if several ranks decode or if
--               there is only one; for one of several see decodes_alone
--   stage       decode
--   component   vae
--   bytes       by how much decode exceeds the fullest other stage: smaller
--               slabs can lower the peak by this much
--   is_peak     true
--   other_stage the fullest other stage
--   num_slabs   optimization.vae_slabs as it was; 0: by size
--   others_bytes
--               weights of other components that are there at the peak, the
--               most on any of these ranks; null: none, or not known
--   workload, is_public_wan
--               see settings
-- Threshold: 5 % of the peak. If another stage is closer, it has almost the
-- same peak, and smaller slabs gain less.
WITH shared AS (
    SELECT COUNT(DISTINCT rank) AS num_decoding
    FROM spans
    WHERE name LIKE 'vae.%' AND stage = 'decode'
),

others AS (
    SELECT rank, SUM(bytes)::BIGINT AS bytes
    FROM peak_tensors
    WHERE category = 'weight' AND component != 'vae'
    GROUP BY rank
)

SELECT
    LIST(stage_peaks.rank ORDER BY stage_peaks.rank) AS ranks,
    'decode' AS stage,
    'vae' AS component,
    MAX(stage_peaks.above_other_bytes) AS bytes,
    TRUE AS is_peak,
    ARG_MIN(
        stage_peaks.other_stage,
        (-stage_peaks.above_other_bytes, stage_peaks.rank)
    ) AS other_stage,
    MAX(settings.vae_slabs) AS num_slabs,
    MAX(others.bytes) AS others_bytes,
    ANY_VALUE(settings.workload) AS workload,
    ANY_VALUE(settings.is_public_wan) AS is_public_wan
FROM stage_peaks
CROSS JOIN shared
CROSS JOIN settings
LEFT JOIN others ON stage_peaks.rank = others.rank
WHERE
    stage_peaks.stage = 'decode'
    AND stage_peaks.component = 'vae'
    AND stage_peaks.is_run_peak
    AND (
        shared.num_decoding > 1
        OR (SELECT COUNT(DISTINCT rank) FROM spans) = 1
    )
    AND stage_peaks.above_other_bytes
    >= 0.05 * stage_peaks.allocated_peak_bytes
HAVING COUNT(*) > 0
