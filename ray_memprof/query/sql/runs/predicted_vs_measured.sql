-- How far is what was measured from the prediction of the same run?
-- One row = an account of a rank in a stage, or in the whole run; only of a run
-- that has a prediction of itself (ray-memprof audit).
--   rank              of the run
--   stage             name of the outermost span; null: the whole run
--   account           allocated, reserved, device_used (less what other
--                     processes held), context, nccl or libraries
--   predicted_bytes   the most, as predicted; null: no such stage
--   measured_bytes    the most, as measured; null: no such stage
--   difference_bytes  measured - predicted
--   error_fraction    predicted / measured - 1; null: nothing was measured
--   stated_fraction   the largest error that is stated; null: none is
--   is_beyond         the error is larger than that; what may have been between
--                     two samples is no error
WITH told AS (
    SELECT rank, stage, account, bytes FROM predicted
),

here AS (
    SELECT rank, stage, place, account, bytes, most_bytes
    FROM account_peaks
    WHERE rank IN (SELECT told.rank FROM told)
)

SELECT
    COALESCE(here.rank, told.rank) AS rank,
    COALESCE(here.stage, told.stage) AS stage,
    COALESCE(here.account, told.account) AS account,
    told.bytes AS predicted_bytes,
    here.bytes AS measured_bytes,
    here.bytes - told.bytes AS difference_bytes,
    told.bytes / NULLIF(here.bytes, 0) - 1 AS error_fraction,
    stated.fraction AS stated_fraction,
    COALESCE(
        GREATEST(here.bytes - told.bytes, told.bytes - here.most_bytes)
        > GREATEST(stated.fraction * here.bytes, stated.least_bytes),
        FALSE
    ) AS is_beyond
FROM here
FULL JOIN told
    ON here.rank = told.rank
    AND here.account = told.account
    AND here.stage IS NOT DISTINCT FROM told.stage
LEFT JOIN stated_errors() AS stated
    ON COALESCE(here.account, told.account) = stated.account
    AND (COALESCE(here.stage, told.stage) IS NOT NULL) = stated.is_stage
ORDER BY
    COALESCE(here.rank, told.rank),
    here.place NULLS LAST,
    COALESCE(here.stage, told.stage),
    LIST_POSITION(
        [
            'allocated', 'reserved', 'device_used', 'context', 'nccl',
            'libraries'
        ],
        COALESCE(here.account, told.account)
    )
