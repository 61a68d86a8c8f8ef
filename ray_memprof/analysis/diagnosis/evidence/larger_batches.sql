-- Evidence: which ranks keep more activations than the typical rank, with the
-- same weights?
-- One row = a rank that does, at its peak in training, where there are backward
-- passes.
--   rank          the rank that keeps more
--   stage         stage of its peak
--   component     that it trains; null: several, or none
--   bytes         activations of the forward pass, alive at its peak
--   typical_rank  rank that it is compared with: it has the median
--   typical_bytes activations of typical_rank at its own peak
--   excess_bytes  how much more the rank keeps
-- Only ranks whose weights have the same names as those of typical_rank, and
-- take no more than a tenth more: else it is the model that is uneven, as
-- between the stages of a pipeline.
-- Threshold: a tenth of the typical activations, and 1 % of the rank's peak.
-- Ranks with equal batches have the same shapes, so a tenth is no chance; on
-- little it is not worth a sentence.
WITH trained AS (
    SELECT DISTINCT rank FROM spans WHERE stage = 'backward'
),

held AS (
    SELECT
        rank,
        ANY_VALUE(peak_stage) AS stage,
        ANY_VALUE(peak_bytes) AS peak_bytes,
        IF(COUNT(DISTINCT component) = 1, MIN(component), NULL) AS component,
        SUM(bytes) FILTER (
            WHERE category = 'activation' AND made_stage = 'forward'
        )::BIGINT AS bytes,
        SUM(bytes) FILTER (WHERE category = 'weight')::BIGINT AS weight_bytes,
        LIST(DISTINCT owner ORDER BY owner) FILTER (WHERE category = 'weight')
            AS weights
    FROM peak_tensors
    SEMI JOIN trained ON peak_tensors.rank = trained.rank
    WHERE peak_stage IN ('forward', 'backward', 'script')
    GROUP BY rank
),

-- If two ranks are in the middle, the one with less.
middle AS (
    SELECT QUANTILE_DISC(bytes, 0.5) AS bytes FROM held
),

typical AS (
    SELECT held.rank, held.bytes, held.weight_bytes, held.weights
    FROM held
    INNER JOIN middle ON held.bytes = middle.bytes
    QUALIFY ROW_NUMBER() OVER (ORDER BY held.rank) = 1
)

SELECT
    held.rank,
    held.stage,
    held.component,
    held.bytes,
    typical.rank AS typical_rank,
    typical.bytes AS typical_bytes,
    held.bytes - typical.bytes AS excess_bytes
FROM held
CROSS JOIN typical
WHERE
    held.bytes > 1.1 * typical.bytes
    AND held.bytes - typical.bytes >= 0.01 * held.peak_bytes
    AND held.weights = typical.weights
    AND held.weight_bytes <= 1.1 * typical.weight_bytes
