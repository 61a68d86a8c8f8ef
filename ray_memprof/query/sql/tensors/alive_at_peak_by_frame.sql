-- Which lines of code allocated what was alive at the peak of each rank?
-- One row = a frame of Python stacks on a rank. A rank without Python stacks
-- has no rows. Frames of C++ count only in stacks that have no others.
--   rank             of the run
--   function, file, line
--                    of the frame
--   total_bytes      alive, with the frame anywhere in their stack; a frame
--                    that calls itself counts once
--   self_bytes       of these, with the frame as the innermost Python frame
--                    that is not torch's own; they add up over the frames
--   num_tensors      how many make up total_bytes
--   num_self_tensors how many make up self_bytes
SELECT
    rank,
    function,
    file,
    line,
    SUM(bytes)::BIGINT AS total_bytes,
    SUM(IF(is_self, bytes, 0))::BIGINT AS self_bytes,
    SUM(num_tensors)::BIGINT AS num_tensors,
    SUM(IF(is_self, num_tensors, 0))::BIGINT AS num_self_tensors
FROM frames_at_peak(alive_at_peak_by_stack)
GROUP BY rank, function, file, line
ORDER BY rank, total_bytes DESC, self_bytes DESC, file, line, function
