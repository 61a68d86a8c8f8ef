-- Which growth of an older run was NCCL's, though it was booked to libraries?
-- Such a run did not hear the calls that C++ makes. What a group gives back
-- when it is destroyed was taken before: where the account falls below zero,
-- as many bytes are moved to it, from the earliest growth of libraries on.
WITH running AS (
    SELECT
        rank,
        SUM(bytes) OVER (
            PARTITION BY rank ORDER BY t_ns
            RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
        ) AS held_bytes
    FROM ledger
    WHERE account = 'nccl'
),

lacking AS (
    SELECT rank, -MIN(held_bytes) AS lacking_bytes
    FROM running
    GROUP BY rank
    HAVING MIN(held_bytes) < 0
),

grown AS (
    SELECT
        ledger.rank,
        ledger.t_ns,
        ledger.span_id,
        ledger.bytes,
        lacking.lacking_bytes,
        SUM(ledger.bytes) OVER (
            PARTITION BY ledger.rank ORDER BY ledger.t_ns, ledger.span_id
            ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
        ) - ledger.bytes AS before_bytes
    FROM ledger
    INNER JOIN lacking ON ledger.rank = lacking.rank
    WHERE ledger.account = 'libraries' AND ledger.bytes > 0
),

moved AS (
    SELECT
        rank,
        t_ns,
        span_id,
        LEAST(bytes, lacking_bytes - before_bytes)::BIGINT AS bytes
    FROM grown
    WHERE lacking_bytes > before_bytes
)

INSERT INTO ledger BY NAME
SELECT rank, t_ns, span_id, 'libraries' AS account, -bytes AS bytes FROM moved
UNION ALL BY NAME
SELECT rank, t_ns, span_id, 'nccl' AS account, bytes FROM moved
