-- What was seen of the memory of each rank, and when?
-- One row = a moment: a span began or ended, a sample was taken, or a span
-- reached a peak that neither its ends nor the spans in it have. Such a peak is
-- put in the middle of its span: only events tell when exactly it was.
--   rank, t_ns         since 1970
--   allocated_bytes    tensors; null: not seen at this moment
--   reserved_bytes     held by the allocator; null: not seen
--   device_used_bytes  in use on the device by anybody; null: not seen
CREATE MACRO seen_moments() AS TABLE
WITH children AS (
    SELECT
        rank,
        parent_id,
        MAX(allocated_peak_bytes) AS allocated_bytes,
        MAX(reserved_peak_bytes) AS reserved_bytes,
        MAX(device_used_peak_bytes) AS device_used_bytes
    FROM spans
    GROUP BY rank, parent_id
)

SELECT
    rank,
    start_ns AS t_ns,
    allocated_start_bytes AS allocated_bytes,
    reserved_start_bytes AS reserved_bytes,
    device_used_start_bytes AS device_used_bytes
FROM spans
UNION ALL
SELECT
    rank,
    end_ns,
    allocated_end_bytes,
    reserved_end_bytes,
    device_used_end_bytes
FROM spans
UNION ALL
SELECT
    rank,
    t_ns,
    allocated_bytes,
    reserved_bytes,
    device_used_bytes
FROM samples
UNION ALL
SELECT
    spans.rank,
    (spans.start_ns + spans.end_ns) // 2,
    IF(
        spans.allocated_peak_bytes
        > GREATEST(
            children.allocated_bytes,
            spans.allocated_start_bytes,
            spans.allocated_end_bytes
        ),
        spans.allocated_peak_bytes,
        NULL
    ),
    IF(
        spans.reserved_peak_bytes
        > GREATEST(
            children.reserved_bytes,
            spans.reserved_start_bytes,
            spans.reserved_end_bytes
        ),
        spans.reserved_peak_bytes,
        NULL
    ),
    IF(
        spans.device_used_peak_bytes
        > GREATEST(
            children.device_used_bytes,
            spans.device_used_start_bytes,
            spans.device_used_end_bytes
        ),
        spans.device_used_peak_bytes,
        NULL
    )
FROM spans
LEFT JOIN children
    ON spans.rank = children.rank AND spans.span_id = children.parent_id
