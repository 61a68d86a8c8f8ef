-- How often did the allocator take memory from the device or give it back, and
-- what did that cost?
-- One row = a stage on a rank in which it did.
--   rank             of the run
--   stage            name of the outermost span
--   num_retries      how often it flushed its cache and asked the device again
--   num_takes        segments or pages taken from the device
--   taken_bytes      their bytes
--   num_returns      segments or pages given back
--   returned_bytes   their bytes
--   extra_ns         by how much spans with such calls took longer than the
--                    median span of the same path without them. The calls cost
--                    this much at most, since first visits also build kernels.
--                    null: there is no span to compare with
-- Where no allocator events were recorded, the numbers are from the counters
-- of spans, and the bytes are null.
WITH calls AS (
    SELECT
        rank,
        span_id,
        COUNT(*) FILTER (WHERE action IN ('segment_alloc', 'segment_map'))
            AS num_takes,
        SUM(size_bytes) FILTER (
            WHERE action IN ('segment_alloc', 'segment_map')
        ) AS taken_bytes,
        COUNT(*) FILTER (WHERE action IN ('segment_free', 'segment_unmap'))
            AS num_returns,
        SUM(size_bytes) FILTER (
            WHERE action IN ('segment_free', 'segment_unmap')
        ) AS returned_bytes
    FROM allocs
    WHERE action IN (
        'segment_alloc', 'segment_map', 'segment_free', 'segment_unmap'
    )
    GROUP BY rank, span_id
),

-- num_segments and num_retries of a span count the spans inside it too.
inner_spans AS (
    SELECT
        rank,
        parent_id,
        SUM(num_segments) AS num_segments,
        SUM(num_retries) AS num_retries
    FROM spans
    GROUP BY rank, parent_id
),

own AS (
    SELECT
        spans.rank,
        spans.stage,
        spans.path,
        spans.end_ns - spans.start_ns AS duration_ns,
        inner_spans.parent_id IS NULL AS is_innermost,
        spans.num_retries - COALESCE(inner_spans.num_retries, 0)
            AS num_retries,
        COALESCE(
            calls.num_takes,
            spans.num_segments - COALESCE(inner_spans.num_segments, 0)
        ) AS num_takes,
        calls.taken_bytes,
        calls.num_returns,
        calls.returned_bytes
    FROM spans
    LEFT JOIN inner_spans
        ON spans.rank = inner_spans.rank
        AND spans.span_id = inner_spans.parent_id
    LEFT JOIN calls
        ON spans.rank = calls.rank AND spans.span_id = calls.span_id
),

quiet AS (
    SELECT rank, path, MEDIAN(duration_ns) AS duration_ns
    FROM own
    WHERE
        is_innermost
        AND num_retries = 0
        AND num_takes = 0
        AND COALESCE(num_returns, 0) = 0
    GROUP BY rank, path
)

SELECT
    own.rank,
    own.stage,
    SUM(own.num_retries)::BIGINT AS num_retries,
    SUM(own.num_takes)::BIGINT AS num_takes,
    SUM(own.taken_bytes)::BIGINT AS taken_bytes,
    SUM(own.num_returns)::BIGINT AS num_returns,
    SUM(own.returned_bytes)::BIGINT AS returned_bytes,
    -- GREATEST skips nulls: what cannot be compared must not count as 0.
    SUM(GREATEST(own.duration_ns - quiet.duration_ns, 0)) FILTER (
        WHERE own.is_innermost AND quiet.duration_ns IS NOT NULL
    )::BIGINT AS extra_ns
FROM own
LEFT JOIN quiet ON own.rank = quiet.rank AND own.path = quiet.path
WHERE own.num_retries + own.num_takes + COALESCE(own.num_returns, 0) > 0
GROUP BY own.rank, own.stage
ORDER BY own.rank, own.stage
