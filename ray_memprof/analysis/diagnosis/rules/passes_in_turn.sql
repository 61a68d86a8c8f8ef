-- Rule: do all ranks run both passes of guidance, one after the other, where
-- half of the ranks could run each?
-- One row = the run.
--   ranks      all that run both passes
--   stage      denoise
--   component  dit
--   bytes      0: it costs time
--   is_peak    false
--   num_ranks, ulysses, ring
--              see settings
--   exchanged_bytes
--              what a rank hands to exchanges of tokens in a step, the mean of
--              its steps, the most of any rank; 0: it works on all tokens
--   activation_bytes
--              what a step adds on a rank, the most of any
-- Threshold: none where every rank works on all tokens, since all do the same
-- work. Where tokens are split, 2 GiB for each second of a step, since each
-- pass on half of the ranks takes all other exchanges away: less than that
-- keeps a link of 20 GiB/s, as one between hosts, busy for less than a tenth
-- of the time. Twice the activations must have room on the device.
WITH passes AS (
    SELECT rank
    FROM spans
    WHERE name = 'dit.forward'
    GROUP BY rank
    HAVING
        COUNT(*) FILTER (WHERE branch = 'cond') > 0
        AND COUNT(*) FILTER (WHERE branch = 'uncond') > 0
),

-- The host may be ahead of the device by a part of the last step.
steps AS (
    SELECT
        rank,
        COUNT(*) AS num_steps,
        SUM(end_ns - start_ns) AS duration_ns
    FROM spans
    WHERE name = 'denoise' AND NOT failed
    GROUP BY rank
),

-- A batch holds what is sent and what is received.
exchanged AS (
    SELECT
        collectives.rank,
        SUM(
            IF(
                collectives.op = 'batch_isend_irecv',
                collectives.bytes // 2,
                collectives.bytes
            )
        ) AS bytes
    FROM collectives
    INNER JOIN spans
        ON collectives.rank = spans.rank
        AND collectives.span_id = spans.span_id
    WHERE
        spans.stage = 'denoise'
        AND collectives.op
        IN ('all_to_all_single', 'batch_isend_irecv')
    GROUP BY collectives.rank
),

known AS (
    SELECT
        passes.rank,
        steps.duration_ns,
        COALESCE(exchanged.bytes, 0) AS total_bytes,
        COALESCE(exchanged.bytes, 0) // steps.num_steps AS exchanged_bytes,
        activation_by_stage.activation_peak_bytes AS activation_bytes,
        NULLIF(peaks.device_total_bytes, 0)
            - GREATEST(
                peaks.device_used_peak_bytes,
                activation_by_stage.activation_peak_bytes
            ) AS free_bytes
    FROM passes
    INNER JOIN steps ON passes.rank = steps.rank
    LEFT JOIN exchanged ON passes.rank = exchanged.rank
    INNER JOIN activation_by_stage
        ON passes.rank = activation_by_stage.rank
        AND activation_by_stage.stage = 'denoise'
    INNER JOIN rank_peaks() AS peaks ON passes.rank = peaks.rank
)

SELECT
    LIST(known.rank ORDER BY known.rank) AS ranks,
    'denoise' AS stage,
    'dit' AS component,
    0::BIGINT AS bytes,
    FALSE AS is_peak,
    ANY_VALUE(settings.num_ranks) AS num_ranks,
    ANY_VALUE(settings.ulysses) AS ulysses,
    ANY_VALUE(settings.ring) AS ring,
    MAX(known.exchanged_bytes)::BIGINT AS exchanged_bytes,
    MAX(known.activation_bytes)::BIGINT AS activation_bytes
FROM known
CROSS JOIN settings
WHERE
    settings.workload = 'wan'
    AND settings.num_ranks % 2 = 0
    AND settings.cfg = 1
    AND settings.backend = 'native'
HAVING
    COUNT(*) = ANY_VALUE(settings.num_ranks)
    AND CASE
        WHEN ANY_VALUE(settings.ulysses * settings.ring) = 1
            THEN MAX(known.total_bytes) = 0
        ELSE
            MAX(known.total_bytes / GREATEST(known.duration_ns, 1))
            >= 2.147483648
            AND COALESCE(MIN(known.free_bytes - known.activation_bytes), 0) >= 0
    END
