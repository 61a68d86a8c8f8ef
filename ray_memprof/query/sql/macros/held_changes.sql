-- By how much does each event of the allocator change what is held?
-- One row = an event, but for requests to free: those bytes are held until the
-- free is completed.
--   rank, seq, t_ns, span_id, category
--                    of the event
--   batch            32 events in a row have the same: what is summed up first
--   active           bytes that come to active memory, below 0: that leave it
--   reserved         the same of reserved memory
CREATE MACRO held_changes() AS TABLE
SELECT
    rank,
    seq,
    seq >> 5 AS batch,
    t_ns,
    span_id,
    category,
    CASE action
        WHEN 'alloc' THEN size_bytes
        WHEN 'free_completed' THEN -size_bytes
        ELSE 0
    END AS active,
    CASE
        WHEN action IN ('segment_alloc', 'segment_map') THEN size_bytes
        WHEN action IN ('segment_free', 'segment_unmap') THEN -size_bytes
        ELSE 0
    END AS reserved
FROM allocs
WHERE action != 'free_requested'
