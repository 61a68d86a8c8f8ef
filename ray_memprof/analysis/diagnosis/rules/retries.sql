-- Rule: did the allocator run out of device memory, and have to flush its
-- cache?
-- One row = a stage in which it did.
--   ranks        ranks on which it did
--   stage        name of the outermost span
--   component    null
--   bytes        reserved - active at the start or end of a span in it, the
--                most: memory that is held, not in use, and missing elsewhere
--   is_peak      true: the device was full
--   num_retries  the most on any of these ranks
--   extra_ns     time that it cost at most, on any of them; null: not known
--   is_expandable, wants_expandable, allocator_variable, allocator_conf,
--   workload     see settings
-- Threshold: none. One retry means that the device was full, and that the rank
-- had to wait. If the stage then ran out of memory, see out_of_memory.
SELECT
    LIST(device_calls.rank ORDER BY device_calls.rank) AS ranks,
    device_calls.stage,
    NULL::VARCHAR AS component,
    MAX(fragmentation.cached_worst_bytes) AS bytes,
    TRUE AS is_peak,
    MAX(device_calls.num_retries) AS num_retries,
    MAX(device_calls.extra_ns) AS extra_ns,
    ANY_VALUE(settings.is_expandable) AS is_expandable,
    ANY_VALUE(settings.wants_expandable) AS wants_expandable,
    ANY_VALUE(settings.allocator_variable) AS allocator_variable,
    ANY_VALUE(settings.allocator_conf) AS allocator_conf,
    ANY_VALUE(settings.workload) AS workload
FROM device_calls
INNER JOIN fragmentation
    ON device_calls.rank = fragmentation.rank
    AND device_calls.stage = fragmentation.stage
ANTI JOIN ooms
    ON device_calls.rank = ooms.rank AND device_calls.stage = ooms.stage
CROSS JOIN settings
WHERE device_calls.num_retries > 0
GROUP BY device_calls.stage
