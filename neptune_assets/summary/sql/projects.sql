-- One row for the project. An empty project has one, too: zero runs is an answer.
WITH counted AS (
    SELECT
        count(*) FILTER (attribute_type = 'float_series') AS metrics,
        coalesce(sum(row_count) FILTER (attribute_type = 'float_series'), 0) AS points,
        coalesce(sum(row_count), 0) AS row_count
    FROM series_facts
),

named AS (
    SELECT count(*) AS attributes
    FROM (
        SELECT attribute_path, attribute_type FROM series_facts
        UNION
        SELECT attribute_path, attribute_type FROM params_facts
    )
),

stored AS (
    SELECT count(*) AS files, coalesce(sum(size), 0) AS file_bytes FROM manifest_files
)

SELECT
    (SELECT project_id FROM project) AS project_id,
    count(*) AS runs,
    count(*) FILTER (lake_state = 'complete') AS complete_runs,
    count(*) FILTER (lake_state <> 'complete') AS partial_runs,
    count(vanished_at) AS vanished_runs,
    count(parent) AS forked_runs,
    (SELECT attributes FROM named) AS attributes,
    (SELECT metrics FROM counted) AS metrics,
    (SELECT points::BIGINT FROM counted) AS points,
    (SELECT row_count::BIGINT FROM counted) + (SELECT count(*) FROM params_facts) AS "rows",
    (SELECT files FROM stored) AS files,
    (SELECT file_bytes::BIGINT FROM stored) AS file_bytes,
    coalesce(sum(parquet_bytes), 0)::BIGINT AS parquet_bytes,
    coalesce(sum(errors), 0)::BIGINT AS errors,
    min(created_at) AS first_created_at,
    max(created_at) AS last_created_at,
    max(committed_at) AS last_committed_at,
    (SELECT digest FROM project) AS digest
FROM run_facts
