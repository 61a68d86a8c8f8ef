-- How much did each account of each rank hold at most, in each stage and in the
-- whole run?
-- One row = an account of a rank in a stage, or in the whole run.
--   rank        of the run
--   stage       name of the outermost span; null: the whole run
--   place       of the stage among those of the rank, from 1; 0: the whole run
--   account     allocated, reserved or device_used, without what other
--               processes held; context, nccl or libraries, at boundaries of
--               spans; of a process also heap, files and shared, where they are
--               not 0
--   bytes       the most that was seen
--   most_bytes  it was no more than this; more than bytes only for device_used,
--               which is seen at boundaries of spans and by samples
WITH held AS (
    SELECT
        rank,
        span_id,
        MAX(context_bytes) AS context_bytes,
        MAX(nccl_bytes) AS nccl_bytes,
        MAX(libraries_bytes) AS libraries_bytes,
        MAX(heap_bytes) AS heap_bytes,
        MAX(files_bytes) AS files_bytes,
        MAX(shared_bytes) AS shared_bytes,
        -- Both boundaries saw so much of others at least.
        MIN(others_bytes) AS others_bytes
    FROM books
    WHERE span_id IS NOT NULL
    GROUP BY rank, span_id
),

-- Of each stage, and of the whole run.
peaks AS (
    SELECT
        spans.rank,
        spans.stage,
        GROUPING(spans.stage) = 1 AS is_whole,
        MIN(spans.span_id) AS first_span_id,
        MAX(spans.allocated_peak_bytes) AS allocated,
        MAX(spans.reserved_peak_bytes) AS reserved,
        MAX(spans.device_used_peak_bytes - held.others_bytes) AS device_used,
        MAX(spans.device_used_bound_bytes - held.others_bytes)
            AS device_used_bound,
        MAX(held.context_bytes) AS context,
        MAX(held.nccl_bytes) AS nccl,
        MAX(held.libraries_bytes) AS libraries,
        NULLIF(MAX(held.heap_bytes), 0) AS heap,
        NULLIF(MAX(held.files_bytes), 0) AS files,
        NULLIF(MAX(held.shared_bytes), 0) AS shared
    FROM spans
    INNER JOIN held
        ON spans.rank = held.rank AND spans.span_id = held.span_id
    WHERE is_stage(spans.depth, spans.path)
    GROUP BY GROUPING SETS ((spans.rank, spans.stage), (spans.rank))
),

wide AS (
    SELECT
        rank,
        stage,
        allocated,
        reserved,
        device_used,
        device_used_bound,
        context,
        nccl,
        libraries,
        heap,
        files,
        shared,
        IF(
            is_whole,
            0,
            ROW_NUMBER() OVER (
                PARTITION BY rank, is_whole ORDER BY first_span_id
            )
        ) AS place
    FROM peaks
)

SELECT
    rank,
    stage,
    place,
    account,
    bytes::BIGINT AS bytes,
    IF(
        account = 'device_used',
        GREATEST(bytes, device_used_bound),
        bytes
    )::BIGINT AS most_bytes
FROM wide
UNPIVOT (
    bytes FOR account IN (
        allocated,
        reserved,
        device_used,
        context,
        nccl,
        libraries,
        heap,
        files,
        shared
    )
)
ORDER BY
    rank,
    place,
    LIST_POSITION(
        [
            'allocated', 'reserved', 'device_used', 'context', 'nccl',
            'libraries', 'heap', 'files', 'shared'
        ],
        account
    )
