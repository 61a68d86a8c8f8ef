-- Is a frame of a stack the program's own?
-- 0: Python code of the program, 1: Python code of torch, 2: C or C++ code. Of
-- the frames with the smallest number, the innermost one tells best who
-- allocated a tensor.
CREATE MACRO frame_order(file) AS
    CASE
        WHEN
            file IN ('', '??')
            OR regexp_matches(
                file, '\.(c|cc|cpp|cxx|cu|cuh|h|hpp|inl|rs|S|so[.0-9]*)$'
            )
            THEN 2
        -- The folder of an installed torch, or of one that runs from its own
        -- sources. A program may have a folder "torch" too.
        WHEN
            regexp_matches(
                file,
                '(^|[/\\])(site-packages|dist-packages|pytorch)'
                || '[/\\]torch[/\\]'
            )
            THEN 1
        ELSE 0
    END
