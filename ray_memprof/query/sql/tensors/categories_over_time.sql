-- What were the tensors of each rank used for over time, with every peak kept?
-- One row = a moment of a rank whose allocator events were recorded. Of each
-- slice (see time_slices) these are the first event with the most active
-- memory and the last event.
--   rank                 of the run
--   slice                from 0 to 399
--   is_peak              it is the one with the most active memory
--   t_ns                 since 1970
--   active_bytes         tensors in the allocator
--   reserved_bytes       held by the allocator
--   weight_bytes, buffer_bytes, gradient_bytes, optimizer_bytes,
--   activation_bytes, temporary_bytes, communication_bytes, workspace_bytes,
--   cache_bytes, output_bytes, before_bytes
--                        active memory by what it is used for (see vae_cache);
--                        before: held before the first event
WITH
-- A running sum over every event would take seconds. So events are first
-- summed in batches of 32; only batches in which a slice may peak, or ends,
-- are read event by event.
signed AS NOT MATERIALIZED (
    FROM held_changes()
),

batches AS (
    SELECT
        rank,
        batch,
        MAX(seq) AS seq,
        MAX(t_ns) AS t_ns,
        SUM(active) FILTER (WHERE active > 0)::BIGINT AS gained,
        SUM(active)::BIGINT AS active,
        SUM(reserved)::BIGINT AS reserved,
        SUM(active) FILTER (WHERE category = 'weight')::BIGINT AS weight,
        SUM(active) FILTER (WHERE category = 'buffer')::BIGINT AS buffer,
        SUM(active) FILTER (WHERE category = 'gradient')::BIGINT AS gradient,
        SUM(active) FILTER (WHERE category = 'optimizer')::BIGINT AS optimizer,
        SUM(active) FILTER (WHERE category = 'activation')::BIGINT
            AS activation,
        SUM(active) FILTER (WHERE category = 'temporary')::BIGINT
            AS temporary,
        SUM(active) FILTER (WHERE category = 'communication')::BIGINT
            AS communication,
        SUM(active) FILTER (WHERE category = 'workspace')::BIGINT
            AS workspace,
        SUM(active) FILTER (WHERE category = 'cache')::BIGINT AS cache,
        SUM(active) FILTER (WHERE category = 'output')::BIGINT AS output,
        SUM(active) FILTER (WHERE category = 'before')::BIGINT AS earlier
    FROM signed
    GROUP BY rank, batch
),

-- The clock of an event may be early or late; its number is always in order.
followed AS (
    SELECT
        rank,
        batch,
        gained,
        active,
        t_ns,
        COALESCE(SUM(active) OVER before, 0)::BIGINT AS before_bytes,
        MAX(t_ns) OVER before AS before_ns
    FROM batches
    WINDOW before AS (
        PARTITION BY rank ORDER BY batch
        ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    )
),

placed AS (
    SELECT
        followed.rank,
        followed.batch,
        followed.before_bytes,
        followed.before_ns,
        followed.before_bytes + followed.active AS active_bytes,
        followed.before_bytes + COALESCE(followed.gained, 0) AS most_bytes,
        GREATEST(followed.before_ns, followed.t_ns) AS t_ns,
        (GREATEST(followed.before_ns, followed.t_ns) - time_slices.first_ns)
            // time_slices.slice_ns AS slice,
        (followed.before_ns - time_slices.first_ns) // time_slices.slice_ns
            AS before_slice
    FROM followed
    CROSS JOIN time_slices
),

floors AS (
    SELECT rank, slice, MAX(active_bytes) AS active_bytes
    FROM placed
    GROUP BY rank, slice
),

marked AS (
    SELECT
        placed.rank,
        placed.batch,
        placed.slice,
        placed.t_ns,
        placed.before_bytes,
        placed.before_ns,
        -- No event of a batch is above its most_bytes.
        placed.slice IS DISTINCT FROM placed.before_slice
            OR placed.most_bytes >= floors.active_bytes AS is_apart
    FROM placed
    INNER JOIN floors
        ON placed.rank = floors.rank AND placed.slice = floors.slice
),

apart AS (
    SELECT
        signed.rank,
        signed.seq,
        signed.category,
        signed.active,
        signed.reserved,
        (marked.before_bytes + SUM(signed.active) OVER upto)::BIGINT
            AS active_bytes,
        -- GREATEST skips nulls: there is no event before the first one.
        GREATEST(marked.before_ns, MAX(signed.t_ns) OVER upto) AS t_ns
    FROM signed
    INNER JOIN marked
        ON signed.rank = marked.rank
        AND signed.batch = marked.batch
        AND marked.is_apart
    WINDOW upto AS (
        PARTITION BY signed.rank, signed.batch ORDER BY signed.seq
        ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    )
),

sliced AS (
    SELECT
        apart.rank,
        (apart.t_ns - time_slices.first_ns) // time_slices.slice_ns AS slice,
        apart.seq,
        apart.t_ns,
        apart.category,
        apart.active,
        apart.reserved,
        apart.active_bytes
    FROM apart
    CROSS JOIN time_slices
),

peaks AS (
    SELECT
        rank,
        slice,
        ARG_MIN(seq, (-active_bytes, seq)) AS seq
    FROM sliced
    GROUP BY rank, slice
),

pieces AS (
    SELECT
        batches.rank,
        marked.slice,
        batches.seq,
        marked.t_ns,
        batches.active,
        batches.reserved,
        batches.weight,
        batches.buffer,
        batches.gradient,
        batches.optimizer,
        batches.activation,
        batches.temporary,
        batches.communication,
        batches.workspace,
        batches.cache,
        batches.output,
        batches.earlier
    FROM batches
    INNER JOIN marked
        ON batches.rank = marked.rank
        AND batches.batch = marked.batch
        AND NOT marked.is_apart
    UNION ALL
    SELECT
        rank,
        slice,
        seq,
        t_ns,
        active,
        reserved,
        IF(category = 'weight', active, 0),
        IF(category = 'buffer', active, 0),
        IF(category = 'gradient', active, 0),
        IF(category = 'optimizer', active, 0),
        IF(category = 'activation', active, 0),
        IF(category = 'temporary', active, 0),
        IF(category = 'communication', active, 0),
        IF(category = 'workspace', active, 0),
        IF(category = 'cache', active, 0),
        IF(category = 'output', active, 0),
        IF(category = 'before', active, 0)
    FROM sliced
),

-- Each piece belongs to the next moment: the peak of its slice, or its end.
changes AS (
    SELECT
        pieces.rank,
        pieces.slice,
        pieces.seq <= peaks.seq AS is_peak,
        MAX(pieces.seq) AS seq,
        MAX(pieces.t_ns) AS t_ns,
        SUM(pieces.active) AS active,
        SUM(pieces.reserved) AS reserved,
        SUM(pieces.weight) AS weight,
        SUM(pieces.buffer) AS buffer,
        SUM(pieces.gradient) AS gradient,
        SUM(pieces.optimizer) AS optimizer,
        SUM(pieces.activation) AS activation,
        SUM(pieces.temporary) AS temporary,
        SUM(pieces.communication) AS communication,
        SUM(pieces.workspace) AS workspace,
        SUM(pieces.cache) AS cache,
        SUM(pieces.output) AS output,
        SUM(pieces.earlier) AS earlier
    FROM pieces
    INNER JOIN peaks
        ON pieces.rank = peaks.rank AND pieces.slice = peaks.slice
    GROUP BY ALL
),

-- What a chunk of the VAE leaves behind is no longer an activation.
carried AS (
    SELECT rank, carried_seq AS seq, size_bytes AS bytes FROM vae_cache
    UNION ALL
    SELECT rank, freed_seq, -size_bytes FROM vae_cache
    WHERE freed_seq IS NOT NULL
),

moved AS (
    SELECT
        changes.rank,
        changes.seq,
        SUM(carried.bytes) AS bytes
    FROM carried
    ASOF INNER JOIN changes
        ON carried.rank = changes.rank AND carried.seq <= changes.seq
    GROUP BY changes.rank, changes.seq
),

summed AS (
    SELECT
        changes.rank,
        changes.slice,
        changes.is_peak,
        changes.seq,
        changes.t_ns,
        SUM(changes.active) OVER upto AS active,
        SUM(changes.reserved) OVER upto AS reserved,
        SUM(changes.weight) OVER upto AS weight,
        SUM(changes.buffer) OVER upto AS buffer,
        SUM(changes.gradient) OVER upto AS gradient,
        SUM(changes.optimizer) OVER upto AS optimizer,
        SUM(changes.activation) OVER upto AS activation,
        SUM(changes.temporary) OVER upto AS temporary,
        SUM(changes.communication) OVER upto AS communication,
        SUM(changes.workspace) OVER upto AS workspace,
        SUM(changes.cache) OVER upto AS cache,
        SUM(changes.output) OVER upto AS output,
        SUM(changes.earlier) OVER upto AS earlier,
        COALESCE(SUM(moved.bytes) OVER upto, 0) AS moved
    FROM changes
    LEFT JOIN moved
        ON changes.rank = moved.rank AND changes.seq = moved.seq
    WINDOW upto AS (PARTITION BY changes.rank ORDER BY changes.seq)
)

SELECT
    rank,
    slice,
    is_peak,
    t_ns,
    active::BIGINT AS active_bytes,
    -- Host tensors have no segments: what they use is all that is held.
    GREATEST(reserved, active)::BIGINT AS reserved_bytes,
    -- None of these is null: the first events of a rank are read one by one.
    weight::BIGINT AS weight_bytes,
    buffer::BIGINT AS buffer_bytes,
    gradient::BIGINT AS gradient_bytes,
    optimizer::BIGINT AS optimizer_bytes,
    (activation - moved)::BIGINT AS activation_bytes,
    temporary::BIGINT AS temporary_bytes,
    communication::BIGINT AS communication_bytes,
    workspace::BIGINT AS workspace_bytes,
    (cache + moved)::BIGINT AS cache_bytes,
    output::BIGINT AS output_bytes,
    earlier::BIGINT AS before_bytes
FROM summed
ORDER BY rank, seq
