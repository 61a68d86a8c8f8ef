-- How far may a prediction be off? The errors that docs/prediction.md states.
-- One row = an account, in one stage or in the whole run.
--   account         allocated, reserved or device_used
--   is_stage        of one stage; else of the whole run
--   fraction        of what was measured
--   least_bytes     a smaller difference is none: blocks of small tensors, and
--                   the page by which segments grow
CREATE MACRO stated_errors() AS TABLE
SELECT account, is_stage, fraction::DOUBLE AS fraction, least_bytes
FROM (
    VALUES
    ('allocated', FALSE, 0.005, 2097152),
    ('reserved', FALSE, 0.015, 20971520),
    ('device_used', FALSE, 0.015, 20971520),
    ('allocated', TRUE, 0.03, 2097152),
    ('reserved', TRUE, 0.03, 20971520),
    ('device_used', TRUE, 0.03, 20971520)
) AS stated (account, is_stage, fraction, least_bytes)
