-- Rule: do NCCL's buffers hold a share of the device that a setting could give
-- back?
-- One row = the ranks on which they do.
--   ranks       these ranks
--   stage       of the boundary where the device is fullest
--   component   null
--   bytes       the most on any of them
--   is_peak     true: the bytes are what the buffers hold at the peak
--   num_groups  process groups of the ranks that hold memory or may, the most
--               of any rank
--   buffer_bytes
--               NCCL_BUFFSIZE as it was in the ranks; NCCL's default of 4 MiB
--               if it was not set, or is no number
--   workload, backend
--               see settings
-- Threshold: 8 % of what the device has in use at its fullest, and at least
-- 256 MiB. Smaller buffers give back an eighth of what a group holds after its
-- first all-to-all (1.0 GiB of 1.2 on four H200): below the threshold that is
-- less than 1 % of the device.
WITH made AS (
    -- A group that has made no call may hold nothing; of an older run it is not
    -- known which have made any.
    SELECT rank, COUNT(*) AS num_groups
    FROM nccl_by_communicator
    WHERE group_size > 0 AND how_known != 'none'
    GROUP BY rank
)

SELECT
    LIST(books_at_peak.rank ORDER BY books_at_peak.rank) AS ranks,
    ARG_MIN(
        SPLIT_PART(books_at_peak.path, '/', 1),
        (-books_at_peak.bytes, books_at_peak.rank)
    ) AS stage,
    NULL::VARCHAR AS component,
    MAX(books_at_peak.bytes) AS bytes,
    TRUE AS is_peak,
    COALESCE(MAX(made.num_groups), 1) AS num_groups,
    COALESCE(ANY_VALUE(settings.nccl_buffer_bytes), 4194304) AS buffer_bytes,
    ANY_VALUE(settings.workload) AS workload,
    ANY_VALUE(settings.backend) AS backend
FROM books_at_peak
CROSS JOIN settings
LEFT JOIN made ON books_at_peak.rank = made.rank
WHERE
    books_at_peak.account = 'nccl'
    AND books_at_peak.bytes >= 268435456
    AND books_at_peak.share_fraction >= 0.08
HAVING COUNT(*) > 0
