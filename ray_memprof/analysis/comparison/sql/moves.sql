-- What changed between the base and each other run?
-- One row = a measure of the whole run, of a rank or of a span path, in the
-- base and in one other run. The whole run comes first, then ranks, then
-- spans, each with the largest changes first.
--   run              number of the other run, from 1
--   name, run_id     of the other run
--   level            run, rank or span
--   path             of the spans; null: the whole run
--   rank             null: over all ranks
--   measure, unit    as in run_values
--   base_value       in the base, in that unit; null: the base has none
--   value            in the other run; null: that run has none
--   base_is_at_least base_value may have been larger: before the first event
--                    or, of device_used, between two measurements
--   is_at_least      the same of value
--   change           value - base_value; null where one of them is null
--   change_fraction  of base_value; null where that is 0
--   base_mean        like base_value, but the mean over the ranks
--   mean_value       like value, but the mean over the ranks
--   mean_change      mean_value - base_mean
--   max_rank         rank that value is of; null: it is of no single rank
--   only_in          the only side that has it: base or other; null: both do
--   share_fraction   size of the change / value of the whole base run. Rows
--                    are ordered by it; null: this measure does not count for
--                    the order. If only one side has a span, the whole
--                    duration is its change.
WITH shown AS (
    SELECT
        run,
        path,
        rank,
        measure,
        unit,
        value,
        mean_value,
        is_at_least,
        max_rank
    FROM compared
    WHERE path IS NULL OR rank IS NULL
),

base AS (
    FROM shown
    SELECT path, rank, measure, unit, value, mean_value, is_at_least
    WHERE run = 0
),

others AS (
    FROM sides SELECT run WHERE run > 0
),

keys AS (
    SELECT others.run, base.path, base.rank, base.measure, base.unit
    FROM others
    CROSS JOIN base
    UNION
    SELECT run, path, rank, measure, unit FROM shown WHERE run > 0
),

wholes AS (
    SELECT measure, value
    FROM base
    WHERE
        path IS NULL
        AND rank IS NULL
        AND measure IN (
            'peak_allocated', 'peak_reserved', 'peak_device_used', 'duration'
        )
),

paired AS (
    SELECT
        keys.run,
        CASE
            WHEN keys.path IS NOT NULL THEN 'span'
            WHEN keys.rank IS NOT NULL THEN 'rank'
            ELSE 'run'
        END AS level,
        keys.path,
        keys.rank,
        keys.measure,
        keys.unit,
        base.value AS base_value,
        there.value,
        COALESCE(base.is_at_least, FALSE) AS base_is_at_least,
        COALESCE(there.is_at_least, FALSE) AS is_at_least,
        there.value - base.value AS change,
        base.mean_value AS base_mean,
        there.mean_value,
        there.mean_value - base.mean_value AS mean_change,
        there.max_rank,
        CASE
            WHEN there.value IS NULL THEN 'base'
            WHEN base.value IS NULL THEN 'other'
        END AS only_in,
        CASE
            WHEN keys.measure = 'duration'
                THEN COALESCE(there.value, 0) - COALESCE(base.value, 0)
            ELSE there.value - base.value
        END AS moved,
        wholes.value AS whole_value
    FROM keys
    LEFT JOIN base
        ON keys.path IS NOT DISTINCT FROM base.path
        AND keys.rank IS NOT DISTINCT FROM base.rank
        AND keys.measure = base.measure
    LEFT JOIN shown AS there
        ON keys.run = there.run
        AND keys.path IS NOT DISTINCT FROM there.path
        AND keys.rank IS NOT DISTINCT FROM there.rank
        AND keys.measure = there.measure
    LEFT JOIN wholes ON keys.measure = wholes.measure
)

SELECT
    paired.run,
    sides.name,
    sides.run_id,
    level,
    path,
    rank,
    measure,
    unit,
    base_value,
    value,
    base_is_at_least,
    is_at_least,
    change,
    change / NULLIF(ABS(base_value), 0) AS change_fraction,
    base_mean,
    mean_value,
    mean_change,
    max_rank,
    only_in,
    ABS(moved) / NULLIF(whole_value, 0) AS share_fraction
FROM paired
INNER JOIN sides ON paired.run = sides.run
ORDER BY
    paired.run,
    LIST_POSITION(['run', 'rank', 'span'], level),
    MAX(share_fraction) OVER (PARTITION BY paired.run, level, path, rank)
        DESC NULLS LAST,
    path,
    rank,
    unit != 'bytes',
    unit != 's',
    measure LIKE 'peak%' DESC,
    measure
