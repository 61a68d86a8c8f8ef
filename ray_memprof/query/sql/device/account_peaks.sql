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

stages AS (
    SELECT
        spans.rank,
        spans.stage,
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
    GROUP BY spans.rank, spans.stage
),

wide AS (
    SELECT
        rank,
        stage,
        ROW_NUMBER() OVER (PARTITION BY rank ORDER BY first_span_id) AS place,
        allocated,
        reserved,
        device_used,
        device_used_bound,
        context,
        nccl,
        libraries,
        heap,
        files,
        shared
    FROM stages
    UNION ALL
    SELECT
        rank,
        NULL AS stage,
        0 AS place,
        MAX(allocated) AS allocated,
        MAX(reserved) AS reserved,
        MAX(device_used) AS device_used,
        MAX(device_used_bound) AS device_used_bound,
        MAX(context) AS context,
        MAX(nccl) AS nccl,
        MAX(libraries) AS libraries,
        MAX(heap) AS heap,
        MAX(files) AS files,
        MAX(shared) AS shared
    FROM stages
    GROUP BY rank
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
