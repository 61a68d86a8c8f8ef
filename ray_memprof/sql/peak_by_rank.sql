-- What is the most memory that each rank held, and where was it?
-- One row = a rank of which a span or a sample was recorded; samples count for
-- all but active.
--   rank                   of the run
--   allocated_peak_bytes   tensors, as the allocator counts them
--   reserved_peak_bytes    held by the allocator
--   active_peak_bytes      allocated and not yet safe to reuse; null: no span
--   device_used_peak_bytes in use on the device by anybody
--   host_rss_peak_bytes    resident memory of the process
--   device_total_bytes     memory of the device; null: not known
--   stage, path, step      innermost span in which allocated memory peaked;
--                          null where that was outside of all, step also
--                          outside the loop
WITH peaks AS (
    SELECT
        rank,
        MAX(allocated_peak_bytes) AS allocated_peak_bytes,
        MAX(reserved_peak_bytes) AS reserved_peak_bytes,
        MAX(active_peak_bytes) AS active_peak_bytes,
        MAX(device_used_peak_bytes) AS device_used_peak_bytes,
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
        MAX(host_rss_bytes) AS host_rss_bytes
    FROM samples
    GROUP BY rank
),

seen AS (
    SELECT rank FROM peaks
    UNION
    SELECT rank FROM sampled
),

places AS (
    SELECT rank, stage, path, step
    FROM spans
    QUALIFY ROW_NUMBER() OVER (
        PARTITION BY rank
        ORDER BY allocated_peak_bytes DESC, depth DESC, span_id
    ) = 1
)

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
    peaks.active_peak_bytes,
    GREATEST(peaks.device_used_peak_bytes, sampled.device_used_bytes)
        AS device_used_peak_bytes,
    GREATEST(peaks.host_rss_peak_bytes, sampled.host_rss_bytes)
        AS host_rss_peak_bytes,
    ranks.device_total_bytes,
    places.stage,
    places.path,
    places.step
FROM seen
LEFT JOIN peaks ON seen.rank = peaks.rank
LEFT JOIN sampled ON seen.rank = sampled.rank
LEFT JOIN ranks ON seen.rank = ranks.rank
LEFT JOIN places
    ON seen.rank = places.rank
    AND COALESCE(
        GREATEST(ranks.allocated_peak_bytes, sampled.allocated_bytes)
        <= peaks.allocated_peak_bytes,
        TRUE
    )
ORDER BY seen.rank
