-- Forks from the roots downwards: a run in or below a cycle hangs on no root, so it is never reached and the walk ends.
WITH RECURSIVE short_ids AS (
    SELECT sys_id, min(run_id) AS run_id
    FROM run_facts
    WHERE sys_id IS NOT NULL
    GROUP BY sys_id
),

linked AS (
    -- Exports name the parent by its own id; where no run has it, it may be Neptune's short one.
    SELECT
        run_facts.run_id,
        run_facts.parent,
        coalesce(parents.run_id, short_ids.run_id) AS parent_run_id,
        run_facts.fork_step
    FROM run_facts
    LEFT JOIN run_facts AS parents ON parents.run_id = run_facts.parent
    LEFT JOIN short_ids ON short_ids.sys_id = run_facts.parent
),

tree AS (
    SELECT run_id, 0::BIGINT AS depth, run_id AS root
    FROM linked
    WHERE parent_run_id IS NULL
    UNION ALL
    SELECT linked.run_id, tree.depth + 1, tree.root
    FROM tree
    JOIN linked ON linked.parent_run_id = tree.run_id
)

SELECT
    project.project_id,
    linked.run_id,
    linked.parent,
    linked.parent_run_id,
    linked.fork_step,
    tree.depth,
    tree.root,
    linked.parent IS NOT NULL AND linked.parent_run_id IS NULL AS orphan,
    tree.run_id IS NULL AS cyclic
FROM linked
CROSS JOIN project
LEFT JOIN tree ON tree.run_id = linked.run_id
ORDER BY linked.run_id
