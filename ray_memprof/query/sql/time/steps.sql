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
--   device_used_peak_bytes  in use on the device by anybody, as measured
--   num_samples             samples in the step; 0: device used may have been
--                           more between the boundaries of spans
--   num_allocs              tensors allocated
SELECT
    rank,
    stage,
    step,
    start_ns,
    end_ns - start_ns AS duration_ns,
    ((end_ns - start_ns) * stated.fraction)::BIGINT AS duration_error_ns,
    allocated_peak_bytes,
    reserved_peak_bytes,
    device_used_peak_bytes,
    num_samples,
    num_allocs
FROM spans
LEFT JOIN stated_time_error() AS stated ON TRUE
WHERE
    is_stage(depth, path)
    AND step IS NOT NULL
ORDER BY rank, span_id
