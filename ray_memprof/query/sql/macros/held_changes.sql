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
    allocs.rank,
    allocs.seq,
    allocs.seq >> 5 AS batch,
    allocs.t_ns,
    allocs.span_id,
    owned_category(allocs.category, named.category) AS category,
    CASE allocs.action
        WHEN 'alloc' THEN allocs.size_bytes
        WHEN 'free_completed' THEN -allocs.size_bytes
        ELSE 0
    END AS active,
    CASE
        WHEN allocs.action IN ('segment_alloc', 'segment_map')
            THEN allocs.size_bytes
        WHEN allocs.action IN ('segment_free', 'segment_unmap')
            THEN -allocs.size_bytes
        ELSE 0
    END AS reserved
FROM allocs
LEFT JOIN owned_events() AS named
    ON allocs.rank = named.rank AND allocs.seq = named.seq
WHERE allocs.action != 'free_requested'
