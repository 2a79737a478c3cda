-- Every run of the manifest with what its sys/ attributes say. The manifest leads: a run without rows is still a run.
WITH system AS (
    SELECT
        run_id,
        any_value(string_value) FILTER (attribute_path = 'sys/id') AS sys_id,
        any_value(string_value) FILTER (attribute_path = 'sys/custom_run_id') AS custom_run_id,
        any_value(string_value) FILTER (attribute_path = 'sys/name') AS name,
        any_value(string_value) FILTER (attribute_path = 'sys/description') AS description,
        any_value(datetime_value) FILTER (attribute_path = 'sys/creation_time') AS created_at,
        any_value(datetime_value) FILTER (attribute_path = 'sys/modification_time') AS modified_at,
        any_value(datetime_value) FILTER (attribute_path = 'sys/ping_time') AS pinged_at,
        -- Servers send whole numbers as ints and others as floats, for the running time and for the fork step.
        any_value(coalesce(float_value, int_value::DOUBLE)) FILTER (attribute_path = 'sys/running_time')
            AS running_seconds,
        any_value(string_value) FILTER (attribute_path = 'sys/state') AS run_state,
        any_value(string_value) FILTER (attribute_path = 'sys/owner') AS owner,
        any_value(bool_value) FILTER (attribute_path = 'sys/failed') AS failed,
        any_value(bool_value) FILTER (attribute_path = 'sys/trashed') AS trashed,
        any_value(bool_value) FILTER (attribute_path = 'sys/archived') AS archived,
        any_value(string_set_value) FILTER (attribute_path = 'sys/tags') AS tags,
        any_value(string_set_value) FILTER (attribute_path = 'sys/group_tags') AS group_tags,
        any_value(string_value) FILTER (attribute_path = 'sys/forking/parent') AS parent,
        any_value(coalesce(try_cast(int_value AS DECIMAL(18, 6)), try_cast(float_value AS DECIMAL(18, 6))))
            FILTER (attribute_path = 'sys/forking/step') AS fork_step
    FROM params_facts
    WHERE starts_with(attribute_path, 'sys/')
    GROUP BY run_id
)
SELECT
    manifest.* EXCLUDE (name, created_at, parent, fork_step),
    system.* EXCLUDE (run_id, name, created_at, parent, fork_step),
    coalesce(system.name, manifest.name) AS name,
    coalesce(system.created_at, manifest.created_at) AS created_at,
    -- An empty text is how some exports say "no parent".
    coalesce(nullif(manifest.parent, ''), nullif(system.parent, '')) AS parent,
    coalesce(manifest.fork_step, system.fork_step) AS fork_step
FROM manifest
LEFT JOIN system ON system.run_id = manifest.run_id
