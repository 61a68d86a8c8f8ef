-- What holds for the ranks of a run that was recorded before it was asked?
-- Every event of such a run was seen, or the run says which were not; its
-- clocks were not compared.
UPDATE ranks
SET
    clock_offset_ns = COALESCE(clock_offset_ns, 0),
    inexact_bytes = COALESCE(inexact_bytes, 0),
    peak_at_least = COALESCE(peak_at_least, FALSE)
WHERE clock_offset_ns IS NULL
