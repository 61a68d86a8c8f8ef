-- Rule: is the batch of one rank larger than that of the others?
-- One row = the ranks whose batch is larger, by what they keep of it.
--   ranks          these ranks
--   stage          stage of the peak, on the rank that keeps most
--   component      that they train; null: several, or none
--   bytes          how many more bytes of activations that rank keeps than the
--                  typical rank
--   is_peak        true
--   typical_rank   the rank that they are compared with
--   typical_bytes  activations that it keeps at its own peak
-- Evidence: with the same weights, activations grow with the number of samples
-- and with their length.
-- Thresholds: see larger_batches. What holds_more would say of it is left out.
SELECT
    LIST(rank ORDER BY rank) AS ranks,
    ARG_MIN(stage, (-excess_bytes, rank)) AS stage,
    ARG_MIN(component, (-excess_bytes, rank)) AS component,
    MAX(excess_bytes) AS bytes,
    TRUE AS is_peak,
    ANY_VALUE(typical_rank) AS typical_rank,
    ANY_VALUE(typical_bytes) AS typical_bytes
FROM larger_batches
HAVING COUNT(*) > 0
