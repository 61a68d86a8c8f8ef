-- How much does each memory pool of the allocator hold at the peak?
-- One row = a pool of a rank that has other pools than the default one, as for
-- CUDA graphs, whose memory nothing else may use. Other ranks have no rows.
--   rank                 of the run
--   pool                 as torch numbers it; (0, 0): the default one
--   owner                graph: of one CUDA graph. shared: of a
--                        torch.cuda.MemPool, or of graphs that share one by
--                        graph_pool_handle(), as those of torch.compile do.
--                        default: all that is allocated outside of both
--   num_segments         that it has at the moment of the rank's peak; of
--                        expandable segments, the parts that were mapped
--   reserved_bytes       in these
--   allocated_bytes      in tensors in these
--   reserved_peak_bytes  the most that it ever had in segments
WITH moments AS (
    SELECT rank, stage, seq
    FROM peak_event
    WHERE rank IN (SELECT segment_pools.rank FROM segment_pools)
    -- Optimiser hint: keeps DuckDB from building the join on allocs.
    LIMIT 65536
),

changes AS (
    SELECT
        allocs.rank,
        allocs.seq,
        allocs.address,
        COALESCE(segment_pools.pool, '(0, 0)') AS pool,
        IF(allocs.action IN ('segment_alloc', 'segment_map'), 1, -1) AS sign,
        allocs.size_bytes
    FROM allocs
    LEFT JOIN segment_pools
        ON allocs.rank = segment_pools.rank AND allocs.seq = segment_pools.seq
    WHERE
        allocs.action IN (
            'segment_alloc', 'segment_map', 'segment_free', 'segment_unmap'
        )
        AND allocs.rank IN (SELECT moments.rank FROM moments)
),

curves AS (
    SELECT
        rank,
        seq,
        pool,
        SUM(sign * size_bytes) OVER (
            PARTITION BY rank, pool ORDER BY seq
        ) AS reserved_bytes
    FROM changes
),

reserved AS (
    SELECT
        curves.rank,
        curves.pool,
        MAX(curves.reserved_bytes) AS reserved_peak_bytes,
        ARG_MAX(curves.reserved_bytes, curves.seq) FILTER (
            WHERE curves.seq <= moments.seq
        ) AS reserved_bytes
    FROM curves
    INNER JOIN moments ON curves.rank = moments.rank
    GROUP BY curves.rank, curves.pool
),

-- The last change at an address says whether a segment begins there.
segments AS (
    SELECT
        changes.rank,
        changes.address,
        ARG_MAX(changes.pool, changes.seq) AS pool
    FROM changes
    INNER JOIN moments
        ON changes.rank = moments.rank AND changes.seq <= moments.seq
    GROUP BY changes.rank, changes.address
    HAVING ARG_MAX(changes.sign, changes.seq) > 0
),

counted AS (
    SELECT rank, pool, COUNT(*) AS num_segments
    FROM segments
    GROUP BY rank, pool
),

tensors AS (
    SELECT alive.rank, allocs.address, alive.size_bytes
    FROM tensors_alive(moments) AS alive
    INNER JOIN allocs ON alive.rank = allocs.rank AND alive.seq = allocs.seq
),

allocated AS (
    SELECT
        tensors.rank,
        segments.pool,
        SUM(tensors.size_bytes)::BIGINT AS allocated_bytes
    FROM tensors
    ASOF INNER JOIN segments
        ON tensors.rank = segments.rank AND tensors.address >= segments.address
    GROUP BY tensors.rank, segments.pool
)

SELECT
    reserved.rank,
    reserved.pool,
    CASE
        WHEN reserved.pool = '(0, 0)' THEN 'default'
        WHEN reserved.pool LIKE '(0, %' THEN 'shared'
        ELSE 'graph'
    END AS owner,
    COALESCE(counted.num_segments, 0) AS num_segments,
    COALESCE(reserved.reserved_bytes, 0)::BIGINT AS reserved_bytes,
    COALESCE(allocated.allocated_bytes, 0)::BIGINT AS allocated_bytes,
    reserved.reserved_peak_bytes::BIGINT AS reserved_peak_bytes
FROM reserved
LEFT JOIN counted
    ON reserved.rank = counted.rank AND reserved.pool = counted.pool
LEFT JOIN allocated
    ON reserved.rank = allocated.rank AND reserved.pool = allocated.pool
ORDER BY reserved.rank, reserved_bytes DESC, reserved.pool
