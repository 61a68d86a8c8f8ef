-- How much host memory do the ranks of a node take together?
-- One row = a stage on a host.
--   host             name; null: not known
--   stage            name of the outermost span
--   num_ranks        ranks on it that ran the stage
--   sum_peak_bytes   their resident peaks added up: what the host needs if all
--                    peaks come at once; a file that several ranks map counts
--                    once for each of them
--   max_peak_bytes   the largest of their peaks
--   max_rank         the lowest of the ranks with that peak
--   grown_bytes      bytes at the end of the stage - at its start, added up
--                    over the ranks: what the stage left behind
WITH stages AS (
    SELECT
        rank,
        stage,
        MIN(span_id) AS first_span_id,
        MAX(host_rss_peak_bytes) AS peak_bytes,
        ARG_MAX(host_rss_end_bytes, span_id)
            - ARG_MIN(host_rss_start_bytes, span_id) AS grown_bytes
    FROM spans
    WHERE is_stage(depth, path)
    GROUP BY rank, stage
)

SELECT
    ranks.host,
    stages.stage,
    COUNT(*) AS num_ranks,
    SUM(stages.peak_bytes)::BIGINT AS sum_peak_bytes,
    MAX(stages.peak_bytes) AS max_peak_bytes,
    ARG_MIN(stages.rank, (-stages.peak_bytes, stages.rank)) AS max_rank,
    SUM(stages.grown_bytes)::BIGINT AS grown_bytes
FROM stages
LEFT JOIN ranks ON stages.rank = ranks.rank
GROUP BY ranks.host, stages.stage
ORDER BY ranks.host, MIN(stages.first_span_id), stages.stage
