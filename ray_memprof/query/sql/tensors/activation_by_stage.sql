-- How much memory do activations take in each stage, over all its steps?
-- One row = a stage on a rank, in the order the stages began.
--   rank                   of the run
--   stage                  name of the outermost span
--   num_times              how often it ran; denoise: steps
--   activation_peak_bytes  peak - bytes at its start, the most of its steps
--   activation_step        step of that peak; null outside the loop
--   base_bytes             weights on the device during that step; null: not
--                          known (see activation_by_step)
--   above_base_bytes       peak - base, the most of its steps
WITH numbered AS (
    SELECT
        rank,
        stage,
        step,
        activation_peak_bytes,
        base_bytes,
        above_base_bytes,
        ROW_NUMBER() OVER (
            PARTITION BY rank, stage
            ORDER BY activation_peak_bytes DESC, step
        ) AS place,
        MAX(above_base_bytes) OVER (PARTITION BY rank, stage)
            AS most_above_base_bytes,
        COUNT(*) OVER (PARTITION BY rank, stage) AS num_times
    FROM activation_by_step
),

began AS (
    SELECT rank, stage, MIN(span_id) AS span_id
    FROM spans
    WHERE is_stage(depth, path)
    GROUP BY rank, stage
)

SELECT
    numbered.rank,
    numbered.stage,
    numbered.num_times,
    numbered.activation_peak_bytes,
    numbered.step AS activation_step,
    numbered.base_bytes,
    numbered.most_above_base_bytes AS above_base_bytes
FROM numbered
INNER JOIN began
    ON numbered.rank = began.rank AND numbered.stage = began.stage
WHERE numbered.place = 1
ORDER BY numbered.rank, began.span_id
