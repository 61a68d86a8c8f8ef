-- Who holds the memory of the device at every span boundary, and do the books
-- add up?
-- One row = a span boundary or a sample on a rank.
--   rank                 of the run
--   t_ns                 since 1970
--   span_id, stage, path the span; null: a sample
--   edge                 start or end, or sample
--   device_used_bytes    in use on the device by anybody: the sum of the rest
--   active_bytes         tensors in the allocator; of a sample, allocated ones
--   cached_bytes         reserved - active: the allocator holds it, and could
--                        give it back
--   context_bytes        CUDA context
--   nccl_bytes           NCCL's buffers
--   libraries_bytes      cuDNN, cuBLAS and others
--   others_bytes         other processes on the same device
--   heap_bytes           of a process: private memory that is no tensor, nor
--                        of the process at its start (context)
--   files_bytes          of a process: mapped files
--   shared_bytes         of a process: shared memory
--   absent_bytes         of a process, 0 or less: tensors that take no memory
--   unexplained_bytes    device_used - reserved - the eight above
WITH running AS (
    -- RANGE, because changes at the same moment count together.
    SELECT
        rank,
        t_ns,
        SUM(bytes) FILTER (WHERE account = 'context') OVER upto
            AS context_bytes,
        SUM(bytes) FILTER (WHERE account = 'nccl') OVER upto AS nccl_bytes,
        SUM(bytes) FILTER (WHERE account = 'libraries') OVER upto
            AS libraries_bytes,
        SUM(bytes) FILTER (WHERE account = 'others') OVER upto AS others_bytes,
        SUM(bytes) FILTER (WHERE account = 'heap') OVER upto AS heap_bytes,
        SUM(bytes) FILTER (WHERE account = 'files') OVER upto AS files_bytes,
        SUM(bytes) FILTER (WHERE account = 'shared') OVER upto AS shared_bytes,
        SUM(bytes) FILTER (WHERE account = 'absent') OVER upto AS absent_bytes
    FROM ledger
    WINDOW upto AS (
        PARTITION BY rank ORDER BY t_ns
        RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    )
),

accounts AS (
    SELECT DISTINCT
        rank,
        t_ns,
        COALESCE(context_bytes, 0)::BIGINT AS context_bytes,
        COALESCE(nccl_bytes, 0)::BIGINT AS nccl_bytes,
        COALESCE(libraries_bytes, 0)::BIGINT AS libraries_bytes,
        COALESCE(others_bytes, 0)::BIGINT AS others_bytes,
        COALESCE(heap_bytes, 0)::BIGINT AS heap_bytes,
        COALESCE(files_bytes, 0)::BIGINT AS files_bytes,
        COALESCE(shared_bytes, 0)::BIGINT AS shared_bytes,
        COALESCE(absent_bytes, 0)::BIGINT AS absent_bytes
    FROM running
),

boundaries AS (
    SELECT
        rank,
        start_ns AS t_ns,
        span_id,
        stage,
        path,
        'start' AS edge,
        device_used_start_bytes AS device_used_bytes,
        active_start_bytes AS active_bytes,
        reserved_start_bytes AS reserved_bytes
    FROM spans
    UNION ALL
    SELECT
        rank,
        end_ns AS t_ns,
        span_id,
        stage,
        path,
        'end' AS edge,
        device_used_end_bytes AS device_used_bytes,
        active_end_bytes AS active_bytes,
        reserved_end_bytes AS reserved_bytes
    FROM spans
    UNION ALL
    SELECT
        rank,
        t_ns,
        NULL AS span_id,
        NULL AS stage,
        NULL AS path,
        'sample' AS edge,
        device_used_bytes,
        allocated_bytes AS active_bytes,
        reserved_bytes
    FROM samples
)

SELECT
    boundaries.rank,
    boundaries.t_ns,
    boundaries.span_id,
    boundaries.stage,
    boundaries.path,
    boundaries.edge,
    boundaries.device_used_bytes,
    boundaries.active_bytes,
    boundaries.reserved_bytes - boundaries.active_bytes AS cached_bytes,
    COALESCE(accounts.context_bytes, 0) AS context_bytes,
    COALESCE(accounts.nccl_bytes, 0) AS nccl_bytes,
    COALESCE(accounts.libraries_bytes, 0) AS libraries_bytes,
    COALESCE(accounts.others_bytes, 0) AS others_bytes,
    COALESCE(accounts.heap_bytes, 0) AS heap_bytes,
    COALESCE(accounts.files_bytes, 0) AS files_bytes,
    COALESCE(accounts.shared_bytes, 0) AS shared_bytes,
    COALESCE(accounts.absent_bytes, 0) AS absent_bytes,
    boundaries.device_used_bytes
        - boundaries.reserved_bytes
        - COALESCE(accounts.context_bytes, 0)
        - COALESCE(accounts.nccl_bytes, 0)
        - COALESCE(accounts.libraries_bytes, 0)
        - COALESCE(accounts.others_bytes, 0)
        - COALESCE(accounts.heap_bytes, 0)
        - COALESCE(accounts.files_bytes, 0)
        - COALESCE(accounts.shared_bytes, 0)
        - COALESCE(accounts.absent_bytes, 0) AS unexplained_bytes
FROM boundaries
ASOF LEFT JOIN accounts
    ON boundaries.rank = accounts.rank AND boundaries.t_ns >= accounts.t_ns
ORDER BY
    boundaries.rank,
    boundaries.t_ns,
    boundaries.span_id,
    boundaries.edge DESC
