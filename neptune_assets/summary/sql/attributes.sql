-- One row per path and type. The same path may have several types, in different runs or even in one.
SELECT
    project.project_id,
    seen.attribute_path,
    seen.attribute_type,
    count(DISTINCT seen.run_id) AS runs,
    sum(seen.row_count)::BIGINT AS "rows",
    -- Parameters and single files carry no timestamp: the run's creation is the best there is.
    min(coalesce(seen.first_time, run_facts.created_at)) AS first_seen,
    max(coalesce(seen.last_time, run_facts.created_at)) AS last_seen
FROM (
    SELECT run_id, attribute_path, attribute_type, row_count, first_time, last_time FROM series_facts
    UNION ALL
    SELECT run_id, attribute_path, attribute_type, 1, NULL, NULL FROM params_facts
) AS seen
CROSS JOIN project
LEFT JOIN run_facts ON run_facts.run_id = seen.run_id
GROUP BY ALL
ORDER BY seen.attribute_path, seen.attribute_type
