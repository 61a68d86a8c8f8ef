-- How far are the peaks of two runs apart, rank by rank and stage by stage?
-- One row = a rank and a stage of the first run, as the stages began there.
--   rank, stage          as in peak_by_stage
--   here_bytes           peak of allocated memory in the first run
--   there_bytes          in the other run; null: it has no such rank or stage
--   difference_fraction  (there_bytes - here_bytes) / here_bytes; null: not
--                        known, or nothing was held
WITH here AS (
    SELECT
        ROW_NUMBER() OVER () AS number,
        rank,
        stage,
        allocated_peak_bytes
    FROM run0.peak_by_stage
)

SELECT
    here.rank,
    here.stage,
    here.allocated_peak_bytes AS here_bytes,
    there.allocated_peak_bytes AS there_bytes,
    (there.allocated_peak_bytes - here.allocated_peak_bytes)
    / NULLIF(here.allocated_peak_bytes, 0) AS difference_fraction
FROM here
LEFT JOIN run1.peak_by_stage AS there
    ON here.rank = there.rank AND here.stage = there.stage
ORDER BY here.number
