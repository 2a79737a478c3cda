-- One row per stored file, as the manifest has it: size and hash were taken when the bytes were written.
SELECT
    project.project_id,
    manifest_files.run_id,
    manifest_files.attribute_path,
    manifest_files.attribute_type,
    manifest_files.step,
    manifest_files.member,
    manifest_files.path,
    manifest_files.size,
    manifest_files.sha256,
    manifest.files_root || '/' || manifest_files.path AS location
FROM manifest_files
JOIN manifest ON manifest.run_id = manifest_files.run_id
CROSS JOIN project
ORDER BY run_id, attribute_path, attribute_type, step, member, path
