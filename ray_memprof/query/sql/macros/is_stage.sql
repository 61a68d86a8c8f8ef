-- Is a span a stage? The outermost spans are, and in a script each module that
-- it calls itself, too.
CREATE MACRO is_stage(depth, path) AS
    (depth = 0 OR depth = 1 AND path LIKE 'script/%')
