-- One row per run: the manifest and sys/ attributes, with counts from the rows themselves.
WITH counted AS (
    SELECT
        run_id,
        count(*) AS attributes,
        count(*) FILTER (attribute_type = 'float_series') AS metrics,
        coalesce(sum(row_count) FILTER (attribute_type = 'float_series'), 0) AS points,
        sum(row_count) AS row_count
    FROM (
        SELECT run_id, attribute_type, row_count FROM series_facts
        UNION ALL
        SELECT run_id, attribute_type, 1 FROM params_facts
    )
    GROUP BY run_id
),

stored AS (
    SELECT run_id, count(*) AS files, sum(size) AS file_bytes
    FROM manifest_files
    GROUP BY run_id
)

SELECT
    run_facts.*,
    coalesce(counted.attributes, 0) AS attributes,
    coalesce(counted.metrics, 0) AS metrics,
    coalesce(counted.points, 0)::BIGINT AS points,
    coalesce(counted.row_count, 0)::BIGINT AS "rows",
    coalesce(stored.files, 0) AS files,
    coalesce(stored.file_bytes, 0)::BIGINT AS file_bytes
FROM run_facts
LEFT JOIN counted ON counted.run_id = run_facts.run_id
LEFT JOIN stored ON stored.run_id = run_facts.run_id
ORDER BY run_facts.run_id
