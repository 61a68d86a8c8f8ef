-- Which values do the ranks of an older run have in columns that it lacks?
-- Such a run saw every event, or says which it did not see; its clocks were
-- not compared, and all its ranks ran both passes of guidance.
UPDATE ranks
SET
    clock_offset_ns = COALESCE(clock_offset_ns, 0),
    inexact_bytes = COALESCE(inexact_bytes, 0),
    peak_at_least = COALESCE(peak_at_least, FALSE),
    cfg = COALESCE(cfg, 0)
WHERE clock_offset_ns IS NULL OR cfg IS NULL
