-- Which transformer block needs how much memory?
-- One row = a block of a component on a rank, all its steps and branches
-- together.
--   rank                   of the run
--   component              t5, clip, vae, dit or a module's name
--   block                  its index
--   num_times              how often it ran
--   duration_ns            median of these times
--   activation_peak_bytes  peak - bytes at its start, the most of these times
--   kept_bytes             bytes at its end - bytes at its start, the most of
--                          these times: what it left behind
WITH blocks AS (
    SELECT
        rank,
        component,
        block,
        end_ns - start_ns AS duration_ns,
        allocated_peak_bytes - allocated_start_bytes AS activation_bytes,
        allocated_end_bytes - allocated_start_bytes AS kept_bytes
    FROM spans
    -- A collective inside a block carries the block's index, too.
    WHERE block IS NOT NULL AND name NOT LIKE 'comm.%'
)

SELECT
    rank,
    component,
    block,
    COUNT(*) AS num_times,
    MEDIAN(duration_ns)::BIGINT AS duration_ns,
    MAX(activation_bytes) AS activation_peak_bytes,
    MAX(kept_bytes) AS kept_bytes
FROM blocks
GROUP BY rank, component, block
ORDER BY rank, component, block
