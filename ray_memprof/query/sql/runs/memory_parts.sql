-- How large is each part of the memory of a run, on the rank where it is
-- largest?
-- One row = a part of the run, the largest of its kind first; no row if nothing
-- of it was recorded.
--   part         total: in use on the device by anybody; tensors: allocated;
--                base: weights of a component; activation: of a stage;
--                fragmentation: of the whole run; switching: what came to the
--                device when models were loaded or moved, all in all
--   item         component of base, stage of activation; else null
--   bytes        the most of any rank; of activation also of any step (see
--                activation_bytes of activation_by_step)
--   rank         the lowest of the ranks with so much; of switching: the one
--                that spent most time
--   path, step   span of the peak of tensors, and the step of an activation;
--                null: not told, or outside of the loop
--   num_times    visits of a component, times of a stage, loads and moves; else
--                null
--   duration_ns  of loading a component, of all loads and moves; else null
--   is_at_least  it may have been more
WITH fullest AS (
    SELECT
        rank,
        device_used_peak_bytes AS bytes,
        num_samples = 0 AND device_used_peak_bytes > 0 AS is_at_least
    FROM peak_by_rank
    QUALIFY ROW_NUMBER() OVER (ORDER BY bytes DESC, rank) = 1
),

most AS (
    SELECT rank, allocated_peak_bytes AS bytes, path, step, peak_at_least
    FROM peak_by_rank
    QUALIFY ROW_NUMBER() OVER (ORDER BY bytes DESC, rank) = 1
),

-- One rank that may have held more is enough for the run to have held more.
unsure AS (
    SELECT COALESCE(BOOL_OR(peak_at_least), FALSE) AS is_at_least
    FROM peak_by_rank
),

bases AS (
    SELECT rank, component, base_bytes AS bytes, num_visits, load_ns
    FROM base_memory
    QUALIFY
        ROW_NUMBER() OVER (PARTITION BY component ORDER BY bytes DESC, rank) = 1
),

activations AS (
    SELECT
        rank,
        stage,
        step,
        activation_bytes AS bytes,
        COUNT(*) OVER (PARTITION BY rank, stage) AS num_times
    FROM activation_by_step
    QUALIFY
        ROW_NUMBER() OVER (
            PARTITION BY stage ORDER BY bytes DESC, rank, step
        ) = 1
),

split AS (
    SELECT rank, fragmentation_bytes AS bytes
    FROM fragmentation
    WHERE stage IS NULL AND fragmentation_bytes IS NOT NULL
    QUALIFY ROW_NUMBER() OVER (ORDER BY bytes DESC, rank) = 1
),

moves AS (
    SELECT
        rank,
        SUM(GREATEST(allocated_bytes, 0))::BIGINT AS bytes,
        COUNT(*) AS num_moves,
        SUM(duration_ns)::BIGINT AS total_ns
    FROM model_switching
    GROUP BY rank
    QUALIFY ROW_NUMBER() OVER (ORDER BY total_ns DESC, rank) = 1
),

parts AS (
    SELECT
        1 AS place,
        'total' AS part,
        NULL::VARCHAR AS item,
        bytes,
        rank,
        NULL::VARCHAR AS path,
        NULL::BIGINT AS step,
        NULL::BIGINT AS num_times,
        NULL::BIGINT AS duration_ns,
        is_at_least
    FROM fullest
    UNION ALL
    SELECT
        2, 'tensors', NULL, most.bytes, most.rank, most.path, most.step, NULL,
        NULL, unsure.is_at_least
    FROM most
    CROSS JOIN unsure
    UNION ALL
    SELECT
        3, 'base', component, bytes, rank, NULL, NULL, num_visits, load_ns,
        FALSE
    FROM bases
    UNION ALL
    SELECT
        4, 'activation', stage, bytes, rank, NULL, step, num_times, NULL, FALSE
    FROM activations
    UNION ALL
    SELECT 5, 'fragmentation', NULL, bytes, rank, NULL, NULL, NULL, NULL, FALSE
    FROM split
    UNION ALL
    SELECT
        6, 'switching', NULL, bytes, rank, NULL, NULL, num_moves, total_ns,
        FALSE
    FROM moves
)

SELECT
    part,
    item,
    bytes,
    rank,
    path,
    step,
    num_times,
    duration_ns,
    is_at_least
FROM parts
ORDER BY place, bytes DESC, item
