-- Which lines of code are in the stacks of what was alive at the peak?
-- alive_stacks: the name of a table with the columns of alive_at_peak_by_stack.
-- One row = a function, file and line in a Python stack on a rank; a frame that
-- calls itself has one row. Frames of C++ count only in stacks that have no
-- others: torch does not put the two in one order.
--   rank, stack_id        of the stack
--   function, file, line  of the frame
--   bytes, num_tensors    alive at the peak with this stack
--   is_self               the innermost frame that is not torch's own
CREATE MACRO frames_at_peak(alive_stacks) AS TABLE
WITH alive AS (
    SELECT
        rank,
        stack_id,
        ANY_VALUE(frame) AS frame,
        ANY_VALUE(frame_order(file)) AS own_order,
        SUM(bytes)::BIGINT AS bytes,
        SUM(num_tensors)::BIGINT AS num_tensors
    FROM QUERY_TABLE(alive_stacks)
    WHERE stack_id IS NOT NULL
    GROUP BY rank, stack_id
)

SELECT
    stacks.rank,
    stacks.stack_id,
    stacks.function,
    stacks.file,
    stacks.line,
    ANY_VALUE(alive.bytes) AS bytes,
    ANY_VALUE(alive.num_tensors) AS num_tensors,
    BOOL_OR(stacks.frame = alive.frame) AS is_self
FROM stacks
INNER JOIN alive
    ON stacks.rank = alive.rank AND stacks.stack_id = alive.stack_id
WHERE frame_order(stacks.file) < 2 OR alive.own_order = 2
GROUP BY
    stacks.rank,
    stacks.stack_id,
    stacks.function,
    stacks.file,
    stacks.line
