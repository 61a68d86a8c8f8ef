-- Which frames do some stacks of a rank have?
-- of_rank: the rank; stack_ids: a list of numbers of stacks.
-- One row = a frame of one of them, the outermost frame of each stack first.
-- Frames of C++ are left out of stacks that have others: torch does not put
-- the two in one order.
--   stack_id              of the stack
--   function, file, line  of the frame
--   frame_order           0: of the program, 1: of torch, 2: C or C++ code
CREATE MACRO stack_frames(of_rank, stack_ids) AS TABLE
SELECT
    stack_id,
    function,
    file,
    line,
    frame_order(file) AS frame_order
FROM stacks
WHERE rank = of_rank AND stack_id IN (SELECT UNNEST(stack_ids))
QUALIFY
    frame_order(file) < 2
    OR MIN(frame_order(file)) OVER (PARTITION BY stack_id) = 2
ORDER BY stack_id, frame DESC
