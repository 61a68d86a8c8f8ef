-- Evidence: which ranks ended because the device was full, and what was there?
-- One row = such a rank.
--   rank             the rank
--   stage, path      innermost span that the error left; of an imported rank
--                    the one in which the request failed; empty: none
--   step             of that span; -1: outside the denoise loop
--   oom_by           what could not get memory; null: torch's allocator
--   seq, t_ns        of the last request that failed. If the allocator did not
--                    make it, of the last event before it. null, like all that
--                    follows from it: no events were recorded
--   asked_bytes      of that request; null: it was not the allocator's
--   free_bytes       free on the device then; null: not known
--   allocated_bytes  tensors then; without events the most in that span
--   reserved_bytes   held by the allocator then, after it gave back what it
--                    could; without events the most in that span
WITH full_ranks AS (
    SELECT rank, path, step, oom_by, oom_free_bytes
    FROM ranks
    WHERE status = 'oom'
),

refused_to_allocator AS (
    SELECT
        allocs.rank,
        MAX(allocs.seq) AS seq,
        MAX(allocs.t_ns) AS t_ns,
        ARG_MAX(allocs.span_id, allocs.seq) AS span_id,
        ARG_MAX(allocs.requested_bytes, allocs.seq) AS asked_bytes,
        -- An oom event has the free bytes in place of an address.
        TRY_CAST(ARG_MAX(allocs.address, allocs.seq) AS BIGINT) AS free_bytes
    FROM allocs
    INNER JOIN full_ranks ON allocs.rank = full_ranks.rank
    WHERE allocs.action = 'oom' AND full_ranks.oom_by IS NULL
    GROUP BY allocs.rank
    LIMIT 65536
),

-- The allocator does not notice a request of others to the device. So the end
-- of the innermost span that failed is taken as the moment: until then, the
-- error frees nothing.
failed_spans AS (
    SELECT full_ranks.rank, MAX(spans.end_ns) AS end_ns
    FROM full_ranks
    INNER JOIN spans
        ON full_ranks.rank = spans.rank AND full_ranks.path = spans.path
    WHERE full_ranks.oom_by IS NOT NULL AND spans.failed
    GROUP BY full_ranks.rank
),

refused_to_others AS (
    SELECT
        allocs.rank,
        MAX(allocs.seq) AS seq,
        MAX(allocs.t_ns) AS t_ns,
        -- Such a rank says itself which span that was.
        NULL::BIGINT AS span_id,
        NULL::BIGINT AS asked_bytes,
        NULL::BIGINT AS free_bytes
    FROM allocs
    INNER JOIN failed_spans
        ON allocs.rank = failed_spans.rank
        AND allocs.t_ns <= failed_spans.end_ns
    GROUP BY allocs.rank
    LIMIT 65536
),

refused AS (
    SELECT rank, seq, t_ns, span_id, asked_bytes, free_bytes
    FROM refused_to_allocator
    UNION ALL
    SELECT rank, seq, t_ns, span_id, asked_bytes, free_bytes
    FROM refused_to_others
),

held AS (
    SELECT
        allocs.rank,
        SUM(
            CASE allocs.action
                WHEN 'alloc' THEN allocs.size_bytes
                WHEN 'free_requested' THEN -allocs.size_bytes
                ELSE 0
            END
        )::BIGINT AS allocated_bytes,
        SUM(
            CASE
                WHEN allocs.action IN ('segment_alloc', 'segment_map')
                    THEN allocs.size_bytes
                WHEN allocs.action IN ('segment_free', 'segment_unmap')
                    THEN -allocs.size_bytes
                ELSE 0
            END
        )::BIGINT AS reserved_bytes
    FROM allocs
    INNER JOIN refused
        ON allocs.rank = refused.rank AND allocs.seq <= refused.seq
    GROUP BY allocs.rank
),

named AS (
    SELECT
        full_ranks.rank,
        full_ranks.oom_by,
        full_ranks.oom_free_bytes,
        COALESCE(NULLIF(full_ranks.path, ''), spans.path, '') AS path,
        IF(full_ranks.path = '', COALESCE(spans.step, -1), full_ranks.step)
            AS step
    FROM full_ranks
    LEFT JOIN refused ON full_ranks.rank = refused.rank
    LEFT JOIN spans
        ON refused.rank = spans.rank AND refused.span_id = spans.span_id
),

places AS (
    SELECT
        named.rank,
        named.path,
        named.step,
        named.oom_by,
        named.oom_free_bytes,
        ARG_MAX(spans.stage, spans.span_id) AS stage,
        MAX(spans.allocated_peak_bytes) AS allocated_bytes,
        MAX(spans.reserved_peak_bytes) AS reserved_bytes
    FROM named
    LEFT JOIN spans ON named.rank = spans.rank AND named.path = spans.path
    GROUP BY
        named.rank,
        named.path,
        named.step,
        named.oom_by,
        named.oom_free_bytes
)

SELECT
    places.rank,
    COALESCE(places.stage, SPLIT_PART(places.path, '/', 1)) AS stage,
    places.path,
    places.step,
    places.oom_by,
    refused.seq,
    refused.t_ns,
    refused.asked_bytes,
    COALESCE(refused.free_bytes, places.oom_free_bytes) AS free_bytes,
    COALESCE(held.allocated_bytes, places.allocated_bytes, 0)
        AS allocated_bytes,
    COALESCE(held.reserved_bytes, places.reserved_bytes, 0) AS reserved_bytes
FROM places
LEFT JOIN refused ON places.rank = refused.rank
LEFT JOIN held ON places.rank = held.rank
