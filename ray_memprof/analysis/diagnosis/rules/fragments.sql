-- Rule: does the allocator take more than it ever has in use at once?
-- One row = the ranks on which it does.
--   ranks          these ranks
--   stage          in which reserved memory peaked, on the worst of them
--   component      null
--   bytes          peak of reserved - peak of active, the most on any of them.
--                  Without gaps between blocks the two would be equal, so that
--                  expandable segments cannot give back more. If several CUDA
--                  streams hold memory at the peak of reserved, it is at most
--                  the sum over streams of: what the stream holds then - the
--                  peak of its active. Streams share no blocks: what one
--                  stream leaves unused while another one peaks is not a gap
--   is_peak        true
--   num_streams    streams that hold memory at the peak of reserved, on the
--                  worst of these ranks; also 1 if that is not recorded
--   is_expandable, wants_expandable, allocator_variable, allocator_conf,
--   workload       see settings
-- Threshold: 8 % of the reserved peak, and at least 256 MiB. Recorded runs in
-- which nothing was done to lower the peak have 4 % on one H200, and 5 and 7 %
-- on four. It cannot be 0, since pages of 2 MiB are taken whole.
WITH places AS (
    SELECT
        rank,
        -- The span of a whole script comes last: it is around all modules.
        ARG_MIN(stage, (-reserved_peak_bytes, path = 'script', span_id))
            AS stage
    FROM spans
    GROUP BY rank
),

slack AS (
    SELECT
        peaks.rank,
        places.stage,
        peaks.reserved_peak_bytes,
        GREATEST(0.08 * peaks.reserved_peak_bytes, 268435456)
            AS least_bytes,
        peaks.reserved_peak_bytes
            - GREATEST(
                peaks.active_peak_bytes,
                peaks.allocated_peak_bytes
            ) AS bytes
    FROM rank_peaks() AS peaks
    INNER JOIN places ON peaks.rank = places.rank
    WHERE bytes >= least_bytes
    -- Optimiser hint: keeps DuckDB from building the join on allocs.
    LIMIT 65536
),

segments AS (
    SELECT
        allocs.rank,
        allocs.seq,
        allocs.stream,
        IF(
            allocs.action IN ('segment_alloc', 'segment_map'),
            allocs.size_bytes,
            -allocs.size_bytes
        ) AS bytes
    FROM allocs
    INNER JOIN slack ON allocs.rank = slack.rank
    WHERE
        allocs.action IN (
            'segment_alloc', 'segment_map', 'segment_free', 'segment_unmap'
        )
),

running AS (
    SELECT
        rank,
        seq,
        SUM(bytes) OVER (
            PARTITION BY rank ORDER BY seq
            ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
        ) AS reserved_bytes
    FROM segments
),

-- A rank has no row if its events do not reach the peak that was counted.
moments AS (
    SELECT running.rank, MIN(running.seq) AS seq
    FROM running
    INNER JOIN slack
        ON running.rank = slack.rank
        AND running.reserved_bytes = slack.reserved_peak_bytes
    GROUP BY running.rank
),

pools AS (
    SELECT
        segments.rank,
        segments.stream,
        SUM(segments.bytes) AS bytes,
        -- One number for rank and stream: a cheap key for millions of rows.
        ROW_NUMBER() OVER (ORDER BY segments.rank, segments.stream) AS number
    FROM segments
    INNER JOIN moments
        ON segments.rank = moments.rank AND segments.seq <= moments.seq
    GROUP BY segments.rank, segments.stream
    HAVING SUM(segments.bytes) > 0
    QUALIFY COUNT(*) OVER (PARTITION BY segments.rank) > 1
    LIMIT 65536
),

used AS (
    SELECT
        pools.number,
        SUM(
            IF(allocs.action = 'alloc', allocs.size_bytes, -allocs.size_bytes)
        ) OVER (
            PARTITION BY pools.number ORDER BY allocs.seq
            ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
        ) AS active_bytes
    FROM allocs
    INNER JOIN pools
        ON allocs.rank = pools.rank AND allocs.stream = pools.stream
    WHERE allocs.action IN ('alloc', 'free_completed')
),

most AS (
    SELECT number, MAX(active_bytes) AS active_bytes
    FROM used
    GROUP BY number
),

gaps AS (
    SELECT
        pools.rank,
        SUM(GREATEST(pools.bytes - COALESCE(most.active_bytes, 0), 0))::BIGINT
            AS bytes,
        COUNT(*) AS num_streams
    FROM pools
    LEFT JOIN most ON pools.number = most.number
    GROUP BY pools.rank
),

found AS (
    SELECT
        slack.rank,
        slack.stage,
        LEAST(slack.bytes, gaps.bytes) AS bytes,
        COALESCE(gaps.num_streams, 1) AS num_streams
    FROM slack
    LEFT JOIN gaps ON slack.rank = gaps.rank
    WHERE COALESCE(gaps.bytes, slack.bytes) >= slack.least_bytes
)

SELECT
    LIST(found.rank ORDER BY found.rank) AS ranks,
    ARG_MIN(found.stage, (-found.bytes, found.rank)) AS stage,
    NULL::VARCHAR AS component,
    MAX(found.bytes) AS bytes,
    TRUE AS is_peak,
    ARG_MIN(found.num_streams, (-found.bytes, found.rank)) AS num_streams,
    ANY_VALUE(settings.is_expandable) AS is_expandable,
    ANY_VALUE(settings.wants_expandable) AS wants_expandable,
    ANY_VALUE(settings.allocator_variable) AS allocator_variable,
    ANY_VALUE(settings.allocator_conf) AS allocator_conf,
    ANY_VALUE(settings.workload) AS workload
FROM found
CROSS JOIN settings
HAVING COUNT(*) > 0
