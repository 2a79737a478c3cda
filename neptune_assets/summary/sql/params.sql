-- One row per parameter: the typed value, and a text that says exactly the same.
SELECT
    project.project_id,
    run_id,
    attribute_path,
    attribute_type,
    CASE attribute_type
        WHEN 'int' THEN int_value::VARCHAR
        WHEN 'float' THEN float_value::VARCHAR  -- the shortest text that reads back as the same double
        WHEN 'string' THEN string_value
        WHEN 'bool' THEN bool_value::VARCHAR
        -- The session's time zone is UTC. A time that DuckDB cannot hold is told as it is stored.
        WHEN 'datetime'
            THEN coalesce(strftime(datetime_value, '%Y-%m-%dT%H:%M:%S.%gZ'), milliseconds || ' ms since 1970')
        WHEN 'string_set' THEN to_json(string_set_value)::VARCHAR  -- members may hold commas and quotes
    END AS text,
    int_value,
    float_value,
    string_value,
    bool_value,
    datetime_value,
    string_set_value
FROM params_facts
CROSS JOIN project
ORDER BY run_id, attribute_path, attribute_type
