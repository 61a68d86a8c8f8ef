-- How did the memory of each rank change over time, with every peak kept?
-- One row = a slice of the run's time on a rank, with what was seen in it.
-- There are 400 slices of equal length; a slice in which nothing was seen has
-- no row.
--   rank               of the run
--   slice              from 0 to 399
--   start_ns, end_ns   of the slice, since 1970
--   allocated_bytes    the most in it: tensors
--   reserved_bytes     the most in it: held by the allocator
--   device_used_bytes  the most in it: in use on the device by anybody
WITH sliced AS (
    SELECT
        moments.rank,
        (moments.t_ns - time_slices.first_ns) // time_slices.slice_ns AS slice,
        moments.allocated_bytes,
        moments.reserved_bytes,
        moments.device_used_bytes
    FROM seen_moments() AS moments
    CROSS JOIN time_slices
    WHERE COALESCE(
        moments.allocated_bytes,
        moments.reserved_bytes,
        moments.device_used_bytes
    ) IS NOT NULL
)

SELECT
    sliced.rank,
    sliced.slice,
    ANY_VALUE(time_slices.first_ns + sliced.slice * time_slices.slice_ns)
        AS start_ns,
    ANY_VALUE(time_slices.first_ns + (sliced.slice + 1) * time_slices.slice_ns)
        AS end_ns,
    MAX(sliced.allocated_bytes) AS allocated_bytes,
    MAX(sliced.reserved_bytes) AS reserved_bytes,
    MAX(sliced.device_used_bytes) AS device_used_bytes
FROM sliced
CROSS JOIN time_slices
GROUP BY sliced.rank, sliced.slice
ORDER BY sliced.rank, sliced.slice
