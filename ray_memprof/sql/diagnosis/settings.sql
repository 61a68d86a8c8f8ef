-- Evidence: how were the levers set?
-- One row = the run; nulls where its configuration is not known.
--   workload                 wan, script or import
--   num_ranks                ranks it was to have
--   task, precision, offload, t5_cpu, dit_fsdp, ffn_chunks, vae_slabs,
--   expandable_segments
--                            keys of the configuration
WITH known AS (
    SELECT
        workload,
        num_ranks,
        IF(JSON_VALID(config), config, '{}') AS config
    FROM runs
),

one AS (
    SELECT 1 AS row_number
)

SELECT
    known.workload,
    known.num_ranks,
    JSON_EXTRACT_STRING(known.config, '$.model_config.task') AS task,
    JSON_EXTRACT_STRING(known.config, '$.model_config.precision')
        AS precision,
    JSON_EXTRACT(known.config, '$.model_config.offload')::BOOLEAN AS offload,
    JSON_EXTRACT(known.config, '$.model_config.t5_cpu')::BOOLEAN AS t5_cpu,
    JSON_EXTRACT(known.config, '$.parallel.dit_fsdp')::BOOLEAN AS dit_fsdp,
    JSON_EXTRACT(known.config, '$.optimization.ffn_chunks')::INTEGER
        AS ffn_chunks,
    JSON_EXTRACT(known.config, '$.optimization.vae_slabs')::INTEGER
        AS vae_slabs,
    JSON_EXTRACT(known.config, '$.optimization.expandable_segments')::BOOLEAN
        AS expandable_segments
FROM one
LEFT JOIN known ON TRUE
LIMIT 1
