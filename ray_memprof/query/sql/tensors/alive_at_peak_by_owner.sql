-- Whose were the tensors that were alive at the peak of each rank?
-- One row = an owner, a component and a category on a rank. The rows of a rank
-- add up to its peak. A rank without allocator events has no rows.
--   rank         of the run
--   owner        path of a parameter or a buffer, with the name of its state
--                for an optimizer; path of the module that was called when the
--                tensor was allocated; null: neither is known
--   component    t5, clip, vae, dit or the class of a module; null: none
--   category     what the tensors are for
--   dtype        of the numbers of a parameter and the like; null: not known
--   bytes        as the allocator counts them
--   num_tensors  how many
WITH moments AS (
    SELECT rank, stage, seq
    FROM peak_event
    -- Optimiser hint: keeps DuckDB from building the join on allocs.
    LIMIT 65536
)

SELECT
    rank,
    owner,
    component,
    category,
    dtype,
    SUM(size_bytes)::BIGINT AS bytes,
    COUNT(*) AS num_tensors
FROM tensors_alive(moments)
GROUP BY rank, owner, component, category, dtype
ORDER BY rank, bytes DESC, owner, category, component, dtype
