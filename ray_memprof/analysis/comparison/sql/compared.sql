-- What is each value of the compared runs, over all ranks and on each rank?
-- One row = a measure of a run at a path (null: the whole run), over all ranks
-- (rank null) or on one rank.
--   run          number of the run, 0 is the base
--   path, rank, measure, unit
--                as in run_values
--   value        over all ranks: of the worst rank, as `measures` has it
--   mean_value   mean over the ranks; null: single ranks have no such value
--   is_at_least  it may have been larger; over all ranks, if any rank's may
--   max_rank     the lowest rank with this value; null: it is of no single
--                rank, like the time from the first start to the last end
WITH ranked AS (
    SELECT run, path, rank, measure, unit, value, is_at_least
    FROM run_values
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
        BOOL_OR(is_at_least) AS is_at_least,
        ARG_MIN(rank, (-value, rank)) FILTER (WHERE rank IS NOT NULL)
            AS max_rank
    FROM run_values
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
    is_at_least,
    IF(value = max_value, max_rank, NULL) AS max_rank
FROM over_ranks
UNION ALL
SELECT
    run,
    path,
    rank,
    measure,
    unit,
    value,
    NULL AS mean_value,
    is_at_least,
    NULL AS max_rank
FROM ranked
