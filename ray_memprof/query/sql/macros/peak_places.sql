-- Which span took allocated memory to its peak?
-- peaks: a table (rank, stage, peak_bytes); stage null: any stage of the rank
-- One row = one of these peaks, if a span reached it and had not begun at it.
-- The innermost such span allocated the tensor itself; if there are several,
-- the row has the first one.
--   rank, stage  as given
--   span_id      of the span
CREATE MACRO peak_places(peaks) AS TABLE
SELECT
    spans.rank,
    wanted.stage,
    spans.span_id
FROM spans
INNER JOIN QUERY_TABLE(peaks) AS wanted
    ON spans.rank = wanted.rank
    AND COALESCE(spans.stage = wanted.stage, TRUE)
    AND spans.allocated_peak_bytes = wanted.peak_bytes
    AND spans.allocated_start_bytes < wanted.peak_bytes
QUALIFY ROW_NUMBER() OVER (
    PARTITION BY spans.rank, wanted.stage
    ORDER BY spans.depth DESC, spans.span_id
) = 1
