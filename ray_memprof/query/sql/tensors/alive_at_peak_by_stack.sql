-- Which calls allocated what was alive at the peak of each rank?
-- One row = a Python stack and a span on a rank. The rows of a rank add up to
-- its peak. Without Python stacks there is one row for each span path.
--   rank         of the run
--   stack_id     in stacks; null: no stack was recorded
--   function, file, line
--                frame that allocated: the innermost Python frame that is not
--                torch's own; null: no stack was recorded
--   frame        its number in the stack; null: no stack was recorded
--   path         span in which they were allocated; null: outside of any
--   bytes        as the allocator counts them
--   num_tensors  how many
WITH moments AS (
    SELECT rank, stage, seq
    FROM peak_event
    -- Optimiser hint: keeps DuckDB from building the join on allocs.
    LIMIT 65536
),

alive AS (
    SELECT
        tensors.rank,
        tensors.stack_id,
        tensors.path,
        SUM(tensors.size_bytes)::BIGINT AS bytes,
        COUNT(*) AS num_tensors
    FROM tensors_alive(moments) AS tensors
    GROUP BY tensors.rank, tensors.stack_id, tensors.path
),

callers AS (
    SELECT
        rank,
        stack_id,
        ARG_MIN(
            {'function': function, 'file': file, 'line': line, 'frame': frame},
            (frame_order(file), frame)
        ) AS own
    FROM stacks
    SEMI JOIN alive USING (rank, stack_id)
    GROUP BY rank, stack_id
)

SELECT
    alive.rank,
    alive.stack_id,
    callers.own.function AS function,
    callers.own.file AS file,
    callers.own.line AS line,
    callers.own.frame AS frame,
    alive.path,
    alive.bytes,
    alive.num_tensors
FROM alive
LEFT JOIN callers
    ON alive.rank = callers.rank AND alive.stack_id = callers.stack_id
ORDER BY alive.rank, alive.bytes DESC, alive.stack_id, alive.path
