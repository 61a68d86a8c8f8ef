-- Rule: is the text encoder what the run needs most of its memory for?
-- One row = the run; the bytes are those of the rank where they are largest.
--   ranks       ranks whose peak is in encode.text
--   stage       encode.text
--   component   t5
--   bytes       by how much encode.text exceeds the fullest other stage: the
--               peak is lower by this much if the text encoder is not there
--   is_peak     true
--   other_stage the fullest other stage
--   num_ranks, load_strategy, t5_fsdp, dit_fsdp, workload, is_public_wan
--               see settings
-- Evidence: only ranks that came as far as decode count, because nobody knows
-- what later stages would have taken on the others. It must be known that
-- t5_cpu was off; a script has no such key. Runs on the CPU are left out: they
-- have no other place.
-- Threshold: 5 % of the peak, as in decode_peaks.
WITH whole AS (
    SELECT rank
    FROM spans
    GROUP BY rank
    HAVING NOT BOOL_OR(failed) AND BOOL_OR(stage = 'decode')
)

SELECT
    LIST(stage_peaks.rank ORDER BY stage_peaks.rank) AS ranks,
    'encode.text' AS stage,
    't5' AS component,
    MAX(stage_peaks.above_other_bytes) AS bytes,
    TRUE AS is_peak,
    ARG_MIN(
        stage_peaks.other_stage,
        (-stage_peaks.above_other_bytes, stage_peaks.rank)
    ) AS other_stage,
    ANY_VALUE(settings.num_ranks) AS num_ranks,
    ANY_VALUE(settings.load_strategy) AS load_strategy,
    ANY_VALUE(settings.t5_fsdp) AS t5_fsdp,
    ANY_VALUE(settings.dit_fsdp) AS dit_fsdp,
    ANY_VALUE(settings.workload) AS workload,
    ANY_VALUE(settings.is_public_wan) AS is_public_wan
FROM stage_peaks
INNER JOIN whole ON stage_peaks.rank = whole.rank
CROSS JOIN settings
WHERE
    settings.source != 'cpu'
    AND (settings.workload = 'script' OR NOT settings.t5_cpu)
    AND stage_peaks.stage = 'encode.text'
    AND stage_peaks.component = 't5'
    AND stage_peaks.is_run_peak
    AND stage_peaks.above_other_bytes
    >= 0.05 * stage_peaks.allocated_peak_bytes
HAVING COUNT(*) > 0
