-- Which tensors are the largest, and how long do they live?
-- One row = a size in a span path on a rank; the 20 largest sizes of each rank.
--   rank             of the run
--   size_bytes       as the allocator counts it
--   requested_bytes  the most that was asked for
--   category         what they are for
--   component, path  span in which they were allocated; null: outside of any
--   num_allocs       how many
--   median_life_ns   time until they were freed; null: the median one was
--                    never freed
--   num_kept         how many were never freed
WITH sizes AS (
    SELECT rank, size_bytes
    FROM allocs
    WHERE action = 'alloc'
    GROUP BY rank, size_bytes
    QUALIFY ROW_NUMBER() OVER (
        PARTITION BY rank ORDER BY size_bytes DESC
    ) <= 20
),

smallest AS (
    SELECT rank, MIN(size_bytes) AS size_bytes
    FROM sizes
    GROUP BY rank
    -- Optimiser hint: keeps DuckDB from building the join on allocs.
    LIMIT 65536
),

-- The free event has the size of its block, so both ends of a life pass the
-- filter.
lives AS (
    SELECT
        allocs.rank,
        allocs.seq,
        allocs.action,
        allocs.size_bytes,
        allocs.requested_bytes,
        allocs.category,
        allocs.span_id,
        LEAD(allocs.t_ns) OVER (
            PARTITION BY allocs.rank, allocs.address ORDER BY allocs.seq
        ) - allocs.t_ns AS life_ns
    FROM allocs
    INNER JOIN smallest
        ON allocs.rank = smallest.rank
        AND allocs.size_bytes >= smallest.size_bytes
    WHERE allocs.action IN ('alloc', 'free_requested')
)

SELECT
    lives.rank,
    lives.size_bytes,
    MAX(lives.requested_bytes) AS requested_bytes,
    owned_category(lives.category, named.category) AS category,
    COALESCE(named.component, spans.component) AS component,
    spans.path,
    COUNT(*) AS num_allocs,
    IF(
        COUNT(lives.life_ns) * 2 > COUNT(*), MEDIAN(lives.life_ns), NULL
    )::BIGINT AS median_life_ns,
    COUNT(*) - COUNT(lives.life_ns) AS num_kept
FROM lives
LEFT JOIN alloc_owners() AS named
    ON lives.rank = named.rank AND lives.seq = named.seq
LEFT JOIN spans ON lives.rank = spans.rank AND lives.span_id = spans.span_id
WHERE lives.action = 'alloc'
GROUP BY ALL
ORDER BY
    lives.rank,
    lives.size_bytes DESC,
    num_allocs DESC,
    spans.path,
    category,
    component
