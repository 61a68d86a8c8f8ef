-- Which value has the figure of one run that a limit is set for?
-- One row = the figure; no row if the run has no such figure.
--   value, mean_value, max_rank, unit
--               as in places
-- Parameters: run, measure, path and rank.
SELECT value, mean_value, max_rank, unit
FROM places
WHERE
    run = $run
    AND measure = $measure
    AND path IS NOT DISTINCT FROM $path
    AND rank IS NOT DISTINCT FROM $rank
