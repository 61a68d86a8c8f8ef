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

freed AS (
    SELECT rank, seq, freed_seq FROM block_frees(owned)
)

SELECT rank, seq, category, component, dtype, size_bytes AS bytes FROM owned
UNION ALL
SELECT
    owned.rank,
    freed.freed_seq,
    owned.category,
    owned.component,
    owned.dtype,
    -owned.size_bytes
FROM owned
INNER JOIN freed ON owned.rank = freed.rank AND owned.seq = freed.seq
