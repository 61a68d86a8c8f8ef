-- Rule: does one rank hold more than the others in a stage, and for whom?
-- One row = a component that makes such a difference, in the stage where it is
-- largest.
--   ranks          who
--   stage          name of the outermost span
--   component      whose tensors make the difference; null: of no component
--   bytes          how much more it holds on the worst of them
--   is_peak        the stage has the peak of one of these ranks
--   typical_rank   whom they are compared with
-- Thresholds: see skews.
WITH held AS (
    SELECT
        rank,
        stage,
        COALESCE(component, '') AS component,
        SUM(bytes) AS bytes
    FROM alive
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
        skews.typical_bytes,
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

-- Without events: weights that came and stayed, or else the component at work.
bases AS (
    SELECT
        skews.rank,
        skews.stage,
        base_memory.component,
        base_memory.base_bytes - COALESCE(others.base_bytes, 0) AS bytes
    FROM skews
    INNER JOIN base_memory ON skews.rank = base_memory.rank
    LEFT JOIN base_memory AS others
        ON skews.typical_rank = others.rank
        AND base_memory.component = others.component
    WHERE
        base_memory.base_bytes - COALESCE(others.base_bytes, 0)
        > 0.5 * skews.excess_bytes
),

guesses AS (
    SELECT
        skews.rank,
        skews.stage,
        skews.typical_rank,
        skews.typical_bytes,
        COALESCE(bases.component, stage_peaks.component, '') AS component,
        skews.excess_bytes AS bytes
    FROM skews
    INNER JOIN stage_peaks
        ON skews.rank = stage_peaks.rank AND skews.stage = stage_peaks.stage
    LEFT JOIN bases ON skews.rank = bases.rank AND skews.stage = bases.stage
    ANTI JOIN differences
        ON skews.rank = differences.rank AND skews.stage = differences.stage
),

-- Of a stage the component that makes the most of it, of a component the stage.
blamed AS (
    SELECT
        rank,
        stage,
        typical_rank,
        typical_bytes,
        component,
        bytes
    FROM (
        FROM differences
        SELECT rank, stage, typical_rank, typical_bytes, component, bytes
        UNION ALL
        FROM guesses
        SELECT rank, stage, typical_rank, typical_bytes, component, bytes
    )
    QUALIFY ROW_NUMBER() OVER (
        PARTITION BY rank, stage ORDER BY bytes DESC, component
    ) = 1
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
    QUALIFY ROW_NUMBER() OVER (
        PARTITION BY blamed.rank, blamed.component
        ORDER BY blamed.bytes DESC, stage_peaks.first_span_id
    ) = 1
)

SELECT
    LIST(rank ORDER BY rank) AS ranks,
    stage,
    NULLIF(component, '') AS component,
    MAX(bytes)::BIGINT AS bytes,
    BOOL_OR(is_run_peak) AS is_peak,
    MIN(typical_rank) AS typical_rank
FROM worst
GROUP BY stage, component
