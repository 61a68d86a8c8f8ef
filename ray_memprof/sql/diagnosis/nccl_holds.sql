-- Rule: do NCCL's buffers hold a share of the device that a lever could give
-- back?
-- One row = the ranks on which they do.
--   ranks       who
--   stage       of the boundary where the device is fullest
--   component   null
--   bytes       the most on any of them
--   is_peak     true: it is what they hold at the peak
--   num_groups  process groups that the ranks made, the most of any rank
-- Threshold: 8 % of what the device has in use at its fullest, 256 MiB at
-- least. Smaller buffers give back an eighth of what a group holds after its
-- first all-to-all (1.0 GiB of 1.2 on four H200): under 8 %, less than 1 % of
-- the device.
WITH made AS (
    SELECT rank, COUNT(DISTINCT "group") AS num_groups
    FROM collectives
    WHERE group_size > 0
    GROUP BY rank
)

SELECT
    LIST(books_at_peak.rank ORDER BY books_at_peak.rank) AS ranks,
    MIN(SPLIT_PART(books_at_peak.path, '/', 1)) AS stage,
    NULL::VARCHAR AS component,
    MAX(books_at_peak.bytes) AS bytes,
    TRUE AS is_peak,
    COALESCE(MAX(made.num_groups), 1) AS num_groups
FROM books_at_peak
LEFT JOIN made ON books_at_peak.rank = made.rank
WHERE
    books_at_peak.account = 'nccl'
    AND books_at_peak.bytes >= 268435456
    AND books_at_peak.share_fraction >= 0.08
HAVING COUNT(*) > 0
