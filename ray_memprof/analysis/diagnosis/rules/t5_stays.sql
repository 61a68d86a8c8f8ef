-- Rule: is the text encoder still on the device in the denoise loop?
-- One row = the ranks on which it is.
--   ranks       these ranks
--   stage       denoise
--   component   t5
--   bytes       its weights, the most on any of them
--   is_peak     the peak of one of these ranks is in the denoise loop or
--               later, so that the weights are part of it
--   offload, t5_fsdp
--               keys of the configuration as they were; null: not known
-- Evidence: its stay on the device includes the beginning of the loop.
-- Threshold: 1 % of the rank's peak.
WITH loops AS (
    SELECT rank, MIN(start_ns) AS start_ns, MIN(span_id) AS span_id
    FROM spans
    WHERE stage = 'denoise' AND depth = 0
    GROUP BY rank
),

fullest AS (
    SELECT rank, MAX(first_span_id) AS span_id, MAX(run_peak_bytes) AS bytes
    FROM stage_peaks
    WHERE is_run_peak
    GROUP BY rank
)

SELECT
    LIST(visit.rank ORDER BY visit.rank) AS ranks,
    'denoise' AS stage,
    't5' AS component,
    MAX(visit.base_bytes) AS bytes,
    BOOL_OR(fullest.span_id >= loops.span_id) AS is_peak,
    (SELECT offload FROM settings) AS offload,
    (SELECT t5_fsdp FROM settings) AS t5_fsdp
FROM component_visits AS visit
INNER JOIN loops ON visit.rank = loops.rank
INNER JOIN fullest ON visit.rank = fullest.rank
WHERE
    visit.component = 't5'
    AND visit.start_ns < loops.start_ns
    AND COALESCE(visit.end_ns > loops.start_ns, TRUE)
    AND visit.base_bytes >= 0.01 * fullest.bytes
HAVING COUNT(*) > 0
