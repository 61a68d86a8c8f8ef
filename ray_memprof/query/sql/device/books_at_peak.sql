-- Who holds the memory when the device is fullest?
-- One row = an account on a rank, at the moment with the largest device_used
-- that was measured (see books). If the device was equally full at several
-- moments, it is the one with the most bytes in tensors. The accounts of a
-- rank add up to device_used_bytes.
--   rank               of the run
--   t_ns               since 1970
--   path               innermost span at that moment; null: none
--   account            active, cached (the allocator holds it, and could give
--                      it back), context, nccl, libraries, others or
--                      unexplained; of a process also heap, files, shared and
--                      absent (see books), where they are not 0
--   bytes              held by the account
--   share_fraction     of device_used; null where that is 0
--   device_used_bytes  in use on the device by anybody
--   note               what the books cannot tell of the account; null: nothing
-- Between two measurements, the device counts as full as at one of them for as
-- long as the allocator holds the same reserved bytes. Without allocator
-- events, a span that ends with the device at its fullest, and with reserved
-- memory at the span's peak, counts with the most tensors inside it.
WITH measured AS (
    SELECT
        rank,
        t_ns,
        span_id,
        edge,
        path,
        device_used_bytes,
        active_bytes,
        active_bytes + cached_bytes AS reserved_bytes,
        context_bytes,
        nccl_bytes,
        libraries_bytes,
        others_bytes,
        heap_bytes,
        files_bytes,
        shared_bytes,
        absent_bytes,
        unexplained_bytes,
        device_used_bytes = MAX(device_used_bytes) OVER (PARTITION BY rank)
            AS is_full,
        LAG(t_ns) OVER in_time AS before_ns,
        LEAD(t_ns) OVER in_time AS after_ns
    FROM books
    WINDOW in_time AS (
        PARTITION BY rank ORDER BY t_ns, span_id NULLS LAST, edge DESC
    )
),

-- The events know better than a sample what the allocator held: the sampler
-- does not wait for an allocator that is busy.
held AS (
    SELECT
        rank,
        t_ns,
        seq,
        SUM(
            CASE
                WHEN action IN ('segment_alloc', 'segment_map') THEN size_bytes
                ELSE -size_bytes
            END
        ) OVER (
            PARTITION BY rank ORDER BY seq
            ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
        )::BIGINT AS reserved_bytes
    FROM allocs
    WHERE action IN (
        'segment_alloc', 'segment_map', 'segment_free', 'segment_unmap'
    )
),

held_at AS (
    SELECT rank, t_ns, ARG_MAX(reserved_bytes, seq) AS reserved_bytes
    FROM held
    GROUP BY rank, t_ns
),

full_moments AS (
    SELECT
        measured.rank,
        measured.t_ns,
        measured.span_id,
        measured.edge,
        measured.path,
        measured.device_used_bytes,
        measured.active_bytes,
        IF(
            measured.edge = 'sample',
            COALESCE(held_at.reserved_bytes, measured.reserved_bytes),
            measured.reserved_bytes
        ) AS reserved_bytes,
        measured.context_bytes,
        measured.nccl_bytes,
        measured.libraries_bytes,
        measured.others_bytes,
        measured.heap_bytes,
        measured.files_bytes,
        measured.shared_bytes,
        measured.absent_bytes,
        measured.before_ns,
        measured.after_ns
    FROM measured
    ASOF LEFT JOIN held_at
        ON measured.rank = held_at.rank AND measured.t_ns >= held_at.t_ns
    WHERE measured.is_full
),

-- The accounts outside the allocator are those of the moment, among the ones
-- with equal reserved bytes, that leaves the least unexplained: who took
-- memory is known only when the next span ends.
outside AS (
    SELECT
        rank,
        reserved_bytes,
        device_used_bytes,
        context_bytes,
        nccl_bytes,
        libraries_bytes,
        others_bytes,
        heap_bytes,
        files_bytes,
        shared_bytes,
        absent_bytes,
        device_used_bytes - reserved_bytes - context_bytes - nccl_bytes
            - libraries_bytes - others_bytes - heap_bytes - files_bytes
            - shared_bytes - absent_bytes AS unexplained_bytes
    FROM full_moments
    QUALIFY ROW_NUMBER() OVER (
        PARTITION BY rank, reserved_bytes
        ORDER BY ABS(unexplained_bytes), t_ns, span_id, edge
    ) = 1
),

windows AS (
    SELECT
        rank,
        reserved_bytes,
        COALESCE(before_ns, 0) AS begin_ns,
        COALESCE(after_ns, 9223372036854775807) AS end_ns
    FROM full_moments
    -- 0 means that nobody measured the device: nothing is known of it.
    WHERE device_used_bytes > 0
),

begun AS (
    SELECT
        rank,
        reserved_bytes,
        begin_ns,
        end_ns,
        COALESCE(begin_ns >= MAX(end_ns) OVER earlier, TRUE) AS is_new
    FROM windows
    WINDOW earlier AS (
        PARTITION BY rank, reserved_bytes ORDER BY begin_ns, end_ns
        ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    )
),

islands AS (
    SELECT
        rank,
        reserved_bytes,
        MIN(begin_ns) AS begin_ns,
        MAX(end_ns) AS end_ns
    FROM (
        SELECT
            rank,
            reserved_bytes,
            begin_ns,
            end_ns,
            COUNT(*) FILTER (WHERE is_new) OVER (
                PARTITION BY rank, reserved_bytes ORDER BY begin_ns, end_ns
                ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
            ) AS island
        FROM begun
    )
    GROUP BY rank, reserved_bytes, island
),

-- A running sum over every event would take seconds. So events are first
-- summed in batches of 32; only batches in which the most may be are read
-- event by event.
signed AS NOT MATERIALIZED (
    FROM held_changes()
),

batches AS (
    SELECT
        rank,
        batch,
        MIN(t_ns) AS first_ns,
        MAX(t_ns) AS last_ns,
        COALESCE(SUM(active) FILTER (WHERE active > 0), 0)::BIGINT AS gained,
        SUM(active)::BIGINT AS active,
        SUM(reserved)::BIGINT AS reserved,
        BOOL_OR(reserved != 0) AS is_uneven
    FROM signed
    GROUP BY rank, batch
),

followed AS (
    SELECT
        rank,
        batch,
        first_ns,
        last_ns,
        gained,
        active,
        is_uneven,
        -- What is held after an event stays the same until the next one.
        LEAD(first_ns, 1, 9223372036854775807) OVER (
            PARTITION BY rank ORDER BY batch
        ) AS until_ns,
        SUM(active) OVER upto - active AS before_active,
        SUM(reserved) OVER upto - reserved AS before_reserved
    FROM batches
    WINDOW upto AS (
        PARTITION BY rank ORDER BY batch
        ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    )
),

placed AS (
    SELECT
        followed.rank,
        followed.batch,
        followed.before_active::BIGINT AS before_active,
        followed.before_reserved::BIGINT AS before_reserved,
        followed.before_active + followed.gained AS most_active,
        followed.is_uneven,
        followed.until_ns,
        COALESCE(followed.first_ns < islands.end_ns, FALSE) AS is_near,
        -- Here the last event of the batch is sure to count.
        IF(
            NOT followed.is_uneven
            AND followed.first_ns > islands.begin_ns
            AND followed.last_ns < islands.end_ns,
            followed.before_active + followed.active,
            NULL
        ) AS sure_active
    FROM followed
    ASOF LEFT JOIN islands
        ON followed.rank = islands.rank
        AND followed.before_reserved = islands.reserved_bytes
        AND followed.until_ns > islands.begin_ns
),

apart AS (
    SELECT rank, batch, until_ns, before_active, before_reserved
    FROM placed
    WHERE is_uneven OR is_near
    QUALIFY
        most_active
        >= COALESCE(MAX(sure_active) OVER (PARTITION BY rank), 0)
),

running AS (
    SELECT
        signed.rank,
        signed.seq,
        signed.t_ns,
        signed.span_id,
        LEAD(signed.t_ns, 1, apart.until_ns) OVER (
            PARTITION BY signed.rank, signed.batch ORDER BY signed.seq
        ) AS until_ns,
        (apart.before_active + SUM(signed.active) OVER upto)::BIGINT
            AS active_bytes,
        (apart.before_reserved + SUM(signed.reserved) OVER upto)::BIGINT
            AS reserved_bytes
    FROM signed
    INNER JOIN apart
        ON signed.rank = apart.rank AND signed.batch = apart.batch
    WINDOW upto AS (
        PARTITION BY signed.rank, signed.batch ORDER BY signed.seq
        ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    )
),

by_event AS (
    SELECT
        running.rank,
        running.t_ns,
        running.span_id,
        running.active_bytes,
        running.reserved_bytes
    FROM running
    ASOF INNER JOIN islands
        ON running.rank = islands.rank
        AND running.reserved_bytes = islands.reserved_bytes
        AND running.until_ns > islands.begin_ns
    WHERE running.t_ns < islands.end_ns
    QUALIFY ROW_NUMBER() OVER (
        PARTITION BY running.rank
        ORDER BY running.active_bytes DESC, running.seq
    ) = 1
),

eventful AS (
    SELECT DISTINCT rank FROM held
),

inside AS (
    SELECT
        spans.rank,
        (spans.start_ns + spans.end_ns) // 2 AS t_ns,
        spans.span_id,
        spans.path,
        spans.active_peak_bytes AS active_bytes,
        spans.reserved_end_bytes AS reserved_bytes,
        spans.depth
    FROM full_moments
    INNER JOIN spans
        ON full_moments.rank = spans.rank
        AND full_moments.span_id = spans.span_id
    ANTI JOIN eventful ON full_moments.rank = eventful.rank
    WHERE
        full_moments.edge = 'end'
        AND full_moments.device_used_bytes > 0
        AND spans.reserved_end_bytes = spans.reserved_peak_bytes
),

-- If several are equal, the first of the innermost counts.
candidates AS (
    SELECT
        rank,
        t_ns,
        span_id,
        path,
        edge,
        IF(device_used_bytes > 0, active_bytes, 0) AS weight,
        active_bytes,
        reserved_bytes,
        edge = 'sample' AND rank IN (SELECT eventful.rank FROM eventful)
            AS is_vague,
        0 AS depth
    FROM full_moments
    UNION ALL BY NAME
    SELECT
        by_event.rank,
        by_event.t_ns,
        by_event.span_id,
        spans.path,
        'event' AS edge,
        by_event.active_bytes AS weight,
        by_event.active_bytes,
        by_event.reserved_bytes,
        FALSE AS is_vague,
        0 AS depth
    FROM by_event
    LEFT JOIN spans
        ON by_event.rank = spans.rank AND by_event.span_id = spans.span_id
    UNION ALL BY NAME
    SELECT
        rank,
        t_ns,
        span_id,
        path,
        'inside' AS edge,
        active_bytes AS weight,
        active_bytes,
        reserved_bytes,
        FALSE AS is_vague,
        depth
    FROM inside
),

fullest AS (
    SELECT
        candidates.rank,
        candidates.t_ns,
        candidates.edge,
        candidates.path,
        outside.device_used_bytes,
        candidates.active_bytes AS active,
        outside.reserved_bytes - candidates.active_bytes AS cached,
        outside.context_bytes AS context,
        outside.nccl_bytes AS nccl,
        outside.libraries_bytes AS libraries,
        outside.others_bytes AS others,
        outside.heap_bytes AS heap,
        outside.files_bytes AS files,
        outside.shared_bytes AS shared,
        outside.absent_bytes AS absent,
        outside.unexplained_bytes AS unexplained
    FROM candidates
    INNER JOIN outside
        ON candidates.rank = outside.rank
        AND candidates.reserved_bytes = outside.reserved_bytes
    QUALIFY ROW_NUMBER() OVER (
        PARTITION BY candidates.rank
        ORDER BY
            candidates.is_vague,
            candidates.weight DESC,
            candidates.depth DESC,
            candidates.t_ns,
            candidates.span_id,
            candidates.edge
    ) = 1
),

-- A sample does not say in which span it was taken.
placed_samples AS (
    SELECT
        fullest.rank,
        ARG_MAX(spans.path, (spans.depth, spans.span_id)) AS path
    FROM fullest
    INNER JOIN spans
        ON fullest.rank = spans.rank
        AND fullest.t_ns BETWEEN spans.start_ns AND spans.end_ns
    WHERE fullest.edge = 'sample'
    GROUP BY fullest.rank
),

-- Of each rank with process groups: what is not known of its accounts.
unsure AS (
    SELECT
        rank,
        BOOL_OR(is_in_context) AS is_in_context,
        COUNT(*) FILTER (WHERE shared_bytes > 0) > 0 AS is_shared,
        COUNT(*) FILTER (WHERE backend IS NULL AND group_size > 1) > 0
            AS is_older
    FROM nccl_by_communicator
    GROUP BY rank
),

accounts AS (
    UNPIVOT fullest
    ON
        active,
        cached,
        context,
        nccl,
        libraries,
        others,
        heap,
        files,
        shared,
        absent,
        unexplained
    INTO NAME account VALUE bytes
)

SELECT
    accounts.rank,
    accounts.t_ns,
    COALESCE(accounts.path, placed_samples.path) AS path,
    accounts.account,
    accounts.bytes,
    accounts.bytes / NULLIF(accounts.device_used_bytes, 0) AS share_fraction,
    accounts.device_used_bytes,
    CASE
        WHEN accounts.bytes <= 0 THEN NULL
        WHEN accounts.account = 'context' AND unsure.is_in_context
            THEN 'NCCL is in it: see nccl_by_communicator'
        WHEN accounts.account = 'nccl' AND unsure.is_shared
            THEN 'libraries may be in it: see nccl_by_communicator'
        WHEN accounts.account = 'libraries' AND unsure.is_older
            THEN 'NCCL may be in it: recorded before calls of C++ were heard'
    END AS note
FROM accounts
LEFT JOIN placed_samples ON accounts.rank = placed_samples.rank
LEFT JOIN unsure ON accounts.rank = unsure.rank
-- A device has no such accounts.
WHERE
    accounts.bytes != 0
    OR accounts.account NOT IN ('heap', 'files', 'shared', 'absent')
ORDER BY
    accounts.rank,
    LIST_POSITION(
        [
            'active', 'cached', 'context', 'nccl', 'libraries', 'others',
            'heap', 'files', 'shared', 'absent', 'unexplained'
        ],
        accounts.account
    )
