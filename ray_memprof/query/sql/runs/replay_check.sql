-- Do the recorded events add up to the allocator's own counters, and what did
-- recording cost?
-- One row = a rank.
--   rank                           of the run
--   is_exact                       checks were made, none was off by a byte, no
--                                  event was lost, the peaks agree and every
--                                  rule of the allocator was known
--   is_within                      compared, and wrong only because a rule of
--                                  the allocator is not known: no error
--                                  exceeds inexact_bytes
--   status                         how the rank ended: a rank that did not
--                                  come to its end was not checked
--   num_events, num_lost_events    allocator events
--   num_checks                     moments at which both were compared
--   max_error_bytes                largest difference at these moments
--   inexact_bytes                  how far the replay may be off where the
--                                  allocator's rule is not known
--   peak_at_least                  the peaks may be before the first event:
--                                  they are lower bounds
--   allocated_peak_bytes           by the allocator's counter
--   allocated_peak_error_bytes     replayed - counted
--   reserved_peak_bytes            by the allocator's counter
--   reserved_peak_error_bytes      replayed - counted
--   recorder_ns                    spent recording on the model's thread
--   longest_pause_ns               the longest of these times
--   recorder_bytes                 most bytes in the recorder's buffers
SELECT
    rank,
    num_checks > 0
        AND num_lost_events = 0
        AND max_error_bytes = 0
        AND inexact_bytes = 0
        AND replayed_allocated_peak_bytes = allocated_peak_bytes
        AND replayed_reserved_peak_bytes = reserved_peak_bytes AS is_exact,
    num_checks > 0
        AND inexact_bytes > 0
        AND num_lost_events = 0
        AND GREATEST(
            max_error_bytes,
            ABS(replayed_allocated_peak_bytes - allocated_peak_bytes),
            ABS(replayed_reserved_peak_bytes - reserved_peak_bytes)
        ) <= inexact_bytes AS is_within,
    status,
    num_events,
    num_lost_events,
    num_checks,
    max_error_bytes,
    inexact_bytes,
    peak_at_least,
    allocated_peak_bytes,
    replayed_allocated_peak_bytes - allocated_peak_bytes
        AS allocated_peak_error_bytes,
    reserved_peak_bytes,
    replayed_reserved_peak_bytes - reserved_peak_bytes
        AS reserved_peak_error_bytes,
    recorder_ns,
    longest_pause_ns,
    recorder_bytes
FROM ranks
ORDER BY rank
