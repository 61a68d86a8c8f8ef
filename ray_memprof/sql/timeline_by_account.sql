-- Who held the memory of each rank over time, no peak lost?
-- One row = a moment of a rank; of each of 400 slices of the run's time, the
-- one with the most active memory, the last event, and the last end of a span.
--   rank                 of the run
--   slice                from 0 to 399
--   t_ns                 since 1970
--   is_peak              the one with the most active memory
--   active_bytes         tensors in the allocator: the sum of the next seven
--   weight_bytes, activation_bytes, communication_bytes, workspace_bytes,
--   cache_bytes, output_bytes
--                        by what the tensors are for
--   uncategorised_bytes  of them nobody said; without events all of active
--   fragmentation_bytes  reserved - active: held by the allocator, not in use
--   context_bytes, nccl_bytes, library_bytes, others_bytes, unexplained_bytes
--                        outside the allocator, at the last boundary of a span
-- A script may work before its first span and after its last one.
WITH reach AS (
    SELECT MIN(start_ns) AS first_ns, MAX(end_ns) AS last_ns FROM spans
    UNION ALL
    SELECT MIN(t_ns), MAX(t_ns) FROM samples
    UNION ALL
    SELECT MIN(t_ns), MAX(t_ns) FROM allocs
),

bounds AS (
    SELECT
        MIN(first_ns) AS first_ns,
        GREATEST(CEIL((MAX(last_ns) - MIN(first_ns) + 1) / 400), 1)::BIGINT
            AS slice_ns
    FROM reach
),

signed AS (
    SELECT
        rank,
        seq,
        t_ns,
        category,
        size_bytes * CASE action
            WHEN 'alloc' THEN 1 WHEN 'free_completed' THEN -1 ELSE 0
        END AS active,
        size_bytes * CASE action
            WHEN 'segment_alloc' THEN 1
            WHEN 'segment_map' THEN 1
            WHEN 'segment_free' THEN -1
            WHEN 'segment_unmap' THEN -1
            ELSE 0
        END AS reserved
    FROM allocs
),

-- An event may be early or late by the clock; by its number it is not.
ordered AS (
    SELECT
        signed.rank,
        signed.seq,
        signed.category,
        signed.active,
        signed.reserved,
        SUM(signed.active) OVER upto AS active_bytes,
        MAX(signed.t_ns) OVER upto AS t_ns
    FROM signed
    WHERE signed.active != 0 OR signed.reserved != 0
    WINDOW upto AS (
        PARTITION BY signed.rank ORDER BY signed.seq
        ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    )
),

sliced AS (
    SELECT
        ordered.rank,
        ordered.seq,
        ordered.t_ns,
        ordered.category,
        ordered.active,
        ordered.reserved,
        ordered.active_bytes,
        (ordered.t_ns - bounds.first_ns) // bounds.slice_ns AS slice
    FROM ordered
    CROSS JOIN bounds
),

ends AS (
    SELECT
        rank,
        slice,
        ARG_MAX(seq, (active_bytes, -seq)) AS peak_seq,
        ARG_MAX(t_ns, (active_bytes, -seq)) AS peak_ns,
        MAX(seq) AS last_seq,
        MAX(t_ns) AS last_ns
    FROM sliced
    GROUP BY rank, slice
),

-- Each event belongs to the next moment: the peak of its slice, or its end.
changes AS (
    SELECT
        sliced.rank,
        sliced.slice,
        sliced.seq <= ends.peak_seq AS is_peak,
        MAX(sliced.t_ns) AS t_ns,
        SUM(sliced.active) AS active,
        SUM(sliced.reserved) AS reserved,
        SUM(sliced.active) FILTER (WHERE sliced.category = 'weight')
            AS weight,
        SUM(sliced.active) FILTER (WHERE sliced.category = 'activation')
            AS activation,
        SUM(sliced.active) FILTER (WHERE sliced.category = 'communication')
            AS communication,
        SUM(sliced.active) FILTER (WHERE sliced.category = 'workspace')
            AS workspace,
        SUM(sliced.active) FILTER (WHERE sliced.category = 'cache')
            AS cache,
        SUM(sliced.active) FILTER (WHERE sliced.category = 'output')
            AS output
    FROM sliced
    INNER JOIN ends
        ON sliced.rank = ends.rank AND sliced.slice = ends.slice
    GROUP BY ALL
),

from_events AS (
    SELECT
        rank,
        slice,
        is_peak,
        t_ns,
        SUM(active) OVER upto AS active_bytes,
        SUM(reserved) OVER upto AS reserved_bytes,
        COALESCE(SUM(weight) OVER upto, 0) AS weight_bytes,
        COALESCE(SUM(activation) OVER upto, 0) AS activation_bytes,
        COALESCE(SUM(communication) OVER upto, 0) AS communication_bytes,
        COALESCE(SUM(workspace) OVER upto, 0) AS workspace_bytes,
        COALESCE(SUM(cache) OVER upto, 0) AS cache_bytes,
        COALESCE(SUM(output) OVER upto, 0) AS output_bytes
    FROM changes
    WINDOW upto AS (PARTITION BY rank ORDER BY slice, is_peak DESC)
),

children AS (
    SELECT
        rank,
        parent_id,
        MAX(active_peak_bytes) AS active_bytes
    FROM spans
    GROUP BY rank, parent_id
),

seen AS (
    SELECT
        rank,
        start_ns AS t_ns,
        active_start_bytes AS active_bytes,
        reserved_start_bytes AS reserved_bytes
    FROM spans
    UNION ALL
    SELECT
        rank,
        end_ns,
        active_end_bytes,
        reserved_end_bytes
    FROM spans
    UNION ALL
    -- A peak is put in the middle of the innermost span that saw it, unless
    -- that began or ended with it: when exactly it was, only events know.
    SELECT
        spans.rank,
        (spans.start_ns + spans.end_ns) // 2,
        spans.active_peak_bytes,
        spans.reserved_peak_bytes
    FROM spans
    LEFT JOIN children
        ON spans.rank = children.rank AND spans.span_id = children.parent_id
    WHERE
        spans.active_peak_bytes > GREATEST(
            children.active_bytes,
            spans.active_start_bytes,
            spans.active_end_bytes
        )
),

placed AS (
    SELECT
        seen.rank,
        seen.t_ns,
        seen.active_bytes,
        seen.reserved_bytes,
        (seen.t_ns - bounds.first_ns) // bounds.slice_ns AS slice
    FROM seen
    CROSS JOIN bounds
    WHERE seen.rank NOT IN (SELECT from_events.rank FROM from_events)
),

from_spans AS (
    SELECT
        rank,
        slice,
        t_ns,
        active_bytes,
        reserved_bytes,
        ROW_NUMBER() OVER (
            PARTITION BY rank, slice
            ORDER BY active_bytes DESC, t_ns, reserved_bytes
        ) = 1 AS is_peak,
        ROW_NUMBER() OVER (
            PARTITION BY rank, slice
            ORDER BY t_ns DESC, active_bytes, reserved_bytes
        ) = 1 AS is_last
    FROM placed
),

-- Memory outside the allocator changes after the last event of a slice, too.
boundaries AS (
    SELECT
        books.rank,
        (books.t_ns - bounds.first_ns) // bounds.slice_ns AS slice,
        MAX(books.t_ns) AS t_ns
    FROM books
    CROSS JOIN bounds
    WHERE books.rank IN (SELECT from_events.rank FROM from_events)
    GROUP BY ALL
),

later AS (
    SELECT boundaries.rank, boundaries.slice, boundaries.t_ns
    FROM boundaries
    LEFT JOIN ends
        ON boundaries.rank = ends.rank AND boundaries.slice = ends.slice
    WHERE COALESCE(boundaries.t_ns > ends.last_ns, TRUE)
),

-- Of what happened at the same moment, the last counts.
states AS (
    SELECT
        rank,
        t_ns,
        active_bytes,
        reserved_bytes,
        weight_bytes,
        activation_bytes,
        communication_bytes,
        workspace_bytes,
        cache_bytes,
        output_bytes
    FROM from_events
    QUALIFY ROW_NUMBER() OVER (
        PARTITION BY rank, t_ns ORDER BY slice DESC, is_peak
    ) = 1
),

accounts AS (
    SELECT
        rank,
        t_ns,
        context_bytes,
        nccl_bytes,
        library_bytes,
        others_bytes,
        unexplained_bytes
    FROM books
    QUALIFY ROW_NUMBER() OVER (
        PARTITION BY rank, t_ns ORDER BY span_id DESC, edge
    ) = 1
),

quiet AS (
    SELECT
        later.rank,
        later.slice,
        later.t_ns,
        FALSE AS is_peak,
        COALESCE(states.active_bytes, 0) AS active_bytes,
        COALESCE(states.reserved_bytes, 0) AS reserved_bytes,
        states.weight_bytes,
        states.activation_bytes,
        states.communication_bytes,
        states.workspace_bytes,
        states.cache_bytes,
        states.output_bytes
    FROM later
    ASOF LEFT JOIN states
        ON
            later.rank = states.rank
            AND later.t_ns >= states.t_ns
),

moments AS (
    SELECT
        rank,
        slice,
        is_peak,
        t_ns,
        active_bytes,
        reserved_bytes,
        weight_bytes,
        activation_bytes,
        communication_bytes,
        workspace_bytes,
        cache_bytes,
        output_bytes
    FROM from_events
    UNION ALL BY NAME
    SELECT
        rank,
        slice,
        is_peak,
        t_ns,
        active_bytes,
        reserved_bytes
    FROM from_spans
    WHERE is_peak OR is_last
    UNION ALL BY NAME
    SELECT
        rank,
        slice,
        is_peak,
        t_ns,
        active_bytes,
        reserved_bytes,
        weight_bytes,
        activation_bytes,
        communication_bytes,
        workspace_bytes,
        cache_bytes,
        output_bytes
    FROM quiet
)

SELECT
    moments.rank,
    moments.slice,
    moments.t_ns,
    moments.is_peak,
    moments.active_bytes::BIGINT AS active_bytes,
    COALESCE(moments.weight_bytes, 0)::BIGINT AS weight_bytes,
    COALESCE(moments.activation_bytes, 0)::BIGINT AS activation_bytes,
    COALESCE(moments.communication_bytes, 0)::BIGINT AS communication_bytes,
    COALESCE(moments.workspace_bytes, 0)::BIGINT AS workspace_bytes,
    COALESCE(moments.cache_bytes, 0)::BIGINT AS cache_bytes,
    COALESCE(moments.output_bytes, 0)::BIGINT AS output_bytes,
    (
        moments.active_bytes
        - COALESCE(moments.weight_bytes, 0)
        - COALESCE(moments.activation_bytes, 0)
        - COALESCE(moments.communication_bytes, 0)
        - COALESCE(moments.workspace_bytes, 0)
        - COALESCE(moments.cache_bytes, 0)
        - COALESCE(moments.output_bytes, 0)
    )::BIGINT AS uncategorised_bytes,
    (moments.reserved_bytes - moments.active_bytes)::BIGINT
        AS fragmentation_bytes,
    COALESCE(accounts.context_bytes, 0) AS context_bytes,
    COALESCE(accounts.nccl_bytes, 0) AS nccl_bytes,
    COALESCE(accounts.library_bytes, 0) AS library_bytes,
    COALESCE(accounts.others_bytes, 0) AS others_bytes,
    COALESCE(accounts.unexplained_bytes, 0) AS unexplained_bytes
FROM moments
ASOF LEFT JOIN accounts
    ON moments.rank = accounts.rank AND moments.t_ns >= accounts.t_ns
ORDER BY moments.rank, moments.t_ns, moments.slice, moments.is_peak DESC
