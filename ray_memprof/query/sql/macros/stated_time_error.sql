-- How far may the times of a prediction be off? As docs/prediction.md states.
-- One row = the run, if its times are predicted by a profile that was measured;
-- by a data sheet it is not known.
--   fraction        of what would be measured, either way: more than any step
--                   that was compared is off, for GPUs of one model differ
CREATE MACRO stated_time_error() AS TABLE
SELECT stated.fraction::DOUBLE AS fraction
FROM runs
INNER JOIN (VALUES ('measured', 0.12)) AS stated (known_by, fraction)
    ON STARTS_WITH(
        JSON_EXTRACT_STRING(NULLIF(runs.versions, ''), '$.profile'),
        stated.known_by
    )
