-- What does it cost to move models to the device and away from it?
-- One row = a load.* or residency.* span.
--   rank             of the run
--   start_ns         since 1970
--   stage            name of the outermost span
--   name             load.<component>, residency.onload, residency.offload, or
--                    residency.shard, which keeps a share of the weights
--   component        t5, clip, vae, dit
--   allocated_bytes  change of allocated memory; negative: given back
--   reserved_bytes   change of what the allocator holds
--   host_rss_bytes   change of the process's resident memory
--   duration_ns      time it took on the host; residency.offload waits until
--                    the device has finished its earlier work
SELECT
    rank,
    start_ns,
    stage,
    name,
    COALESCE(
        component,
        CASE WHEN name LIKE 'load.%' THEN SPLIT_PART(name, '.', 2) END
    ) AS component,
    allocated_end_bytes - allocated_start_bytes AS allocated_bytes,
    reserved_end_bytes - reserved_start_bytes AS reserved_bytes,
    host_rss_end_bytes - host_rss_start_bytes AS host_rss_bytes,
    end_ns - start_ns AS duration_ns
FROM spans
WHERE name LIKE 'load.%' OR name LIKE 'residency.%'
ORDER BY rank, span_id
