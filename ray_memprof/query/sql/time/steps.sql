-- How much memory and time does each step take?
-- One row = a step on a rank, in the order the steps began.
--   rank                    of the run
--   stage                   denoise; in a script, the module that is called
--   step                    of the denoise loop; in a script, how many calls
--                           of the module came before this one
--   start_ns                since 1970
--   duration_ns             from its beginning to its end
--   duration_error_ns       if predicted, it may be off by so much either way;
--                           null: it is measured, or the error is not known
--   allocated_peak_bytes    tensors, as the allocator counts them
--   reserved_peak_bytes     held by the allocator
--   peak_at_least           both may have been more before the first event
--   device_used_peak_bytes  in use on the device by anybody, as measured
--   num_samples             samples in the step; 0: device used may have been
--                           more between the boundaries of spans
--   num_allocs              tensors allocated
SELECT
    spans.rank,
    spans.stage,
    spans.step,
    spans.start_ns,
    spans.end_ns - spans.start_ns AS duration_ns,
    ((spans.end_ns - spans.start_ns) * stated.fraction)::BIGINT
        AS duration_error_ns,
    spans.allocated_peak_bytes,
    spans.reserved_peak_bytes,
    COALESCE(ranks.peak_at_least, FALSE) AS peak_at_least,
    spans.device_used_peak_bytes,
    spans.num_samples,
    spans.num_allocs
FROM spans
LEFT JOIN ranks ON spans.rank = ranks.rank
LEFT JOIN stated_time_error() AS stated ON TRUE
WHERE
    is_stage(spans.depth, spans.path)
    AND spans.step IS NOT NULL
ORDER BY spans.rank, spans.span_id
