-- Which value has a run for what a limit is set for?
-- One row = the value; no row if the run has no such value.
--   value, mean_value, max_rank, unit
--               as in compared
-- Parameters: run, measure, path and rank.
SELECT value, mean_value, max_rank, unit
FROM compared
WHERE
    run = $run
    AND measure = $measure
    AND path IS NOT DISTINCT FROM $path
    AND rank IS NOT DISTINCT FROM $rank
