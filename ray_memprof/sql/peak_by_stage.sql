-- Which stage needs how much memory on each rank, and how long does it take?
-- One row = a stage on a rank, in the order the stages began.
--   rank                   of the run
--   stage                  name of the outermost span; in a script, also of
--                          each module that it calls itself
--   num_spans              times the stage ran; denoise: steps
--   duration_ns            all of them together
--   allocated_peak_bytes   tensors, as the allocator counts them
--   reserved_peak_bytes    held by the allocator
--   active_peak_bytes      allocated and not yet safe to reuse
--   device_used_peak_bytes in use on the device by anybody
--   host_rss_peak_bytes    resident memory of the process
--   num_allocs             tensors allocated
--   num_segments           segments taken from the device; expandable ones grow
--                          uncounted: see device_calls
--   num_retries            times the allocator had to flush its cache
SELECT
    rank,
    stage,
    COUNT(*) AS num_spans,
    SUM(end_ns - start_ns)::BIGINT AS duration_ns,
    MAX(allocated_peak_bytes) AS allocated_peak_bytes,
    MAX(reserved_peak_bytes) AS reserved_peak_bytes,
    MAX(active_peak_bytes) AS active_peak_bytes,
    MAX(device_used_peak_bytes) AS device_used_peak_bytes,
    MAX(host_rss_peak_bytes) AS host_rss_peak_bytes,
    SUM(num_allocs)::BIGINT AS num_allocs,
    SUM(num_segments)::BIGINT AS num_segments,
    SUM(num_retries)::BIGINT AS num_retries
FROM spans
WHERE is_stage(depth, path)
GROUP BY rank, stage
ORDER BY rank, MIN(span_id)
