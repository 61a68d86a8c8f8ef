-- What were the tensors for that were alive when each rank had the most memory
-- allocated?
-- One row = a component and a category on a rank, the largest first. The rows
-- of a rank add up to its peak.
--   rank         of the run
--   component    t5, clip, vae, dit or the class of a module; null: none
--   category     what the tensors are for (see vae_cache)
--   bytes        as the allocator counts them
--   num_tensors  how many
SELECT
    rank,
    component,
    category,
    SUM(bytes)::BIGINT AS bytes,
    SUM(num_tensors)::BIGINT AS num_tensors
FROM alive_at_peak
GROUP BY rank, component, category
ORDER BY rank, SUM(bytes) DESC, component, category
