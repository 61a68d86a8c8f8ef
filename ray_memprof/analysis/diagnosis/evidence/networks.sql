-- Evidence: how large is the diffusion transformer of each task of wan?
-- One row = a task. Tests compare the rows with the networks.
--   task            as model_config.task names it
--   num_parameters  of the diffusion transformer
--   saved_bytes     what weights in fp8 save where parameters have 2 bytes
--                   each: the linear layers of blocks become half, with a
--                   scale of 4 bytes for each output
SELECT task, num_parameters, saved_bytes
FROM (
    VALUES
    ('t2v-1.3B', 1418996800, 1389250560),
    ('t2v-14B', 14288491584, 14041333760),
    ('t2i-14B', 14288491584, 14041333760),
    ('i2v-14B', 16394878784, 16136847360),
    ('flf2v-14B', 16395536704, 16136847360),
    ('vace-1.3B', 2153972032, 2121526272),
    ('vace-14B', 17337592896, 17085345792)
) AS networks (task, num_parameters, saved_bytes)
