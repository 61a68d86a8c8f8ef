-- Which collectives ran, how much data did they carry, and how much memory did
-- they cost?
-- One row = an operation on a process group of a rank.
--   rank                    of the run
--   op                      as torch.distributed names it
--   group_name              name of the process group
--   group_size              ranks in it
--   num_calls               how often it was called
--   total_bytes             this rank's share of the data, over all calls
--   largest_bytes           this rank's largest share in one call
--   duration_ns             time inside the calls; the device may still be
--                           working on them afterwards
--   non_torch_growth_bytes  growth of device memory outside the allocator
SELECT
    rank,
    op,
    collectives.group AS group_name,
    group_size,
    COUNT(*) AS num_calls,
    SUM(bytes)::BIGINT AS total_bytes,
    MAX(bytes) AS largest_bytes,
    SUM(end_ns - start_ns)::BIGINT AS duration_ns,
    SUM(non_torch_growth_bytes)::BIGINT AS non_torch_growth_bytes
FROM collectives
GROUP BY rank, op, collectives.group, group_size
ORDER BY rank, total_bytes DESC, op, group_name, group_size
