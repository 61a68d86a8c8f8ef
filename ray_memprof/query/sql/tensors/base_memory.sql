-- How much memory do the weights of each component take on each rank?
-- One row = a component on a rank.
--   rank            of the run
--   component       t5, clip, vae, dit
--   base_bytes      allocated memory that loading and moving in added, the
--                   most of all its stays
--   num_visits      how often it came to the device
--   load_ns         time that loading and moving in took, over all its stays
SELECT
    rank,
    component,
    MAX(base_bytes) AS base_bytes,
    COUNT(*) AS num_visits,
    SUM(load_ns)::BIGINT AS load_ns
FROM component_visits
GROUP BY rank, component
ORDER BY rank, base_bytes DESC, component
