-- Which stage needs how much memory on each rank, and how long does it take?
-- One row = a stage on a rank, in the order the stages began.
--   rank                   of the run
--   stage                  name of the outermost span; in a script, also of
--                          each module that the script itself calls
--   num_spans              how often the stage ran; of denoise: its steps
--   duration_ns            of all of them together
--   duration_error_ns      if predicted, it may be off by so much either way;
--                          null: it is measured, or the error is not known
--   allocated_peak_bytes   tensors, as the allocator counts them
--   reserved_peak_bytes    held by the allocator
--   peak_at_least          both may have been more before the first event
--   active_peak_bytes      allocated, or freed but not yet safe to reuse
--   device_used_peak_bytes in use on the device by anybody, as measured
--   num_samples            samples in the stage; 0: device used may have been
--                          more between the boundaries of spans
--   device_used_bound_bytes
--                          device used was no more than this
--   host_rss_peak_bytes    resident memory of the process
--   num_allocs             tensors allocated
--   num_segments           segments taken from the device; growth of an
--                          expandable segment is not counted: see device_calls
--   num_retries            how often the allocator had to flush its cache
SELECT
    spans.rank,
    spans.stage,
    COUNT(*) AS num_spans,
    SUM(spans.end_ns - spans.start_ns)::BIGINT AS duration_ns,
    (SUM(spans.end_ns - spans.start_ns) * MAX(stated.fraction))::BIGINT
        AS duration_error_ns,
    MAX(spans.allocated_peak_bytes) AS allocated_peak_bytes,
    MAX(spans.reserved_peak_bytes) AS reserved_peak_bytes,
    COALESCE(BOOL_OR(ranks.peak_at_least), FALSE) AS peak_at_least,
    MAX(spans.active_peak_bytes) AS active_peak_bytes,
    MAX(spans.device_used_peak_bytes) AS device_used_peak_bytes,
    SUM(spans.num_samples)::BIGINT AS num_samples,
    MAX(spans.device_used_bound_bytes) AS device_used_bound_bytes,
    MAX(spans.host_rss_peak_bytes) AS host_rss_peak_bytes,
    SUM(spans.num_allocs)::BIGINT AS num_allocs,
    SUM(spans.num_segments)::BIGINT AS num_segments,
    SUM(spans.num_retries)::BIGINT AS num_retries
FROM spans
LEFT JOIN ranks ON spans.rank = ranks.rank
LEFT JOIN stated_time_error() AS stated ON TRUE
WHERE is_stage(spans.depth, spans.path)
GROUP BY spans.rank, spans.stage
ORDER BY spans.rank, MIN(spans.span_id)
