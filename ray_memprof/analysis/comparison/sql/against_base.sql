-- How far is each number of a run from the same number of the base run?
-- One row = a number of the run that the base run has, too.
--   question    whose answer has the number
--   key         which row of the answer it is, as JSON: part, rank, stage ...
--   measure     its column
--   base_value  in the base run
--   change      value - base value
SELECT
    here.question,
    here.key,
    here.measure,
    base.value AS base_value,
    here.value - base.value AS change
FROM here
INNER JOIN base
    ON here.question = base.question
    AND here.key = base.key
    AND here.measure = base.measure
