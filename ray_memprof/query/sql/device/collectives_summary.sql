-- Which collectives ran, how much did they carry, what memory did they cost?
-- One row = an operation on a process group of a rank.
--   rank                    of the run
--   op                      as torch.distributed names it
--   group_name              name of the process group
--   group_size              ranks in it
--   num_calls               calls
--   total_bytes             this rank's share of the data, all calls
--   largest_bytes           of one call
--   duration_ns             time inside the calls; the device may go on after
--   non_torch_growth_bytes  growth of device memory outside the allocator
SELECT
    rank,
    op,
    "group" AS group_name,
    group_size,
    COUNT(*) AS num_calls,
    SUM(bytes)::BIGINT AS total_bytes,
    MAX(bytes) AS largest_bytes,
    SUM(end_ns - start_ns)::BIGINT AS duration_ns,
    SUM(non_torch_growth_bytes)::BIGINT AS non_torch_growth_bytes
FROM collectives
GROUP BY rank, op, "group", group_size
ORDER BY rank, total_bytes DESC, op, group_name, group_size
