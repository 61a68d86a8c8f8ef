-- By how much does each event of the allocator change what is held?
-- One row = an event that is not a request to free: the bytes are held until
-- the free is completed.
--   rank, seq, t_ns, span_id, category
--                    of the event
--   batch            the same number for 32 events in a row: for a first sum
--   active           bytes added to active memory; negative: taken from it
--   reserved         bytes added to reserved memory; negative: taken from it
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
