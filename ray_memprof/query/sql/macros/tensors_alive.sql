-- Which tensors were alive at given moments?
-- moments: a small table (rank, stage, seq); stage tells several moments of a
-- rank apart, seq is the last event that counts.
-- One row = a tensor that was alive at a moment.
--   rank, stage      of the moment
--   seq              of its allocation, in allocs
--   span_id, path    span in which it was allocated; 0 and null: none
--   owner            path of the parameter, buffer or module; null: it has none
--   component        of its owner, else of the span; null: none
--   category         what it is for
--   dtype            of its owner; null: not known
--   stack_id         Python stack that allocated it, in stacks; null: none
--   requested_bytes  what was asked for
--   size_bytes       as the allocator counts it
CREATE MACRO tensors_alive(moments) AS TABLE
WITH few AS (
    SELECT rank, stage, seq
    FROM QUERY_TABLE(moments)
    -- Optimiser hint: keeps DuckDB from building the join on allocs. Without
    -- it DuckDB expects more rows here than in allocs, and keeps all of allocs
    -- in memory for the join.
    LIMIT 65536
),

-- The last event at an address says whether a tensor is alive there.
held AS (
    SELECT
        few.rank,
        few.stage,
        MAX(allocs.seq) AS seq,
        ARG_MAX(allocs.span_id, allocs.seq) AS span_id,
        -- An empty text stands for null, which ARG_MAX would skip.
        NULLIF(ARG_MAX(COALESCE(allocs.category, ''), allocs.seq), '')
            AS category,
        NULLIF(ARG_MAX(COALESCE(allocs.stack_id, -1), allocs.seq), -1)
            AS stack_id,
        ARG_MAX(allocs.requested_bytes, allocs.seq) AS requested_bytes,
        ARG_MAX(allocs.size_bytes, allocs.seq) AS size_bytes
    FROM allocs
    INNER JOIN few ON allocs.rank = few.rank AND allocs.seq <= few.seq
    WHERE allocs.action IN ('alloc', 'free_requested')
    GROUP BY few.rank, few.stage, allocs.address
    HAVING
        ARG_MAX(
            IF(allocs.action = 'alloc', allocs.size_bytes, 0), allocs.seq
        ) > 0
)

SELECT
    held.rank,
    held.stage,
    held.seq,
    held.span_id,
    spans.path,
    COALESCE(named.owner, spans.module) AS owner,
    COALESCE(named.component, spans.component) AS component,
    owned_category(held.category, named.category) AS category,
    named.dtype,
    held.stack_id,
    held.requested_bytes,
    held.size_bytes
FROM held
LEFT JOIN alloc_owners() AS named
    ON held.rank = named.rank AND held.seq = named.seq
LEFT JOIN spans ON held.rank = spans.rank AND held.span_id = spans.span_id
