-- How is the time of the run cut into slices?
-- One row = the run; no row if nothing was recorded.
--   first_ns  when the first of the 400 slices begins, since 1970
--   slice_ns  length of each
-- Samples and events count too: a script may work before its first span and
-- after its last one.
WITH reach AS (
    SELECT MIN(start_ns) AS first_ns, MAX(end_ns) AS last_ns FROM spans
    UNION ALL
    SELECT MIN(t_ns), MAX(t_ns) FROM samples
    UNION ALL
    SELECT MIN(t_ns), MAX(t_ns) FROM allocs
)

SELECT
    MIN(first_ns) AS first_ns,
    GREATEST(CEIL((MAX(last_ns) - MIN(first_ns) + 1) / 400), 1)::BIGINT
        AS slice_ns
FROM reach
HAVING COUNT(first_ns) > 0
