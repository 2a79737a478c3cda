-- One row per float series of a run; everything was measured in the one pass over the rows.
SELECT
    project.project_id,
    run_id,
    attribute_path,
    row_count AS "count",
    nan_count,
    positive_infinity_count,
    non_finite_count - nan_count - positive_infinity_count AS negative_infinity_count,
    first_value,
    last_value,
    min_value,
    max_value,
    -- Rounding must not put the mean outside of what it is the mean of.
    least(max_value, greatest(min_value, mean_value)) AS mean_value,
    first_step,
    last_step,
    first_time,
    last_time
FROM series_facts
CROSS JOIN project
WHERE attribute_type = 'float_series'
ORDER BY run_id, attribute_path
