-- Which allocation took each rank to its peak of allocated memory, and when?
-- One row = a rank whose allocator events were recorded. Where the same peak
-- was reached more than once: the first time in the first of the innermost
-- spans.
--   rank             of the run
--   seq              of the event in allocs
--   t_ns             since 1970
--   span_id          innermost span then; 0: none
--   stage, component, path, step, block
--                    of that span; null: none
--   allocated_bytes  the peak
--   size_bytes       of the tensor that made it
--   category         what that tensor is for
WITH known AS (
    SELECT rank, MAX(allocated_peak_bytes) AS peak_bytes
    FROM spans
    GROUP BY rank
),

-- A running sum over every event would take minutes on a large run. The spans
-- know their peaks already. The innermost span that reached the peak, and did
-- not begin at it, allocated the tensor itself.
places AS (
    SELECT spans.rank, spans.span_id, known.peak_bytes
    FROM spans
    INNER JOIN known
        ON spans.rank = known.rank
        AND spans.allocated_peak_bytes = known.peak_bytes
        AND spans.allocated_start_bytes < known.peak_bytes
    LEFT JOIN ranks ON spans.rank = ranks.rank
    -- Otherwise the peak was outside of any span.
    WHERE COALESCE(
        ranks.replayed_allocated_peak_bytes <= known.peak_bytes, TRUE
    )
    QUALIFY ROW_NUMBER() OVER (
        PARTITION BY spans.rank
        ORDER BY spans.depth DESC, spans.span_id
    ) = 1
    -- Says that it is small: DuckDB would guess it larger than allocs, and keep
    -- all of allocs in memory for the joins below.
    LIMIT 65536
),

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

wanted AS (
    SELECT rank, peak_bytes, first_seq, last_seq FROM ranges
    UNION ALL
    -- No span to go by: from the first event to the last one.
    SELECT
        rank,
        NULL AS peak_bytes,
        0 AS first_seq,
        9223372036854775807 AS last_seq
    FROM (SELECT DISTINCT rank FROM allocs)
    WHERE rank NOT IN (SELECT rank FROM ranges)
    LIMIT 65536
),

running AS (
    SELECT
        allocs.rank,
        allocs.seq,
        allocs.t_ns,
        allocs.span_id,
        allocs.size_bytes,
        allocs.category,
        allocs.action,
        wanted.peak_bytes,
        SUM(
            IF(allocs.action = 'alloc', allocs.size_bytes, -allocs.size_bytes)
        ) OVER (
            PARTITION BY allocs.rank ORDER BY allocs.seq
            ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
        )::BIGINT AS grown_bytes
    FROM allocs
    INNER JOIN wanted
        ON allocs.rank = wanted.rank
        AND allocs.seq BETWEEN wanted.first_seq AND wanted.last_seq
    WHERE allocs.action IN ('alloc', 'free_requested')
),

peaks AS (
    SELECT
        rank,
        seq,
        t_ns,
        span_id,
        size_bytes,
        category,
        COALESCE(peak_bytes, grown_bytes) AS allocated_bytes
    FROM running
    WHERE action = 'alloc'
    QUALIFY ROW_NUMBER() OVER (
        PARTITION BY rank ORDER BY grown_bytes DESC, seq
    ) = 1
)

SELECT
    peaks.rank,
    peaks.seq,
    peaks.t_ns,
    peaks.span_id,
    spans.stage,
    spans.component,
    spans.path,
    spans.step,
    spans.block,
    peaks.allocated_bytes,
    peaks.size_bytes,
    peaks.category
FROM peaks
LEFT JOIN spans ON peaks.rank = spans.rank AND peaks.span_id = spans.span_id
ORDER BY peaks.rank
