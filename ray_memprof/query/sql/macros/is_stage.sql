-- Is a span a stage? Every outermost span is a stage. In a script, so is each
-- span that the script itself opens, such as that of a module that it calls.
-- A step that the script names is no stage; the spans directly in it are.
-- stage_of in store/categories.py says the same to the recorder.
CREATE MACRO is_stage(depth, path) AS
    (
        depth = 0
        OR depth = 1 AND path LIKE 'script/%' AND path != 'script/step'
        OR depth = 2 AND path LIKE 'script/step/%'
    )
