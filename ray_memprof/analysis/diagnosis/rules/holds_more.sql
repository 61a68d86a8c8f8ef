-- Rule: does one rank hold more than the others in a stage, and for what?
-- One row = a component that makes such a difference, in the stage where it is
-- largest.
--   ranks          ranks that hold more
--   stage          name of the outermost span
--   component      whose tensors make the difference; null: of no component
--   bytes          how much more it has on the worst of these ranks
--   is_peak        the peak of one of these ranks is in this stage
--   typical_rank   the rank that they are compared with
--   vae, t5_fsdp   keys of the configuration as they were; null: not known
--   workload       see settings
-- Thresholds: see skews. For a rank that decodes alone see decodes_alone, for
-- one with a larger batch in training see batch_larger.
WITH held AS (
    SELECT
        rank,
        stage,
        COALESCE(component, '') AS component,
        SUM(bytes) AS bytes
    FROM (
        FROM alive SELECT rank, stage, component, bytes
        UNION ALL
        FROM grown SELECT rank, stage, component, bytes
    )
    GROUP BY rank, stage, component
),

named AS (
    SELECT DISTINCT skews.rank, skews.stage, held.component
    FROM skews
    INNER JOIN held
        ON held.stage = skews.stage
        AND held.rank IN (skews.rank, skews.typical_rank)
),

differences AS (
    SELECT
        skews.rank,
        skews.stage,
        skews.typical_rank,
        named.component,
        COALESCE(mine.bytes, 0) - COALESCE(theirs.bytes, 0) AS bytes
    FROM skews
    INNER JOIN named ON skews.rank = named.rank AND skews.stage = named.stage
    LEFT JOIN held AS mine
        ON skews.rank = mine.rank
        AND skews.stage = mine.stage
        AND named.component = mine.component
    LEFT JOIN held AS theirs
        ON skews.typical_rank = theirs.rank
        AND skews.stage = theirs.stage
        AND named.component = theirs.component
),

-- In each stage, the component that makes most of the difference.
blamed AS (
    SELECT
        rank,
        stage,
        typical_rank,
        component,
        bytes
    FROM differences
    QUALIFY ROW_NUMBER() OVER (
        PARTITION BY rank, stage ORDER BY bytes DESC, component
    ) = 1
),

lone AS (
    SELECT MIN(rank) AS rank
    FROM spans
    WHERE name LIKE 'vae.%' AND stage = 'decode'
    HAVING COUNT(DISTINCT rank) = 1
),

worst AS (
    SELECT
        blamed.rank,
        blamed.stage,
        blamed.typical_rank,
        blamed.component,
        blamed.bytes,
        stage_peaks.is_run_peak
    FROM blamed
    INNER JOIN stage_peaks
        ON blamed.rank = stage_peaks.rank AND blamed.stage = stage_peaks.stage
    ANTI JOIN lone
        ON blamed.rank = lone.rank
        AND blamed.stage IN ('decode', 'script')
        AND blamed.component = 'vae'
    ANTI JOIN larger_batches
        ON blamed.rank = larger_batches.rank
        AND blamed.stage IN ('forward', 'backward', 'script')
    -- For each component, the stage where its difference is largest. The span
    -- of a whole script comes last: it says less than the stage inside it. Of
    -- several stages, the one with the rank's peak.
    QUALIFY ROW_NUMBER() OVER (
        PARTITION BY blamed.rank, blamed.component
        ORDER BY
            blamed.bytes DESC,
            blamed.stage = 'script',
            NOT stage_peaks.is_run_peak,
            stage_peaks.first_span_id
    ) = 1
)

SELECT
    LIST(worst.rank ORDER BY worst.rank) AS ranks,
    worst.stage,
    NULLIF(worst.component, '') AS component,
    MAX(worst.bytes)::BIGINT AS bytes,
    BOOL_OR(worst.is_run_peak) AS is_peak,
    MIN(worst.typical_rank) AS typical_rank,
    ANY_VALUE(settings.vae) AS vae,
    ANY_VALUE(settings.t5_fsdp) AS t5_fsdp,
    ANY_VALUE(settings.workload) AS workload
FROM worst
CROSS JOIN settings
GROUP BY worst.stage, worst.component
