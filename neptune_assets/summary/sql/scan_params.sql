-- The parameters of the runs: few rows, kept as they are. Row groups and pages that hold none are skipped.
SELECT
    run_id,
    attribute_path,
    attribute_type,
    int_value,
    float_value,
    string_value,
    bool_value,
    datetime_value,
    string_set_value
FROM lake_rows
WHERE attribute_type IN ('float', 'int', 'string', 'bool', 'datetime', 'string_set')
