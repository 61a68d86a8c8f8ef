-- Who holds the memory when the device is fullest?
-- One row = an account on a rank, at the span boundary with the largest
-- device_used (see books); the accounts of a rank add up to device_used_bytes.
--   rank               of the run
--   t_ns               since 1970
--   path               span whose boundary it is; null: a sample
--   account            active, fragmentation, context, nccl, libraries, others
--                      or unexplained
--   bytes              held by the account
--   share_fraction     of device_used; null where that is 0
--   device_used_bytes  in use on the device by anybody
WITH fullest AS (
    SELECT
        rank,
        t_ns,
        path,
        device_used_bytes,
        active_bytes AS active,
        fragmentation_bytes AS fragmentation,
        context_bytes AS context,
        nccl_bytes AS nccl,
        libraries_bytes AS libraries,
        others_bytes AS others,
        unexplained_bytes AS unexplained
    FROM books
    QUALIFY ROW_NUMBER() OVER (
        PARTITION BY rank
        ORDER BY device_used_bytes DESC, t_ns, span_id, edge
    ) = 1
)

SELECT
    rank,
    t_ns,
    path,
    account,
    bytes,
    bytes / NULLIF(device_used_bytes, 0) AS share_fraction,
    device_used_bytes
FROM (
    UNPIVOT fullest
    ON active, fragmentation, context, nccl, libraries, others, unexplained
    INTO NAME account VALUE bytes
)
ORDER BY
    rank,
    LIST_POSITION(
        [
            'active', 'fragmentation', 'context', 'nccl', 'libraries', 'others',
            'unexplained'
        ],
        account
    )
