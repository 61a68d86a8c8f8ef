-- What is the most memory that each rank held, and where was it?
-- One row = a rank of which a span or a sample was recorded. Samples count for
-- every peak except active.
--   rank                    of the run
--   allocated_peak_bytes    tensors, as the allocator counts them
--   reserved_peak_bytes     held by the allocator
--   peak_at_least           both may have been more before the first event
--   active_peak_bytes       allocated, or freed but not yet safe to reuse;
--                           null: no span
--   device_used_peak_bytes  in use on the device by anybody, as measured
--   num_samples             samples that measured it; 0: it may have been more
--                           between the boundaries of spans
--   device_used_bound_bytes device used was no more than this; null: no span
--   host_rss_peak_bytes     resident memory of the process
--   device_total_bytes      memory of the device; null: not known
--   stage, path, step       innermost span in which allocated memory peaked
--                           (see peak_event); null: the peak was outside of
--                           all spans; step is also null outside the loop
WITH peaks AS (
    SELECT
        rank,
        allocated_peak_bytes,
        reserved_peak_bytes,
        peak_at_least,
        active_peak_bytes,
        device_used_peak_bytes,
        num_samples,
        device_used_bound_bytes,
        host_rss_peak_bytes,
        device_total_bytes,
        is_in_span
    FROM rank_peaks()
),

known AS (
    SELECT
        rank,
        NULL::VARCHAR AS stage,
        allocated_peak_bytes AS peak_bytes
    FROM peaks
    WHERE is_in_span
),

reached AS (
    SELECT rank, span_id FROM peak_places(known)
),

-- If every span with this peak also began at it, take the first of the
-- innermost spans.
begun AS (
    SELECT
        known.rank,
        ARG_MIN(spans.span_id, (-spans.depth, spans.span_id)) AS span_id
    FROM known
    INNER JOIN spans
        ON known.rank = spans.rank
        AND known.peak_bytes = spans.allocated_peak_bytes
    GROUP BY known.rank
),

places AS (
    SELECT rank, span_id FROM peak_event
    UNION ALL
    -- Ranks without allocator events.
    SELECT begun.rank, COALESCE(reached.span_id, begun.span_id)
    FROM begun
    LEFT JOIN reached ON begun.rank = reached.rank
    WHERE begun.rank NOT IN (SELECT peak_event.rank FROM peak_event)
)

SELECT
    peaks.rank,
    peaks.allocated_peak_bytes,
    peaks.reserved_peak_bytes,
    peaks.peak_at_least,
    peaks.active_peak_bytes,
    peaks.device_used_peak_bytes,
    peaks.num_samples,
    peaks.device_used_bound_bytes,
    peaks.host_rss_peak_bytes,
    peaks.device_total_bytes,
    spans.stage,
    spans.path,
    spans.step
FROM peaks
LEFT JOIN places ON peaks.rank = places.rank
LEFT JOIN spans
    ON places.rank = spans.rank AND places.span_id = spans.span_id
ORDER BY peaks.rank
