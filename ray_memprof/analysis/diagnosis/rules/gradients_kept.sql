-- Rule: are gradients of an earlier training step still there at the peak?
-- One row = a component, with the ranks on which they are.
--   ranks       these ranks
--   stage       stage of the peak, on the rank with most of them
--   component   whose parameters they are for; null: not known
--   bytes       of these gradients, the most on any of the ranks: the peak is
--               lower by at most this much without them
--   is_peak     true
-- Evidence: a backward pass made the gradient, then an optimizer made its step,
-- and the gradient is still alive. Gradients that several backward passes add
-- up before a step are needed, and so are all of them while an optimizer works:
-- a peak in its step does not count. Buckets of DDP are no gradients here:
-- they stay in any case.
-- Threshold: 5 % of the rank's peak, as in decode_peaks.
WITH moments AS (
    SELECT rank, MIN(peak_ns) AS peak_ns
    FROM peak_tensors
    WHERE peak_stage != 'optimizer'
    GROUP BY rank
),

last_steps AS (
    SELECT spans.rank, MAX(spans.start_ns) AS start_ns
    FROM spans
    INNER JOIN moments
        ON spans.rank = moments.rank AND spans.end_ns <= moments.peak_ns
    WHERE spans.stage = 'optimizer'
    GROUP BY spans.rank
),

kept AS (
    SELECT
        tensors.rank,
        tensors.component,
        tensors.peak_stage,
        SUM(tensors.bytes)::BIGINT AS bytes
    FROM peak_tensors AS tensors
    INNER JOIN last_steps ON tensors.rank = last_steps.rank
    INNER JOIN spans
        ON tensors.rank = spans.rank
        AND tensors.span_id = spans.span_id
        AND last_steps.start_ns >= spans.end_ns
    WHERE tensors.category = 'gradient' AND tensors.made_stage = 'backward'
    GROUP BY
        tensors.rank,
        tensors.component,
        tensors.peak_stage,
        tensors.peak_bytes
    HAVING SUM(tensors.bytes) >= 0.05 * tensors.peak_bytes
)

SELECT
    LIST(rank ORDER BY rank) AS ranks,
    ARG_MIN(peak_stage, (-bytes, rank)) AS stage,
    component,
    MAX(bytes) AS bytes,
    TRUE AS is_peak
FROM kept
GROUP BY component
