-- When did each rank have the most memory allocated, and where?
-- One row = a rank of which a span or a sample was recorded.
--   rank               of the run
--   t_ns               since 1970
--   allocated_bytes    the peak
--   peak_at_least      it may have been more before the first event
--   is_event           an event of the allocator tells when; else t_ns is when
--                      the most was seen: by a sample, at an end of a span, or
--                      in the middle of a span that tells only its peak
--   stage, path, step  innermost span in which it was; null: outside of all
--                      spans; step is also null outside the loop
--   size_bytes         of the tensor that made the peak; null: no event tells
--   category           what that tensor is for
WITH seen AS (
    SELECT
        rank,
        ARG_MIN(t_ns, (-allocated_bytes, t_ns)) AS t_ns
    FROM seen_moments()
    WHERE allocated_bytes IS NOT NULL
    GROUP BY rank
)

SELECT
    peaks.rank,
    COALESCE(events.t_ns, seen.t_ns) AS t_ns,
    peaks.allocated_peak_bytes AS allocated_bytes,
    peaks.peak_at_least,
    events.t_ns IS NOT NULL AS is_event,
    peaks.stage,
    peaks.path,
    peaks.step,
    events.size_bytes,
    events.category
FROM peak_by_rank AS peaks
INNER JOIN seen ON peaks.rank = seen.rank
LEFT JOIN peak_event AS events ON peaks.rank = events.rank
ORDER BY peaks.rank
