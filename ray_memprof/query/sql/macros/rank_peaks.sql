-- What is the most memory that each rank held?
-- One row = a rank of which a span or a sample was recorded. Samples count for
-- every peak except active.
--   rank                    of the run
--   allocated_peak_bytes    tensors, as the allocator counts them
--   reserved_peak_bytes     held by the allocator
--   peak_at_least           both may have been more before the first event
--   active_peak_bytes       allocated, or freed but not yet safe to reuse: no
--                           less than what is allocated; null: no span
--   device_used_peak_bytes  in use on the device by anybody, as measured
--   num_samples             samples that measured it; 0: it may have been more
--                           between the boundaries of spans
--   device_used_bound_bytes device used was no more than this; null: no span
--   host_rss_peak_bytes     resident memory of the process
--   device_total_bytes      memory of the device; null: not known
--   is_in_span              a span reached the peak of allocated memory
CREATE MACRO rank_peaks() AS TABLE
WITH peaks AS (
    SELECT
        rank,
        MAX(allocated_peak_bytes) AS allocated_peak_bytes,
        MAX(reserved_peak_bytes) AS reserved_peak_bytes,
        MAX(active_peak_bytes) AS active_peak_bytes,
        MAX(device_used_peak_bytes) AS device_used_peak_bytes,
        MAX(device_used_bound_bytes) AS device_used_bound_bytes,
        MAX(num_samples) AS num_samples,
        MAX(host_rss_peak_bytes) AS host_rss_peak_bytes
    FROM spans
    GROUP BY rank
),

sampled AS (
    SELECT
        rank,
        MAX(allocated_bytes) AS allocated_bytes,
        MAX(reserved_bytes) AS reserved_bytes,
        MAX(device_used_bytes) AS device_used_bytes,
        MAX(host_rss_bytes) AS host_rss_bytes,
        COUNT(*) AS num_samples
    FROM samples
    GROUP BY rank
),

seen AS (
    SELECT rank FROM peaks
    UNION
    SELECT rank FROM sampled
),

together AS (
    SELECT
        seen.rank,
        GREATEST(
            peaks.allocated_peak_bytes,
            ranks.allocated_peak_bytes,
            sampled.allocated_bytes
        ) AS allocated_peak_bytes,
        GREATEST(
            peaks.reserved_peak_bytes,
            ranks.reserved_peak_bytes,
            sampled.reserved_bytes
        ) AS reserved_peak_bytes,
        COALESCE(ranks.peak_at_least, FALSE) AS peak_at_least,
        IF(
            peaks.active_peak_bytes IS NULL,
            NULL,
            GREATEST(
                peaks.active_peak_bytes,
                ranks.allocated_peak_bytes,
                sampled.allocated_bytes
            )
        ) AS active_peak_bytes,
        GREATEST(peaks.device_used_peak_bytes, sampled.device_used_bytes)
            AS device_used_peak_bytes,
        GREATEST(peaks.num_samples, sampled.num_samples) AS num_samples,
        peaks.device_used_bound_bytes,
        peaks.reserved_peak_bytes AS reserved_in_spans,
        COALESCE(
            GREATEST(
                ranks.allocated_peak_bytes,
                ranks.replayed_allocated_peak_bytes,
                sampled.allocated_bytes,
                0
            ) <= peaks.allocated_peak_bytes,
            FALSE
        ) AS is_in_span,
        GREATEST(peaks.host_rss_peak_bytes, sampled.host_rss_bytes)
            AS host_rss_peak_bytes,
        ranks.device_total_bytes
    FROM seen
    LEFT JOIN peaks ON seen.rank = peaks.rank
    LEFT JOIN sampled ON seen.rank = sampled.rank
    LEFT JOIN ranks ON seen.rank = ranks.rank
)

SELECT
    rank,
    allocated_peak_bytes,
    reserved_peak_bytes,
    peak_at_least,
    active_peak_bytes,
    device_used_peak_bytes,
    num_samples,
    -- The bounds hold inside spans. Between spans more may have been reserved,
    -- but never more than the device has.
    IF(
        device_used_bound_bytes IS NULL,
        NULL,
        GREATEST(
            device_used_peak_bytes,
            device_used_bound_bytes,
            LEAST(
                device_used_bound_bytes
                    + reserved_peak_bytes - reserved_in_spans,
                NULLIF(device_total_bytes, 0)
            )
        )
    ) AS device_used_bound_bytes,
    host_rss_peak_bytes,
    device_total_bytes,
    is_in_span
FROM together
