-- What is each figure of the compared runs, over all ranks and on each rank?
-- One row = a measure of a run at a path (null: the whole run), over the ranks
-- (rank null) or on one.
--   run          number of the run, 0 is the base
--   path, rank, measure, unit
--                as in figures
--   value        over the ranks: the worst, as `measures` has it
--   mean_value   over the ranks; null: no figure of single ranks
--   max_rank     whose value it is: the lowest of them; null where it is of no
--                single rank, as the time from the first start to the last end
WITH ranked AS (
    SELECT run, path, rank, measure, unit, value
    FROM figures
    WHERE rank IS NOT NULL
),

over_ranks AS (
    SELECT
        run,
        path,
        measure,
        unit,
        COALESCE(
            MAX(value) FILTER (WHERE rank IS NULL), MAX(value)
        ) AS value,
        MAX(value) FILTER (WHERE rank IS NOT NULL) AS max_value,
        AVG(value) FILTER (WHERE rank IS NOT NULL) AS mean_value,
        ARG_MIN(rank, (-value, rank)) FILTER (WHERE rank IS NOT NULL)
            AS max_rank
    FROM figures
    GROUP BY run, path, measure, unit
)

SELECT
    run,
    path,
    NULL::BIGINT AS rank,
    measure,
    unit,
    value,
    mean_value,
    IF(value = max_value, max_rank, NULL) AS max_rank
FROM over_ranks
UNION ALL
SELECT run, path, rank, measure, unit, value, NULL, NULL
FROM ranked
