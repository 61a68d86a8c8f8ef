-- Which tensors were alive when each rank had the most memory allocated?
-- One row = a component, a category and the span that allocated, on a rank.
-- The rows of a rank add up to its peak. A rank without allocator events has
-- no rows.
--   rank         of the run
--   component    t5, clip, vae, dit or the class of a module; null: none
--   category     what the tensors are for (see vae_cache)
--   path         span in which they were allocated; null: outside of any
--   bytes        as the allocator counts them
--   num_tensors  how many
WITH moments AS (
    SELECT rank, stage, seq, span_id
    FROM peak_event
    -- Optimiser hint: keeps DuckDB from building the join on allocs.
    LIMIT 65536
),

alive AS (
    SELECT
        tensors.rank,
        tensors.component,
        -- What an earlier chunk of the VAE has left behind.
        IF(
            tensors.category = 'activation'
            AND '/' || tensors.path LIKE '%/vae.chunk'
            AND tensors.span_id != moments.span_id,
            'cache',
            tensors.category
        ) AS category,
        tensors.path,
        tensors.size_bytes
    FROM tensors_alive(moments) AS tensors
    INNER JOIN moments ON tensors.rank = moments.rank
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
