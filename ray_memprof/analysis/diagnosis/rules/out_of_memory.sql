-- Rule: did the device run out of memory, and did that end the run?
-- One row = a stage in which it did.
--   ranks           ranks whose device ran out of memory
--   stage           of the span that the error left; empty: no span
--   component       component whose tensors are the largest part of what was
--                   held; null: no component, or not known
--   bytes           held in tensors by the first of these ranks
--   is_peak         true
--   first_rank      the first of these ranks, by time
--   step            in which it ended; -1: outside the denoise loop
--   oom_by, asked_bytes, free_bytes, reserved_bytes
--                   see ooms
--   others_bytes    held on that device by other processes; null: not known
--   category        of the largest part; null: not known
--   part_bytes      the largest part; null: not known
--   num_ranks, workload, precision, load_strategy, t5_fsdp, dit_fsdp, cfg, vae,
--   attention_slicing, ffn_chunks, vae_slabs, wants_expandable,
--   allocator_variable, allocator_conf, is_expandable
--                   see settings
-- Threshold: none.
WITH firsts AS (
    SELECT
        rank,
        stage,
        step,
        seq,
        COALESCE(t_ns, 9223372036854775807) AS t_ns,
        oom_by,
        asked_bytes,
        free_bytes,
        allocated_bytes,
        reserved_bytes,
        LIST(rank) OVER (
            PARTITION BY stage ORDER BY rank
            ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING
        ) AS ranks
    FROM ooms
    QUALIFY ROW_NUMBER() OVER (PARTITION BY stage ORDER BY t_ns, rank) = 1
),

parts AS (
    SELECT
        tensors.rank,
        tensors.component,
        tensors.category,
        SUM(tensors.size_bytes)::BIGINT AS bytes
    FROM tensors_alive(firsts) AS tensors
    GROUP BY tensors.rank, tensors.component, tensors.category
    QUALIFY ROW_NUMBER() OVER (
        PARTITION BY tensors.rank
        ORDER BY
            SUM(tensors.size_bytes) DESC, tensors.component, tensors.category
    ) = 1
),

others AS (
    SELECT firsts.rank, samples.others_used_bytes AS bytes
    FROM firsts
    ASOF INNER JOIN samples
        ON firsts.rank = samples.rank AND firsts.t_ns >= samples.t_ns
)

SELECT
    firsts.ranks,
    firsts.stage,
    IF(parts.bytes IS NULL, stage_peaks.component, parts.component)
        AS component,
    firsts.allocated_bytes AS bytes,
    TRUE AS is_peak,
    firsts.rank AS first_rank,
    firsts.step,
    firsts.oom_by,
    firsts.asked_bytes,
    firsts.free_bytes,
    firsts.reserved_bytes,
    others.bytes AS others_bytes,
    parts.category,
    parts.bytes AS part_bytes,
    settings.num_ranks,
    settings.workload,
    settings.precision,
    settings.load_strategy,
    settings.t5_fsdp,
    settings.dit_fsdp,
    settings.cfg,
    settings.vae,
    settings.attention_slicing,
    settings.ffn_chunks,
    settings.vae_slabs,
    settings.wants_expandable,
    settings.allocator_variable,
    settings.allocator_conf,
    settings.is_expandable
FROM firsts
CROSS JOIN settings
LEFT JOIN parts ON firsts.rank = parts.rank
LEFT JOIN others ON firsts.rank = others.rank
LEFT JOIN stage_peaks
    ON firsts.rank = stage_peaks.rank AND firsts.stage = stage_peaks.stage
