-- Rule: would checkpointing drop a large part of the peak in training?
-- One row = the ranks on which it would; the figures are those of the rank on
-- which it would drop most.
--   ranks       these ranks
--   stage       stage of the peak
--   component   of the model that keeps them; null: of several, or of none
--   bytes       what checkpointing would drop at the peak: see Evidence
--   is_peak     true
--   kept_bytes  all activations that the forward pass keeps there
--   num_blocks  calls of blocks that keep some of them; null: blocks have no
--               spans
-- Evidence: activations that were allocated in the forward pass and are alive
-- at the peak: the backward pass needs them, if there is one. A block that is
-- checkpointed keeps what goes into it, and allocates the rest again when its
-- turn comes, one block at a time.
-- Where blocks have spans (module_spans): what the blocks keep, less the last
-- tensor of each, which goes into the next block, and less all of the block
-- that keeps most.
-- Where they have none, blocks are known by sizes: each of them allocates the
-- same ones. Of the activations, those count whose size occurs four times or
-- more; logits and losses do not. The number of blocks is the fewest times that
-- a size occurs which takes a twentieth of these activations. One tensor of the
-- largest size is left out for each block, and then all of one block. This is
-- rather too little than too much.
-- Threshold: 20 % of the rank's peak. Checkpointing runs the forward pass
-- twice, which costs about a third more time; for less, it is not worth that.
WITH trained AS (
    SELECT DISTINCT rank FROM spans WHERE stage = 'backward'
),

kept AS (
    SELECT
        tensors.rank,
        tensors.peak_stage,
        tensors.peak_bytes,
        tensors.component,
        tensors.seq,
        tensors.span_id,
        spans.end_ns,
        tensors.requested_bytes,
        tensors.bytes
    FROM peak_tensors AS tensors
    SEMI JOIN trained ON tensors.rank = trained.rank
    INNER JOIN spans
        ON tensors.rank = spans.rank AND tensors.span_id = spans.span_id
    WHERE
        tensors.peak_stage IN ('forward', 'backward', 'script')
        AND tensors.category = 'activation'
        AND tensors.made_stage = 'forward'
),

-- Outermost spans of blocks: a module inside a block may have a number, too.
roots AS (
    SELECT spans.rank, spans.span_id, spans.end_ns
    FROM spans
    LEFT JOIN spans AS around
        ON spans.rank = around.rank AND spans.parent_id = around.span_id
    WHERE
        spans.stage = 'forward'
        AND spans.block IS NOT NULL
        AND around.block IS NULL
),

in_blocks AS (
    SELECT kept.rank, kept.seq, kept.bytes, roots.span_id
    FROM kept
    ASOF INNER JOIN roots
        ON kept.rank = roots.rank AND kept.span_id >= roots.span_id
    WHERE kept.end_ns <= roots.end_ns
),

blocks AS (
    SELECT
        rank,
        span_id,
        SUM(bytes)::BIGINT - ARG_MAX(bytes, seq) AS bytes
    FROM in_blocks
    GROUP BY rank, span_id
),

by_blocks AS (
    SELECT
        rank,
        SUM(bytes)::BIGINT - MAX(bytes) AS bytes,
        COUNT(*) AS num_blocks
    FROM blocks
    GROUP BY rank
),

sizes AS (
    SELECT
        rank,
        requested_bytes,
        MAX(bytes) AS tensor_bytes,
        COUNT(*) AS num_tensors,
        SUM(bytes) AS bytes,
        SUM(SUM(bytes)) OVER (PARTITION BY rank) AS rank_bytes
    FROM kept
    GROUP BY rank, requested_bytes
    HAVING COUNT(*) >= 4
),

counted AS (
    SELECT
        rank,
        ANY_VALUE(rank_bytes) AS bytes,
        MAX(tensor_bytes) AS largest_bytes,
        MIN(num_tensors) FILTER (WHERE bytes >= 0.05 * rank_bytes)
            AS num_blocks
    FROM sizes
    GROUP BY rank
),

by_sizes AS (
    SELECT
        rank,
        (bytes - num_blocks * largest_bytes)
        * (num_blocks - 1) // num_blocks AS bytes
    FROM counted
),

totals AS (
    SELECT
        rank,
        ANY_VALUE(peak_stage) AS peak_stage,
        ANY_VALUE(peak_bytes) AS peak_bytes,
        IF(
            COUNT(component) = COUNT(*) AND COUNT(DISTINCT component) = 1,
            MIN(component),
            NULL
        ) AS component,
        SUM(bytes)::BIGINT AS bytes
    FROM kept
    GROUP BY rank
),

dropped AS (
    SELECT
        totals.rank,
        totals.peak_stage,
        totals.component,
        COALESCE(by_blocks.bytes, by_sizes.bytes)::BIGINT AS bytes,
        totals.bytes AS kept_bytes,
        by_blocks.num_blocks
    FROM totals
    LEFT JOIN by_blocks ON totals.rank = by_blocks.rank
    LEFT JOIN by_sizes ON totals.rank = by_sizes.rank
    WHERE
        COALESCE(by_blocks.bytes, by_sizes.bytes) >= 0.2 * totals.peak_bytes
),

worst AS (
    SELECT rank, peak_stage, component, bytes, kept_bytes, num_blocks
    FROM dropped
    QUALIFY ROW_NUMBER() OVER (ORDER BY bytes DESC, rank) = 1
)

SELECT
    (SELECT LIST(rank ORDER BY rank) FROM dropped) AS ranks,
    peak_stage AS stage,
    component,
    bytes,
    TRUE AS is_peak,
    kept_bytes,
    num_blocks
FROM worst
