-- What was alive when each rank had most allocated?
-- One row = a component, a category and a span of birth on a rank; the rows of
-- a rank add up to its peak. No rows where no allocator events were recorded.
--   rank         of the run
--   component    t5, clip, vae, dit or a module's name; null: none
--   category     what the tensors are for
--   path         span in which they were allocated; null: outside of any
--   bytes        as the allocator counts them
--   num_tensors  of them
WITH peaks AS (
    SELECT rank, seq
    FROM peak_event
    -- Says that it is small: DuckDB would guess it larger than allocs, and keep
    -- all of allocs in memory for the join.
    LIMIT 65536
),

last AS (
    -- What happened last at an address says whether a tensor is there.
    SELECT
        allocs.rank,
        ARG_MAX(
            IF(allocs.action = 'alloc', allocs.size_bytes, 0), allocs.seq
        ) AS size_bytes,
        ARG_MAX(allocs.span_id, allocs.seq) AS span_id,
        -- ARG_MAX passes over nulls.
        NULLIF(ARG_MAX(COALESCE(allocs.category, ''), allocs.seq), '')
            AS category
    FROM allocs
    INNER JOIN peaks ON allocs.rank = peaks.rank AND allocs.seq <= peaks.seq
    WHERE allocs.action IN ('alloc', 'free_requested')
    GROUP BY allocs.rank, allocs.address
)

SELECT
    last.rank,
    spans.component,
    last.category,
    spans.path,
    SUM(last.size_bytes)::BIGINT AS bytes,
    COUNT(*) AS num_tensors
FROM last
LEFT JOIN spans ON last.rank = spans.rank AND last.span_id = spans.span_id
WHERE last.size_bytes > 0
GROUP BY last.rank, spans.component, last.category, spans.path
ORDER BY
    last.rank,
    SUM(last.size_bytes) DESC,
    spans.path,
    spans.component,
    last.category
