-- Is a span a stage? Every outermost span is a stage. In a script, so is the
-- span of each module that the script itself calls.
CREATE MACRO is_stage(depth, path) AS
    (depth = 0 OR depth = 1 AND path LIKE 'script/%')
