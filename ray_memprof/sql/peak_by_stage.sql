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
--   host_rss_peak_bytes    resident memory of the process, samples included
--   num_allocs             tensors allocated
--   num_segments           segments taken from the device; expandable ones grow
--                          uncounted: see device_calls
--   num_retries            times the allocator had to flush its cache
WITH stages AS (
    FROM spans
    WHERE is_stage(depth, path)
),

-- Of host memory no event tells what was between the ends of a span: a script
-- may have loaded a whole model there, and moved it to the device.
sampled AS (
    SELECT
        stages.rank,
        stages.stage,
        MAX(samples.host_rss_bytes) AS host_rss_bytes
    FROM stages
    INNER JOIN samples
        ON stages.rank = samples.rank
        AND samples.t_ns BETWEEN stages.start_ns AND stages.end_ns
    GROUP BY stages.rank, stages.stage
)

SELECT
    stages.rank,
    stages.stage,
    COUNT(*) AS num_spans,
    SUM(stages.end_ns - stages.start_ns)::BIGINT AS duration_ns,
    MAX(stages.allocated_peak_bytes) AS allocated_peak_bytes,
    MAX(stages.reserved_peak_bytes) AS reserved_peak_bytes,
    MAX(stages.active_peak_bytes) AS active_peak_bytes,
    MAX(stages.device_used_peak_bytes) AS device_used_peak_bytes,
    GREATEST(
        MAX(stages.host_rss_peak_bytes), ANY_VALUE(sampled.host_rss_bytes)
    ) AS host_rss_peak_bytes,
    SUM(stages.num_allocs)::BIGINT AS num_allocs,
    SUM(stages.num_segments)::BIGINT AS num_segments,
    SUM(stages.num_retries)::BIGINT AS num_retries
FROM stages
LEFT JOIN sampled
    ON stages.rank = sampled.rank AND stages.stage = sampled.stage
GROUP BY stages.rank, stages.stage
ORDER BY stages.rank, MIN(stages.span_id)
