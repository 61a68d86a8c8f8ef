-- How much memory do the weights of each component take on each rank?
-- One row = a component on a rank.
--   rank            of the run
--   component       t5, clip, vae, dit, or the class of a program's module
--   base_bytes      its parameters and buffers on the device, as found by name,
--                   the most at once since it was loaded and sharded for the
--                   last time; or allocated memory that loading and moving in
--                   added, the most of all its stays: the larger one
--   num_visits      how often it came to the device; 0: it was made there
--   load_ns         time that loading and moving in took, over all its stays
WITH held AS (
    SELECT
        rank,
        component,
        SUM(bytes) OVER by_component AS bytes,
        LEAD(seq) OVER by_component AS until_seq
    FROM owned_events()
    WHERE category IN ('weight', 'buffer') AND component IS NOT NULL
    WINDOW by_component AS (PARTITION BY rank, component ORDER BY seq)
),

-- Loading and sharding hold copies of the weights meanwhile.
arrivals AS (
    SELECT
        rank,
        span_id,
        COALESCE(component, SPLIT_PART(name, '.', 2)) AS component
    FROM spans
    WHERE name LIKE 'load.%' OR name = 'residency.shard'
),

came AS (
    SELECT arrivals.rank, arrivals.component, MAX(allocs.seq) AS seq
    FROM allocs
    INNER JOIN arrivals
        ON allocs.rank = arrivals.rank AND allocs.span_id = arrivals.span_id
    GROUP BY arrivals.rank, arrivals.component
),

named AS (
    SELECT held.rank, held.component, MAX(held.bytes)::BIGINT AS bytes
    FROM held
    LEFT JOIN came
        ON held.rank = came.rank AND held.component = came.component
    WHERE came.seq IS NULL OR COALESCE(held.until_seq > came.seq, TRUE)
    GROUP BY held.rank, held.component
),

visits AS (
    SELECT
        rank,
        component,
        MAX(base_bytes) AS bytes,
        COUNT(*) AS num_visits,
        SUM(load_ns)::BIGINT AS load_ns
    FROM component_visits
    GROUP BY rank, component
)

SELECT
    COALESCE(named.rank, visits.rank) AS rank,
    COALESCE(named.component, visits.component) AS component,
    GREATEST(named.bytes, visits.bytes) AS base_bytes,
    COALESCE(visits.num_visits, 0) AS num_visits,
    COALESCE(visits.load_ns, 0) AS load_ns
FROM named
FULL JOIN visits
    ON named.rank = visits.rank AND named.component = visits.component
ORDER BY 1, base_bytes DESC, component
