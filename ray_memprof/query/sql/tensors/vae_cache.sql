-- What does the VAE carry from one chunk to the next?
-- One row = a tensor that a vae.chunk span allocated and left behind: what the
-- causal convolutions remember of earlier frames, and the pixels just made. It
-- is an activation until its chunk is over, and cache from then on.
--   rank         of the run
--   span_id      of the chunk
--   seq          of the tensor's allocation, in allocs
--   t_ns         of that allocation, since 1970
--   size_bytes   as the allocator counts it
--   carried_seq  of the last event of an activation in its chunk: it is cache
--                from then on
--   freed_seq    of the event that freed it; null: it stayed
WITH chunks AS (
    SELECT rank, span_id FROM spans WHERE name = 'vae.chunk'
),

-- The last event at an address says whether a tensor is alive there.
last AS (
    SELECT
        allocs.rank,
        allocs.span_id,
        allocs.address,
        MAX(allocs.seq) AS seq,
        ARG_MAX(allocs.action, allocs.seq) AS action,
        ARG_MAX(allocs.t_ns, allocs.seq) AS t_ns,
        ARG_MAX(allocs.size_bytes, allocs.seq) AS size_bytes
    FROM allocs
    INNER JOIN chunks
        ON allocs.rank = chunks.rank AND allocs.span_id = chunks.span_id
    WHERE
        allocs.category = 'activation'
        AND allocs.action IN ('alloc', 'free_requested', 'free_completed')
    GROUP BY allocs.rank, allocs.span_id, allocs.address
),

kept AS (
    SELECT
        rank,
        span_id,
        address,
        seq,
        t_ns,
        size_bytes,
        action,
        MAX(seq) OVER (PARTITION BY rank, span_id) AS carried_seq
    FROM last
    QUALIFY action = 'alloc'
),

freed AS (
    SELECT rank, seq, freed_seq FROM block_frees(kept)
)

SELECT
    kept.rank,
    kept.span_id,
    kept.seq,
    kept.t_ns,
    kept.size_bytes,
    kept.carried_seq,
    freed.freed_seq
FROM kept
LEFT JOIN freed ON kept.rank = freed.rank AND kept.seq = freed.seq
ORDER BY kept.rank, kept.seq
