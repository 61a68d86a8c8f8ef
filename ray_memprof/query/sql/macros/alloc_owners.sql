-- Whose are allocations, as far as it was found out?
-- One row = an allocation that has an owner: the last that was found.
--   rank, seq                   of the allocation, in allocs
--   owner, component, category  of the owner
--   dtype                       of its numbers; null: not known
CREATE MACRO alloc_owners() AS TABLE
SELECT
    rank,
    seq,
    last_found.owner AS owner,
    last_found.component AS component,
    last_found.category AS category,
    last_found.dtype AS dtype
FROM (
    SELECT
        rank,
        seq,
        ARG_MAX(
            {
                'owner': owner,
                'component': component,
                'category': category,
                'dtype': dtype
            },
            (
                t_ns,
                owner,
                category,
                COALESCE(component, ''),
                COALESCE(dtype, '')
            )
        ) AS last_found
    FROM owners
    GROUP BY rank, seq
)
