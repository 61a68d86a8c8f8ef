-- Which event frees each of some blocks?
-- blocks: a table (rank, address, seq) of allocations.
-- One row = one of them whose free was completed.
--   rank, seq  of the allocation
--   freed_seq  of the event that completed its free
CREATE MACRO block_frees(blocks) AS TABLE
WITH places AS (
    SELECT DISTINCT rank, address
    FROM QUERY_TABLE(blocks)
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

SELECT wanted.rank, wanted.seq, frees.seq AS freed_seq
FROM QUERY_TABLE(blocks) AS wanted
ASOF INNER JOIN frees
    ON wanted.rank = frees.rank
    AND wanted.address = frees.address
    AND wanted.seq < frees.seq
