-- Who held the memory of each rank over time, with every peak kept?
-- One row = a moment of a rank. Of each slice (see time_slices) these are the
-- one with the most active memory, the last event, and the last boundary of a
-- span.
--   rank                 of the run
--   slice                from 0 to 399
--   t_ns                 since 1970
--   is_peak              it is the one with the most active memory
--   active_bytes         tensors in the allocator: the sum of the next twelve
--   weight_bytes, buffer_bytes, gradient_bytes, optimizer_bytes,
--   activation_bytes, temporary_bytes, communication_bytes, workspace_bytes,
--   cache_bytes, output_bytes, before_bytes
--                        active by what the tensors are used for; before: held
--                        before the first event
--   uncategorised_bytes  tensors of which no event says what they are used
--                        for; without events all of active
--   cached_bytes         reserved - active: the allocator holds it, and could
--                        give it back
--   context_bytes, nccl_bytes, libraries_bytes, others_bytes, heap_bytes,
--   files_bytes, shared_bytes, absent_bytes, unexplained_bytes
--                        outside the allocator, at the last boundary of a span
-- For a rank without spans, samples take the place of span boundaries. In a run
-- of the CPU, samples have books of their own and count like boundaries.
WITH from_events AS (
    SELECT
        rank,
        slice,
        is_peak,
        t_ns,
        active_bytes,
        reserved_bytes,
        STRUCT_PACK(
            weight_bytes,
            buffer_bytes,
            gradient_bytes,
            optimizer_bytes,
            activation_bytes,
            temporary_bytes,
            communication_bytes,
            workspace_bytes,
            cache_bytes,
            output_bytes,
            before_bytes
        ) AS categories
    FROM categories_over_time
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
    -- the span began or ended with it. Only events tell when exactly it was.
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
    UNION ALL
    SELECT
        rank,
        t_ns,
        allocated_bytes,
        reserved_bytes
    FROM samples
    WHERE rank NOT IN (SELECT spans.rank FROM spans)
),

placed AS (
    SELECT
        seen.rank,
        seen.t_ns,
        seen.active_bytes,
        seen.reserved_bytes,
        (seen.t_ns - time_slices.first_ns) // time_slices.slice_ns AS slice
    FROM seen
    CROSS JOIN time_slices
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

-- Ranks with books at the boundaries of spans only.
bounded AS (
    SELECT DISTINCT rank FROM spans
    WHERE NOT EXISTS (SELECT 1 FROM runs WHERE source = 'cpu')
),

edges AS (
    SELECT rank, start_ns AS t_ns FROM spans
    UNION ALL
    SELECT rank, end_ns FROM spans
    UNION ALL
    SELECT rank, t_ns FROM samples
    WHERE rank NOT IN (SELECT bounded.rank FROM bounded)
),

-- Memory outside the allocator may still change after a slice's last event.
boundaries AS (
    SELECT
        edges.rank,
        (edges.t_ns - time_slices.first_ns) // time_slices.slice_ns AS slice,
        MAX(edges.t_ns) AS t_ns
    FROM edges
    CROSS JOIN time_slices
    WHERE edges.rank IN (SELECT from_events.rank FROM from_events)
    GROUP BY ALL
),

ends AS (
    SELECT rank, slice, MAX(t_ns) AS t_ns
    FROM from_events
    GROUP BY rank, slice
),

later AS (
    SELECT boundaries.rank, boundaries.slice, boundaries.t_ns
    FROM boundaries
    LEFT JOIN ends
        ON boundaries.rank = ends.rank AND boundaries.slice = ends.slice
    WHERE COALESCE(boundaries.t_ns > ends.t_ns, TRUE)
),

-- If several events have the same moment, the last one counts.
states AS (
    SELECT
        rank,
        t_ns,
        active_bytes,
        reserved_bytes,
        categories
    FROM from_events
    QUALIFY ROW_NUMBER() OVER (
        PARTITION BY rank, t_ns ORDER BY slice DESC, is_peak
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
        states.categories
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
        categories
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
        categories
    FROM quiet
),

-- A moment gets the last books until then; if several have one time, the last.
booked AS (
    SELECT
        moments.rank,
        moments.slice,
        moments.t_ns,
        moments.is_peak,
        moments.active_bytes,
        moments.reserved_bytes,
        moments.categories,
        edges.t_ns AS booked_ns
    FROM moments
    ASOF LEFT JOIN edges
        ON moments.rank = edges.rank AND moments.t_ns >= edges.t_ns
),

accounts AS (
    SELECT
        rank,
        t_ns,
        context_bytes,
        nccl_bytes,
        libraries_bytes,
        others_bytes,
        heap_bytes,
        files_bytes,
        shared_bytes,
        absent_bytes,
        unexplained_bytes
    FROM books
    WHERE
        (edge != 'sample' OR rank NOT IN (SELECT bounded.rank FROM bounded))
        AND (rank, t_ns) IN (SELECT (rank, booked_ns) FROM booked)
    QUALIFY ROW_NUMBER() OVER (
        PARTITION BY rank, t_ns ORDER BY span_id DESC, edge
    ) = 1
)

SELECT
    booked.rank,
    booked.slice,
    booked.t_ns,
    booked.is_peak,
    booked.active_bytes,
    COALESCE(booked.categories.weight_bytes, 0) AS weight_bytes,
    COALESCE(booked.categories.buffer_bytes, 0) AS buffer_bytes,
    COALESCE(booked.categories.gradient_bytes, 0) AS gradient_bytes,
    COALESCE(booked.categories.optimizer_bytes, 0) AS optimizer_bytes,
    COALESCE(booked.categories.activation_bytes, 0) AS activation_bytes,
    COALESCE(booked.categories.temporary_bytes, 0) AS temporary_bytes,
    COALESCE(booked.categories.communication_bytes, 0) AS communication_bytes,
    COALESCE(booked.categories.workspace_bytes, 0) AS workspace_bytes,
    COALESCE(booked.categories.cache_bytes, 0) AS cache_bytes,
    COALESCE(booked.categories.output_bytes, 0) AS output_bytes,
    COALESCE(booked.categories.before_bytes, 0) AS before_bytes,
    booked.active_bytes
        - weight_bytes
        - buffer_bytes
        - gradient_bytes
        - optimizer_bytes
        - activation_bytes
        - temporary_bytes
        - communication_bytes
        - workspace_bytes
        - cache_bytes
        - output_bytes
        - before_bytes AS uncategorised_bytes,
    booked.reserved_bytes - booked.active_bytes AS cached_bytes,
    COALESCE(accounts.context_bytes, 0) AS context_bytes,
    COALESCE(accounts.nccl_bytes, 0) AS nccl_bytes,
    COALESCE(accounts.libraries_bytes, 0) AS libraries_bytes,
    COALESCE(accounts.others_bytes, 0) AS others_bytes,
    COALESCE(accounts.heap_bytes, 0) AS heap_bytes,
    COALESCE(accounts.files_bytes, 0) AS files_bytes,
    COALESCE(accounts.shared_bytes, 0) AS shared_bytes,
    COALESCE(accounts.absent_bytes, 0) AS absent_bytes,
    COALESCE(accounts.unexplained_bytes, 0) AS unexplained_bytes
FROM booked
LEFT JOIN accounts
    ON booked.rank = accounts.rank AND booked.booked_ns = accounts.t_ns
ORDER BY booked.rank, booked.t_ns, booked.slice, booked.is_peak DESC
