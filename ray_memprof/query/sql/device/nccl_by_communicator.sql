-- How much of the device does each process group hold, and how is that known?
-- One row = a process group of a rank. `several groups` stands for those that
-- took memory at once, which nobody tells apart; it is there only if they did.
--   rank           of the run
--   group_name     name of the process group
--   backend        nccl, gloo ...; null: a run that was recorded before the
--                  table communicators was there, or several groups that
--                  differ in it
--   ranks          these are in it, with ranges; null: not recorded
--   group_size     ranks in it
--   num_calls      collectives that it has counted, those of C++ too; in an
--                  older run only those that were heard
--   bytes          the most that it held outside the allocator; null: not known
--   end_bytes      held at the end; null: not known
--   how_known      own: NCCL's own figure. growth: of the device, across its
--                  calls. returned: at least this much was given back when it
--                  was destroyed. formula: not measured, formula_bytes bounds
--                  it. none: nothing was taken. unknown: an older run does not
--                  tell
--   shared_bytes   of bytes: taken while a library may have been loaded, so in
--                  part perhaps its
--   is_in_context  it took more than bytes, together with the CUDA context: the
--                  books have that part as context
--   formula_bytes  the most that its connections take on one host: 2 x 12 MiB
--                  for each of 32 channels (rings and trees), and 12 MiB for
--                  each channel and peer if it sends from each to each.
--                  NCCL_BUFFSIZE and the limits on channels count. Without
--                  NCCL's kernels, and without what making the first group
--                  takes (0.36 GiB on H200). null: no NCCL group
--   note           what to know of the bytes; null: nothing
WITH variables AS (
    SELECT
        ANY_VALUE(TRY_CAST(env ->> '$.NCCL_BUFFSIZE' AS BIGINT))
            AS buffer_bytes,
        ANY_VALUE(TRY_CAST(env ->> '$.NCCL_MAX_NCHANNELS' AS BIGINT))
            AS channels,
        ANY_VALUE(TRY_CAST(env ->> '$.NCCL_MAX_CTAS' AS BIGINT)) AS ctas,
        ANY_VALUE(TRY_CAST(env ->> '$.NCCL_MAX_P2P_NCHANNELS' AS BIGINT))
            AS p2p_channels
    FROM (
        SELECT IF(JSON_VALID(environment), environment, '{}') AS env
        FROM runs
    )
),

-- LEAST skips nulls.
set_up AS (
    SELECT
        COALESCE(buffer_bytes, 4194304) + 8388608 AS connection_bytes,
        LEAST(32, channels, ctas) AS num_channels,
        LEAST(32, channels, ctas, p2p_channels) AS num_p2p_channels
    FROM variables
),

recorded AS (
    SELECT
        rank,
        communicators.group AS group_name,
        ARG_MAX(backend, (t_ns, num_calls, backend)) AS backend,
        ARG_MAX(ranks, (t_ns, num_calls, ranks)) AS ranks,
        MAX(group_size) AS group_size,
        MAX(num_calls) AS num_calls,
        MAX(bytes) AS bytes,
        -- A list keeps a null of the last row, which ARG_MAX would skip.
        LIST(bytes ORDER BY t_ns DESC, num_calls DESC, bytes DESC)[1]
            AS end_bytes,
        ARG_MAX(how_known, (t_ns, num_calls, how_known)) AS how_known,
        MAX(shared_bytes) AS shared_bytes,
        BOOL_OR(how_known = 'formula') AS is_in_context
    FROM communicators
    GROUP BY rank, communicators.group
),

backends AS (
    SELECT
        rank,
        IF(COUNT(DISTINCT backend) = 1, MIN(backend), NULL) AS common_backend
    FROM recorded
    WHERE group_name != ''
    GROUP BY rank
),

made AS (
    SELECT rank, MIN(t_ns) AS context_ns
    FROM ledger
    WHERE account = 'context'
    GROUP BY rank
),

-- A call is booked when it has returned. Where the context was not there when
-- it began, growth that was not booked to NCCL then is in the context.
calls AS (
    SELECT
        collectives.rank,
        collectives.group AS group_name,
        collectives.group_size,
        collectives.op,
        COALESCE(booked.bytes, 0) AS booked_bytes,
        collectives.non_torch_growth_bytes > booked_bytes
            AND made.context_ns >= collectives.end_ns AS is_in_context
    FROM collectives
    LEFT JOIN (
        SELECT rank, t_ns, SUM(bytes) AS bytes
        FROM ledger
        WHERE account = 'nccl'
        GROUP BY rank, t_ns
    ) AS booked
        ON collectives.rank = booked.rank AND collectives.end_ns = booked.t_ns
    LEFT JOIN made ON collectives.rank = made.rank
    WHERE collectives.group_size > 0
),

heard AS (
    SELECT
        rank,
        group_name,
        MAX(group_size) AS group_size,
        COUNT(*) FILTER (
            WHERE op NOT IN ('init_process_group', 'new_group')
        ) AS num_calls,
        COUNT(*) FILTER (WHERE op LIKE 'all_to_all%') AS num_all_to_all,
        COUNT(*) FILTER (
            WHERE op LIKE 'all_to_all%'
            OR op IN ('send', 'recv', 'gather', 'scatter', 'batch_isend_irecv')
        ) AS num_p2p,
        SUM(booked_bytes)::BIGINT AS grown_bytes,
        COALESCE(BOOL_OR(is_in_context), FALSE) AS is_in_context
    FROM calls
    GROUP BY rank, group_name
),

returned AS (
    SELECT
        rank,
        -SUM(non_torch_growth_bytes)::BIGINT AS returned_bytes
    FROM collectives
    WHERE op = 'destroy_process_group' AND non_torch_growth_bytes < 0
    GROUP BY rank
),

-- Which of several groups gave memory back was not written down.
alone AS (
    SELECT rank
    FROM heard
    GROUP BY rank
    HAVING COUNT(*) = 1
),

older AS (
    SELECT
        heard.rank,
        heard.group_name,
        heard.group_size,
        heard.num_calls,
        IF(alone.rank IS NULL, 0, COALESCE(returned.returned_bytes, 0))
            AS returned_bytes,
        GREATEST(heard.grown_bytes, 0) AS grown_bytes,
        heard.is_in_context
    FROM heard
    LEFT JOIN alone ON heard.rank = alone.rank
    LEFT JOIN returned ON heard.rank = returned.rank
    WHERE heard.rank NOT IN (SELECT recorded.rank FROM recorded)
),

known AS (
    SELECT
        rank,
        group_name,
        backend,
        ranks,
        group_size,
        num_calls,
        bytes,
        end_bytes,
        how_known,
        shared_bytes,
        is_in_context
    FROM recorded
    UNION ALL BY NAME
    SELECT
        rank,
        group_name,
        group_size,
        num_calls,
        IF(
            returned_bytes > grown_bytes,
            returned_bytes,
            NULLIF(grown_bytes, 0)
        ) AS bytes,
        CASE
            WHEN returned_bytes > grown_bytes THEN 'returned'
            WHEN grown_bytes > 0 THEN 'growth'
            ELSE 'unknown'
        END AS how_known,
        is_in_context
    FROM older
),

bounded AS (
    SELECT
        known.rank,
        known.group_name,
        known.backend,
        known.ranks,
        known.group_size,
        known.num_calls,
        known.bytes,
        known.end_bytes,
        known.how_known,
        known.shared_bytes,
        known.is_in_context,
        IF(
            known.group_name = '' OR COALESCE(known.backend, 'nccl') != 'nccl',
            NULL,
            IF(
                known.group_size > 1,
                set_up.connection_bytes * (
                    IF(
                        known.backend IS NULL
                        OR known.num_calls > COALESCE(heard.num_all_to_all, 0),
                        2 * set_up.num_channels,
                        0
                    )
                    + IF(
                        heard.num_p2p > 0,
                        (known.group_size - 1) * set_up.num_p2p_channels,
                        0
                    )
                ),
                0
            )
        )::BIGINT AS formula_bytes
    FROM known
    CROSS JOIN set_up
    LEFT JOIN heard
        ON known.rank = heard.rank AND known.group_name = heard.group_name
)

SELECT
    bounded.rank,
    IF(group_name = '', 'several groups', group_name) AS group_name,
    -- Older recordings call those of several groups of gloo nccl.
    IF(group_name = '', common_backend, backend) AS backend,
    ranks,
    group_size,
    num_calls,
    bytes,
    end_bytes,
    how_known,
    shared_bytes,
    is_in_context,
    formula_bytes,
    NULLIF(
        CONCAT_WS(
            '; ',
            CASE how_known
                WHEN 'returned' THEN
                    'at least: given back when it was destroyed. This run was '
                    || 'recorded before the calls of C++ were heard'
                WHEN 'unknown' THEN
                    'not known: this run was recorded before the calls of C++ '
                    || 'were heard'
            END,
            IF(
                is_in_context,
                IF(bytes IS NULL, 'not measured', 'not all')
                || ': it was made together with the CUDA context, which has it '
                || 'in the books',
                NULL
            ),
            IF(
                shared_bytes > 0,
                'at most: a library may have been loaded meanwhile',
                NULL
            ),
            IF(
                bytes > formula_bytes,
                'more than connections take by the formula: kernels and what '
                || 'a first group takes are in it',
                NULL
            )
        ),
        ''
    ) AS note
FROM bounded
LEFT JOIN backends ON bounded.rank = backends.rank
WHERE group_name != '' OR bytes > 0
ORDER BY bounded.rank, bytes DESC NULLS LAST, bounded.group_name
