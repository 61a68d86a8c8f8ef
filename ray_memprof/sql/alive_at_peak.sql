-- What was alive when each rank had most allocated?
-- One row = a component, a category and a span of birth on a rank; the rows of
-- a rank add up to its peak. No rows where no allocator events were recorded.
--   rank         of the run
--   component    t5, clip, vae, dit or a module's name; null: none
--   category     what the tensors are for (see vae_cache)
--   path         span in which they were allocated; null: outside of any
--   bytes        as the allocator counts them
--   num_tensors  of them
WITH peaks AS (
    SELECT rank, seq, span_id
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
),

alive AS (
    SELECT
        last.rank,
        spans.component,
        -- What an earlier chunk of the VAE has left behind.
        IF(
            last.category = 'activation'
            AND spans.name = 'vae.chunk'
            AND last.span_id != peaks.span_id,
            'cache',
            last.category
        ) AS category,
        spans.path,
        last.size_bytes
    FROM last
    INNER JOIN peaks ON last.rank = peaks.rank
    LEFT JOIN spans
        ON last.rank = spans.rank AND last.span_id = spans.span_id
    WHERE last.size_bytes > 0
)

SELECT
    rank,
    component,
    category,
    path,
    SUM(size_bytes)::BIGINT AS bytes,
    COUNT(*) AS num_tensors
FROM alive
GROUP BY rank, component, category, path
ORDER BY rank, SUM(size_bytes) DESC, path, component, category
