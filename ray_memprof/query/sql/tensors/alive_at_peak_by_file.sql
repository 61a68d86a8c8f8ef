-- Which files of code allocated what was alive at the peak of each rank?
-- One row = a file in Python stacks on a rank. A rank without Python stacks
-- has no rows. Frames of C++ count only in stacks that have no others.
--   rank             of the run
--   file             path
--   total_bytes      alive, with a frame of the file anywhere in their stack
--   self_bytes       of these, with the file in the innermost Python frame
--                    that is not torch's own; they add up over the files
--   num_tensors      how many make up total_bytes
--   num_self_tensors how many make up self_bytes
WITH files AS (
    SELECT
        rank,
        stack_id,
        file,
        ANY_VALUE(bytes) AS bytes,
        ANY_VALUE(num_tensors) AS num_tensors,
        BOOL_OR(is_self) AS is_self
    FROM frames_at_peak(alive_at_peak_by_stack)
    GROUP BY rank, stack_id, file
)

SELECT
    rank,
    file,
    SUM(bytes)::BIGINT AS total_bytes,
    SUM(IF(is_self, bytes, 0))::BIGINT AS self_bytes,
    SUM(num_tensors)::BIGINT AS num_tensors,
    SUM(IF(is_self, num_tensors, 0))::BIGINT AS num_self_tensors
FROM files
GROUP BY rank, file
ORDER BY rank, total_bytes DESC, self_bytes DESC, file
