-- Where do tensors come and go without staying?
-- One row = a span path on a rank. Short-lived: allocated and freed in the same
-- span, the spans inside it not counted.
--   rank               of the run
--   component, path    of the span; null: outside of any
--   num_visits         spans of this path that allocated
--   num_allocs         tensors allocated in them
--   num_short          of them short-lived
--   short_bytes        sum of the short-lived
--   turnover           short_bytes / what the path's largest visit added; null:
--                      nothing was added. High: the same memory over and over
WITH addresses AS (
    SELECT
        rank,
        span_id,
        COUNT(*) FILTER (WHERE action = 'alloc') AS num_allocs,
        SUM(size_bytes) FILTER (WHERE action = 'alloc') AS bytes,
        -- Of the tensors born here at an address all but one were freed here:
        -- the last one, unless a free came after it.
        ARG_MAX(IF(action = 'alloc', size_bytes, 0), seq) AS kept_bytes
    FROM allocs
    WHERE action IN ('alloc', 'free_requested')
    GROUP BY rank, span_id, address
),

visits AS (
    SELECT
        rank,
        span_id,
        SUM(num_allocs) AS num_allocs,
        SUM(num_allocs - (kept_bytes > 0)::INTEGER) AS num_short,
        SUM(bytes - kept_bytes) AS short_bytes
    FROM addresses
    WHERE num_allocs > 0
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
