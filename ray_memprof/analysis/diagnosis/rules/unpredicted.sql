-- Rule: is what was measured beyond the stated error of the run's prediction?
-- One row = the ranks on which it is, by account and stage.
--   ranks              these ranks
--   stage              where the difference is largest
--   component          null
--   bytes              that difference, the most on any of these ranks
--   is_peak            the peak of the whole run is beyond the error, too
--   first_stage        the first stage in which it is
--   account            allocated; reserved where allocated is as predicted;
--                      device_used where both are
--   is_more            more was measured than predicted; else less
--   predicted_bytes    on the rank where the difference is largest
--   stated_percent     the error that is stated for a stage
-- Threshold: the stated errors, see stated_errors.
-- What is allocated is reserved, too, and what is reserved is in use: so only
-- the first of the three accounts is told, and only stages, which have names.
WITH beyond AS (
    SELECT
        rank,
        stage,
        account,
        predicted_bytes,
        difference_bytes,
        stated_fraction
    FROM predicted_vs_measured
    WHERE is_beyond
),

-- The error of a whole run is smaller than that of a stage: then its fullest
-- stage is told.
whole AS (
    SELECT
        beyond.rank,
        beyond.account,
        beyond.predicted_bytes,
        beyond.difference_bytes,
        beyond.stated_fraction,
        peaks.stage
    FROM beyond
    INNER JOIN predicted_vs_measured AS peaks
        ON beyond.rank = peaks.rank AND beyond.account = peaks.account
    WHERE beyond.stage IS NULL AND peaks.stage IS NOT NULL
    QUALIFY ROW_NUMBER() OVER (
        PARTITION BY beyond.rank, beyond.account
        ORDER BY peaks.measured_bytes DESC NULLS LAST, peaks.stage
    ) = 1
),

staged AS (
    SELECT
        rank,
        account,
        stage,
        predicted_bytes,
        difference_bytes,
        stated_fraction,
        FALSE AS is_peak
    FROM beyond
    WHERE stage IS NOT NULL
    UNION ALL BY NAME
    SELECT
        rank,
        account,
        stage,
        predicted_bytes,
        difference_bytes,
        stated_fraction,
        TRUE AS is_peak
    FROM whole
),

firsts AS (
    SELECT rank, stage, MIN(span_id) AS first_span_id
    FROM spans
    GROUP BY rank, stage
),

told AS (
    SELECT
        staged.rank,
        staged.account,
        staged.stage,
        staged.predicted_bytes,
        staged.difference_bytes,
        staged.stated_fraction,
        BOOL_OR(staged.is_peak) OVER of_account AS is_peak,
        FIRST_VALUE(staged.stage) OVER (
            PARTITION BY staged.rank, staged.account
            ORDER BY firsts.first_span_id
            ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING
        ) AS first_stage,
        LIST_POSITION(
            ['allocated', 'reserved', 'device_used'], staged.account
        ) AS place
    FROM staged
    INNER JOIN firsts
        ON staged.rank = firsts.rank AND staged.stage = firsts.stage
    WINDOW of_account AS (PARTITION BY staged.rank, staged.account)
    QUALIFY
        ROW_NUMBER() OVER (
            PARTITION BY staged.rank, staged.account
            ORDER BY ABS(staged.difference_bytes) DESC, firsts.first_span_id
        ) = 1
),

causes AS (
    SELECT
        rank,
        account,
        stage,
        predicted_bytes,
        difference_bytes,
        stated_fraction,
        is_peak,
        first_stage
    FROM told
    QUALIFY ROW_NUMBER() OVER (PARTITION BY rank ORDER BY place) = 1
)

SELECT
    LIST(rank ORDER BY rank) AS ranks,
    stage,
    NULL::VARCHAR AS component,
    MAX(ABS(difference_bytes)) AS bytes,
    BOOL_OR(is_peak) AS is_peak,
    first_stage,
    account,
    difference_bytes > 0 AS is_more,
    ARG_MIN(predicted_bytes, (-ABS(difference_bytes), rank)) AS predicted_bytes,
    100 * ANY_VALUE(stated_fraction) AS stated_percent
FROM causes
GROUP BY stage, first_stage, account, difference_bytes > 0
