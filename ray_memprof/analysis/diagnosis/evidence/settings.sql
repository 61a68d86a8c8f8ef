-- Evidence: how were the settings set that findings name?
-- One row = the run; null where its configuration, or its environment, is not
-- known.
--   source, workload         as the table runs has them
--   num_ranks                ranks that the run was to have
--   is_imported              it was made of snapshots of another program
--   task, precision, weights_dtype, load_strategy, offload, t5_cpu, t5_fsdp,
--   dit_fsdp, vae, backend, attention_slicing, ffn_chunks, vae_slabs
--                            keys of the configuration
--   ulysses, ring, cfg       the same; cfg is 1 in a run older than the key
--   is_public_wan            a script with the networks of the public Wan2.1
--                            repository, by the names of their classes
--   wants_expandable         optimization.expandable_segments
--   allocator_variable       environment variable that torch's allocator read;
--                            null: none was set
--   allocator_conf           value of that variable
--   nccl_buffer_bytes        NCCL_BUFFSIZE; null: not set
--   is_expandable            the allocator grew its segments, or was told to;
--                            null: not known
WITH known AS (
    SELECT
        source,
        workload,
        num_ranks,
        IF(JSON_VALID(config), config, '{}') AS config,
        IF(JSON_VALID(environment), environment, '{}') AS environment
    FROM runs
),

-- The segments know best: a script may change the allocator's settings itself.
grown AS (
    SELECT
        EXISTS (SELECT 1 FROM allocs WHERE action = 'segment_map') AS has_maps,
        EXISTS (SELECT 1 FROM allocs WHERE action = 'segment_alloc')
            AS has_segments
),

told AS (
    SELECT
        source,
        workload,
        num_ranks,
        config,
        environment,
        CASE
            WHEN environment ->> '$.PYTORCH_CUDA_ALLOC_CONF' IS NOT NULL
                THEN 'PYTORCH_CUDA_ALLOC_CONF'
            WHEN environment ->> '$.PYTORCH_ALLOC_CONF' IS NOT NULL
                THEN 'PYTORCH_ALLOC_CONF'
        END AS allocator_variable,
        COALESCE(
            environment ->> '$.PYTORCH_CUDA_ALLOC_CONF',
            environment ->> '$.PYTORCH_ALLOC_CONF'
        ) AS allocator_conf
    FROM known
)

SELECT
    told.source,
    told.workload,
    told.num_ranks,
    told.workload = 'script' AND EXISTS (
        SELECT 1
        FROM spans
        WHERE SPLIT_PART(module, '.', 1)
            IN ('WanModel', 'VaceWanModel', 'WanVAE_')
    ) AS is_public_wan,
    JSON_EXISTS(told.config, '$.imported') AS is_imported,
    told.config ->> '$.model_config.task' AS task,
    told.config ->> '$.model_config.precision' AS precision,
    told.config ->> '$.model_config.weights_dtype' AS weights_dtype,
    told.config ->> '$.model_config.load_strategy' AS load_strategy,
    TRY_CAST(told.config ->> '$.model_config.offload' AS BOOLEAN) AS offload,
    TRY_CAST(told.config ->> '$.model_config.t5_cpu' AS BOOLEAN) AS t5_cpu,
    TRY_CAST(told.config ->> '$.parallel.t5_fsdp' AS BOOLEAN) AS t5_fsdp,
    TRY_CAST(told.config ->> '$.parallel.dit_fsdp' AS BOOLEAN) AS dit_fsdp,
    told.config ->> '$.parallel.vae' AS vae,
    told.config ->> '$.parallel.backend' AS backend,
    TRY_CAST(told.config ->> '$.parallel.ulysses' AS INTEGER) AS ulysses,
    TRY_CAST(told.config ->> '$.parallel.ring' AS INTEGER) AS ring,
    COALESCE(TRY_CAST(told.config ->> '$.parallel.cfg' AS INTEGER), 1) AS cfg,
    TRY_CAST(told.config ->> '$.optimization.attention_slicing' AS BOOLEAN)
        AS attention_slicing,
    TRY_CAST(told.config ->> '$.optimization.ffn_chunks' AS INTEGER)
        AS ffn_chunks,
    TRY_CAST(told.config ->> '$.optimization.vae_slabs' AS INTEGER)
        AS vae_slabs,
    TRY_CAST(told.config ->> '$.optimization.expandable_segments' AS BOOLEAN)
        AS wants_expandable,
    told.allocator_variable,
    told.allocator_conf,
    TRY_CAST(told.environment ->> '$.NCCL_BUFFSIZE' AS BIGINT)
        AS nccl_buffer_bytes,
    CASE
        WHEN grown.has_maps THEN TRUE
        WHEN grown.has_segments THEN FALSE
        WHEN told.source = 'cuda' AND told.environment != '{}'
            THEN COALESCE(
                told.allocator_conf LIKE '%expandable_segments:True%', FALSE
            )
    END AS is_expandable
FROM grown
LEFT JOIN told ON TRUE
LIMIT 1
