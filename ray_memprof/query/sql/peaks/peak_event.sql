-- Which allocation took each rank to its peak of allocated memory, and when?
-- One row = a rank whose allocator events were recorded. If the same peak was
-- reached more than once, the row is the first time in the first of the
-- innermost spans.
--   rank             of the run
--   seq              of the event in allocs
--   t_ns             since 1970
--   span_id          innermost span at that time; 0: none
--   stage, component, path, step, block
--                    of that span; null: none
--   allocated_bytes  the peak
--   peak_at_least    it may have been more before the first event
--   size_bytes       of the tensor that made it
--   category         what that tensor is for
WITH known AS (
    SELECT
        rank,
        NULL::VARCHAR AS stage,
        allocated_peak_bytes AS peak_bytes
    FROM rank_peaks()
    -- Of the other ranks, the peak was outside of any span.
    WHERE is_in_span
),

-- A running sum over every event would take minutes on a large run. The spans
-- know their peaks already.
places AS (
    SELECT found.rank, found.span_id, known.peak_bytes
    FROM peak_places(known) AS found
    INNER JOIN known ON found.rank = known.rank
    -- Optimiser hint: keeps DuckDB from building the joins below on allocs.
    LIMIT 65536
),

-- The same as in peak_moments, which would have to read allocs once more to
-- find the event.
ranges AS (
    SELECT
        allocs.rank,
        ANY_VALUE(places.peak_bytes) AS peak_bytes,
        MIN(allocs.seq) AS first_seq,
        MAX(allocs.seq) AS last_seq
    FROM allocs
    INNER JOIN places
        ON allocs.rank = places.rank AND allocs.span_id = places.span_id
    WHERE allocs.action IN ('alloc', 'free_requested')
    GROUP BY allocs.rank
),

-- Ranks whose peak is in no span. Their events are first summed in batches of
-- 32; only batches in which the peak may be are read event by event.
bare AS (
    SELECT rank
    FROM (SELECT DISTINCT rank FROM allocs)
    WHERE rank NOT IN (SELECT rank FROM ranges)
    LIMIT 65536
),

signed AS NOT MATERIALIZED (
    SELECT
        rank,
        seq,
        seq >> 5 AS batch,
        t_ns,
        span_id,
        category,
        IF(action = 'alloc', size_bytes, -size_bytes) AS bytes
    FROM allocs
    WHERE action IN ('alloc', 'free_requested')
),

batches AS (
    SELECT
        signed.rank,
        signed.batch,
        SUM(signed.bytes)::BIGINT AS bytes,
        COALESCE(SUM(signed.bytes) FILTER (WHERE signed.bytes > 0), 0)::BIGINT
            AS gained_bytes
    FROM signed
    INNER JOIN bare ON signed.rank = bare.rank
    GROUP BY signed.rank, signed.batch
),

followed AS (
    SELECT
        rank,
        batch,
        bytes,
        gained_bytes,
        (SUM(bytes) OVER (
            PARTITION BY rank ORDER BY batch
            ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
        ))::BIGINT - bytes AS before_bytes
    FROM batches
),

apart AS (
    SELECT rank, batch, before_bytes
    FROM followed
    QUALIFY
        before_bytes + gained_bytes
        >= MAX(before_bytes + bytes) OVER (PARTITION BY rank)
),

running AS (
    SELECT
        signed.rank,
        signed.seq,
        signed.t_ns,
        signed.span_id,
        signed.category,
        signed.bytes,
        ranges.peak_bytes,
        SUM(signed.bytes) OVER (
            PARTITION BY signed.rank ORDER BY signed.seq
            ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
        )::BIGINT AS grown_bytes
    FROM signed
    INNER JOIN ranges
        ON signed.rank = ranges.rank
        AND signed.seq BETWEEN ranges.first_seq AND ranges.last_seq
    UNION ALL
    SELECT
        signed.rank,
        signed.seq,
        signed.t_ns,
        signed.span_id,
        signed.category,
        signed.bytes,
        NULL AS peak_bytes,
        apart.before_bytes + SUM(signed.bytes) OVER (
            PARTITION BY signed.rank, signed.batch ORDER BY signed.seq
            ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
        )::BIGINT AS grown_bytes
    FROM signed
    INNER JOIN apart
        ON signed.rank = apart.rank AND signed.batch = apart.batch
),

highest AS (
    SELECT
        rank,
        seq,
        t_ns,
        span_id,
        category,
        bytes,
        COALESCE(peak_bytes, grown_bytes) AS allocated_bytes
    FROM running
    WHERE bytes > 0
    QUALIFY ROW_NUMBER() OVER (
        PARTITION BY rank ORDER BY grown_bytes DESC, seq
    ) = 1
)

SELECT
    highest.rank,
    highest.seq,
    highest.t_ns,
    highest.span_id,
    spans.stage,
    spans.component,
    spans.path,
    spans.step,
    spans.block,
    highest.allocated_bytes,
    COALESCE(ranks.peak_at_least, FALSE) AS peak_at_least,
    highest.bytes AS size_bytes,
    owned_category(highest.category, named.category) AS category
FROM highest
LEFT JOIN alloc_owners() AS named
    ON highest.rank = named.rank AND highest.seq = named.seq
LEFT JOIN spans
    ON highest.rank = spans.rank AND highest.span_id = spans.span_id
LEFT JOIN ranks ON highest.rank = ranks.rank
ORDER BY highest.rank
