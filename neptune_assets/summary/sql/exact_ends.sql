-- First and last values of series whose steps are so large that doubles cannot tell them apart. Rare, so it may sort.
UPDATE series_facts
SET first_value = exact.first_value, last_value = exact.last_value
FROM (
    SELECT
        run_id,
        attribute_path,
        first(float_value ORDER BY step) AS first_value,
        last(float_value ORDER BY step) AS last_value
    FROM lake_rows
    SEMI JOIN (
        SELECT run_id, attribute_path
        FROM series_facts
        WHERE attribute_type = 'float_series' AND (first_step <= -9e9 OR last_step >= 9e9) AND first_step < last_step
    ) AS far USING (run_id, attribute_path)
    WHERE attribute_type = 'float_series' AND step IS NOT NULL AND float_value IS NOT NULL
    GROUP BY run_id, attribute_path
) AS exact
WHERE
    series_facts.run_id = exact.run_id
    AND series_facts.attribute_path = exact.attribute_path
    AND series_facts.attribute_type = 'float_series'
