-- Evidence: what was alive when a stage peaked, where a rule wants to know?
-- One row = a component, a category and a requested size on a rank in a stage;
-- none where no allocator events were recorded. Asked for: ranks that hold more
-- than others, those that they are compared with, the fullest rank in denoise.
--   rank, stage      of the run
--   component        of the span of birth; null: none
--   category         what the tensors are for
--   requested_bytes  of one of them
--   bytes            of all of them, as the allocator counts them
--   num_tensors      of them
WITH asked AS (
    SELECT rank, stage FROM skews
    UNION
    SELECT typical_rank, stage FROM skews
    UNION
    SELECT ARG_MIN(rank, (-allocated_peak_bytes, rank)), stage
    FROM stage_peaks
    WHERE stage = 'denoise'
    GROUP BY stage
),

places AS (
    SELECT stage_peaks.rank, stage_peaks.stage, stage_peaks.span_id
    FROM stage_peaks
    INNER JOIN asked
        ON stage_peaks.rank = asked.rank AND stage_peaks.stage = asked.stage
    -- Says that it is small: see alive_at_peak.
    LIMIT 65536
),

ranges AS (
    SELECT
        allocs.rank,
        places.stage,
        MIN(allocs.seq) AS first_seq,
        MAX(allocs.seq) AS last_seq
    FROM allocs
    INNER JOIN places
        ON allocs.rank = places.rank AND allocs.span_id = places.span_id
    WHERE allocs.action IN ('alloc', 'free_requested')
    GROUP BY allocs.rank, places.stage
    LIMIT 65536
),

running AS (
    SELECT
        ranges.rank,
        ranges.stage,
        allocs.seq,
        allocs.action,
        SUM(
            IF(allocs.action = 'alloc', allocs.size_bytes, -allocs.size_bytes)
        ) OVER (
            PARTITION BY ranges.rank, ranges.stage ORDER BY allocs.seq
            ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
        ) AS grown_bytes
    FROM allocs
    INNER JOIN ranges
        ON allocs.rank = ranges.rank
        AND allocs.seq BETWEEN ranges.first_seq AND ranges.last_seq
    WHERE allocs.action IN ('alloc', 'free_requested')
),

peaks AS (
    SELECT rank, stage, ARG_MIN(seq, (-grown_bytes, seq)) AS seq
    FROM running
    WHERE action = 'alloc'
    GROUP BY rank, stage
    LIMIT 65536
),

-- As in alive_at_peak.
last AS (
    SELECT
        peaks.rank,
        peaks.stage,
        ARG_MAX(
            IF(allocs.action = 'alloc', allocs.size_bytes, 0), allocs.seq
        ) AS size_bytes,
        ARG_MAX(allocs.requested_bytes, allocs.seq) AS requested_bytes,
        ARG_MAX(allocs.span_id, allocs.seq) AS span_id,
        NULLIF(ARG_MAX(COALESCE(allocs.category, ''), allocs.seq), '')
            AS category
    FROM allocs
    INNER JOIN peaks ON allocs.rank = peaks.rank AND allocs.seq <= peaks.seq
    WHERE allocs.action IN ('alloc', 'free_requested')
    GROUP BY peaks.rank, peaks.stage, allocs.address
)

SELECT
    last.rank,
    last.stage,
    spans.component,
    last.category,
    last.requested_bytes,
    SUM(last.size_bytes)::BIGINT AS bytes,
    COUNT(*) AS num_tensors
FROM last
LEFT JOIN spans ON last.rank = spans.rank AND last.span_id = spans.span_id
WHERE last.size_bytes > 0
GROUP BY
    last.rank,
    last.stage,
    spans.component,
    last.category,
    last.requested_bytes
