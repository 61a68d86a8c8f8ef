-- Which span made the peak of allocated memory?
-- peaks: a table (rank, stage, peak_bytes); a null stage: any of the rank.
-- One row = such a peak that a span reached: the innermost span that did, and
-- had not begun at it, allocated the tensor itself. Of several the first.
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
