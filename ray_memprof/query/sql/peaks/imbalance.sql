-- Do all ranks need the same memory, and if not, which rank needs the most?
-- One row = a stage and a measure; stage null: the whole run.
--   stage              name of the outermost span; null: the whole run
--   measure            allocated, reserved or device_used
--   num_ranks          ranks that ran the stage
--   max_bytes          largest peak of a rank
--   mean_bytes         mean of the ranks' peaks, rounded
--   min_bytes          smallest
--   is_at_least        at least one of these peaks may have been larger,
--                      before the first event or between two measurements
--   max_over_mean      max / mean; null where nothing was held
--   max_rank           the lowest of the ranks with the largest peak
--   component          for allocated: the component whose tensors make most of
--                      the difference to the rank with the smallest peak;
--                      null: none, or not known (see imbalance_by_component)
--   component_bytes    how much more max_rank holds for this component; null:
--                      not known
WITH peaks AS (
    SELECT
        spans.rank,
        spans.stage,
        MIN(spans.span_id) AS first_span_id,
        COALESCE(BOOL_OR(ranks.peak_at_least), FALSE) AS peak_at_least,
        SUM(spans.num_samples) AS num_samples,
        MAX(spans.allocated_peak_bytes) AS allocated,
        MAX(spans.reserved_peak_bytes) AS reserved,
        MAX(spans.device_used_peak_bytes) AS device_used
    FROM spans
    LEFT JOIN ranks ON spans.rank = ranks.rank
    GROUP BY GROUPING SETS ((spans.rank, spans.stage), (spans.rank))
),

long AS (
    UNPIVOT peaks
    ON allocated, reserved, device_used
    INTO NAME measure VALUE peak_bytes
),

measured AS (
    SELECT
        stage,
        measure,
        MIN(first_span_id) AS first_span_id,
        COUNT(*) AS num_ranks,
        MAX(peak_bytes) AS max_bytes,
        ROUND(AVG(peak_bytes))::BIGINT AS mean_bytes,
        MIN(peak_bytes) AS min_bytes,
        BOOL_OR(
            IF(
                measure = 'device_used',
                num_samples = 0 AND peak_bytes > 0,
                peak_at_least
            )
        ) AS is_at_least,
        MAX(peak_bytes) / NULLIF(AVG(peak_bytes), 0) AS max_over_mean,
        ARG_MIN(rank, (-peak_bytes, rank)) AS max_rank
    FROM long
    GROUP BY stage, measure
),

blamed AS (
    SELECT
        COALESCE(stage, '') AS stage,
        component,
        difference_bytes
    FROM imbalance_by_component
    QUALIFY ROW_NUMBER() OVER (
        PARTITION BY stage ORDER BY difference_bytes DESC, component
    ) = 1
)

SELECT
    measured.stage,
    measured.measure,
    measured.num_ranks,
    measured.max_bytes,
    measured.mean_bytes,
    measured.min_bytes,
    measured.is_at_least,
    measured.max_over_mean,
    measured.max_rank,
    blamed.component,
    blamed.difference_bytes AS component_bytes
FROM measured
LEFT JOIN blamed
    ON COALESCE(measured.stage, '') = blamed.stage
    AND measured.measure = 'allocated'
ORDER BY
    measured.stage IS NOT NULL,
    measured.first_span_id,
    measured.stage,
    measured.measure
