-- What ran when, and how much memory did it hold?
-- One row = a span, in order of time; if two begin at once, the outer one
-- comes first.
--   rank, span_id, name, path  of the span
--   component, step, block, branch, failed
--   start_ns, end_ns           since 1970
--   allocated_peak_bytes       the most inside: tensors
--   reserved_peak_bytes        the most inside: held by the allocator
--   device_used_peak_bytes     the most inside: in use on the device by anybody
--   peak_at_least              allocated and reserved may have been more before
--                              the first event; null: no
--   num_allocs                 tensors allocated inside it
SELECT
    spans.rank,
    spans.span_id,
    spans.name,
    spans.path,
    spans.component,
    spans.step,
    spans.block,
    spans.branch,
    spans.failed,
    spans.start_ns,
    spans.end_ns,
    spans.allocated_peak_bytes,
    spans.reserved_peak_bytes,
    spans.device_used_peak_bytes,
    IF(ranks.peak_at_least, TRUE, NULL) AS peak_at_least,
    spans.num_allocs
FROM spans
LEFT JOIN ranks ON spans.rank = ranks.rank
ORDER BY spans.rank, spans.start_ns, spans.depth, spans.span_id
