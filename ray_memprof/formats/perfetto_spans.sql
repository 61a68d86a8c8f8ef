-- What ran when, and how much memory did it hold?
-- One row = a span, in order of time; if two begin at once, the outer one
-- comes first.
--   rank, span_id, name, path  of the span
--   component, step, block, branch, failed
--   start_ns, end_ns           since 1970
--   allocated_peak_bytes       the most inside: tensors
--   reserved_peak_bytes        the most inside: held by the allocator
--   device_used_peak_bytes     the most inside: in use on the device by anybody
--   num_allocs                 tensors allocated inside it
SELECT
    rank,
    span_id,
    name,
    path,
    component,
    step,
    block,
    branch,
    failed,
    start_ns,
    end_ns,
    allocated_peak_bytes,
    reserved_peak_bytes,
    device_used_peak_bytes,
    num_allocs
FROM spans
ORDER BY rank, start_ns, depth, span_id
