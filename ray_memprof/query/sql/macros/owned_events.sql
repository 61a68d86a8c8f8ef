-- Which events make and free the allocations that have an owner?
-- One row = the allocation, or the completed free, of such a block.
--   rank, seq   of the event
--   category    of the owner
--   component   of the owner; null: none
--   dtype       of its numbers; null: not known
--   bytes       as the allocator counts them; negative: given back
CREATE MACRO owned_events() AS TABLE
WITH owned AS (
    SELECT
        named.rank,
        named.seq,
        named.category,
        named.component,
        named.dtype,
        allocs.address,
        allocs.size_bytes
    FROM alloc_owners() AS named
    INNER JOIN allocs ON named.rank = allocs.rank AND named.seq = allocs.seq
),

places AS (
    SELECT DISTINCT rank, address FROM owned
    -- Optimiser hint: keeps DuckDB from building the join on allocs. No run
    -- has so many rows here.
    LIMIT 16777216
),

frees AS (
    SELECT allocs.rank, allocs.address, allocs.seq
    FROM allocs
    INNER JOIN places
        ON allocs.rank = places.rank AND allocs.address = places.address
    WHERE allocs.action = 'free_completed'
)

SELECT rank, seq, category, component, dtype, size_bytes AS bytes FROM owned
UNION ALL
SELECT
    owned.rank,
    frees.seq,
    owned.category,
    owned.component,
    owned.dtype,
    -owned.size_bytes
FROM owned
ASOF INNER JOIN frees
    ON owned.rank = frees.rank
    AND owned.address = frees.address
    AND owned.seq < frees.seq
