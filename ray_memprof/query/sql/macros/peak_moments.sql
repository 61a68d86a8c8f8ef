-- At which allocation did memory peak in each of some spans?
-- places: a small table (rank, stage, span_id); stage tells several places of
-- a rank apart. Each span was the innermost one when it reached its peak.
-- One row = a place whose events were recorded.
--   rank, stage  of the place
--   seq          of the first event at the peak
CREATE MACRO peak_moments(places) AS TABLE
WITH few AS (
    SELECT rank, stage, span_id
    FROM QUERY_TABLE(places)
    -- Optimiser hint: keeps DuckDB from building the join on allocs.
    LIMIT 65536
),

ranges AS (
    SELECT
        few.rank,
        few.stage,
        MIN(allocs.seq) AS first_seq,
        MAX(allocs.seq) AS last_seq
    FROM allocs
    INNER JOIN few
        ON allocs.rank = few.rank AND allocs.span_id = few.span_id
    WHERE allocs.action IN ('alloc', 'free_requested')
    GROUP BY few.rank, few.stage
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
)

SELECT
    rank,
    stage,
    ARG_MIN(seq, (-grown_bytes, seq)) AS seq
FROM running
WHERE action = 'alloc'
GROUP BY rank, stage
