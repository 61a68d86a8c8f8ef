-- What was alive when each rank had most allocated?
-- One row = a component, a category and a span of birth on a rank; the rows of
-- a rank add up to its peak. No rows where no allocator events were recorded.
--   rank         of the run
--   component    t5, clip, vae, dit or a module's name; null: none
--   category     what the tensors are for (see vae_cache)
--   path         span in which they were allocated; null: outside of any
--   bytes        as the allocator counts them
--   num_tensors  of them
WITH moments AS (
    SELECT rank, stage, seq, span_id
    FROM peak_event
    -- Says that it is small: see tensors_alive.
    LIMIT 65536
),

alive AS (
    SELECT
        tensors.rank,
        spans.component,
        -- What an earlier chunk of the VAE has left behind.
        IF(
            tensors.category = 'activation'
            AND spans.name = 'vae.chunk'
            AND tensors.span_id != moments.span_id,
            'cache',
            tensors.category
        ) AS category,
        spans.path,
        tensors.size_bytes
    FROM tensors_alive(moments) AS tensors
    INNER JOIN moments ON tensors.rank = moments.rank
    LEFT JOIN spans
        ON tensors.rank = spans.rank AND tensors.span_id = spans.span_id
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
