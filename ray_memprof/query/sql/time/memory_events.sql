-- How much was held when a stage, a step or a change of models began and when
-- it ended?
-- One row = the start or the end of such a span, in order of time.
--   rank, name, stage, component, step, path   of the span
--   phase                   start or end
--   failed                  an exception left it, or its rank ended inside it
--   t_ns                    since 1970
--   allocated_bytes         tensors, at that moment
--   reserved_bytes          held by the allocator
--   active_bytes            allocated, or freed but not yet safe to reuse
--   device_used_bytes       in use on the device by anybody
--   host_rss_bytes          resident memory of the process
--   allocated_peak_bytes    the most inside; null at the start, like all below
--   reserved_peak_bytes     the most inside
--   active_peak_bytes       the most inside
--   device_used_peak_bytes  the most inside, as measured
--   num_samples             samples that measured it; 0: it may have been more
--                           between the boundaries of spans
--   peak_at_least           of allocated, reserved and active: the peak of the
--                           rank may be before the first event
WITH edges AS (
    SELECT UNNEST(['start', 'end']) AS phase
),

flags AS (
    SELECT rank, peak_at_least FROM ranks
)

SELECT
    spans.rank,
    spans.name,
    spans.stage,
    spans.component,
    spans.step,
    spans.path,
    edges.phase,
    spans.failed,
    IF(phase = 'start', start_ns, end_ns) AS t_ns,
    IF(phase = 'start', allocated_start_bytes, allocated_end_bytes)
        AS allocated_bytes,
    IF(phase = 'start', reserved_start_bytes, reserved_end_bytes)
        AS reserved_bytes,
    IF(phase = 'start', active_start_bytes, active_end_bytes) AS active_bytes,
    IF(phase = 'start', device_used_start_bytes, device_used_end_bytes)
        AS device_used_bytes,
    IF(phase = 'start', host_rss_start_bytes, host_rss_end_bytes)
        AS host_rss_bytes,
    IF(phase = 'end', allocated_peak_bytes, NULL) AS allocated_peak_bytes,
    IF(phase = 'end', reserved_peak_bytes, NULL) AS reserved_peak_bytes,
    IF(phase = 'end', active_peak_bytes, NULL) AS active_peak_bytes,
    IF(phase = 'end', device_used_peak_bytes, NULL) AS device_used_peak_bytes,
    IF(phase = 'end', num_samples, NULL) AS num_samples,
    IF(phase = 'end', COALESCE(flags.peak_at_least, FALSE), NULL)
        AS peak_at_least
FROM spans
CROSS JOIN edges
LEFT JOIN flags ON spans.rank = flags.rank
-- Blocks and other parts of a network are only in the table spans: thousands
-- of their events would hide the dozens that a reader wants.
WHERE
    is_stage(spans.depth, spans.path)
    OR spans.name LIKE 'load.%'
    OR spans.name LIKE 'residency.%'
-- Of rows with the same moment, that of the older span comes first.
ORDER BY t_ns, spans.rank, spans.span_id, edges.phase DESC
