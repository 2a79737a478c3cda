-- What one pass over the rows tells of every attribute that has points or files: one row per run, path and type.
-- The pass reads six columns of lake_rows and is the only one over the bulk of the data; tables are made from this.
SELECT
    run_id,
    attribute_path,
    attribute_type,
    count(*) AS row_count,
    count(float_value) - count(finite_value) AS non_finite_count,
    count(*) FILTER (isnan(float_value)) AS nan_count,
    count(*) FILTER (float_value = 'infinity') AS positive_infinity_count,
    -- By step. As a decimal it would make DuckDB compare by sort keys, which is slow and turns -0.0 into 0.0. A double
    -- tells steps apart below 9e9; exact_ends.sql looks again at series that go beyond.
    arg_min(float_value, step::DOUBLE) AS first_value,
    arg_max(float_value, step::DOUBLE) AS last_value,
    -- DuckDB sorts NaN above everything and sums infinities: only finite values may count here.
    min(finite_value) AS min_value,
    max(finite_value) AS max_value,
    -- A plain sum of finite values can overflow though their mean cannot: 2^-64 is exact and leaves room for 2^64
    -- summands. favg compensates rounding errors.
    favg(finite_value * 5.421010862427522e-20) * 18446744073709551616.0 AS mean_value,
    min(step) AS first_step,
    max(step) AS last_step,
    min("timestamp") AS first_time,
    max("timestamp") AS last_time,
    -- Only where sums of squares neither vanish nor overflow, as in neptune_assets/lake/moments.py.
    CASE
        WHEN min(finite_value) = max(finite_value) THEN 0
        WHEN greatest(abs(min(finite_value)), abs(max(finite_value))) < 1e120
            AND max(finite_value) - min(finite_value) > 1e-120
            THEN var_pop(finite_value) FILTER (abs(finite_value) < 1e120)
    END AS variance_value
FROM (
    SELECT
        run_id,
        attribute_path,
        attribute_type,
        step,
        "timestamp",
        float_value,
        CASE WHEN isfinite(float_value) THEN float_value END AS finite_value
    FROM lake_rows
    WHERE attribute_type NOT IN ('float', 'int', 'string', 'bool', 'datetime', 'string_set')
)
GROUP BY run_id, attribute_path, attribute_type
