-- In which spans are tensors allocated and soon freed again?
-- One row = a span path on a rank. A tensor is short-lived if the same span
-- allocated and freed it; the spans inside that span do not count as the same.
--   rank               of the run
--   component, path    of the span; null: outside of any
--   num_visits         spans of this path that allocated
--   num_allocs         tensors allocated in them
--   num_short          how many of them were short-lived
--   short_bytes        bytes of the short-lived ones, added up
--   turnover           short_bytes / what the path's largest visit added;
--                      null: nothing was added. High: the same memory was used
--                      over and over
WITH lives AS (
    -- The next event at the address of a tensor is its free.
    SELECT
        rank,
        span_id,
        action,
        size_bytes,
        LEAD(action) OVER at_address = 'free_requested'
            AND LEAD(span_id) OVER at_address = span_id AS is_short
    FROM allocs
    WHERE action IN ('alloc', 'free_requested')
    WINDOW at_address AS (PARTITION BY rank, address ORDER BY seq)
),

visits AS (
    SELECT
        rank,
        span_id,
        COUNT(*) AS num_allocs,
        COUNT(*) FILTER (WHERE is_short) AS num_short,
        COALESCE(SUM(size_bytes) FILTER (WHERE is_short), 0) AS short_bytes
    FROM lives
    WHERE action = 'alloc'
    GROUP BY rank, span_id
)

SELECT
    visits.rank,
    spans.component,
    spans.path,
    COUNT(*) AS num_visits,
    SUM(visits.num_allocs)::BIGINT AS num_allocs,
    SUM(visits.num_short)::BIGINT AS num_short,
    SUM(visits.short_bytes)::BIGINT AS short_bytes,
    SUM(visits.short_bytes) / NULLIF(
        MAX(spans.allocated_peak_bytes - spans.allocated_start_bytes), 0
    ) AS turnover
FROM visits
LEFT JOIN spans ON visits.rank = spans.rank AND visits.span_id = spans.span_id
GROUP BY visits.rank, spans.component, spans.path
ORDER BY visits.rank, short_bytes DESC, spans.path, spans.component
